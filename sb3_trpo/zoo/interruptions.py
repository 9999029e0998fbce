"""Let Ctrl-C, SIGTERM and a closed terminal end a training between two updates."""

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import resource_tracker, util
from types import FrameType
from typing import Any

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_trpo._environment import vector_layers
from sb3_trpo.zoo.output import Output
from sb3_trpo.zoo.processes import is_torchrun

HANGUP = getattr(signal, "SIGHUP", None)  # a terminal or a connection is closed; not on Windows
SIGNALS = tuple(number for number in (signal.SIGINT, signal.SIGTERM, HANGUP) if number is not None)
NOTICE = b"\nStopping after this update. Once more exits at once, without saving.\n"
# Seconds within which two signals are one: torchrun passes on what its processes may have received
# as well, from Slurm for example.
ONE_SIGNAL = 1.0 if is_torchrun() else 0.0
SHOW_CURSOR = b"\x1b[?25h"  # which a progress bar hides


class TerminatedError(KeyboardInterrupt):
    """A training was ended by SIGTERM, or another signal than Ctrl-C's."""

    def __init__(self, message: str = "", number: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.status = 128 + number


class Interruptions(BaseCallback):
    """
    End the training at the end of the update during which a signal arrives.

    As a context manager, it handles the signals; a second one ends the process at once.

    :param save: is called before the training ends
    :param is_announced: whether to print that the training will end
    """

    def __init__(self, save: Callable[[], Any], is_announced: bool = True) -> None:
        super().__init__()
        self.received: int | None = None
        self._received_at = -math.inf
        self._save = save
        self._is_announced = is_announced
        self._owner = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruptions":
        """Handle the signals, unless another process or thread is in charge of them."""
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and multiprocessing.parent_process() is None:
            self._before = {
                number: signal.signal(number, self._receive)
                for number in SIGNALS
                if number != HANGUP or signal.getsignal(number) != signal.SIG_IGN  # by nohup
            }
        return self

    def __exit__(self, *_: object) -> None:
        """Handle the signals as before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal."""
        if os.getpid() != self._owner:
            return _end_by(number)
        if time.monotonic() - self._received_at < ONE_SIGNAL:
            return
        # A closing terminal sends its signal more than once, and others beside it.
        if self.received is not None and number == HANGUP:
            return
        if self.received not in (None, HANGUP):
            kill_children()  # before they miss this process, and print that they do
            _say(SHOW_CURSOR)
            os._exit(128 + number)
        self.received = number
        self._received_at = time.monotonic()
        Output.is_expendable = True
        if self._is_announced:
            _say(NOTICE)

    def _on_rollout_start(self) -> None:
        """End the training if a signal has arrived: the update before is complete."""
        if self.received is not None:
            self._save()
            raise self.exception()

    def _on_step(self) -> bool:
        """Continue training."""
        return True

    def model_or(self, other: BaseAlgorithm) -> BaseAlgorithm:
        """Return the model that was trained.

        :param other: stands for one whose training has not begun
        :return: the model
        """
        return getattr(self, "model", other)

    def exception(self, message: str = "") -> KeyboardInterrupt:
        """Make the exception that stands for the signal.

        :param message: what it says
        :return: the exception, by which the command knows its exit status
        """
        if self.received in (None, signal.SIGINT):
            return KeyboardInterrupt(message)
        return TerminatedError(message, self.received)


def _say(words: bytes) -> None:
    """Write to the terminal, if there still is one: not by print, which a signal may interrupt."""
    with suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, words)


@contextmanager
def left_to_this_process() -> Iterator[None]:
    """Block the signals in the processes that are started within the block.

    A terminal sends Ctrl-C to all processes; those of environments have to work until the update
    is complete.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Python ends the processes that are left by SIGTERM, and would wait for them.
    util.Finalize(None, kill_children, exitpriority=0)
    resource_tracker.ensure_running()  # which unblocks them when it starts with a first process
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def in_processes(env_fns: list[Callable[[], gym.Env[Any, Any]]], **options: Any) -> SubprocVecEnv:
    """Make a SubprocVecEnv within :func:`left_to_this_process`.

    :param env_fns: as for ``SubprocVecEnv``
    :param options: as for ``SubprocVecEnv``
    :return: the environments
    """
    return SubprocVecEnv([partial(_made_in_worker, make) for make in env_fns], **options)


def _made_in_worker(make: Callable[[], gym.Env[Any, Any]]) -> gym.Env[Any, Any]:
    """Ignore the signals that are blocked, then make an environment.

    What it starts, such as a simulator, would inherit that they are blocked, and not be ended by
    them; handlers are not inherited.
    """
    if hasattr(signal, "pthread_sigmask"):
        worker = os.getpid()

        def ignore(number: int, frame: FrameType | None) -> None:
            if os.getpid() != worker:
                _end_by(number)

        for number in SIGNALS:
            signal.signal(number, ignore)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return make()


def _end_by(number: int) -> None:
    """End a process that was forked, and so has the handlers of another one, by a signal."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def kill_workers(env: VecEnv) -> None:
    """End the processes of environments in the middle of a step, before they miss this process.

    :param env: any vectorised environment
    """
    for process in getattr(vector_layers(env)[1], "processes", []):
        process.kill()


def kill_children() -> None:
    """End the processes of environments that nobody closed, before this one ends."""
    for process in multiprocessing.active_children():
        process.kill()
