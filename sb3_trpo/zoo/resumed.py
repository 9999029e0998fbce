"""A run that continues from its latest checkpoint."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import EvalCallback

from sb3_trpo._checkpoint_file import find_checkpoint
from sb3_trpo.checkpoint import resume_training
from sb3_trpo.zoo.checkpoints import checkpoint_folder
from sb3_trpo.zoo.errors import UsageError, user_errors
from sb3_trpo.zoo.manager import RunManager
from sb3_trpo.zoo.progress import PROGRESS, ProgressFile
from sb3_trpo.zoo.runs import EVALUATIONS_FILE


class ResumedRun(RunManager):
    """
    The manager of a run that was interrupted: it continues in the run's folder.

    :param arguments: as for ``ExperimentManager``
    :param options: as for ``ExperimentManager``
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        run = Path(self.args.resume)
        self.save_path, self.params_path = str(run), str(run / self.env_name)
        with user_errors(ValueError, OSError):
            self.found = find_checkpoint(checkpoint_folder(run))

    def create_log_folder(self) -> None:
        """Remove from the run's logs what came after the checkpoint, and append to them."""
        with user_errors(OSError):
            for name, size in self.found.checkpoint.state["extra"].items():
                shorten_log(Path(self.save_path), name, size)
        self.monitor_kwargs["override_existing"] = False

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        """Leave the settings of the run as they are."""

    def create_callbacks(self) -> None:
        """Let the evaluations and the log continue those of the run."""
        super().create_callbacks()
        steps = int(self.found.checkpoint.state["num_timesteps"])
        for callback in self.callbacks:
            if isinstance(callback, EvalCallback):
                continue_evaluations(callback, Path(self.save_path) / EVALUATIONS_FILE, steps)
            if isinstance(callback, ProgressFile):
                callback.continue_file()

    def train(self, model: Any, *arguments: Any, **options: Any) -> Any:
        """Resume in place of a model that was just built, with its environments.

        :param model: gives the environments and the class
        :param arguments: of ``learn``, which the checkpoint has as well
        :param options: of ``learn``
        :return: the resumed model
        """
        path, callbacks, kind = self.found.path.parent, options.get("callback"), type(model)
        options = {"trust_checkpoint": self.is_trusted, **self.process_options()}
        return resume_training(path, model.env, callbacks, self.device, algorithm=kind, **options)


def has_checkpoint(run: Path) -> bool:
    """Return whether a run can be resumed.

    :param run: the run's folder
    """
    try:
        find_checkpoint(checkpoint_folder(run))
    except ValueError:
        return False
    return True


def shorten_log(run: Path, name: Any, size: Any) -> None:
    """Remove from a log of a run what came after the checkpoint.

    :param run: the run's folder
    :param name: of the log, as the checkpoint has it, which may have been downloaded
    :param size: its bytes at the checkpoint
    :raises UsageError: if the name is not that of a log in the folder, or it is shorter than that
    """
    path = run / str(name)
    is_log = path.name == name and (name == PROGRESS or path.match("*.monitor.csv"))
    is_size = isinstance(size, int) and size >= 0
    if not (is_log and is_size and path.is_file() and not path.is_symlink()):
        raise UsageError(f"the checkpoint names a log that the run does not have: {name!r:.80}")
    if path.stat().st_size < size:
        raise UsageError(f"{path} is shorter than it was at the checkpoint")
    os.truncate(path, size)


def continue_evaluations(callback: EvalCallback, path: Path, num_timesteps: int) -> None:
    """Give a callback the evaluations of its run up to a step.

    :param callback: that will add its own
    :param path: file that it writes; it may be missing
    :param num_timesteps: the step
    """
    if not path.is_file():
        return
    with np.load(path) as saved:
        count = int((saved["timesteps"] <= num_timesteps).sum())
        callback.evaluations_timesteps = saved["timesteps"][:count].tolist()
        callback.evaluations_results = saved["results"][:count].tolist()
        callback.evaluations_length = saved["ep_lengths"][:count].tolist()
        successes = saved["successes"] if "successes" in saved else np.empty((0, 0))
        callback.evaluations_successes = successes[:count].tolist()
    means = np.mean(callback.evaluations_results, axis=1) if count else [-np.inf]
    callback.best_mean_reward = float(max(means))
