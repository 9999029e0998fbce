"""``sb3-trpo train --resume``: a run that continues from its latest checkpoint."""

import shlex
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rl_zoo3.exp_manager
from rl_zoo3 import ALGOS
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo import TRPO
from sb3_trpo._checkpoint_file import PATTERN, find_checkpoint
from sb3_trpo.checkpoint import finish_training, load_training
from sb3_trpo.zoo.checkpoints import checkpoint_folder, length_of, log_files, shorten
from sb3_trpo.zoo.errors import UsageError, user_errors
from sb3_trpo.zoo.manager import RunManager
from sb3_trpo.zoo.progress import PROGRESS, ProgressFile
from sb3_trpo.zoo.runs import EVALUATIONS_FILE, read_arrays
from sb3_trpo.zoo.script import replaced
from sb3_trpo.zoo.stored_options import repeated


class ResumedRun(RunManager):
    """
    The manager of a run that was interrupted: it continues in the run's folder.

    :param arguments: as for ``ExperimentManager``
    :param options: as for ``ExperimentManager``
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if not issubclass(ALGOS[self.algo], TRPO):
            raise UsageError(f"--resume continues runs of sb3_trpo, and not of '{self.algo}'")
        run = Path(self.args.resume)
        self.save_path, self.params_path = str(run), str(run / self.env_name)
        self._find_checkpoint()

    def _find_checkpoint(self) -> None:
        folder = checkpoint_folder(Path(self.save_path))
        if not any(folder.glob(PATTERN)):
            raise UsageError(
                f"the run in {self.save_path} has no checkpoint, as --checkpoint-freq makes them: "
                f"{self._other_way()}"
            )
        with user_errors(ValueError, OSError):
            self.found = find_checkpoint(folder)

    def _other_way(self) -> str:
        """Say how to go on without a checkpoint."""
        run = Path(self.save_path)
        checkpoints = sorted(
            run.glob("rl_model_*_steps.zip"), key=lambda path: path.stat().st_mtime
        )
        final, best = Path(f"{self.params_path}.zip"), run / "best_model.zip"
        models = [path for path in (best, *checkpoints, final) if path.is_file()]
        if not models:
            return "train it anew"
        chosen = ["--algo", self.algo, "--env", self.env_name.gym_id, "-f", str(run.parent.parent)]
        trust = ["--trust-checkpoint"] if self.is_trusted else []
        words = [*chosen, "-i", str(models[-1]), *repeated(self.args), *trust]
        return f"'{shlex.join(['sb3-trpo', 'continue', *words])}' trains its model in a new run"

    def create_log_folder(self) -> None:
        """Claim the run's folder, and remove from its logs what came after the checkpoint."""
        with user_errors(OSError):
            self.lock()
        self._find_checkpoint()  # again: the process that held the lock may have written another
        with user_errors(OSError):
            shorten_logs(Path(self.save_path), self.found.checkpoint.state.get("extra"))

    def create_envs(self, *arguments: Any, **options: Any) -> VecEnv:
        """Create environments whose episodes are added to the run's log.

        :param arguments: as for ``ExperimentManager``
        :param options: as for ``ExperimentManager``
        :return: the environments
        """
        # Not in `monitor_kwargs`: the Zoo has other ones for some environments.
        with replaced(rl_zoo3.exp_manager, "make_vec_env", _continuing_logs):
            return super().create_envs(*arguments, **options)

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
        # The checkpoint's own folder for logs may be any one.
        folder = {"tensorboard_log": self.tensorboard_log}
        given = {"trust_checkpoint": self.is_trusted, "verbose": self.verbose}
        given |= folder | self.process_options()
        with user_errors(ValueError):
            loaded = load_training(self.found, model.env, self.device, type(model), **given)
        return finish_training(loaded, self.found, options.get("callback"))


def _continuing_logs(*arguments: Any, **options: Any) -> VecEnv:
    """Make environments that add to the logs that there are."""
    options["monitor_kwargs"] = {**(options["monitor_kwargs"] or {}), "override_existing": False}
    return make_vec_env(*arguments, **options)


def has_checkpoint(run: Path) -> bool:
    """Return whether a run can be resumed.

    :param run: the run's folder
    """
    try:
        find_checkpoint(checkpoint_folder(run))
    except ValueError:
        return False
    return True


def shorten_logs(run: Path, sizes: Any) -> None:
    """Remove from a run's logs what came after a checkpoint.

    :param run: the run's folder
    :param sizes: length of each log by its name, as the checkpoint has them
    :raises UsageError: if one of them is no log of the run, or not that long; none is changed then
    """
    logs = log_files(run)
    if not isinstance(sizes, dict):
        raise UsageError(f"the checkpoint does not say how long the logs in {run} were")
    for name, size in sizes.items():
        is_log = name in logs and type(size) is int and size >= 0
        # A picture without its first updates is better than a run that is not resumed.
        if not is_log or not (name == PROGRESS or size <= length_of(logs[name])):
            raise UsageError(
                f"the checkpoint names a log {name!r:.80} of the length {size!r:.80}, and there is "
                f"no such log of that length in {run}"
            )
    for name, size in sizes.items():
        shorten(logs[name], size)


def continue_evaluations(callback: EvalCallback, path: Path, num_timesteps: int) -> None:
    """Give a callback the evaluations of its run up to a step.

    :param callback: that will add its own
    :param path: file that it writes; it may be missing, or damaged by what ended the run
    :param num_timesteps: the step
    """
    if not path.is_file():
        return
    try:
        saved = read_arrays(path, {"timesteps": 1, "results": 2, "ep_lengths": 2}, {"successes": 2})
    except UsageError as error:
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        warnings.warn(
            f"The evaluations start anew, those before are in {aside}: {error}.", stacklevel=2
        )
        return
    count = int((saved["timesteps"] <= num_timesteps).sum())
    callback.evaluations_timesteps = saved["timesteps"][:count].tolist()
    callback.evaluations_results = saved["results"][:count].tolist()
    callback.evaluations_length = saved["ep_lengths"][:count].tolist()
    successes = saved.get("successes", np.empty((0, 0)))
    callback.evaluations_successes = successes[:count].tolist()
    means = np.mean(callback.evaluations_results, axis=1) if count else [-np.inf]
    callback.best_mean_reward = float(max(means))
