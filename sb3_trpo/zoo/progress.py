"""A run's log as a file, from which the pictures are drawn."""

from pathlib import Path

import pandas as pd
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import CSVOutputFormat

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
    return pd.read_csv(path)


class ProgressFile(BaseCallback):
    """Write everything that is logged during ``learn`` to ``progress.csv`` as well.

    :param folder: where to write it
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self._file: CSVOutputFormat | None = None
        self._update_steps: int | None = None
        self._kept = ""

    def continue_file(self) -> None:
        """Keep what the file holds already."""
        path = self.folder / PROGRESS
        self._kept = path.read_text() if path.is_file() else ""

    def _on_training_start(self) -> None:
        """Add the file to the logger, which now exists."""
        self._file = CSVOutputFormat(str(self.folder / PROGRESS))
        if self._kept:
            self._file.file.write(self._kept)
            self._file.keys = self._kept.partition("\n")[0].split(",")
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
