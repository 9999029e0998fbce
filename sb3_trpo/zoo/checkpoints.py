"""Checkpoints of a run."""

import os
from pathlib import Path

from sb3_trpo.checkpoint import TrainingCheckpoint
from sb3_trpo.zoo.progress import PROGRESS


class RunCheckpoint(TrainingCheckpoint):
    """
    A checkpoint that also notes how long the run's logs are.

    :param run: the run's folder
    :param save_freq: as for ``TrainingCheckpoint``
    """

    def __init__(self, run: Path, save_freq: float) -> None:
        super().__init__(checkpoint_folder(run), save_freq)
        self._run = run

    def _extra(self) -> dict[str, int]:
        """Measure the run's logs, by their names."""
        return {name: length_of(path) for name, path in log_files(self._run).items()}


def log_files(run: Path) -> dict[str, Path]:
    """List the files to which a run appends.

    :param run: the run's folder
    :return: paths by their names; no symbolic links
    """
    paths = [*run.glob("*.monitor.csv"), *run.glob(PROGRESS)]
    return {path.name: path for path in paths if path.is_file() and not path.is_symlink()}


def length_of(path: Path) -> int:
    """Measure a log.

    :param path: one of :func:`log_files`
    :return: bytes; for ``progress.csv``, lines, as a new column makes all of them longer
    """
    return len(_lines(path)) if path.name == PROGRESS else path.stat().st_size


def shorten(path: Path, length: int) -> None:
    """Remove what was appended to a log.

    :param path: one of :func:`log_files`
    :param length: from :func:`length_of`
    """
    if path.name == PROGRESS:
        length = sum(map(len, _lines(path)[:length]))
    os.truncate(path, length)


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def checkpoint_folder(run: Path) -> Path:
    """Name the folder of a run's checkpoints.

    :param run: the run's folder
    :return: the folder
    """
    return run / "checkpoints"
