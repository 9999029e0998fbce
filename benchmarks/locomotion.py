"""
MuJoCo and Box2D: ours with named settings, sb3-contrib's TRPO and PPO with the RL Zoo's values.

``locomotion.yml`` has a queue of runs, and the settings that were tried as changes of the RL Zoo's
values; ``shipped`` is what the package has. Each run is evaluated every 25,000 steps,
and its final model on 100 deterministic episodes. Each run becomes one file, so that a run that
fails or is stopped costs only itself. What has a file is skipped.

    python benchmarks/locomotion.py                         # work through the queue
    python benchmarks/locomotion.py --run contrib Hopper-v5 0
"""

import argparse
import json
import re
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from machine import RESULTS, provenance, read_result
from training import TRAINERS, default_hyperparameters, evaluate, rl_zoo_hyperparameters, train

from sb3_trpo.zoo.runs import EVALUATIONS_FILE

FOLDER = RESULTS / "mujoco"
QUEUE = Path(__file__).with_name("locomotion.yml")
STEPS = 1_000_000
EPISODES = 100
BASELINES = ("contrib", "ppo")
SHIPPED = "shipped"
# What the RL Zoo leaves to sb3-contrib's defaults.
ZOO_DEFAULTS = {"kl_reduction": "mean", "target_kl": 0.01, "cg_damping": 0.1}
IS_ENVIRONMENT = re.compile(r"-v\d+$")
TUNING_SEEDS = range(100, 104)
REPORTED_SEEDS = range(20)
EVALUATIONS = (
    *("--eval-freq", "25000"),  # the Zoo divides by the number of environments
    *("--eval-episodes", "10"),
    *("--n-eval-envs", "5"),
)


class Case(NamedTuple):
    """One run."""

    label: str
    """a setting of ``locomotion.yml``, ``SHIPPED``, or one of ``BASELINES``"""
    env: str
    """name of the environment"""
    seed: int
    """of the run"""
    steps: int = STEPS
    """where it stops; its schedules always run to ``STEPS``"""

    @property
    def trainer(self) -> str:
        """Key of ``TRAINERS``: our settings are all trained by ours."""
        return self.label if self.label in BASELINES else "trpo"


