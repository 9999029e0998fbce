"""Run commands in processes of their own, several at a time."""

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager, redirect_stdout
from multiprocessing.context import BaseContext
from types import FrameType
from typing import NamedTuple, TypeVar

from sb3_trpo.zoo.interruptions import TerminatedError, kill_children
from sb3_trpo.zoo.script import verbosity
from sb3_trpo.zoo.workers import worker_context

Result = TypeVar("Result")
THREAD_NAME = "sb3-trpo-job"
SECONDS_BETWEEN_LOOKS = 2.0
PATIENCE = 5.0  # seconds that a process has to end by itself


def run_jobs(
    job: Callable[[list[str]], Result],
    tasks: Sequence[list[str]],
    jobs: int,
    meanwhile: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, "Future[Result]"]]:
    """Run a job once per task, without its output but with its warnings.

    If the caller stops early, because of an error or an interruption, all processes end at once.

    :param job: a function of a module, called with a task in a process of its own
    :param tasks: command lines
    :param jobs: largest number of processes at a time
    :param meanwhile: called every two seconds while no task finishes
    :return: position of a task and its future, which is done and has the result or the error, in
        the order in which the tasks finish
    """
    with _raising_at_sigterm():
        yield from _run_jobs(job, tasks, jobs, meanwhile)


@contextmanager
def _raising_at_sigterm() -> Iterator[None]:
    """Raise at SIGTERM as at Ctrl-C: else this process would end, and leave the others."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise TerminatedError

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run_jobs(
    job: Callable[[list[str]], Result],
    tasks: Sequence[list[str]],
    jobs: int,
    meanwhile: Callable[[], None],
) -> Iterator[tuple[int, "Future[Result]"]]:
    context = worker_context()
    threads = ThreadPoolExecutor(
        min(jobs, len(tasks)), THREAD_NAME, initializer=_leave_interrupts_to_parent
    )
    is_complete = False
    try:
        positions = {
            threads.submit(_in_a_new_process, context, job, words): position
            for position, words in enumerate(tasks)
        }
        pending = set(positions)
        while pending:
            done, pending = wait(pending, SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)
            if not done:
                meanwhile()
            for future in done:
                yield positions[future], future
        is_complete = True
    finally:
        threads.shutdown(wait=is_complete, cancel_futures=True)
        if not is_complete:
            _end_processes()


def _leave_interrupts_to_parent() -> None:
    """Block Ctrl-C, and not SIGTERM, in this thread and in the processes that it starts."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGINT})


def _end_processes() -> None:
    """End the processes that still run, including one that starts at this moment."""
    deadline = time.monotonic() + PATIENCE
    while any(thread.name.startswith(THREAD_NAME) for thread in threading.enumerate()):
        is_late = time.monotonic() > deadline
        for process in multiprocessing.active_children():
            process.kill() if is_late else process.terminate()
        time.sleep(0.05)


def _in_a_new_process(
    context: BaseContext, job: Callable[[list[str]], Result], words: list[str]
) -> Result:
    """Run a job in a process of its own, which may have children."""
    with ProcessPoolExecutor(1, context, initializer=_follow_parent) as process:
        outcome = process.submit(_outcome, job, words).result()
    if isinstance(outcome, Failure):
        raise outcome.error() from JobError(outcome.traceback)
    return outcome


class JobError(Exception):
    """An error of a job whose class this process does not have or cannot make again."""


class Failure(NamedTuple):
    """An error of a job."""

    pickled: bytes
    summary: str
    traceback: str

    def error(self) -> Exception:
        """Make the error again."""
        try:
            error = pickle.loads(self.pickled)
        except Exception:  # whatever its class does, or because there is no such module here
            return JobError(self.summary)
        return error if isinstance(error, Exception) else JobError(self.summary)


def _outcome(job: Callable[[list[str]], Result], words: list[str]) -> Result | Failure:
    """Run a job; its error is no exception here, as pickle may lose it on the way."""
    try:
        return _quietly(job, words)
    except Exception as error:
        try:
            pickled = pickle.dumps(error)
        except Exception:
            pickled = b""
        return Failure(pickled, f"{type(error).__name__}: {error}", traceback.format_exc())


def _follow_parent() -> None:
    """Leave Ctrl-C to the process that started this one, and end when it says so or is killed."""
    _leave_interrupts_to_parent()
    signal.signal(signal.SIGTERM, _end)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        _end()


def _end(*_: object) -> None:
    """End this process, and its own before they miss it and print that they do."""
    kill_children()
    os._exit(128 + signal.SIGTERM)


def _quietly(job: Callable[[list[str]], Result], words: list[str]) -> Result:
    """Run a job without its output, unless that was asked for."""
    if verbosity(words) > 1:
        return job(words)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        return job(words)
