"""``sb3-trpo compare``: one figure and one table for several runs."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sb3_trpo.zoo.aggregate import CONFIDENCE, aggregate, estimate
from sb3_trpo.zoo.learning_curve import RETURN_LABEL, label_steps, save_figure
from sb3_trpo.zoo.runs import Run, read_run
from sb3_trpo.zoo.script import Parser

HELP = """\
Compare runs: a table, and a figure of the evaluations with a panel per environment.

Runs of one algorithm, environment, set of hyperparameters and length are seeds of one experiment:
their interquartile mean is drawn with its 95% bootstrap confidence interval.

examples:
  sb3-trpo compare logs/trpo/CartPole-v1_1 logs/trpo/CartPole-v1_2 logs/ppo/CartPole-v1_1
  sb3-trpo compare logs/*/CartPole-v1_*/ --output cartpole.png
"""

Group = list[Run]


def compare(words: list[str]) -> None:
    """Compare runs.

    :param words: command-line options
    """
    parser = Parser("sb3-trpo compare", HELP)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("comparison.png"), help="the figure's file"
    )
    choice = parser.parse_args(words)
    groups = group_runs([read_run(folder) for folder in choice.runs])
    print(table(groups))
    print(f"Picture: {draw_comparison(groups, choice.output)}")


def group_runs(runs: list[Run]) -> list[Group]:
    """Put the seeds of one experiment together.

    :param runs: any runs
    :return: groups of runs that differ in nothing but the seed, in the order of their first runs
    """
    groups: dict[tuple[str | bytes, ...], Group] = defaultdict(list)
    for run in runs:
        place = str(run.folder.resolve().parent)
        groups[place, run.env, run.settings, run.steps.tobytes()].append(run)
    return list(groups.values())


def label(group: Group) -> str:
    """Name a group.

    :param group: runs of one experiment
    :return: logs folder, algorithm, and numbers of the runs
    """
    folder = group[0].folder.resolve().parent
    numbers = sorted(run.number for run in group)
    return f"{folder.parent.name}/{folder.name} {', '.join(ranges(numbers))}"


def ranges(numbers: list[int]) -> list[str]:
    """Write numbers as a reader of many of them wants to see them.

    :param numbers: in order
    :return: ranges of three and more, like ``2-5``, and the numbers between these
    """
    starts = [i for i, number in enumerate(numbers) if i == 0 or numbers[i - 1] + 1 != number]
    texts: list[str] = []
    for start, end in zip(starts, [*starts[1:], len(numbers)], strict=True):
        part = [str(number) for number in numbers[start:end]]
        texts += [f"{part[0]}-{part[-1]}"] if len(part) > 2 else part
    return texts


def table(groups: list[Group]) -> str:
    """Say how good the final policies are.

    :param groups: as :func:`group_runs` returns them
    :return: a table with a row per group
    """
    rows = pd.DataFrame([row(group) for group in groups])
    widths = {name: len(name) + 2 for name in rows}  # one space is also inside the names
    return str(rows.to_string(index=False, col_space=widths))


def row(group: Group) -> dict[str, str | int]:
    """Sum the final evaluations of a group up.

    :param group: runs of one experiment
    :return: cells by the columns' names
    """
    finals = np.array([[run.final.mean()] for run in group])
    mean, low, high = (values.item() for values in estimate(finals))
    interval = f"{low:.1f} to {high:.1f}" if len(group) > 1 else "one run"
    return {
        "environment": group[0].env,
        "runs": label(group),
        "final return, interquartile mean": f"{mean:.1f}",
        f"{CONFIDENCE:.0%} confidence": interval,
        "worst run": f"{finals.min():.1f}",
        "best run": f"{finals.max():.1f}",
    }


def draw_comparison(groups: list[Group], path: Path) -> Path:
    """Draw the evaluations of several groups.

    :param groups: as :func:`group_runs` returns them
    :param path: of the picture
    :return: the path
    """
    environments = list(dict.fromkeys(group[0].env for group in groups))
    figure = Figure(figsize=(8 * len(environments), 5), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(environments), squeeze=False)[0]
    for axes, environment in zip(panels, environments, strict=True):
        for group in groups:
            if group[0].env == environment:
                draw_group(axes, group)
        axes.set_title(f"{environment}: mean return of each evaluation", fontsize="medium")
        axes.set_ylabel(RETURN_LABEL)
        label_steps(axes)
        # Below the panel: on it, many runs leave no place for a legend.
        axes.legend(fontsize="small", frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    save_figure(figure, path)
    return path


def draw_group(axes: Axes, group: Group) -> None:
    """Draw the runs of a group thinly, their interquartile mean and its confidence as a band.

    :param axes: where to draw
    :param group: runs of one experiment
    """
    whole = aggregate(group)
    if len(group) == 1:
        axes.plot(whole.steps, whole.mean, label=f"{label(group)}, one run")
        return
    name = f"{label(group)}, interquartile mean, {CONFIDENCE:.0%} confidence, and each run (thin)"
    (line,) = axes.plot(whole.steps, whole.mean, label=name)
    color = line.get_color()
    axes.fill_between(whole.steps, whole.low, whole.high, color=color, alpha=0.2, lw=0)
    for run in group:
        axes.plot(run.steps, run.returns, color=color, alpha=0.35, lw=0.7)
