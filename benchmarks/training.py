"""One run with the ``train`` command and an evaluation of its final model, for all benchmarks."""

import contextlib
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import rl_zoo3.import_envs  # noqa: F401 (registers the environments without velocities)
import yaml
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_trpo import TRPO, RecurrentTRPO
from sb3_trpo.zoo.commands import main as sb3_trpo
from sb3_trpo.zoo.manager import packaged_config

ALGORITHMS: dict[str, type[TRPO]] = {"trpo": TRPO, "trpo_lstm": RecurrentTRPO}
EVALUATION_SEED = 1_000_000
EVALUATION_ENVS = 10


def shipped_hyperparameters(algo: str, env: str) -> dict[str, Any]:
    """
    Read what the package's configuration has for an environment.

    :param algo: key of ``ALGORITHMS``
    :param env: name of the environment
    :return: the hyperparameters in the RL Zoo's format
    """
    text = Path(str(packaged_config(algo))).read_text()
    return dict(yaml.safe_load(text)[env])


def final_return(
    algo: str, env: str, seed: int, episodes: int, change: Mapping[str, Any] | None = None
) -> float:
    """
    Train one run as ``sb3-trpo train`` does, and evaluate its final model, never the best one.

    :param algo: key of ``ALGORITHMS``
    :param env: name of the environment
    :param seed: of the run
    :param episodes: how many
    :param change: hyperparameters that replace the shipped ones
    :return: mean return
    :raises RuntimeError: with what the command has said, if it has failed
    """
    with tempfile.TemporaryDirectory() as folder:
        words = ["train", "--algo", algo, "--env", env, "--seed", str(seed), "-f", folder]
        words += ["--num-threads", "1", "--eval-freq", "-1", "--verbose", "0"]
        if change:
            words += ["--hyperparams", *(f"{name}:{value!r}" for name, value in change.items())]
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            status = sb3_trpo(words)
        if status != 0:
            raise RuntimeError(output.getvalue())
        run = Path(folder) / algo / f"{env}_1"
        model = ALGORITHMS[algo].load(run / f"{env}.zip", device="cpu")
        return evaluate(model, env, run / env / "vecnormalize.pkl", seed, episodes)


def evaluate(model: BaseAlgorithm, env: str, statistics: Path, seed: int, episodes: int) -> float:
    """
    Evaluate a model on deterministic episodes that no run has trained on.

    :param model: the trained model
    :param env: name of the environment
    :param statistics: of the observations; the file is missing where they are not normalised
    :param seed: of the run
    :param episodes: how many
    :return: mean return
    """
    vec_env: VecEnv = make_vec_env(env, EVALUATION_ENVS, seed=EVALUATION_SEED + 1000 * seed)
    if statistics.exists():
        vec_env = VecNormalize.load(str(statistics), vec_env)
        vec_env.training = vec_env.norm_reward = False
    mean, _ = evaluate_policy(model, vec_env, episodes)
    vec_env.close()
    return cast(float, mean)
