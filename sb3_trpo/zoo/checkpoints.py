"""Checkpoints of a run."""

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
        """Measure the files to which a run appends: bytes by their names."""
        return {name: path.stat().st_size for name, path in log_files(self._run).items()}


def log_files(run: Path) -> dict[str, Path]:
    """List the files to which a run appends.

    :param run: the run's folder
    :return: paths by their names; no symbolic links
    """
    paths = [*run.glob("*.monitor.csv"), *run.glob(PROGRESS)]
    return {path.name: path for path in paths if path.is_file() and not path.is_symlink()}


def checkpoint_folder(run: Path) -> Path:
    """Name the folder of a run's checkpoints.

    :param run: the run's folder
    :return: the folder
    """
    return run / "checkpoints"
