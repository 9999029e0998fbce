"""Tell the user's mistakes from faults, and say them in one sentence."""

import difflib
import traceback

import gymnasium as gym

# Where a wrong option, value, file or environment name is noticed.
TOOLS = {"sb3_trpo", "rl_zoo3", "stable_baselines3", "sb3_contrib", "gymnasium", "optuna"}
PLUMBING = {"argparse", "importlib", "runpy", "sqlalchemy", "yaml"}


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
    modules = {str(frame.f_globals.get("__name__")).partition(".")[0] for frame in frames}
    training = any(frame.f_code.co_name == "learn" for frame in frames)
    return modules <= TOOLS | PLUMBING and not training


def explain(error: Exception) -> str:
    """Word a usage error as one line.

    :param error: an exception for which :func:`is_usage_error` holds
    :return: what is wrong and what to do about it
    """
    message = " ".join(str(error).split())
    if isinstance(error, UsageError):
        return message
    if "not found in gym registry" in message:
        return unknown_environment(message.split()[0])
    if "Could not parse SQLAlchemy URL" in message:
        return f"{message}: --storage takes a file ending in .log or a URL like sqlite:///study.db"
    if "No trials are completed yet" in message:
        return "no trial came to its end: add trials, or see with --verbose 2 why they stop"
    if isinstance(error, NameError):
        return f"{message}: text needs quotes of its own, as in -params \"policy:'MlpPolicy'\""
    if "unexpected keyword argument" in message:
        return f"{message}: see --hyperparams, --env-kwargs and the configuration file"
    if not message or not isinstance(error, (ValueError, AssertionError, gym.error.Error)):
        message = f"{type(error).__name__}: {message}"  # the message alone may say too little
    return f"{message} (--debug shows where)"


def unknown_environment(name: str) -> str:
    """Word the error for an environment that is not registered.

    :param name: the unknown environment's name
    :return: one sentence with the nearest registered names
    """
    nearest = difflib.get_close_matches(name, gym.envs.registry)
    found = f"the nearest names are {', '.join(nearest)}" if nearest else "no name is near it"
    return f"unknown environment '{name}': {found}; --gym-packages imports a package of your own"
