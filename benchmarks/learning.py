"""
Returns that the shipped configuration reaches.

For every environment and seed: train with ``sb3-trpo train`` and nothing but the defaults, take the
final model (never the best checkpoint) and evaluate it on 100 deterministic episodes whose seeds
the run has not seen.

    python benchmarks/learning.py --env CartPole-v1 Acrobot-v1 --seeds 5 6 7 8 9 10 11 12 13 14
    python benchmarks/learning.py --algo trpo_lstm --env CartPoleNoVel-v1 --seeds 0 1 2 3 4
    python benchmarks/learning.py --table
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import rl_zoo3.import_envs  # noqa: F401 (registers the environments without velocities)
from machine import RESULTS, provenance
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_trpo import TRPO, RecurrentTRPO
from sb3_trpo.zoo.commands import main as sb3_trpo

ALGORITHMS: dict[str, type[TRPO]] = {"trpo": TRPO, "trpo_lstm": RecurrentTRPO}
EPISODES = 100
EVALUATION_SEED = 1_000_000
EVALUATION_ENVS = 10

# What sb3-contrib reaches with the RL Zoo's values: the mean over seeds 0 to 4 of the Zoo's last
# evaluation, 20 deterministic episodes (rl_zoo3 2.9.2, `python -m rl_zoo3.train --algo trpo`).
CONTRIB = {
    "CartPole-v1": 495.6,
    "Acrobot-v1": -85.6,
    "Pendulum-v1": -165.0,
    "MountainCar-v0": -108.6,
    "MountainCarContinuous-v0": 74.0,
    "LunarLander-v3": 23.9,
    "LunarLanderContinuous-v3": 223.3,
}


def main() -> None:
    """Train, evaluate, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--algo", choices=ALGORITHMS, default="trpo")
    parser.add_argument("--env", nargs="+", default=[])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5, 15)))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--table", action="store_true", help="print the README's table")
    arguments = parser.parse_args()
    for env in arguments.env:
        measure(arguments.algo, env, arguments.seeds, arguments.jobs)
    if arguments.table:
        print(table())


def measure(algo: str, env: str, seeds: Sequence[int], jobs: int) -> None:
    """
    Train and evaluate one environment, and write what there is after every run.

    :param algo: key of ``ALGORITHMS``
    :param env: its name
    :param seeds: one run each
    :param jobs: runs at a time
    """
    returns: dict[int, float] = {}
    # Forked, a process would inherit torch's thread pool in an unknown state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        for seed, value in zip(seeds, pool.map(partial(score, algo, env), seeds), strict=True):
            returns[seed] = value
            mean = float(np.mean(list(returns.values())))
            result = {
                "algo": algo,
                "env": env,
                "episodes": EPISODES,
                "returns": returns,
                "mean": mean,
            }
            path = RESULTS / f"learning_{env}.json"
            path.write_text(json.dumps(provenance() | result, indent=2) + "\n")
            print(f"{env}, seed {seed}: {value:.1f}, mean so far {mean:.1f}", flush=True)


def score(algo: str, env: str, seed: int) -> float:
    """
    Train one run and evaluate its final model.

    :param algo: key of ``ALGORITHMS``
    :param env: name of the environment
    :param seed: of the run
    :return: mean return
    """
    with tempfile.TemporaryDirectory() as folder:
        words = ["train", "--algo", algo, "--env", env, "--seed", str(seed), "-f", folder]
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            status = sb3_trpo([*words, "--num-threads", "1", "--eval-freq", "-1", "--verbose", "0"])
        if status != 0:
            raise RuntimeError(output.getvalue())
        run = Path(folder) / algo / f"{env}_1"
        model = ALGORITHMS[algo].load(run / f"{env}.zip", device="cpu")
        return evaluate(model, env, run / env / "vecnormalize.pkl", seed)


def evaluate(
    model: BaseAlgorithm, env: str, statistics: Path, seed: int, episodes: int = EPISODES
) -> float:
    """
    Evaluate a model on episodes that no run has trained on.

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


def table() -> str:
    """
    Write the results that there are as Markdown.

    :return: one row per environment
    """
    rows = ["| environment | mean | lowest | seeds | `sb3_contrib.TRPO` |", "|---|---|---|---|---|"]
    for env, baseline in CONTRIB.items():
        path = RESULTS / f"learning_{env}.json"
        if path.exists():
            returns: dict[str, float] = json.loads(path.read_text())["returns"]
            mean, lowest = np.mean(list(returns.values())), min(returns.values())
            seeds = f"{min(map(int, returns))} to {max(map(int, returns))}"
            rows.append(f"| {env} | {mean:.1f} | {lowest:.1f} | {seeds} | {baseline} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
