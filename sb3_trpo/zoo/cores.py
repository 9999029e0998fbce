"""How many runs there are at a time, and how many threads each of them has."""

import math
import os
from pathlib import Path

import torch as th

from sb3_trpo.zoo.script import Parser, positive

CONTROL_GROUP = Path("/sys/fs/cgroup")


def add_jobs(parser: Parser, meaning: str) -> None:
    """Add the option for the number of processes, by default one per core.

    :param parser: parser of a command
    :param meaning: what the number counts
    """
    help_text = f"{meaning} (processor cores)"
    parser.add_argument("--jobs", type=positive, default=available_cores(), help=help_text)


def available_cores() -> int:
    """Count the processor cores that this process may use.

    :return: those that a scheduler or a container's quota of processor time leaves, at least 1
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, math.ceil(min(cores, quota(CONTROL_GROUP))))


def quota(control_group: Path) -> float:
    """Read how many cores' time Linux grants a container, which still shows it all cores.

    :param control_group: folder where the container sees its limits, of either version
    :return: infinity without a limit
    """
    joint, version_1 = control_group / "cpu.max", control_group / "cpu"
    try:
        if joint.exists():
            granted, period = joint.read_text().split()
        else:
            granted = (version_1 / "cpu.cfs_quota_us").read_text()
            period = (version_1 / "cpu.cfs_period_us").read_text()
    except OSError:
        return math.inf
    has_limit = granted.strip() not in ("max", "-1")
    return int(granted) / int(period) if has_limit else math.inf


def threads_per_job(jobs: int) -> int:
    """Divide torch's threads, ``OMP_NUM_THREADS`` or one per core, among processes.

    :param jobs: number of processes at a time
    :return: threads for each, at least 1
    """
    return max(1, min(th.get_num_threads(), available_cores()) // jobs)
