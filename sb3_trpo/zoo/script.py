"""Call the RL Zoo's scripts as functions, with our program name, options and error messages."""

import argparse
import ast
import difflib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from types import SimpleNamespace
from typing import Any, NoReturn

from sb3_trpo.zoo.errors import UsageError


def positive(text: str) -> int:
    """Parse an integer of at least 1, like ``10000`` or ``1e4``; a type of options.

    :param text: the option's value
    :return: the integer
    :raises ArgumentTypeError: if it is anything else
    """
    number = _number(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"it has to be an integer of at least 1, not {text}")
    return number


def interval(text: str) -> int:
    """Parse a number of updates; a type of options.

    :param text: the option's value
    :return: the number; -1 stands for the usual one
    :raises ArgumentTypeError: if it is no other integer of at least 1
    """
    return -1 if text == "-1" else positive(text)


def seed(text: str) -> int:
    """Parse a seed; a type of options.

    :param text: the option's value
    :return: the seed; -1 lets the RL Zoo draw one
    :raises ArgumentTypeError: if no generator takes it
    """
    try:
        number = int(text)
    except ValueError:
        number = -2
    if not -1 <= number < 2**32:
        raise argparse.ArgumentTypeError(
            f"a seed has to be an integer from 0 to 2**32 - 1, or -1 for any, not {text}"
        )
    return number


def _number(text: str) -> int:
    """Parse a whole number; 0 stands for anything else."""
    try:
        number = float(text)
    except ValueError:
        return 0
    return int(number) if number.is_integer() else 0


class Assignments(argparse.Action):
    """Read words like ``target_kl:0.02`` into a dictionary."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Store the dictionary.

        :param parser: the parser
        :param namespace: where to store it
        :param values: the words
        :param option_string: the option, as the user typed it
        :raises UsageError: if a word is not ``name:value``
        """
        assigned = dict(_assignment(word, option_string) for word in values or ())
        setattr(namespace, self.dest, assigned)


def _assignment(word: str, option: str | None) -> tuple[str, Any]:
    """Read one word: a number or another value that Python writes as such, or else text."""
    name, colon, value = word.partition(":")
    if not colon:
        raise UsageError(f"{option} takes name:value, as in {option} target_kl:0.02, not '{word}'")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return name, value


# Options of the RL Zoo's scripts that are read or shown in another way.
CHANGED: dict[str, dict[str, Any]] = {
    "--n-timesteps": {"type": positive},
    "--seed": {"type": seed},
    "--n-envs": {"type": positive},
    "--n-eval-envs": {"type": positive},
    "--eval-episodes": {"type": positive},
    "--log-interval": {"type": interval},
    "--hyperparams": {"action": Assignments},
    "--env-kwargs": {"action": Assignments},
    "--eval-env-kwargs": {"action": Assignments},
    # Off-policy algorithms only.
    "--save-replay-buffer": {"help": argparse.SUPPRESS},
    "--truncate-last-trajectory": {"help": argparse.SUPPRESS},
}


class Parser(argparse.ArgumentParser):
    """Parser of a command's options that raises a UsageError for bad ones.

    :param prog: the command, as the user types it
    :param help_text: what the command does, with an example
    :param add_help: whether to add ``--help``
    """

    def __init__(self, prog: str, help_text: str, add_help: bool = True) -> None:
        super().__init__(
            prog=prog,
            usage="%(prog)s [options]",
            description=help_text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=add_help,
            allow_abbrev=False,
        )

    def add_argument(self, *flags: Any, **options: Any) -> argparse.Action:
        """Add an option, with the changes in ``CHANGED``.

        :param flags: as for ``ArgumentParser``
        :param options: as for ``ArgumentParser``
        :return: the option
        """
        for flag in flags:
            options |= CHANGED.get(flag, {})
        return super().add_argument(*flags, **options)

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        :param message: what argparse found
        :raises UsageError: always, with the remedy
        """
        remedy = f"'{self.prog} --help' lists the options"
        unknown = message.partition("unrecognized arguments: ")[2].split()
        nearest = difflib.get_close_matches("".join(unknown[:1]), self._option_string_actions)
        if nearest:
            remedy = f"the nearest options are {', '.join(nearest)}; {remedy}"
        raise UsageError(f"{message}: {remedy}")


AddOptions = Callable[[Parser], None]


def run_script(
    script: Callable[[], None], prog: str, help_text: str, words: list[str], add_options: AddOptions
) -> None:
    """Run one of the RL Zoo's scripts.

    :param script: function of the script
    :param prog: program name in the script's help
    :param help_text: head of the script's help
    :param words: command line
    :param add_options: adds options that the script lacks to its help
    """

    def make_parser(*_: str) -> Parser:
        parser = Parser(prog, help_text)
        add_options(parser)
        return parser

    module = sys.modules[script.__module__]
    with (
        quiet_if_asked(words),
        replaced(sys, "argv", [prog, *words]),
        replaced(module, "argparse", SimpleNamespace(ArgumentParser=make_parser)),
    ):
        script()


@contextmanager
def quiet_if_asked(words: list[str]) -> Iterator[None]:
    """Print nothing within the block if the command line says ``--verbose 0``.

    :param words: command line
    """
    if asks_for_help(words) or verbosity(words) > 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def verbosity(words: list[str]) -> int:
    """Read how much a command should print.

    :param words: command line
    :return: value of ``--verbose``; 1 by default
    """
    parser = Parser("", "", add_help=False)
    parser.add_argument("--verbose", type=int, default=1)
    verbose: int = parser.parse_known_args(words)[0].verbose
    return verbose


def asks_for_help(words: list[str]) -> bool:
    """Return whether a command line asks for help.

    :param words: command line
    :return: whether one of its words is ``-h`` or ``--help``
    """
    return bool({"-h", "--help"} & set(words))


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute within a ``with`` block.

    :param owner: object or module
    :param name: name of the attribute
    :param value: value of the attribute inside the block
    """
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
