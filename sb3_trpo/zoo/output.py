"""What a command prints, when nobody reads it any more."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

ENDED = 141  # 128 + SIGPIPE, as shells have it


class OutputEndedError(BrokenPipeError):
    """The reader of a command's output has ended, as ``head`` does after some lines."""


class Output:
    """
    A stream whose reader may end before the command.

    Ctrl-C ends all commands of a pipe, and a terminal that is closed cannot be written to. What a
    command does after such a signal is more important than what it prints.

    :param stream: standard output or error
    """

    is_expendable = False
    """whether what cannot be written is dropped; of all streams, set by the signal"""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        """Read anything else from the stream."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text.

        :param text: to write
        :return: its length
        """
        with self._watched():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Pass on what was written."""
        with self._watched():
            self._stream.flush()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Drop what cannot be written, if it may be; else say that nobody reads it."""
        try:
            yield
        except OSError as error:
            is_ended = isinstance(error, BrokenPipeError)
            if not (is_ended or Output.is_expendable):
                raise
            self._discard()  # what the stream still holds, too
            if not Output.is_expendable:
                raise OutputEndedError from error

    def _discard(self) -> None:
        """Lead the stream to nowhere from now on."""
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())


@contextmanager
def watched_outputs() -> Iterator[None]:
    """Watch standard output and error for the duration of a block; a closed one is replaced."""
    before, Output.is_expendable = (sys.stdout, sys.stderr), False
    with open(os.devnull, "w") as nowhere:
        sys.stdout, sys.stderr = (Output(stream or nowhere) for stream in before)
        try:
            yield
            sys.stdout.flush()
        finally:
            sys.stdout, sys.stderr = before
