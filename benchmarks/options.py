"""
What options and defaults do to learning, and what ideas did that the package does not have.

Each arm is a set of constructor arguments on top of the defaults, and sometimes another stage of
the update. Every run is 200,000 steps of one environment, trained on the returns as they are
(nothing normalised), in one thread.

    python benchmarks/options.py --arm defaults fisher_5 --seeds 0 1 2 3 4
    python benchmarks/options.py --table
"""

import argparse
import json
import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import torch as th
from machine import RESULTS, read_result, with_session
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor

from sb3_trpo import TRPO
from sb3_trpo._batch import Minibatch
from sb3_trpo._conjugate_gradient import conjugate_gradient
from sb3_trpo._critic import Critic, CriticFit
from sb3_trpo._mlp import Tape, pairs_of
from sb3_trpo._vectors import flatten, unflatten

ENVIRONMENTS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "LunarLander-v3")
STEPS = 200_000
EPISODES = 20
FOLDER = RESULTS / "options"


@th.no_grad()
def fit_by_gauss_newton(critic: Critic, minibatches: Iterable[Minibatch]) -> CriticFit:
    """
    Fit a plain critic by damped Gauss-Newton steps on the minibatches, each found by CG.

    The damping falls after a step that lowers the loss and rises after one that does not and is
    taken back (Levenberg-Marquardt).
    """
    assert critic.mlp is not None
    parameters = critic.mlp.parameters
    values = flatten([parameter.detach() for parameter in parameters])
    weights = pairs_of(unflatten(values, parameters))
    damping = 0.1
    losses: list[float] = []
    for features, returns in minibatches:
        tape = Tape(critic.mlp, weights, len(returns))
        error = returns.unsqueeze(1) - tape.forward(cast(th.Tensor, features))
        losses.append(float(error.square().mean()))
        before = values.clone()
        values += _gauss_newton_step(tape, parameters, error, damping)
        after = (returns.unsqueeze(1) - tape.forward(cast(th.Tensor, features))).square().mean()
        if after < losses[-1]:
            damping = max(damping / 2, 1e-3)
        else:
            damping *= 4
            values.copy_(before)
    for parameter, value in zip(parameters, unflatten(values, parameters), strict=True):
        parameter.copy_(value)
    return CriticFit(float(np.mean(losses)), False)


def _gauss_newton_step(
    tape: Tape, parameters: Sequence[th.Tensor], error: th.Tensor, damping: float
) -> th.Tensor:
    """Solve (JᵀJ / n + damping I) x = Jᵀ error / n with ten CG steps."""
    product = flatten(parameters)

    def pull(cotangent: th.Tensor) -> th.Tensor:
        tape.cotangent(cotangent / len(error), pairs_of(unflatten(product, parameters)))
        return product.clone()

    def curvature(v: th.Tensor) -> th.Tensor:
        return pull(tape.tangent(pairs_of(unflatten(v, parameters)))) + damping * v

    return conjugate_gradient(curvature, pull(error), 10, 1e-3).x


@dataclass(frozen=True)
class Arm:
    """
    What an arm changes.

    :param options: constructor arguments
    :param stages: what of ``sb3_trpo.trpo`` is replaced, by name
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, Callable[..., Any]] = field(default_factory=dict)


ARMS: dict[str, Arm] = {
    "defaults": Arm(),
    # 0.01 nats, however many action dimensions there are.
    "paper": Arm({"target_kl": 0.01, "cg_damping": 0.1}),
    "fisher_5": Arm({"fisher_sub_sampling_factor": 5}),
    "fisher_10": Arm({"fisher_sub_sampling_factor": 10}),
    "realised_kl": Arm({"damped_step_size": False}),
    "gauss_newton": Arm(
        {"n_critic_updates": 3, "batch_size": 2048}, {"fit_critic": fit_by_gauss_newton}
    ),
}


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
    for arm in arguments.arm:  # a result that cannot be added to is noticed before the training
        for env in arguments.env:
            read(arm, env)
    cases = [
        (arm, env, seed)
        for arm in arguments.arm
        for env in arguments.env
        for seed in arguments.seeds
    ]
    # Forked, a process would inherit torch's thread pool in an unknown state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
        tasks = {pool.submit(run, *case): case for case in cases}
        for task in as_completed(tasks):
            arm, env, _ = tasks[task]
            keep(arm, env, task.result())
    if arguments.table:
        print(table())


def keep(arm: str, env: str, result: dict[str, float]) -> None:
    """
    Write a run's result beside those of the other seeds.

    :param arm: name of the arm
    :param env: name of the environment
    :param result: of :func:`run`
    """
    seed, known = result["seed"], read(arm, env)
    others = [run for run in known.get("runs", []) if run["seed"] != seed]
    entry = {
        "arm": arm,
        "env": env,
        "options": dict(ARMS[arm].options),
        "runs": sorted([*others, result], key=lambda run: run["seed"]),
        "sessions": with_session(known.get("sessions", []), int(seed)),
    }
    _file(arm, env).write_text(json.dumps(entry, indent=2) + "\n")
    print(arm, env, result, flush=True)


def read(arm: str, env: str) -> dict[str, Any]:
    """
    Read what an arm has reached.

    :param arm: name of the arm
    :param env: name of the environment
    :return: empty if nothing was measured
    :raises ValueError: if the arm's options were others then
    """
    path = _file(arm, env)
    known = read_result(path)
    if known and known["options"] != ARMS[arm].options:
        raise ValueError(
            f"{path} holds what {known['options']} has reached: move it away to measure "
            f"{dict(ARMS[arm].options)}"
        )
    return known


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
        *("MlpPolicy", vec_env),
        seed=seed,
        device="cpu",
        stats_window_size=10**9,
        **ARMS[arm].options,
    )
    with ExitStack() as stack:
        for name, stage in ARMS[arm].stages.items():
            stack.enter_context(mock.patch(f"sb3_trpo.trpo.{name}", stage))
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


def table() -> str:
    """
    Write mean and standard error over the seeds for every arm and environment.

    :return: one block of lines per environment
    """
    blocks = []
    for env in ENVIRONMENTS:
        results = {arm: read(arm, env).get("runs", []) for arm in ARMS}
        head = f"{env:16} {'whole run':>16} {'last 100':>16} {'deterministic':>16}  seeds"
        lines = [
            f"{arm:16} {' '.join(_cells(runs))}  {len(runs)}"
            for arm, runs in results.items()
            if runs
        ]
        blocks.append("\n".join([head, *lines]))
    return "\n\n".join(blocks)


def _file(arm: str, env: str) -> Path:
    """Return where the results of an arm are."""
    return FOLDER / f"{arm}_{env}.json"


def _cells(runs: list[dict[str, float]]) -> list[str]:
    """Format mean ± standard error of each figure."""
    columns = [np.array([run[key] for run in runs]) for key in ("all", "last", "final")]
    return [f"{c.mean():9.1f} ±{np.std(c, ddof=1) / len(c) ** 0.5:5.1f}" for c in columns]


if __name__ == "__main__":
    main()
