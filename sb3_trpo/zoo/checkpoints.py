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
        paths = [*self._run.glob("*.monitor.csv"), *self._run.glob(PROGRESS)]
        return {path.name: path.stat().st_size for path in paths}


def checkpoint_folder(run: Path) -> Path:
    """Name the folder of a run's checkpoints.

    :param run: the run's folder
    :return: the folder
    """
    return run / "checkpoints"
