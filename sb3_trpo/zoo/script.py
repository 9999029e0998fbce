"""Call the RL Zoo's scripts as functions: our name, our options, errors of one sentence."""

import argparse
import difflib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NoReturn

from sb3_trpo.zoo.errors import UsageError


class Parser(argparse.ArgumentParser):
    """Parser of a command's options; what it refuses is told in one sentence.

    :param prog: the command, as the user types it
    :param help_text: what it does, with an example
    :param add_help: whether it answers to ``--help``
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


def positive(text: str) -> int:
    """Read a number of things of which at least one is needed; a type of options.

    :param text: what the user gave
    :return: the number
    :raises ArgumentTypeError: if it is not an integer of at least 1
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it has to be an integer of at least 1, not {text}")
    return int(text)


AddOptions = Callable[[Parser], None]


def run_script(
    script: Callable[[], None], prog: str, help_text: str, words: list[str], add_options: AddOptions
) -> None:
    """Run one of the RL Zoo's scripts.

    :param script: the script's function
    :param prog: what the help calls it
    :param help_text: head of its help
    :param words: its command line
    :param add_options: adds options that the script does not know to its help
    """

    def make_parser(*_: str) -> Parser:
        parser = Parser(prog, help_text)
        add_options(parser)
        return parser

    module = sys.modules[script.__module__]
    with (
        replaced(sys, "argv", [prog, *words]),
        replaced(module, "argparse", SimpleNamespace(ArgumentParser=make_parser)),
    ):
        script()


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute another value for the duration of a ``with`` block.

    :param owner: object or module
    :param name: the attribute's name
    :param value: its value inside the block
    """
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
