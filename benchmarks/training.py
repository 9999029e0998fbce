"""Train one run in a process of its own and evaluate its final model, for all benchmarks."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rl_zoo3.import_envs
import sb3_contrib
import yaml
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_trpo import TRPO, RecurrentTRPO
from sb3_trpo.zoo.manager import packaged_config

BENCHMARKS = Path(__file__).parent
EVALUATION_SEED = 1_000_000
EVALUATION_ENVS = 10
NO_EVALUATIONS = ("--eval-freq", "-1")


class Trainer(NamedTuple):
    """How a model is trained from the command line."""

    command: tuple[str, ...]
    """words after ``python -m``"""
    algo: str
    """the algorithm's key in the RL Zoo"""
    model: type[BaseAlgorithm]
    """class that loads the trained model"""


# The baselines run without our package: importing `sb3_trpo.zoo` makes `trpo` our class.
TRAINERS = {
    "trpo": Trainer(("sb3_trpo", "train"), "trpo", TRPO),
    "trpo_lstm": Trainer(("sb3_trpo", "train"), "trpo_lstm", RecurrentTRPO),
    "contrib": Trainer(("rl_zoo3.train",), "trpo", sb3_contrib.TRPO),
    "ppo": Trainer(("rl_zoo3.train",), "ppo", PPO),
    "ppo_lstm": Trainer(("rl_zoo3.train",), "ppo_lstm", sb3_contrib.RecurrentPPO),
}
ALGORITHMS = ("trpo", "trpo_lstm")


def default_hyperparameters(trainer: str, env: str) -> dict[str, Any]:
    """
    Read what a user gets without a choice: with ours what they ship, else the RL Zoo's values.

    :param trainer: key of ``TRAINERS``
    :param env: name of the environment
    :return: the hyperparameters in the RL Zoo's format
    """
    read = shipped_hyperparameters if trainer in ALGORITHMS else rl_zoo_hyperparameters
    return read(trainer, env)


def shipped_hyperparameters(algo: str, env: str) -> dict[str, Any]:
    """
    Read what the package's configuration has for an environment.

    :param algo: one of ``ALGORITHMS``
    :param env: name of the environment
    :return: the hyperparameters in the RL Zoo's format
    """
    return dict(_configuration(algo)[env])


def shipped_environments(algo: str) -> list[str]:
    """
    List the environments that the package's configuration names, in its order.

    :param algo: one of ``ALGORITHMS``
    :return: their names, and that of the default entry
    """
    return list(_configuration(algo))


def _configuration(algo: str) -> dict[str, Any]:
    """Read the package's configuration."""
    configuration: dict[str, Any] = yaml.safe_load(Path(str(packaged_config(algo))).read_text())
    return configuration


def rl_zoo_hyperparameters(trainer: str, env: str) -> dict[str, Any]:
    """
    Read what the RL Zoo has for an environment; MuJoCo's v5 take the values of v4.

    :param trainer: key of ``TRAINERS``
    :param env: name of the environment
    :return: the hyperparameters in the RL Zoo's format
    """
    folder = Path(rl_zoo3.import_envs.__file__).parent / "hyperparams"
    entries = yaml.safe_load((folder / f"{TRAINERS[trainer].algo}.yml").read_text())
    return dict(entries[env] if env in entries else entries[env.replace("-v5", "-v4")])


def final_return(
    trainer: str, env: str, seed: int, episodes: int, change: Mapping[str, Any] | None = None
) -> float:
    """
    Train one run from the command line, and evaluate its final model, never the best one.

    :param trainer: key of ``TRAINERS``
    :param env: name of the environment
    :param seed: of the run
    :param episodes: how many
    :param change: hyperparameters that replace the default ones
    :return: mean return
    :raises RuntimeError: with what the command has said, if it has failed
    """
    hyperparameters = default_hyperparameters(trainer, env) | dict(change or {})
    with tempfile.TemporaryDirectory() as folder:
        run = train(trainer, env, seed, hyperparameters, Path(folder), NO_EVALUATIONS)
        return float(evaluate(trainer, env, seed, run, episodes).mean())


def train(
    trainer: str,
    env: str,
    seed: int,
    hyperparameters: Mapping[str, Any],
    folder: Path,
    options: Sequence[str] = (),
) -> Path:
    """
    Train one model in another process.

    :param trainer: key of ``TRAINERS``
    :param env: name of the environment
    :param seed: of the run
    :param hyperparameters: all of them, in the RL Zoo's format
    :param folder: an empty one for the run's files
    :param options: more options of the command
    :return: the run's folder
    :raises RuntimeError: with the end of what the command has said, if it has failed
    """
    command, algo, _ = TRAINERS[trainer]
    configuration = folder / "configuration.yml"
    configuration.write_text(yaml.safe_dump({env: dict(hyperparameters)}))
    words = ["--algo", algo, "--env", env, "--seed", str(seed), "-f", str(folder), *options]
    words += ["--conf-file", str(configuration), "--num-threads", "1", "--verbose", "0"]
    done = subprocess.run(
        [sys.executable, "-m", *command, *words, "--device", "cpu"],
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stdout[-5000:])
    return folder / algo / f"{env}_1"


def evaluate(trainer: str, env: str, seed: int, run: Path, episodes: int) -> "np.ndarray[Any, Any]":
    """
    Evaluate a run's final model on deterministic episodes that no run has trained on.

    :param trainer: key of ``TRAINERS``
    :param env: name of the environment
    :param seed: of the run
    :param run: its folder
    :param episodes: how many
    :return: their returns, shape (episodes,)
    """
    model = TRAINERS[trainer].model.load(run / f"{env}.zip", device="cpu")
    vec_env: VecEnv = make_vec_env(env, EVALUATION_ENVS, seed=EVALUATION_SEED + 1000 * seed)
    with suppress(FileNotFoundError):  # where observations are not normalised
        vec_env = VecNormalize.load(str(run / env / "vecnormalize.pkl"), vec_env)
        vec_env.training = vec_env.norm_reward = False
    returns, _ = evaluate_policy(model, vec_env, episodes, return_episode_rewards=True)
    vec_env.close()
    return np.array(returns)
