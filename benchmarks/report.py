"""
Report the runs of ``locomotion.py`` on the seeds for it: a table and learning curves.

    python benchmarks/report.py
    python benchmarks/report.py --figure curves.svg --seeds-figure seeds.svg
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from locomotion import BASELINES, FOLDER, REPORTED_SEEDS, SHIPPED, STEPS, read_all
from matplotlib.axes import Axes

from sb3_trpo.zoo.aggregate import estimate
from sb3_trpo.zoo.compare import ranges
from sb3_trpo.zoo.figure_style import COLORS, label_steps, new_figure, set_style

# The best that a trust-region method has published after one million steps, and in which version:
# L is the last evaluation (mean of 3 seeds), X the highest mean over 10 seeds at any time.
PUBLISHED = {
    "Ant-v5": "3554 L, Ant-v3, sb3-contrib",
    "HalfCheetah-v5": "4471 X, HalfCheetah-v3, tianshou",
    "Hopper-v5": "3372 L, Hopper-v3, sb3-contrib",
    "Humanoid-v5": "1030, Humanoid-v2, Engstrom et al. (2020)",
    "Swimmer-v5": "359 L, Swimmer-v3, sb3-contrib",
    "Walker2d-v5": "4502 L, Walker2d-v3, sb3-contrib",
    "BipedalWalker-v3": "182, one run, RL Zoo",
    "LunarLander-v3": "133, one run, LunarLander-v2, RL Zoo",
    "LunarLanderContinuous-v3": "262, one run, LunarLanderContinuous-v2, RL Zoo",
}
NAMES = {"contrib": "`sb3_contrib.TRPO`", "ppo": "PPO"}
Runs = dict[str, dict[str, list[dict[str, Any]]]]
"""complete runs on the reported seeds, by environment and label"""


def main() -> None:
    """Print the table, and draw what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--figure", type=Path, help="file for the learning curves")
    parser.add_argument("--seeds-figure", type=Path, help="file for the curve of every run")
    arguments = parser.parse_args()
    runs = reported_runs(read_all(FOLDER))
    print(table(runs))
    if arguments.figure:
        draw_curves(runs, arguments.figure)
    if arguments.seeds_figure:
        draw_seeds(runs, arguments.seeds_figure)


def reported_runs(results: Sequence[dict[str, Any]]) -> Runs:
    """
    Sort the runs that count: of what is compared, on the reported seeds, to the end.

    :param results: of ``locomotion.py``
    :return: the runs by environment and label, in the order of the environments' names
    """
    runs: Runs = {}
    for result in sorted(results, key=lambda result: (result["env"], result["seed"])):
        is_compared = result["label"] in (SHIPPED, *BASELINES)
        if is_compared and result["seed"] in REPORTED_SEEDS and result["steps"] == STEPS:
            runs.setdefault(result["env"], {}).setdefault(result["label"], []).append(result)
    return runs


def table(runs: Runs) -> str:
    """
    Write the returns of the final models as Markdown, with whatever runs there are.

    :param runs: by environment and label
    :return: one row per environment
    """
    head = ["environment", "mean", "lowest", "seeds", "IQM [95 %]"]
    head += [f"{NAMES[name]}, IQM [95 %], seeds" for name in BASELINES]
    rows = [[*head, "best published"], ["---"] * (len(head) + 1)]
    for env, by_label in runs.items():
        ours = [run["mean"] for run in by_label.get(SHIPPED, [])]
        own = [f"{np.mean(ours):.0f}", f"{min(ours):.0f}"] if ours else ["", ""]
        others = [", ".join(filter(None, _iqm(by_label.get(name, [])))) for name in BASELINES]
        iqm, seeds = _iqm(by_label.get(SHIPPED, []))
        rows.append([env, *own, seeds, iqm, *others, PUBLISHED.get(env, "")])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _iqm(runs: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Write the interquartile mean of the final returns with its interval, and which seeds."""
    if not runs:
        return "", ""
    mean, low, high = estimate(np.array([[run["mean"]] for run in runs]))
    seeds = ", ".join(ranges([run["seed"] for run in runs])).replace("-", " to ")
    interval = f" [{low[0]:.0f}, {high[0]:.0f}]" if len(runs) > 1 else ""
    return f"{mean[0]:.0f}{interval}", seeds


def draw_curves(runs: Runs, path: Path) -> None:
    """
    Draw the learning curves, one panel per environment: interquartile means and 95 % intervals.

    :param runs: by environment and label
    :param path: file to write
    """
    columns = min(3, max(1, len(runs)))
    rows = max(1, -(-len(runs) // columns))
    figure = new_figure(3.2 * columns, 2.5 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for ax, (env, by_label) in zip(axes, runs.items(), strict=False):
        _draw_environment(ax, env, by_label)
    for ax in list(figure.axes)[len(runs) :]:
        ax.remove()
    lines = [ax.get_legend_handles_labels() for ax in figure.axes]
    named = {name: line for both in lines for line, name in zip(*both, strict=True)}
    names = [name for name in map(_plain_name, (SHIPPED, *BASELINES)) if name in named]
    figure.legend([named[name] for name in names], names, loc="outside upper center", ncols=3)
    figure.savefig(path)


def draw_seeds(runs: Runs, path: Path) -> None:
    """
    Draw the learning curve of every run: a row per environment, a column per algorithm.

    :param runs: by environment and label
    :param path: file to write
    """
    names = (SHIPPED, *BASELINES)
    figure = new_figure(3.2 * len(names), 2.2 * max(1, len(runs)))
    panels = figure.subplots(max(1, len(runs)), len(names), squeeze=False, sharey="row")
    for row, (env, by_label) in zip(panels, runs.items(), strict=False):
        for ax, name in zip(row, names, strict=True):
            if not by_label.get(name):
                ax.remove()
                continue
            set_style(ax)
            for run in by_label[name]:
                ax.plot(run["curve_steps"], run["curve"], linewidth=0.8)
            ax.set(title=f"{env}, {_plain_name(name)}", ylabel="return")
            label_steps(ax)
    figure.savefig(path)


def _plain_name(label: str) -> str:
    """Name an algorithm in a figure."""
    return NAMES.get(label, "TRPO (ours)").strip("`")


def _draw_environment(
    ax: Axes, env: str, by_label: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Draw one panel."""
    set_style(ax)
    for name, color in zip((SHIPPED, *BASELINES), COLORS, strict=False):
        if by_label.get(name):
            steps = np.array(by_label[name][0]["curve_steps"])
            mean, low, high = estimate(np.array([run["curve"] for run in by_label[name]]))
            ax.plot(steps, mean, color, label=_plain_name(name))
            ax.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
    ax.set(title=env, ylabel="return")
    label_steps(ax)


if __name__ == "__main__":
    main()
