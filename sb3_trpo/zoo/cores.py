"""How many runs there are at a time, and how many threads each of them has."""

import os

import torch as th

from sb3_trpo.zoo.script import Parser, positive


def add_jobs(parser: Parser, meaning: str) -> None:
    """Add the option for the number of processes, by default one per core.

    :param parser: parser of a command
    :param meaning: what the number counts
    """
    help_text = f"{meaning} (processor cores)"
    parser.add_argument("--jobs", type=positive, default=available_cores(), help=help_text)


def available_cores() -> int:
    """Count the processor cores that this process may use, which a scheduler may have limited."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_per_job(jobs: int) -> int:
    """Divide torch's threads, of which ``OMP_NUM_THREADS`` is the limit, among processes.

    :param jobs: number of processes at a time
    :return: threads for each, at least 1
    """
    return max(1, th.get_num_threads() // jobs)
