"""
Returns that the shipped configuration reaches.

For every environment and seed: train with ``sb3-trpo train`` and nothing but the defaults, take the
final model (never the best checkpoint) and evaluate it on 100 deterministic episodes whose seeds
the run has not seen.

    python benchmarks/learning.py --env CartPole-v1 Acrobot-v1 Pendulum-v1 --seeds 0 1 2 3 4
    python benchmarks/learning.py --algo trpo_lstm --env CartPoleNoVel-v1 PendulumNoVel-v1
"""

import argparse
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import rl_zoo3.import_envs  # noqa: F401 (registers the environments without velocities)
from machine import RESULTS, provenance
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_trpo import TRPO, RecurrentTRPO

ALGORITHMS = {"trpo": TRPO, "trpo_lstm": RecurrentTRPO}
EPISODES = 100
EVALUATION_SEED = 1_000_000


def main() -> None:
    """Train, evaluate, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--algo", choices=ALGORITHMS, default="trpo")
    parser.add_argument("--env", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--train-options", nargs=argparse.REMAINDER, default=[])
    arguments = parser.parse_args()
    options = ["--algo", arguments.algo, *arguments.train_options]
    for env in arguments.env:
        result = measure(arguments.algo, env, arguments.seeds, arguments.jobs, options)
        (RESULTS / f"learning_{env}.json").write_text(json.dumps(result, indent=2) + "\n")
        returns = ", ".join(f"{value:.1f}" for value in result["returns"].values())
        print(f"{env}: mean {result['mean']:.1f} of {returns}", flush=True)


def measure(algo: str, env: str, seeds: list[int], jobs: int, options: list[str]) -> dict[str, Any]:
    """
    Train and evaluate one environment.

    :param algo: key of ``ALGORITHMS``
    :param env: its name
    :param seeds: one run each
    :param jobs: runs at a time
    :param options: further options of ``sb3-trpo train``
    :return: mean return of every seed, their mean, and where they come from
    """
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        runs = list(pool.map(lambda seed: train(env, seed, Path(folder), options), seeds))
        returns = {
            seed: evaluate(algo, env, run, seed) for seed, run in zip(seeds, runs, strict=True)
        }
    return {
        **provenance(),
        "algo": algo,
        "env": env,
        "episodes": EPISODES,
        "returns": returns,
        "mean": float(np.mean(list(returns.values()))),
    }


def train(env: str, seed: int, folder: Path, options: list[str]) -> Path:
    """
    Train one run in a process of its own.

    :param env: name of the environment
    :param seed: of the run
    :param folder: where all runs go; each gets a folder of its own there
    :param options: further options of ``sb3-trpo train``
    :return: folder of the run
    """
    target = folder / str(seed)
    command = [sys.executable, "-m", "sb3_trpo", "train", "--env", env, "--seed", str(seed)]
    settings = ["-f", str(target), "--num-threads", "1", "--eval-freq", "-1", "--verbose", "0"]
    subprocess.run([*command, *settings, *options], check=True, capture_output=True)
    return next(target.glob(f"*/{env}_1"))


def evaluate(algo: str, env: str, run: Path, seed: int) -> float:
    """
    Evaluate a final model.

    :param algo: key of ``ALGORITHMS``
    :param env: name of the environment
    :param run: folder of the run
    :param seed: of the run
    :return: mean return
    """
    vec_env: VecEnv = make_vec_env(env, seed=EVALUATION_SEED + 1000 * seed)
    statistics = run / env / "vecnormalize.pkl"
    if statistics.exists():
        vec_env = VecNormalize.load(str(statistics), vec_env)
        vec_env.training = vec_env.norm_reward = False
    model = ALGORITHMS[algo].load(run / f"{env}.zip", device="cpu")
    mean, _ = evaluate_policy(model, vec_env, EPISODES)
    vec_env.close()
    return cast(float, mean)


if __name__ == "__main__":
    main()
