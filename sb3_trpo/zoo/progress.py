"""A run's log as a file, from which the pictures are drawn."""

import os
from pathlib import Path

import pandas as pd
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import CSVOutputFormat

from sb3_trpo.zoo.errors import UsageError, one_line

PROGRESS = "progress.csv"
STEPS = "time/total_timesteps"
# Steps at which an update was made; SB3 logs an update with the rollout after it. In the file only.
UPDATE_STEPS = "train/total_timesteps"
ELSEWHERE = ("stdout", "log", "json", "tensorboard")


def read_progress(path: Path) -> pd.DataFrame:
    """Read what a run logged.

    :param path: ``progress.csv``; it may be missing
    :return: a row per entry; empty if there is no log
    """
    if not path.is_file() or path.stat().st_size == 0:
        return pd.DataFrame()
    try:
        return pd.read_csv(path)
    except ValueError as error:  # pandas' errors are
        raise UsageError(
            f"{path} is damaged: {one_line(error)}: remove it to continue without its pictures"
        ) from error


class LongerCSV(CSVOutputFormat):
    """SB3's writer, behind what a file holds already, which it does not empty first.

    :param filename: of a file that SB3's writer has written
    """

    def __init__(self, filename: str) -> None:
        super().__init__(os.devnull)  # it would empty the file
        self.file.close()
        self.file = open(filename, "r+")  # noqa: SIM115 (the logger closes it)
        self.keys = [key for key in self.file.readline().rstrip("\n").split(",") if key]
        self.file.seek(0, os.SEEK_END)


class ProgressFile(BaseCallback):
    """Write everything that is logged during ``learn`` to ``progress.csv`` as well.

    :param folder: where to write it
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self._file: CSVOutputFormat | None = None
        self._update_steps: int | None = None
        self._continues = False

    def continue_file(self) -> None:
        """Keep what the file holds already."""
        self._continues = (self.folder / PROGRESS).is_file()

    def _on_training_start(self) -> None:
        """Add the file to the logger, which now exists."""
        kind = LongerCSV if self._continues else CSVOutputFormat
        self._file = kind(str(self.folder / PROGRESS))
        self.logger.output_formats.append(self._file)

    def _on_step(self) -> bool:
        """Continue training."""
        return True

    def _on_rollout_start(self) -> None:
        """Note at which step the last update was made, which is over by now."""
        if self._update_steps is not None:
            self.logger.record(UPDATE_STEPS, self._update_steps, exclude=ELSEWHERE)

    def _on_rollout_end(self) -> None:
        """Remember the step at which an update follows."""
        self._update_steps = self.num_timesteps

    def _on_training_end(self) -> None:
        """Log the last update, which SB3 does not, and close the file."""
        if self._file is None:  # the RL Zoo ends its first callback twice
            return
        self._on_rollout_start()
        self.logger.record(STEPS, self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)
        self.logger.output_formats.remove(self._file)
        self._file.close()
        self._file = None
