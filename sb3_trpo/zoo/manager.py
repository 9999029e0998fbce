"""The RL Zoo's ``ExperimentManager`` with our configuration, evaluations, folders and report."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
import rl_zoo3.train
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import sync_envs_normalization

import sb3_trpo.zoo.register  # noqa: F401 (imported for its effect)
from sb3_trpo.zoo.errors import UsageError
from sb3_trpo.zoo.learning_curve import draw_learning_curve
from sb3_trpo.zoo.masks import evaluate_policy, masks_in_evaluations
from sb3_trpo.zoo.progress import ProgressFile
from sb3_trpo.zoo.runs import save_final_evaluation
from sb3_trpo.zoo.script import AddOptions, replaced, run_script
from sb3_trpo.zoo.trust_region_figure import draw_trust_region

EVALUATIONS = 20
FINAL_EPISODES = 20
# Stands for "no --eval-freq given"; every negative number means "never" to the Zoo.
UNSET_EVAL_FREQ = -(2**31)
UNSET_N_TIMESTEPS = -1  # the Zoo's default
# The periodic evaluations start from the run's own seed; the final one must not.
FINAL_SEED_OFFSET = 10_000


class RunManager(ExperimentManager):
    """The manager of a training run.

    :param arguments: as for ``ExperimentManager``
    :param options: as for ``ExperimentManager``
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        steps = vars(self.args).get("n_timesteps", UNSET_N_TIMESTEPS)
        if steps < 1 and steps != UNSET_N_TIMESTEPS:  # the Zoo would take it for unset
            raise UsageError(f"--n-timesteps has to be at least 1, but it is {steps}")
        if self.args.conf_file is None:
            self.config = packaged_config(self.algo) or self.config
        self._made: Path | None = None  # the run's folder, once it is there and ours

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """Set the run up, and leave no folder behind that will never hold a model.

        :return: the model and its hyperparameters; None when hyperparameters are optimized
        """
        results = None
        try:
            results = super().setup_experiment()
        finally:
            if results is None and self._made is not None:
                shutil.rmtree(self._made)
        return results

    def create_log_folder(self) -> None:
        """Take the next number that no other run takes, be it started at the same moment."""
        stem, _, number = self.save_path.rpartition("_")
        while self._made is None:
            try:
                Path(self.save_path).mkdir(parents=True)
                self._made = Path(self.save_path)
            except FileExistsError:
                number = str(int(number) + 1)
                self.save_path = f"{stem}_{number}"
        self.params_path = f"{self.save_path}/{self.env_name}"
        Path(self.params_path).mkdir()

    def create_callbacks(self) -> None:
        """Spread the evaluations over the run, whose length is known by now, and log to a file."""
        if self.eval_freq == UNSET_EVAL_FREQ:
            self.eval_freq = max(self.n_timesteps // EVALUATIONS, 1)
            self.args.eval_freq = self.eval_freq  # what args.yml will say
        with masks_in_evaluations(self.algo):
            super().create_callbacks()  # type: ignore[no-untyped-call]
        self.callbacks.append(ProgressFile(Path(self.save_path)))

    def objective(self, trial: optuna.Trial) -> float:
        """Train with sampled hyperparameters.

        :param trial: a trial of a study
        :return: mean return of the last evaluation
        """
        with masks_in_evaluations(self.algo):
            return super().objective(trial)

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """Save the model, then evaluate it, draw the run and say where everything is.

        :param model: the trained model
        """
        super().save_trained_model(model)
        run = Path(self.save_path)
        returns = self.evaluate(model)
        save_final_evaluation(run, returns)
        kind = "deterministic" if self.deterministic_eval else "stochastic"
        score = f"{returns.mean():.1f} +/- {returns.std():.1f}"
        title = f"{self.algo.upper()} on {self.env_name.gym_id}, seed {self.seed}"
        draw_learning_curve(run, f"{title}\nfinal policy, {FINAL_EPISODES} episodes: {score}")
        print(f"Final evaluation: mean return {score} over {FINAL_EPISODES} {kind} episodes")
        print(f"Model:   {self.params_path}.zip")
        print(f"Picture: {run / 'learning_curve.png'}")
        if draw_trust_region(run, title):
            print(f"Picture: {run / 'trust_region.png'}")

    def evaluate(self, model: BaseAlgorithm) -> npt.NDArray[np.float64]:
        """Evaluate a model on episodes that it has not been evaluated on before.

        :param model: the trained model
        :return: returns of the episodes, shape (FINAL_EPISODES,)
        """
        env = self.create_envs(1, eval_env=True)
        env.seed(self.seed + FINAL_SEED_OFFSET)
        training_env = model.get_env()
        if training_env is not None:
            sync_envs_normalization(training_env, env)
        returns = evaluate_policy(model, env, FINAL_EPISODES, self.deterministic_eval)
        env.close()
        return returns


def run_manager(
    manager_class: type[RunManager],
    prog: str,
    help_text: str,
    words: list[str],
    add_options: AddOptions,
) -> RunManager:
    """Run the RL Zoo's training script with a manager of ours.

    :param manager_class: what takes the place of the Zoo's ``ExperimentManager``
    :param prog: what the help calls the script
    :param help_text: head of its help
    :param words: its command line
    :param add_options: adds options that the script does not know, for its help
    :return: the manager, its work done
    """
    managers: list[RunManager] = []

    def make_manager(*arguments: Any, **options: Any) -> RunManager:
        managers.append(manager_class(*arguments, **options))
        return managers[0]

    with replaced(rl_zoo3.train, "ExperimentManager", make_manager):
        run_script(rl_zoo3.train.train, prog, help_text, words, add_options)
    return managers[0]


def packaged_config(algo: str) -> str | None:
    """Find the hyperparameter file that comes with the package.

    :param algo: the algorithm's key in ``rl_zoo3.ALGOS``
    :return: path of the file; None if there is none for this algorithm
    """
    package = Path(__file__).resolve().parents[1]
    # Installed, the files are inside the package; in the repository, beside it.
    for folder in (package, package.parent):
        path = folder / "zoo_configs" / f"{algo}.yml"
        if path.is_file():
            return str(path)
    return None
