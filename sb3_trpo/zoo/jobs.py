"""Run commands in processes of their own, some at a time."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import redirect_stdout
from functools import partial
from typing import TypeVar

from sb3_trpo.zoo.errors import UsageError, explain, is_usage_error

Result = TypeVar("Result")


def run_jobs(
    job: Callable[[list[str]], Result], tasks: Sequence[list[str]], jobs: int
) -> Iterator[Result]:
    """Run a job once per task; what it prints is dropped, warnings are not.

    :param job: a function of a module, called with a task in a process of its own
    :param tasks: command lines
    :param jobs: largest number of processes at a time
    :return: results in the order of the tasks, each as soon as it is there
    """
    with ThreadPoolExecutor(min(jobs, len(tasks))) as threads:
        yield from threads.map(partial(_in_a_new_process, job), tasks)


def _in_a_new_process(job: Callable[[list[str]], Result], words: list[str]) -> Result:
    """Run a job in a process of its own, which may have children."""
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(_quietly, job, words).result()


def _quietly(job: Callable[[list[str]], Result], words: list[str]) -> Result:
    """Run a job without its output, and tell the user's mistakes while they can be told apart."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        try:
            return job(words)
        except Exception as error:
            if is_usage_error(error):
                raise UsageError(explain(error)) from error
            raise


def threads_per_job(jobs: int) -> int:
    """Share the processor cores out.

    :param jobs: number of processes at a time
    :return: threads for each, at least 1
    """
    return max(1, (os.cpu_count() or 1) // jobs)
