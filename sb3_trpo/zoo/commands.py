"""The commands of ``sb3-trpo`` and their common frame."""

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gymnasium.error import DependencyNotInstalled

from sb3_trpo import __version__
from sb3_trpo.zoo.errors import UsageError, missing_package, one_line
from sb3_trpo.zoo.output import ENDED, OutputEndedError, watched_outputs

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Command(NamedTuple):
    """The function of a command and the extras that it needs."""

    module: str
    """in ``sb3_trpo.zoo``"""
    function: str
    """called with the command's options"""
    does: str
    """one line for the help"""
    extras: str = "zoo"
    """extras of the package that it needs"""


COMMANDS = {
    "train": Command("train", "train", "train one or several agents, evaluate and draw them"),
    "continue": Command("continuing", "continue_training", "continue training a model"),
    "enjoy": Command("enjoy", "enjoy", "watch a trained agent"),
    "record-video": Command("record_video", "record_video", "record a trained agent", "zoo,video"),
    "plot": Command("plot", "plot", "draw all runs of an environment"),
    "compare": Command("compare", "compare", "one figure and one table for several runs"),
    "optimize": Command("optimize", "optimize", "search for hyperparameters"),
    "export": Command("export", "export", "write a trained policy as an ONNX file", "zoo,onnx"),
    "push": Command("hub", "push", "upload a trained agent to the Hugging Face hub"),
    "download": Command("hub", "download", "download a trained agent from there"),
}

HELP = """\
usage: sb3-trpo <command> [options]

Trust Region Policy Optimization for Stable-Baselines3, run by the RL Zoo.

commands:
{commands}

options:
  -h, --help  show this help; 'sb3-trpo <command> --help' shows the command's options
  --version   show the version of sb3_trpo
  --debug     show the traceback of an error

example:
  sb3-trpo train --env CartPole-v1
  sb3-trpo enjoy --env CartPole-v1
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    :param arguments: the words after ``sb3-trpo``; None reads them from the command line
    :return: exit status: 0; 2 for a mistake of the user, 130 for an interruption, 143 for SIGTERM
        and 129 for SIGHUP, which are described in one line on stderr; 141 if nobody reads what it
        prints
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with watched_outputs():
            return status_of(words)
    except OutputEndedError:
        return ENDED


def status_of(words: list[str]) -> int:
    """Run one command, and describe its errors.

    :param words: after ``sb3-trpo``
    :return: exit status
    """
    debug = "--debug" in words
    command, *options = [word for word in words if word != "--debug"] or ["--help"]
    if command in ANSWERS:
        print(ANSWERS[command](), end="")
        return 0
    try:
        run(command, options)
    except (UsageError, DependencyNotInstalled) as error:
        if debug:
            raise
        print(f"sb3-trpo: error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        print(f"sb3-trpo: interrupted {one_line(interruption)}".rstrip(), file=sys.stderr)
        return int(getattr(interruption, "status", INTERRUPTED))
    return 0


def run(name: str, options: list[str]) -> None:
    """Run a command; without the extra that it needs, still answer ``--help``.

    :param name: a key of ``COMMANDS``
    :param options: the command's options
    :raises UsageError: if there is no such command, or a package that it needs is missing
    """
    try:
        function = find_command(name)
    except UsageError as error:
        if name not in COMMANDS or not {"-h", "--help"} & set(options):
            raise
        print(f"sb3-trpo {name}: {COMMANDS[name].does}\n\n{error}")
    else:
        function(options)


def find_command(name: str) -> Callable[[list[str]], None]:
    """Import a command.

    :param name: a key of ``COMMANDS``
    :return: the command's function, to be called with the options
    :raises UsageError: if there is no such command, or a package that it needs is missing
    """
    if name not in COMMANDS:
        raise UsageError(f"unknown command '{name}': the commands are {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    try:
        module = importlib.import_module(f"sb3_trpo.zoo.{command.module}")
    except ModuleNotFoundError as error:
        message = missing_package(f"sb3-trpo {name}", error.name, command.extras)
        raise UsageError(message) from error
    function: Callable[[list[str]], None] = getattr(module, command.function)
    return function


def help_text() -> str:
    """Describe all commands.

    :return: the text of ``sb3-trpo --help``
    """
    lines = (f"  {name:<14}{command.does}" for name, command in COMMANDS.items())
    return HELP.format(commands="\n".join(lines))


# What sb3-trpo prints without running a command.
ANSWERS: dict[str, Callable[[], str]] = {
    "-h": help_text,
    "--help": help_text,
    "--version": lambda: f"sb3_trpo {__version__}\n",
}
