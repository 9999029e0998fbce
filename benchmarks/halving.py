"""
Compare the settings of ``locomotion.yml`` at some number of steps, on the seeds for tuning.

    python benchmarks/halving.py 300000
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from locomotion import FOLDER, QUEUE, TUNING_SEEDS, read_all, read_plan


class Outcome(NamedTuple):
    """What a setting has reached in one environment, over its seeds."""

    area: float
    """mean of the learning curve"""
    last: float
    """mean return at the end"""
    seeds: int
    """how many"""


Outcomes = dict[str, dict[str, Outcome]]  # by label and environment


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("steps", type=int, help="where the curves are cut off")
    steps = parser.parse_args().steps
    found = outcomes(read_all(FOLDER), steps)
    print(f"Return at {steps:,} steps (mean of the learning curve until then):\n")
    print(returns_table(found))
    print("\nEffects of the factors on the score:\n")
    plan = read_plan(QUEUE)
    print(effects_table(found, {label: plan["settings"][label] for label in plan["design"]}))


def outcomes(results: Sequence[Mapping[str, Any]], steps: int) -> Outcomes:
    """
    Summarise the runs on the tuning seeds that went so far.

    :param results: of runs
    :param steps: where the curves are cut off
    :return: by label and environment
    """
    runs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for result in results:
        if result["seed"] in TUNING_SEEDS and result["steps"] >= steps:
            runs.setdefault((result["label"], result["env"]), []).append(_summary(result, steps))
    found: Outcomes = {}
    for (label, env), summaries in runs.items():
        area, last = np.mean(summaries, axis=0)
        found.setdefault(label, {})[env] = Outcome(float(area), float(last), len(summaries))
    return found


def _summary(result: Mapping[str, Any], steps: int) -> tuple[float, float]:
    """Return the area under a run's curve and its return at the end."""
    curve = [
        value
        for step, value in zip(result["curve_steps"], result["curve"], strict=True)
        if step <= steps
    ]
    # The final model's 100 episodes, unless the run went further.
    last = result["mean"] if result["steps"] == steps else curve[-1]
    return float(np.mean(curve)), last


def scores(found: Outcomes) -> dict[str, dict[str, float]]:
    """
    Score every setting from 0 to 1: half the area, half the last return, over the best setting's.

    :param found: outcomes
    :return: by label and environment
    """
    best: dict[str, tuple[float, float]] = {}
    for by_env in found.values():
        for env, outcome in by_env.items():
            area, last = best.get(env, (1.0, 1.0))
            best[env] = max(area, outcome.area), max(last, outcome.last)
    return {
        label: {
            env: (max(o.area, 0) / best[env][0] + max(o.last, 0) / best[env][1]) / 2
            for env, o in by_env.items()
        }
        for label, by_env in found.items()
    }


def returns_table(found: Outcomes) -> str:
    """
    Write outcomes and scores as Markdown, the best setting first.

    :param found: outcomes
    :return: one row per setting
    """
    points = scores(found)
    envs = sorted({env for by_env in found.values() for env in by_env})
    rows = [f"| setting | score | {' | '.join(envs)} |", "|---" * (len(envs) + 2) + "|"]
    for label in sorted(found, key=lambda name: -np.mean(list(points[name].values()))):
        cells = [_cell(found[label].get(env)) for env in envs]
        score = np.mean(list(points[label].values()))
        rows.append(f"| {label} | {score:.2f} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _cell(outcome: Outcome | None) -> str:
    """Write one outcome."""
    return "" if outcome is None else f"{outcome.last:.0f} ({outcome.area:.0f})"


def effects_table(found: Outcomes, settings: Mapping[str, Sequence[str]]) -> str:
    """
    Write what each factor adds to the score, on average over the settings with and without it.

    :param found: outcomes
    :param settings: factors by label, those of the design
    :return: one row per factor, in Markdown, and one column per environment that has all settings
    """
    points = scores(found)
    envs = sorted(set.intersection(*(set(points.get(label, {})) for label in settings)))
    if not envs:
        return "There is no environment yet in which all settings of the design were run."
    rows = [f"| factor | pooled | {' | '.join(envs)} |", "|---" * (len(envs) + 2) + "|"]
    for factor in balanced_factors(settings):
        effects = [
            _effect(factor, {label: points[label][env] for label in settings}, settings)
            for env in envs
        ]
        cells = " | ".join(f"{value:+.2f}" for value in [np.mean(effects), *effects])
        rows.append(f"| {factor} | {cells} |")
    return "\n".join(rows)


def balanced_factors(settings: Mapping[str, Sequence[str]]) -> list[str]:
    """
    List the factors that half of the settings have; the effect of others is that of single runs.

    :param settings: factors by label
    :return: the factors
    """
    uses = Counter(factor for factors in settings.values() for factor in factors)
    return [factor for factor, count in uses.items() if 2 * count == len(settings)]


def _effect(
    factor: str, points: Mapping[str, float], settings: Mapping[str, Sequence[str]]
) -> float:
    """Return the mean score with a factor minus that without it."""
    having = [value for label, value in points.items() if factor in settings[label]]
    lacking = [value for label, value in points.items() if factor not in settings[label]]
    return float(np.mean(having) - np.mean(lacking))


if __name__ == "__main__":
    main()
