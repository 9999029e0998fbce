"""The processes that torchrun starts for one ``sb3-trpo train``."""

import argparse
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn

import numpy as np
import torch as th
from stable_baselines3.common.utils import get_device
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from sb3_trpo._processes import (
    ALONE,
    LostContactError,
    OtherProcessError,
    Processes,
    processes_of,
)
from sb3_trpo.zoo.errors import UsageError
from sb3_trpo.zoo.register import ALGORITHMS
from sb3_trpo.zoo.script import Parser, asks_for_help, positive

TIMEOUT = "--process-timeout"
SECONDS = 600
# torchrun ends all processes as soon as one has ended, and calls that one the cause: the others
# leave the first exit to the process that reports.
SECONDS_BEFORE_SILENT_EXIT = 15.0


def is_torchrun() -> bool:
    """Return whether torchrun has started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def is_restart() -> bool:
    """Return whether torchrun has started the processes anew after one failed."""
    return is_torchrun() and _restarts() > 0


def _restarts() -> int:
    """Count how often torchrun has started the processes anew."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def launch_name() -> str:
    """Name this call of torchrun, the same before and after a restart.

    :return: torchrun's own name or, for its default, that of its process
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return f"{socket.gethostname()} {os.getppid()}" if name == "none" else name


def refuse_torchrun(what: str) -> None:
    """Refuse what several processes cannot do together.

    :param what: a command or an option
    :raises UsageError: in the first of the processes that torchrun has started
    """
    if not is_torchrun():
        return
    if os.environ.get("RANK", "0") != "0":
        time.sleep(SECONDS_BEFORE_SILENT_EXIT)
        raise SystemExit(2)
    raise UsageError(f"{what} does not run under torchrun: start it as usual, in one process")


def add_timeout(parser: Parser) -> None:
    """Add the option for how long the processes wait for each other.

    :param parser: parser of a command
    """
    parser.add_argument(
        TIMEOUT,
        type=positive,
        default=SECONDS,
        help=f"under torchrun: seconds after which a process that does not answer ends the "
        f"training; longer than a rollout with its evaluation ({SECONDS})",
    )


@contextmanager
def joined_processes(words: list[str]) -> Iterator[Processes]:
    """Join the processes that torchrun has started, and leave them at the end of the block.

    :param words: command-line options of a training
    :return: all processes; this one alone without torchrun
    :raises UsageError: if the processes cannot train together
    """
    if not is_torchrun() or asks_for_help(words):
        yield ALONE
        return
    options = _parse(words)
    device = _device(options.device)
    _join("nccl" if device.type == "cuda" else "gloo", options.process_timeout)
    try:
        processes = processes_of(True, device)
        with _one_report(processes):
            _check(options)
            yield processes
    finally:
        dist.destroy_process_group()


def _join(backend: str, timeout: float) -> None:
    """Join the process group."""
    limit = timedelta(seconds=timeout)
    store, rank, size = next(iter(rendezvous("env://", timeout=limit)))
    # torchrun's store may still hold the addresses of the processes before a restart.
    attempt = PrefixStore(f"attempt_{_restarts()}", store)
    dist.init_process_group(backend, store=attempt, rank=rank, world_size=size, timeout=limit)


def current_processes() -> Processes:
    """Return the processes that this one has joined."""
    is_joined = dist.is_available() and dist.is_initialized()
    return processes_of(is_joined and is_torchrun(), th.device("cpu"))


def _parse(words: list[str]) -> argparse.Namespace:
    """Read the options that matter here."""
    parser = Parser("sb3-trpo train", "", add_help=False)
    parser.add_argument("--algo", default="trpo")
    parser.add_argument("--device", default="auto")
    parser.add_argument("-optimize", "--optimize-hyperparameters", action="store_true")
    add_timeout(parser)
    return parser.parse_known_args(words)[0]


def _check(options: argparse.Namespace) -> None:
    """Refuse what several processes cannot train."""
    if options.algo not in ALGORITHMS:
        raise UsageError(
            f"--algo {options.algo} does not train in several processes: choose one of "
            f"{', '.join(ALGORITHMS)}, or start it without torchrun"
        )
    if options.optimize_hyperparameters:
        raise UsageError("-optimize does not run under torchrun: start it as usual, in one process")


def _device(name: str) -> th.device:
    """Choose the device of this process: the GPU of its number on this machine."""
    device = get_device(name)
    if device.type == "cuda":
        processes, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), th.cuda.device_count()
        if processes > gpus:
            refuse_torchrun(
                f"--device {name} with {processes} processes and {gpus} GPUs on one machine "
                f"(--device cpu trains without them)"
            )
        th.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return device


@contextmanager
def _one_report(processes: Processes) -> Iterator[None]:
    """Let one process report why all of them end."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        if processes.rank > 0:
            raise SystemExit(getattr(interruption, "status", 130)) from None
        raise
    except OtherProcessError:
        _leave(SECONDS_BEFORE_SILENT_EXIT)
    except Exception as error:
        if not processes.is_first_to("report"):
            _leave(SECONDS_BEFORE_SILENT_EXIT)
        if not isinstance(error, LostContactError):
            raise
        print(f"sb3-trpo: error: {error}", file=sys.stderr)
        _leave()


def _leave(delay: float = 0.0) -> NoReturn:
    """End this process, but not by the destructors of its group: these may wait for lost ones."""
    time.sleep(delay)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(1)


def words_of_process(words: list[str], processes: Processes) -> list[str]:
    """Adapt command-line options of a training to one of its processes.

    :param words: as the user wrote them
    :param processes: that train together
    :return: options with one seed for all; only the first process prints and tracks
    """
    if processes is ALONE:
        return words
    parser = Parser("sb3-trpo train", "", add_help=False)
    parser.add_argument("--seed", default=-1)
    seed = parser.parse_known_args(words)[0].seed
    drawn = int(np.random.default_rng().integers(2**32)) if seed == -1 else seed
    words = [*words, "--seed", str(processes.of_first(drawn))]
    if processes.rank == 0:
        return words
    return [*(word for word in words if word != "--track"), "--verbose", "0"]
