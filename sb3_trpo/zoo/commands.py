"""The commands of ``sb3-trpo`` and what they have in common."""

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sb3_trpo.zoo.errors import UsageError, explain, is_usage_error


class Command(NamedTuple):
    """Where a command is and what it needs."""

    module: str
    """in ``sb3_trpo.zoo``"""
    function: str
    """called with the command's options"""
    does: str
    """one line for the help"""
    extras: str = "zoo"
    """extras of the package that it needs"""


COMMANDS = {
    "train": Command("train", "train", "train an agent or several seeds, evaluate and draw"),
    "continue": Command("resume", "continue_training", "go on training a model"),
    "enjoy": Command("enjoy", "enjoy", "watch a trained agent"),
    "record-video": Command("record_video", "record_video", "record one", "zoo,video"),
    "plot": Command("plot", "plot", "draw the runs of an environment"),
    "compare": Command("compare", "compare", "one figure and one table for several runs"),
    "optimize": Command("optimize", "optimize", "search for hyperparameters"),
    "export": Command("export", "export", "write a trained policy as an ONNX file", "zoo,onnx"),
}

HELP = """\
usage: sb3-trpo <command> [options]

Trust Region Policy Optimization for Stable-Baselines3, run by the RL Zoo.

commands:
{commands}

options:
  -h, --help  show this help; 'sb3-trpo <command> --help' shows the command's options
  --debug     show the traceback of an error

example:
  sb3-trpo train --env CartPole-v1
  sb3-trpo enjoy --env CartPole-v1
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    :param arguments: the words after ``sb3-trpo``; None reads them from the command line
    :return: exit status: 0, or 2 for a mistake of the user's, told in one sentence on stderr
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    command, *options = [word for word in words if word != "--debug"] or ["--help"]
    if command in ("-h", "--help"):
        print(help_text(), end="")
        return 0
    try:
        find_command(command)(options)
    except Exception as error:
        if debug or not is_usage_error(error):
            raise
        print(f"sb3-trpo: error: {explain(error)}", file=sys.stderr)
        return 2
    return 0


def find_command(name: str) -> Callable[[list[str]], None]:
    """Import a command.

    :param name: a key of ``COMMANDS``
    :return: the command, to be called with its options
    :raises UsageError: when there is no such command, or a package that it needs is missing
    """
    if name not in COMMANDS:
        raise UsageError(f"unknown command '{name}': the commands are {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    try:
        module = importlib.import_module(f"sb3_trpo.zoo.{command.module}")
    except ModuleNotFoundError as error:
        raise UsageError(
            f"'sb3-trpo {name}' needs the package {error.name}: "
            f"pip install 'sb3_trpo[{command.extras}]'"
        ) from error
    function: Callable[[list[str]], None] = getattr(module, command.function)
    return function


def help_text() -> str:
    """Describe all commands.

    :return: the text of ``sb3-trpo --help``
    """
    lines = (f"  {name:<14}{command.does}" for name, command in COMMANDS.items())
    return HELP.format(commands="\n".join(lines))
