"""``sb3-trpo train``: the RL Zoo's training script with our class, defaults and report."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import rl_zoo3.train
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import sync_envs_normalization

import sb3_trpo.zoo.register  # noqa: F401 (imported for its effect)
from sb3_trpo.zoo.figures import draw_learning_curve

EVALUATIONS = 20
FINAL_EPISODES = 20
# Stands for "no --eval-freq given"; every negative number means "never" to the Zoo.
UNSET_EVAL_FREQ = -(2**31)
# The periodic evaluations start from the run's own seed; the final one must not.
FINAL_SEED_OFFSET = 10_000

HELP = """\
Train an agent with the RL Zoo's training script, then evaluate it and draw its learning curve.

examples:
  sb3-trpo train --env CartPole-v1
  sb3-trpo train --env Pendulum-v1 --n-timesteps 50000 --seed 1 --hyperparams target_kl:0.02

defaults that differ from the RL Zoo's, whose own options follow:
  --algo trpo, with the hyperparameters that come with sb3_trpo (--conf-file replaces them)
  --progress
  --eval-freq: the length of the run / 20
"""


def train(options: list[str]) -> None:
    """Train as the RL Zoo does, and report on the run.

    :param options: command-line options of ``rl_zoo3.train``
    """
    if {"-h", "--help"} & set(options):
        print(HELP)
    # The Zoo's parser takes the last value given, so defaults come before the user's options.
    defaults = ["--algo", "trpo", "--progress", f"--eval-freq={UNSET_EVAL_FREQ}"]
    with (
        replaced(sys, "argv", ["sb3-trpo train", *defaults, *options]),
        replaced(rl_zoo3.train, "ExperimentManager", RunManager),
    ):
        rl_zoo3.train.train()


class RunManager(ExperimentManager):
    """The RL Zoo's manager with our configuration, evaluation schedule and final report.

    :param arguments: as for ``ExperimentManager``
    :param options: as for ``ExperimentManager``
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.args.conf_file is None:
            self.config = packaged_config(self.algo) or self.config

    def create_callbacks(self) -> None:
        """Spread the evaluations over the run, whose length is known by now."""
        if self.eval_freq == UNSET_EVAL_FREQ:
            self.eval_freq = max(self.n_timesteps // EVALUATIONS, 1)
            self.args.eval_freq = self.eval_freq  # what args.yml will say
        super().create_callbacks()  # type: ignore[no-untyped-call]

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """Save the model, then evaluate it, draw the run and say where everything is.

        :param model: the trained model
        """
        super().save_trained_model(model)
        mean, spread = self.evaluate(model)
        kind = "deterministic" if self.deterministic_eval else "stochastic"
        score = f"{mean:.1f} +/- {spread:.1f}"
        title = f"{self.algo.upper()} on {self.env_name.gym_id}, seed {self.seed}"
        picture = draw_learning_curve(
            Path(self.save_path), f"{title}\nfinal policy, {FINAL_EPISODES} episodes: {score}"
        )
        print(f"Final evaluation: mean return {score} over {FINAL_EPISODES} {kind} episodes")
        print(f"Model:   {self.params_path}.zip")
        print(f"Picture: {picture}")

    def evaluate(self, model: BaseAlgorithm) -> tuple[float, float]:
        """Evaluate a model on episodes that it has not been evaluated on before.

        :param model: the trained model
        :return: mean and standard deviation of the episodes' returns
        """
        env = self.create_envs(1, eval_env=True)
        env.seed(self.seed + FINAL_SEED_OFFSET)
        training_env = model.get_env()
        if training_env is not None:
            sync_envs_normalization(training_env, env)
        score = evaluate_policy(
            model, env, n_eval_episodes=FINAL_EPISODES, deterministic=self.deterministic_eval
        )
        env.close()
        return cast(tuple[float, float], score)  # lists only come if asked for


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


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute another value for the duration of a ``with`` block.

    :param owner: object or module
    :param name: the attribute's name
    :param value: its value inside the block
    """
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
