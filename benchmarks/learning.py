"""
Returns that the shipped configuration reaches, and sb3-contrib with the RL Zoo's values.

For every environment and seed: train from the command line with nothing but the defaults, take the
final model (never the best checkpoint) and evaluate it on 100 deterministic episodes whose seeds
the run has not seen. Seeds that an environment's result already has are kept.

    python benchmarks/learning.py --env CartPole-v1 Acrobot-v1 --seeds 5 6 7 8 9 10 11 12 13 14
    python benchmarks/learning.py --algo trpo_lstm --env CartPoleNoVel-v1 --seeds 0 1 2 3 4
    python benchmarks/learning.py --algo contrib --env CartPole-v1    # the RL Zoo's, likewise
    python benchmarks/learning.py --table
    python benchmarks/learning.py --table --algo trpo_lstm
"""

import argparse
import json
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from machine import RESULTS, read_result, with_session
from training import (
    ALGORITHMS,
    TRAINERS,
    default_hyperparameters,
    final_return,
    shipped_environments,
)

from sb3_trpo.zoo.compare import ranges

EPISODES = 100

# What is measured beside ours, with the RL Zoo's values: keys of ``TRAINERS``.
BASELINES = {"trpo": "contrib", "trpo_lstm": "ppo_lstm"}


def main() -> None:
    """Train, evaluate, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--algo", choices=list(TRAINERS), default="trpo")
    parser.add_argument("--env", nargs="+", default=[])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5, 15)))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--table", action="store_true", help="print what there is in Markdown")
    arguments = parser.parse_args()
    if arguments.table and arguments.algo not in ALGORITHMS:
        parser.error(f"--table is for --algo {' or '.join(ALGORITHMS)}")
    for env in arguments.env:
        measure(arguments.algo, env, arguments.seeds, arguments.jobs)
    if arguments.table:
        print(table(arguments.algo))


def measure(algo: str, env: str, seeds: Sequence[int], jobs: int) -> None:
    """
    Train and evaluate one environment, and write what there is after every run.

    :param algo: key of ``TRAINERS``
    :param env: its name
    :param seeds: one run each
    :param jobs: runs at a time
    """
    read_returns(algo, env)  # a result that cannot be added to is noticed before hours of training
    score = partial(final_return, algo, env, episodes=EPISODES)
    # Forked, a process would inherit torch's thread pool in an unknown state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        tasks = {pool.submit(score, seed): seed for seed in seeds}
        for task in as_completed(tasks):
            seed, value = tasks[task], task.result()
            mean = add_return(algo, env, seed, value)
            print(f"{env}, seed {seed}: {value:.1f}, mean so far {mean:.1f}", flush=True)


def result_path(algo: str, env: str) -> Path:
    """
    Name the file of a result.

    :param algo: key of ``TRAINERS``
    :param env: name of the environment
    :return: path, whether the file is there or not
    """
    # An environment has one of our algorithms, with or without an LSTM.
    return RESULTS / ("" if algo in ALGORITHMS else algo) / f"learning_{env}.json"


def read_returns(algo: str, env: str) -> dict[int, float]:
    """
    Read the returns that there are.

    :param algo: key of ``TRAINERS``
    :param env: name of the environment
    :return: by seed, in the order of the seeds; empty if nothing was measured
    :raises ValueError: if another algorithm or other hyperparameters have reached them
    """
    return _returns(_read(algo, env))


def add_return(algo: str, env: str, seed: int, value: float) -> float:
    """
    Write the return of a run beside those of the seeds that were measured before.

    :param algo: key of ``TRAINERS``
    :param env: name of the environment
    :param seed: of the run
    :param value: its return
    :return: mean return over all seeds
    """
    known = _read(algo, env)
    returns = dict(sorted({**_returns(known), seed: value}.items()))
    mean = float(np.mean(list(returns.values())))
    result = {
        "algo": algo,
        "env": env,
        "hyperparameters": default_hyperparameters(algo, env),
        "episodes": EPISODES,
        "returns": returns,
        "mean": mean,
        "sessions": with_session(known.get("sessions", []), seed),
    }
    path = result_path(algo, env)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    return mean


def _read(algo: str, env: str) -> dict[str, Any]:
    """Read what there is; raise if another algorithm or other hyperparameters have reached it."""
    path = result_path(algo, env)
    result = read_result(path)
    if result:
        for name, ours in (("algo", algo), ("hyperparameters", default_hyperparameters(algo, env))):
            if result.get(name) != ours:
                raise ValueError(
                    f"{path} holds what {name}={result.get(name)} has reached: move it away to "
                    f"measure {ours}"
                )
    return result


def _returns(result: dict[str, Any]) -> dict[int, float]:
    """List the returns by seed, in the order of the seeds."""
    return dict(sorted((int(seed), value) for seed, value in result.get("returns", {}).items()))


def table(algo: str) -> str:
    """
    Write the results that there are as Markdown.

    :param algo: key of ``BASELINES``
    :return: one row per environment, in the order of the shipped configuration
    """
    baseline = BASELINES[algo]
    name = f"`sb3_contrib.{TRAINERS[baseline].model.__name__}`"
    rows = [
        f"| environment | mean | lowest | seeds | {name}: mean | lowest | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for env in shipped_environments(algo):
        returns = read_returns(algo, env)
        if returns:
            cells = [env, *_summary(returns), *_summary(read_returns(baseline, env))]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _summary(returns: Mapping[int, float]) -> tuple[str, str, str]:
    """Write mean, lowest and seeds; nothing if there are none."""
    if not returns:
        return "", "", ""
    values = list(returns.values())
    seeds = ", ".join(ranges(list(returns))).replace("-", " to ")
    return f"{np.mean(values):.1f}", f"{min(values):.1f}", seeds


if __name__ == "__main__":
    main()
