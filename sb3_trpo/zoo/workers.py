"""Processes that start at once: forked from a server that has imported what they need.

Importing torch, Stable-Baselines3 and the RL Zoo takes several seconds and some hundred megabytes,
which each process of environments, and each run of several, would spend for itself.
"""

import multiprocessing
import sys
from multiprocessing.context import BaseContext


def worker_context() -> BaseContext:
    """Choose how processes start, and what they find imported.

    :return: on Linux, a context whose processes are forked from a server, which runs no thread that
        they could miss; elsewhere one whose processes import all for themselves
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    multiprocessing.set_forkserver_preload(["sb3_trpo.zoo.worker"])
    return multiprocessing.get_context("forkserver")