def main() -> None:
    """Run, or print what there is."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--queue", type=Path, default=QUEUE, help="settings and queue")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the results")
    parser.add_argument("--run", nargs=3, metavar=("LABEL", "ENV", "SEED"), help="one run only")
    parser.add_argument("--steps", type=int, default=STEPS, help="where that run stops")
    arguments = parser.parse_args()
    queue, folder = arguments.queue, arguments.results
    if arguments.run:
        label, env, seed = arguments.run
        write(measure(Case(label, env, int(seed), arguments.steps), read_plan(queue)), folder)
    else:
        work_through(queue, folder)


def read_plan(path: Path) -> dict[str, Any]:
    """
    Read the factors, the settings and the queue.

    :param path: of a file like ``locomotion.yml``
    :return: its content
    """
    return dict(yaml.safe_load(path.read_text()))


def cases(plan: Mapping[str, Any]) -> Iterator[Case]:
    """
    List the runs of the queue in their order.

    :param plan: content of ``locomotion.yml``
    :return: the runs, done or not
    """
    for entry in plan["queue"]:
        for env in entry["envs"]:
            for seed in entry["seeds"]:
                for label in entry["labels"]:
                    yield Case(label, env, seed, entry.get("steps", STEPS))


def work_through(queue: Path, folder: Path) -> None:
    """
    Do the first run of the queue that has no result, until there is none.

    The queue is read again before every run, so it can be changed meanwhile. A run that fails is
    noted in ``errors.log`` and not tried again.

    :param queue: file like ``locomotion.yml``
    :param folder: of the results
    """
    failed: set[Case] = set()
    while True:
        plan = read_plan(queue)
        waiting = (c for c in cases(plan) if c not in failed and not is_done(c, plan, folder))
        case = next(waiting, None)
        if case is None:
            return
        try:
            write(measure(case, plan), folder)
        except Exception:  # whatever it was, the next run is independent of it
            failed.add(case)
            with (folder / "errors.log").open("a") as log:
                log.write(f"{case}\n{traceback.format_exc()}\n")


def is_done(case: Case, plan: Mapping[str, Any], folder: Path) -> bool:
    """
    Return whether a run has a result of at least its number of steps.

    :param case: the run
    :param plan: content of ``locomotion.yml``
    :param folder: of the results
    :return: whether it can be skipped
    :raises ValueError: if other hyperparameters have reached the result
    """
    path = path_of(case, folder)
    result, ours = read_result(path), hyperparameters_of(case, plan)
    if result and result["hyperparameters"] != ours:
        raise ValueError(
            f"{path} holds what {result['hyperparameters']} has reached: move it away to measure "
            f"{ours}"
        )
    return bool(result) and result["steps"] >= case.steps


def path_of(case: Case, folder: Path) -> Path:
    """
    Name the file of a run's result.

    :param case: the run
    :param folder: of the results
    :return: path, whether the file is there or not
    """
    return folder / case.label / f"{case.env}_{case.seed}.json"


def hyperparameters_of(case: Case, plan: Mapping[str, Any]) -> dict[str, Any]:
    """
    Put the hyperparameters of a run together.

    :param case: the run
    :param plan: content of ``locomotion.yml``
    :return: all of them, in the RL Zoo's format
    """
    if case.label in (SHIPPED, *BASELINES):
        hyperparameters = default_hyperparameters(case.trainer, case.env)
    else:
        hyperparameters = ZOO_DEFAULTS | rl_zoo_hyperparameters("contrib", case.env)
        for factor in plan["settings"][case.label]:
            hyperparameters = changed(hyperparameters, plan["factors"][factor], case.env)
    return hyperparameters | {"n_timesteps": STEPS}


def changed(
    hyperparameters: Mapping[str, Any], change: Mapping[str, Any], env: str
) -> dict[str, Any]:
    """
    Apply a factor.

    :param hyperparameters: before
    :param change: of ``locomotion.yml``
    :param env: name of the environment
    :return: after; ``policy_kwargs`` are added to those that there are
    """
    common = {name: value for name, value in change.items() if not IS_ENVIRONMENT.search(name)}
    new: dict[str, Any] = {**hyperparameters, **common, **change.get(env, {})}
    if "policy_kwargs" in common:
        new["policy_kwargs"] = hyperparameters.get("policy_kwargs", {}) | common["policy_kwargs"]
    return new


def measure(case: Case, plan: Mapping[str, Any]) -> dict[str, Any]:
    """
    Train and evaluate one run.

    :param case: the run
    :param plan: content of ``locomotion.yml``
    :return: its result
    """
    hyperparameters = hyperparameters_of(case, plan)
    stop = {"callback": [{"stopping.StopAt": {"steps": case.steps}}]} if case.steps < STEPS else {}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        run = train(
            case.trainer, case.env, case.seed, hyperparameters | stop, Path(name), EVALUATIONS
        )
        return result_of(case, run, hyperparameters, time.monotonic() - start)


def result_of(
    case: Case, run: Path, hyperparameters: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """
    Evaluate the final model of a run, and put its result together.

    :param case: the run
    :param run: its folder
    :param hyperparameters: that it was trained with
    :param seconds: that training took
    :return: the result
    """
    returns = evaluate(case.trainer, case.env, case.seed, run, EPISODES)
    with np.load(run / EVALUATIONS_FILE) as saved:
        steps, curve = saved["timesteps"], saved["results"].mean(axis=1)
    words = f"--run {case.label} {case.env} {case.seed} --steps {case.steps}"
    return {
        **case._asdict(),
        "trainer": " ".join(TRAINERS[case.trainer].command),
        "hyperparameters": dict(hyperparameters),
        "mean": round(float(returns.mean()), 1),
        "returns": returns.round(1).tolist(),
        "curve_steps": steps.tolist(),
        "curve": curve.round(1).tolist(),
        "seconds": round(seconds),
        **provenance(),
        "command": f"python benchmarks/locomotion.py {words}",
    }


def write(result: Mapping[str, Any], folder: Path) -> None:
    """
    Write a run's result, one entry a line.

    :param result: of :func:`measure`
    :param folder: of the results
    """
    path = path_of(Case(*(result[name] for name in Case._fields)), folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in result.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(*(result[name] for name in (*Case._fields, "mean", "seconds")), flush=True)


def read_all(folder: Path) -> list[dict[str, Any]]:
    """
    Read all results.

    :param folder: of the results
    :return: one per run
    """
    return [read_result(path) for path in sorted(folder.glob("*/*.json"))]


if __name__ == "__main__":
    main()
