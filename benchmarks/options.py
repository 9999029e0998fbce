"""
What options and defaults do to learning.

Each arm is a set of constructor arguments on top of the defaults. Every run is 200,000 steps of
one environment, trained on the returns as they are (nothing normalised), in one thread.

    python benchmarks/options.py --arm defaults fisher_5 --seeds 0 1 2 3 4
    python benchmarks/options.py --table
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch as th
from machine import RESULTS, provenance
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor

from sb3_trpo import TRPO

ENVIRONMENTS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "LunarLander-v3")
ARMS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "contrib": {"kl_reduction": "mean"},
    "target_kl_0.03": {"target_kl": 0.03},
    "target_kl_0.05": {"target_kl": 0.05},
    "fisher_5": {"fisher_sub_sampling_factor": 5},
}
STEPS = 200_000
EPISODES = 20
FOLDER = RESULTS / "options"


def main() -> None:
    """Run the arms that were asked for, one file each, or print the table of all files."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--arm", nargs="+", choices=ARMS, default=[])
    parser.add_argument("--env", nargs="+", default=ENVIRONMENTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--table", action="store_true", help="print the results that there are")
    arguments = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    for arm in arguments.arm:
        for env in arguments.env:
            with ProcessPoolExecutor(arguments.jobs) as pool:
                tasks = [pool.submit(run, arm, env, seed) for seed in arguments.seeds]
                runs = [task.result() for task in tasks]
            result = {**provenance(), "arm": arm, "env": env, "options": ARMS[arm], "runs": runs}
            (FOLDER / f"{arm}_{env}.json").write_text(json.dumps(result, indent=2) + "\n")
    if arguments.table:
        print_table()


def run(arm: str, env: str, seed: int) -> dict[str, float]:
    """
    Train one model.

    :param arm: name of the arm
    :param env: name of the environment
    :param seed: of the run
    :return: mean return of all training episodes (how fast it learned), of the last 100, and of
        20 deterministic episodes at the end
    """
    th.set_num_threads(1)
    vec_env = VecMonitor(make_vec_env(env, seed=seed))
    model = TRPO(
        "MlpPolicy", vec_env, seed=seed, device="cpu", stats_window_size=10**9, **ARMS[arm]
    )
    model.learn(STEPS)
    assert model.ep_info_buffer is not None
    returns = [episode["r"] for episode in model.ep_info_buffer]
    lengths = [episode["l"] for episode in model.ep_info_buffer]
    test_env = make_vec_env(env, seed=1_000_000 + 1000 * seed)
    final, _ = evaluate_policy(model, test_env, EPISODES)
    return {
        "seed": seed,
        "all": float(np.average(returns, weights=lengths)),
        "last": float(np.mean(returns[-100:])),
        "final": float(np.mean(final)),
    }


def print_table() -> None:
    """Print mean and standard error over the seeds for every arm and environment."""
    for env in ENVIRONMENTS:
        print(f"\n{env:24} {'whole run':>16} {'last 100':>16} {'deterministic':>16}")
        for arm in ARMS:
            path = FOLDER / f"{arm}_{env}.json"
            if path.exists():
                print(f"{arm:24} " + " ".join(_cells(json.loads(path.read_text())["runs"])))


def _cells(runs: list[dict[str, float]]) -> list[str]:
    """Format mean ± standard error of each figure."""
    columns = [np.array([run[key] for run in runs]) for key in ("all", "last", "final")]
    return [f"{c.mean():9.1f} ±{c.std(ddof=1) / len(c) ** 0.5:5.1f}" for c in columns]


if __name__ == "__main__":
    main()
