"""User errors: one exception class, raised where the mistake is known and shown as one line."""

import difflib
import inspect
import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import yaml

from sb3_trpo.zoo.output import OutputEndedError

# What a library raises when it refuses a hyperparameter, and when it cannot read a model's file.
REFUSED = (ValueError, TypeError, AssertionError)
BROKEN = (zipfile.BadZipFile, pickle.UnpicklingError, EOFError)

# What the Zoo raises for a configuration that is missing, broken or incomplete.
CONFIGURATION_ERRORS = (
    OSError,
    yaml.YAMLError,
    ImportError,
    AttributeError,
    KeyError,
    NameError,
    SyntaxError,
    TypeError,
    ValueError,
)

# Keys of a configuration that the RL Zoo removes before it builds the model.
ZOO_KEYS = ("n_envs", "n_timesteps", "normalize", "frame_stack", "env_wrapper", "callback")
UNEXPECTED = re.compile(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'")


class UsageError(Exception):
    """A mistake of the user, worded for the user.

    It is no ``ValueError``, so that nobody takes it for a failed trial of a search.
    """


@contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Raise the given kinds of exceptions as a :class:`UsageError` within the block.

    The block should read the user's input and not run the user's environment, whose errors need
    their traceback.

    :param kinds: exceptions that mean a mistake of the user here
    :raises UsageError: in place of each of them
    """
    try:
        yield
    except OutputEndedError:
        raise
    except kinds as error:
        raise UsageError(explain(error)) from error


def making_errors(env_kwargs: Mapping[str, Any] | None) -> tuple[type[Exception], ...]:
    """List the exceptions that mean a mistake of the user when an environment is made.

    :param env_kwargs: the user's arguments of the environment
    :return: what a bad argument raises
    """
    return (TypeError,) if env_kwargs else ()


def explain(error: Exception) -> str:
    """Describe an exception in one line.

    :param error: what a library raised because of the user's input
    :return: what is wrong and, where known, what to do about it
    """
    message = one_line(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: '{error.filename}'"
    if "unexpected keyword argument" in message:
        return unexpected_argument(message)
    if isinstance(error, BROKEN):
        return "a file of the model is broken: choose another model, or train it again"
    if not message or not isinstance(error, (ValueError, AssertionError)):
        message = f"{type(error).__name__}: {message}"  # the message alone may say too little
    return f"{message} (--debug shows where)"


def one_line(error: BaseException) -> str:
    """Join the lines of an exception's message.

    :param error: any exception
    :return: its message in one line
    """
    return " ".join(str(error).split())


def unexpected_argument(message: str) -> str:
    """Describe a hyperparameter, or another keyword argument, that does not exist.

    :param message: Python's message
    :return: one sentence, with the nearest names if the hyperparameter is one of ours
    """
    import sb3_trpo

    where = "see --hyperparams, --env-kwargs and the configuration file"
    found = UNEXPECTED.search(message)
    algorithm = getattr(sb3_trpo, found.group(1), None) if found else None
    if found is None or algorithm is None:
        return f"{message}: {where}"
    names = [*inspect.signature(algorithm).parameters, *ZOO_KEYS]
    name = found.group(2)
    return f"{found.group(1)} has no hyperparameter '{name}': {nearest(name, names)}; {where}"


def unknown_environment(name: str) -> str:
    """Describe an environment that is not registered.

    :param name: name of the unknown environment
    :return: one sentence with the nearest registered names, or with what to write
    """
    package, colon, env = name.partition(":")
    if colon:  # as gymnasium.make takes it
        return f"unknown environment '{name}': write --gym-packages {package} --env {env}"
    found = nearest(name, gym.envs.registry)
    remedy = "--gym-packages imports a package that registers your environments"
    if name.startswith("ALE/") or "NoFrameskip" in name:
        remedy = "Atari games need pip install 'gymnasium[atari]'"
    return f"unknown environment '{name}': {found}; {remedy}"


def missing_package(command: str, package: str | None, extras: str) -> str:
    """Say which extra of this package installs what is missing.

    :param command: what the user asked for
    :param package: name of the missing package
    :param extras: extras of this package, separated by commas
    :return: one sentence with the line that installs them
    """
    return f"'{command}' needs the package {package}: pip install 'sb3_trpo[{extras}]'"


def nearest(name: str, names: Iterable[str]) -> str:
    """List the names that a misspelled name may stand for.

    :param name: the misspelled name
    :param names: all valid names
    :return: a clause of a sentence
    """
    found = difflib.get_close_matches(name, names)
    return f"the nearest names are {', '.join(found)}" if found else "no name is near it"
