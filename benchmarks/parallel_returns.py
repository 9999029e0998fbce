"""
Returns of one process and of several that share its environments: the same batch, the same steps.

Both are trained by ``sb3-trpo train``, several processes under torchrun, with the shipped
hyperparameters. The final models are evaluated, never the best ones. Seeds are added to those of
an earlier call with the same settings.

    python benchmarks/parallel_returns.py CartPole-v1 50000 --seeds 5
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import RESULTS, provenance, read_result
from scipy import stats
from training import NO_EVALUATIONS, TRAINERS, Trainer, evaluate, shipped_hyperparameters, train

from sb3_trpo import TRPO
from sb3_trpo.zoo.progress import PROGRESS, read_progress

EPISODES = 100
LEARNING, FINAL = "while learning", "final"


def main() -> None:
    """Train and evaluate, and write the result after every seed."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("env")
    parser.add_argument("steps", type=int)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--n-envs", type=int, default=2, help="of all processes together")
    arguments = parser.parse_args()
    path = RESULTS / f"parallel_returns_{arguments.env}.json"
    hyperparameters = shipped_hyperparameters("trpo", arguments.env)
    hyperparameters |= {"n_timesteps": arguments.steps, "n_envs": arguments.n_envs}
    sizes = [1, arguments.processes]
    settings = {"env": arguments.env, "sizes": sizes, "hyperparameters": hyperparameters}
    result = read_result(path)
    if not result:
        result = {**settings, "episodes": EPISODES, "returns": {str(size): {} for size in sizes}}
    elif {name: result.get(name) for name in settings} != settings:
        raise SystemExit(f"{path} has been measured with other settings: move it away")
    for seed in range(arguments.seeds):
        for size in sizes:
            done = result["returns"][str(size)]
            if str(seed) not in done:
                done[str(seed)] = measure(arguments.env, seed, hyperparameters, size)
        result |= {"differences": differences(result), **provenance()}
        path.write_text(json.dumps(result, indent=2) + "\n")
        print(seed, result["differences"], flush=True)


def measure(env: str, seed: int, hyperparameters: dict[str, Any], size: int) -> dict[str, float]:
    """
    Train with a number of processes.

    :param env: name of the environment
    :param seed: of the run
    :param hyperparameters: in the RL Zoo's format; ``n_envs`` counts all processes
    :param size: number of processes
    :return: mean return of the training episodes over the run, and of the final model
    :raises ValueError: if the environments cannot be shared evenly
    """
    n_envs = hyperparameters["n_envs"]
    if n_envs % size > 0:
        raise ValueError(f"n_envs={n_envs} cannot be shared by {size} processes")
    share = hyperparameters | {"n_envs": n_envs // size}
    TRAINERS["parallel"] = Trainer((*torchrun(size), "sb3_trpo", "train"), "trpo", TRPO)
    with tempfile.TemporaryDirectory() as folder:
        run = train("parallel", env, seed, share, Path(folder), NO_EVALUATIONS)
        curve = read_progress(run / PROGRESS)["rollout/ep_rew_mean"].dropna()
        final = evaluate("parallel", env, seed, run, EPISODES)
    return {LEARNING: round(float(curve.mean()), 2), FINAL: round(float(final.mean()), 2)}


def torchrun(size: int) -> Sequence[str]:
    """
    List the words before the name of a module that several processes run.

    :param size: number of processes; one process runs without torchrun
    :return: words after ``python -m``
    """
    if size == 1:
        return ()
    return "torch.distributed.run", "--standalone", f"--nproc-per-node={size}", "-m"


def differences(result: dict[str, Any]) -> dict[str, Any]:
    """
    Compare several processes with one.

    :param result: with the returns by number of processes and seed
    :return: for both returns: the means, and Welch's 95 % interval of their difference
    """
    summary = {}
    for kind in (LEARNING, FINAL):
        one, several = (
            np.array([run[kind] for run in result["returns"][str(size)].values()])
            for size in result["sizes"]
        )
        summary[kind] = {
            "means": [round(float(one.mean()), 1), round(float(several.mean()), 1)],
            "interval": interval(one, several),
        }
    return summary


def interval(one: Any, several: Any) -> list[float] | None:
    """
    Compute Welch's 95 % confidence interval of a difference of means.

    :param one: returns of one process, by seed
    :param several: those of several processes
    :return: its ends; None if there are fewer than two seeds, or all returns are the same
    """
    if len(one) < 2 or np.ptp(np.concatenate([one, several])) == 0:
        return None
    test = stats.ttest_ind(several, one, equal_var=False).confidence_interval(0.95)
    return [round(float(test.low), 1), round(float(test.high), 1)]


if __name__ == "__main__":
    main()
