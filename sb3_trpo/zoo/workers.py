"""Processes that start at once: forked from a server that has imported what they need.

Importing torch, Stable-Baselines3 and the RL Zoo takes several seconds and some hundred megabytes,
which each process of environments, and each run of several, would spend for itself.
"""

import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import BaseContext

from sb3_trpo.zoo.interruptions import left_to_this_process

SERVER_MODULE = "sb3_trpo.zoo.worker"
# Holds what the server's variables were before.
BEFORE = "SB3_TRPO_ENVIRONMENT_BEFORE"


def worker_context() -> BaseContext:
    """Choose how processes start, and what they find imported. Starts the server if there is one.

    :return: on Linux, a context whose processes are forked from a server, which runs no thread that
        they could miss; elsewhere one whose processes import all for themselves
    """
    if not _server_imports_the_same():
        return multiprocessing.get_context("spawn")
    multiprocessing.set_forkserver_preload([SERVER_MODULE])
    try:
        with _search_path_for_new_processes(), left_to_this_process():
            forkserver.ensure_running()
    except OSError:  # such as for the name of its socket, which a long TMPDIR makes too long
        return multiprocessing.get_context("spawn")
    return multiprocessing.get_context("forkserver")


def _server_imports_the_same() -> bool:
    """Tell whether a server can be told where this process finds its modules."""
    heeds_variables = sys.version_info >= (3, 11) and not sys.flags.ignore_environment
    return sys.platform == "linux" and heeds_variables


@contextmanager
def _search_path_for_new_processes() -> Iterator[None]:
    """Let a new Python look for modules where this one does.

    Many releases of Python up to 3.13 start the server with the current folder first in its path,
    and would import a file there that has the name of a package.
    """
    path = os.pathsep.join(map(os.path.abspath, sys.path))
    changed = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed, **{BEFORE: json.dumps(before)})
    try:
        yield
    finally:
        restore_environment()


def restore_environment() -> None:
    """Give the variables that were changed for the server their former values."""
    for name, value in json.loads(os.environ.pop(BEFORE, "{}")).items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
