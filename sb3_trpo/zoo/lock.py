"""One process at a time trains in a run's folder."""

from contextlib import suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from sb3_trpo.zoo.errors import UsageError

LOCK = "run.lock"


def lock_run(run: Path) -> BaseFileLock:
    """Claim a run's folder until the lock is released or this process ends.

    :param run: the folder
    :return: the lock; without effect where the file system has no locks
    :raises UsageError: if another process trains there
    """
    lock = FileLock(run / LOCK)
    try:
        with suppress(NotImplementedError):
            lock.acquire(blocking=False)
    except Timeout as error:
        raise UsageError(
            f"another process is training in {run}: wait for its end, or stop it first"
        ) from error
    return lock
