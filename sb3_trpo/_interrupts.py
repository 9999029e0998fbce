"""Ctrl-C during an update: it waits for the end of the update."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferring_interrupts() -> Iterator[None]:
    """
    Let Ctrl-C wait for the end of a block, and raise it there.

    An interrupt between two lines could leave hooks on the policy, modules in training mode or
    running statistics half moved. A second Ctrl-C interrupts at once. Nothing changes in other
    threads than the main one, which get no signals, and where the program has its own handler.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    caught: list[int] = []

    def defer(number: int, frame: FrameType | None) -> None:
        if caught:
            signal.default_int_handler(number, frame)
        caught.append(number)

    signal.signal(signal.SIGINT, defer)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if caught:
        raise KeyboardInterrupt
