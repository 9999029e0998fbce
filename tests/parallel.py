"""Run functions in several processes that train together."""

import os
import socket
import time
import warnings
import weakref
from collections.abc import Callable, Collection
from datetime import timedelta
from importlib import import_module
from multiprocessing import get_context, set_forkserver_preload
from typing import Any, Final

import torch as th
from torch import distributed as dist
from torch.multiprocessing.spawn import start_processes

# A function of a test module, which every process calls.
Work = Callable[..., None]

TIMEOUT = timedelta(seconds=60)
PATIENCE = 300.0  # seconds, on a busy machine

# Processes are forked from one that has imported what they need, which takes seconds.
METHOD: Final = "forkserver"
set_forkserver_preload(["sb3_trpo.trpo", "tests.test_parallel"])


def in_processes(size: int, work: Work, *arguments: Any) -> None:
    """
    Run a function in several processes of one gloo group.

    :param size: number of processes
    :param work: called with the rank and the arguments; what it asserts fails the test
    :param arguments: can be pickled
    """
    port = free_port()
    start: Any = start_processes  # which has no annotations
    start(_run, (size, port, TIMEOUT, work, arguments), nprocs=size, start_method=METHOD)


def exit_codes(
    size: int,
    work: Work,
    *arguments: Any,
    timeout: timedelta = TIMEOUT,
    hanging: Collection[int] = (),
) -> list[int | None]:
    """
    Run a function in processes that may end without the others.

    :param size: number of processes
    :param work: called with the rank and the arguments
    :param arguments: can be pickled
    :param timeout: of the group
    :param hanging: ranks of processes that do not end; the end of the others is waited for
    :return: exit code of each process; ``None`` for one that has not ended by then
    """
    context, port = get_context(METHOD), free_port()
    options = [(rank, size, port, timeout, work, arguments, False) for rank in range(size)]
    processes = [context.Process(target=_run, args=each) for each in options]
    for process in processes:
        process.start()
    end = time.monotonic() + PATIENCE
    for rank in set(range(size)).difference(hanging):
        processes[rank].join(max(end - time.monotonic(), 0))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(
    rank: int,
    size: int,
    port: int,
    timeout: timedelta,
    work: Work,
    arguments: Any,
    leave: bool = True,
) -> None:
    """Join the group, work, and leave it."""
    warnings.simplefilter("ignore")  # of batch sizes that do not divide a rollout
    th.set_num_threads(1)
    import_module("sb3_trpo.trpo")  # before there is a group, which its import would keep alive
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=size, timeout=timeout)
    work(rank, *arguments)
    if not leave:
        return
    dist.barrier()
    group = weakref.ref(dist.group.WORLD)
    dist.destroy_process_group()
    assert group() is None, "the group's threads are alive and may abort the interpreter's exit"
