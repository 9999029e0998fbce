"""The run's log as a file that pictures are drawn from."""

from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import CSVOutputFormat

PROGRESS = "progress.csv"


class ProgressFile(BaseCallback):
    """Write everything that is logged during ``learn`` to ``progress.csv`` as well.

    :param folder: where to write it
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self._file: CSVOutputFormat | None = None

    def _on_training_start(self) -> None:
        """Add the file to the logger, which exists by now."""
        self._file = CSVOutputFormat(str(self.folder / PROGRESS))
        self.logger.output_formats.append(self._file)

    def _on_step(self) -> bool:
        """Let training go on."""
        return True

    def _on_training_end(self) -> None:
        """Log the last update, which SB3 leaves out, and close the file."""
        if self._file is None:  # the RL Zoo ends its first callback twice
            return
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)
        self.logger.output_formats.remove(self._file)
        self._file.close()
        self._file = None
