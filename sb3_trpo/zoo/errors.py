"""Tell the user's mistakes from faults, and say them in one sentence."""

import difflib
import inspect
import pickle
import re
import traceback
import zipfile
from collections.abc import Callable, Iterable

import gymnasium as gym

# Where a wrong option, value, file or environment name is noticed.
TOOLS = {"sb3_trpo", "rl_zoo3", "stable_baselines3", "sb3_contrib", "gymnasium", "optuna", "wandb"}
PLUMBING = {"argparse", "importlib", "runpy", "sqlalchemy", "yaml"}

# What checks the optimizer's settings, and reads and writes the files that the user names.
# Its other errors are faults of ours.
LIBRARIES = {"torch", "zipfile", "matplotlib", "PIL", "pathlib", "functools", "contextlib"}
BROKEN = (zipfile.BadZipFile, pickle.UnpicklingError, EOFError)

# Keys of a configuration that the RL Zoo takes out before it builds the model.
ZOO_KEYS = ("n_envs", "n_timesteps", "normalize", "frame_stack", "env_wrapper", "callback")
UNEXPECTED = re.compile(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'")


class UsageError(Exception):
    """A mistake in the command line, already worded for the user."""


def is_usage_error(error: Exception) -> bool:
    """Whether ``error`` can be told in one sentence, its traceback left out.

    Only what our tools notice before training qualifies. As soon as someone else's code takes part
    (an environment, a custom policy) or training has begun, the traceback matters.

    :param error: a caught exception
    :return: whether its message is enough for the user
    """
    if isinstance(error, UsageError):
        return True
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    paths = [str(frame.f_globals.get("__name__")) for frame in frames]
    modules = [path.partition(".")[0] for path in paths]
    functions = {frame.f_code.co_name for frame in frames}
    if isinstance(error, gym.error.DependencyNotInstalled):  # can be noticed at the first picture
        return modules[-1] in TOOLS
    if isinstance(error, SyntaxError) and error.filename != "<string>":  # not of the command line
        return False  # but in a file of the user's, which has no frame yet
    known = TOOLS | PLUMBING
    if is_about_a_file(error, functions) or is_about_the_optimizer(error, paths):
        known |= LIBRARIES
    return set(modules) <= known and "learn" not in functions


def is_about_the_optimizer(error: Exception, paths: list[str]) -> bool:
    """Whether torch refuses a setting of the optimizer, as a learning rate below 0.

    :param error: a caught exception
    :param paths: names of the modules that it came through, the innermost last
    :return: whether the optimizer's constructor has checked its arguments
    """
    refused = isinstance(error, ValueError) and str(error).startswith("Invalid ")
    return refused and "".join(paths[-1:]).startswith("torch.optim.")


def is_about_a_file(error: Exception, functions: set[str]) -> bool:
    """Whether a file cannot be loaded, or not be written where or as what the user wants it.

    :param error: a caught exception
    :param functions: names of the functions that it came through
    :return: whether reading or writing the file, and nothing else, has failed
    """
    if "load" in functions:
        return isinstance(error, (OSError, *BROKEN))
    if "savefig" in functions and isinstance(error, ValueError):
        return str(error).startswith("Format ") and "is not supported" in str(error)
    return bool({"savefig", "write_bytes"} & functions) and isinstance(error, OSError)


def explain(error: Exception) -> str:
    """Word a usage error as one line.

    :param error: an exception for which :func:`is_usage_error` holds
    :return: what is wrong and what to do about it
    """
    message = " ".join(str(error).split())
    if isinstance(error, UsageError):
        return message
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: '{error.filename}'"
    for kind, part, reword in REWORDED:
        if isinstance(error, kind) and part in message:
            return reword(message)
    if not message or not isinstance(error, (ValueError, AssertionError, gym.error.Error)):
        message = f"{type(error).__name__}: {message}"  # the message alone may say too little
    return f"{message} (--debug shows where)"


def unexpected_argument(message: str) -> str:
    """Word the error for a hyperparameter, or another keyword argument, that does not exist.

    :param message: Python's
    :return: one sentence, with the nearest names if it is a hyperparameter of ours
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
    """Word the error for an environment that is not registered.

    :param name: the unknown environment's name
    :return: one sentence with the nearest registered names
    """
    found = nearest(name, gym.envs.registry)
    remedy = "--gym-packages imports a package of your own"
    if name.startswith("ALE/") or "NoFrameskip" in name:
        remedy = "Atari games need pip install 'gymnasium[atari]'"
    return f"unknown environment '{name}': {found}; {remedy}"


def nearest(name: str, names: Iterable[str]) -> str:
    """Say which names a misspelled one may stand for.

    :param name: the misspelled name
    :param names: those that there are
    :return: a clause of a sentence
    """
    found = difflib.get_close_matches(name, names)
    return f"the nearest names are {', '.join(found)}" if found else "no name is near it"


# Kind of an error, part of its message, and what is said instead of the message.
Kinds = type[Exception] | tuple[type[Exception], ...]
REWORDED: tuple[tuple[Kinds, str, Callable[[str], str]], ...] = (
    (Exception, "not found in gym registry", lambda text: unknown_environment(text.split()[0])),
    (
        Exception,
        "Could not parse SQLAlchemy URL",
        lambda text: (
            f"{text}: --storage takes a file ending in .log or a URL like sqlite:///study.db"
        ),
    ),
    (
        Exception,
        "No trials are completed yet",
        lambda text: "no trial came to its end: add trials, or see with --verbose 2 why they stop",
    ),
    (Exception, "unexpected keyword argument", unexpected_argument),
    (
        BROKEN,
        "",
        lambda text: "a file of the model is broken: choose another model, or train it again",
    ),
    # The Zoo evaluates what follows a colon.
    (
        NameError,
        "",
        lambda text: f"{text}: text needs quotes of its own, as in -params \"policy:'MlpPolicy'\"",
    ),
    (
        SyntaxError,
        "",
        lambda text: (
            "--hyperparams and --env-kwargs take name:value, as in --hyperparams target_kl:0.02"
        ),
    ),
)
