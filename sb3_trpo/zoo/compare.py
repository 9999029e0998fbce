"""``sb3-trpo compare``: one figure and one table for several runs."""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sb3_trpo.zoo.aggregate import CONFIDENCE, aggregate, estimate
from sb3_trpo.zoo.errors import UsageError
from sb3_trpo.zoo.figure_style import (
    RETURN_LABEL,
    add_legend,
    label_steps,
    new_figure,
    save_figure,
    set_style,
)
from sb3_trpo.zoo.runs import PROCESSES, WINDOW, Run, read_finished_run
from sb3_trpo.zoo.script import Parser

HELP = """\
Compare runs: a table, and a figure with a panel per environment.

Runs in one folder, of one algorithm, environment (with its --env-kwargs), set of hyperparameters
and length are seeds of one experiment: their interquartile mean is drawn with its 95% bootstrap
confidence interval. A run that was not evaluated while it trained is compared by its training
episodes.

examples:
  sb3-trpo compare logs/trpo/CartPole-v1_1 logs/trpo/CartPole-v1_2 logs/ppo/CartPole-v1_1
  sb3-trpo compare logs/*/CartPole-v1_*/ --output cartpole.png --labels PPO TRPO
"""

FEW_RUNS = 4
COLUMNS = 3  # panels beside each other
# Arguments of an experiment that are not among its settings, with their defaults.
NOT_IN_SETTINGS: dict[str, Any] = {
    "trained_agent": "",
    "env_kwargs": None,
    "eval_env_kwargs": None,
    PROCESSES: 1,
}
Group = list[Run]


def compare(words: list[str]) -> None:
    """Compare runs.

    :param words: command-line options
    """
    parser = Parser("sb3-trpo compare", HELP)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--labels", nargs="+", help="a name for each row of the table")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("comparison.png"), help="the figure's file"
    )
    choice = parser.parse_args(words)
    groups = group_runs(distinct(read_runs(choice.runs)))
    names = choose_labels(groups, choice.labels)
    print(table(groups, names))
    for note in notes(groups, names):
        print(note)
    print(f"Picture: {draw_comparison(groups, choice.output, names)}")


def read_runs(folders: list[Path]) -> list[Run]:
    """Read the finished runs among some folders, each once, and name the others.

    :param folders: as the user lists them, with a glob for instance
    :return: their runs
    :raises UsageError: if there are none
    """
    runs = []
    for folder in {folder.resolve(): folder for folder in folders}.values():
        try:
            runs.append(read_finished_run(folder))
        except UsageError as error:
            if len(folders) == 1:
                raise
            print(f"Skipped: {error}")
    if not runs:
        raise UsageError(f"none of {', '.join(map(str, folders))} is the folder of a finished run")
    return runs


def distinct(runs: list[Run]) -> list[Run]:
    """Leave out runs that repeat another run's seed, and name them.

    :param runs: any runs
    :return: the first run of each experiment and seed
    """
    first: dict[tuple[object, ...], Run] = {}
    for run in runs:
        seed = run.arguments.get("seed", run.folder)
        known = first.setdefault((*experiment(run), seed), run)
        if known is not run:
            print(f"Skipped: {run.folder} repeats seed {seed} of {known.folder}")
    return list(first.values())


def experiment(run: Run) -> tuple[object, ...]:
    """Identify the experiment that a run belongs to.

    :param run: any run
    :return: equal for runs that differ in nothing but the seed
    """
    place = str(run.folder.resolve().parent)
    arguments = {**NOT_IN_SETTINGS, **run.arguments}
    others = repr([arguments[name] for name in NOT_IN_SETTINGS])
    return place, run.env, run.settings, run.steps.tobytes(), run.is_evaluated, others


def group_runs(runs: list[Run]) -> list[Group]:
    """Put the seeds of one experiment together.

    :param runs: any runs
    :return: groups of runs that differ in nothing but the seed, in the order of their first runs
    """
    groups: dict[tuple[object, ...], Group] = defaultdict(list)
    for run in runs:
        groups[experiment(run)].append(run)
    return list(groups.values())


def choose_labels(groups: list[Group], names: list[str] | None) -> list[str]:
    """Name the groups.

    :param groups: as :func:`group_runs` returns them
    :param names: the user's names, if any
    :return: a name per group
    :raises UsageError: if the user gave another number of names
    """
    defaults = labels(groups)
    if names is not None and len(names) != len(defaults):
        raise UsageError(f"--labels needs a name for each of: {'; '.join(defaults)}")
    return names or defaults


def notes(groups: list[Group], names: list[str]) -> list[str]:
    """Say what a reader of the table has to know.

    :param groups: as :func:`group_runs` returns them
    :param names: a name per group
    :return: sentences
    """
    found = [
        f"{name}: without evaluations, so the curve is of training episodes (each point "
        f"the mean of the last {WINDOW}), with the noise of exploration in them"
        for group, name in zip(groups, names, strict=True)
        if not group[0].is_evaluated
    ]
    if any(1 < len(group) < FEW_RUNS for group in groups):
        found.append("An interval over 2 or 3 runs is too narrow to rely on: train 5 or more.")
    return found


def labels(groups: list[Group]) -> list[str]:
    """Name the groups.

    :param groups: as :func:`group_runs` returns them
    :return: a distinct name per group: the end of its folder's path, and the numbers of its runs
    """
    deepest = max(len(group[0].folder.resolve().parents) for group in groups)
    names: list[str] = []
    for depth in range(2, deepest + 1):
        names = [label(group, depth) for group in groups]
        if len({*zip(names, (group[0].env for group in groups), strict=True)}) == len(groups):
            break
    return names


def label(group: Group, depth: int) -> str:
    """Name a group.

    :param group: runs of one experiment
    :param depth: number of folders to name
    :return: the folders around the runs, and the numbers of the runs
    """
    numbers = sorted(run.number for run in group)
    folders = group[0].folder.resolve().parent.parts[-depth:]
    return f"{'/'.join(folders)} {', '.join(ranges(numbers))}"


def ranges(numbers: list[int]) -> list[str]:
    """Abbreviate runs of three or more consecutive numbers, like ``2-5``.

    :param numbers: in ascending order
    :return: the ranges and the other numbers
    """
    starts = [i for i, number in enumerate(numbers) if i == 0 or numbers[i - 1] + 1 != number]
    texts: list[str] = []
    for start, end in zip(starts, [*starts[1:], len(numbers)], strict=True):
        part = [str(number) for number in numbers[start:end]]
        texts += [f"{part[0]}-{part[-1]}"] if len(part) > 2 else part
    return texts


def table(groups: list[Group], names: list[str]) -> str:
    """Tabulate how good the final policies are.

    :param groups: as :func:`group_runs` returns them
    :param names: a name per group
    :return: a table with a row per group
    """
    rows = pd.DataFrame([row(*each) for each in zip(groups, names, strict=True)])
    widths = {name: len(name) + 2 for name in rows}  # one space is also inside the names
    return str(rows.to_string(index=False, col_space=widths))


def row(group: Group, name: str) -> dict[str, str | int]:
    """Summarise the final returns of a group.

    :param group: runs of one experiment
    :param name: name of the group
    :return: cells by the columns' names
    """
    finals = np.array([[run.final.mean()] for run in group])
    mean, low, high = (values.item() for values in estimate(finals))
    interval = f"{low:.1f} to {high:.1f}" if len(group) > 1 else "one run"
    return {
        "environment": group[0].env,
        "runs": name,
        "final return, interquartile mean": f"{mean:.1f}",
        f"{CONFIDENCE:.0%} confidence": interval,
        "worst run": f"{finals.min():.1f}",
        "best run": f"{finals.max():.1f}",
    }


def draw_comparison(groups: list[Group], path: Path, names: list[str]) -> Path:
    """Draw the curves of several groups.

    :param groups: as :func:`group_runs` returns them
    :param path: of the picture
    :param names: a name per group
    :return: the path
    """
    environments = list(dict.fromkeys(group[0].env for group in groups))
    columns = min(len(environments), COLUMNS)
    rows = math.ceil(len(environments) / columns)
    figure = new_figure(7 * columns, 5 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for environment, axes in zip(environments, panels, strict=False):
        chosen = [pair for pair in zip(groups, names, strict=True) if pair[0][0].env == environment]
        draw_panel(axes, environment, chosen)
    for axes in panels:  # what is left of the last row
        axes.set_axis_off()
    save_figure(figure, path)
    return path


def draw_panel(axes: Axes, environment: str, chosen: list[tuple[Group, str]]) -> None:
    """Draw the curves of one environment.

    :param axes: where to draw
    :param environment: name of the environment
    :param chosen: its groups with their names
    """
    set_style(axes)
    for group, name in chosen:
        draw_group(axes, group, name)
    axes.set_ylabel(RETURN_LABEL)
    label_steps(axes)
    add_legend(axes, 1, f"{environment}: {curve([group for group, _ in chosen])}")


def curve(groups: list[Group]) -> str:
    """Describe what a panel shows.

    :param groups: the groups in it
    :return: its title
    """
    kinds = {
        "mean return of each evaluation"
        if group[0].is_evaluated
        else f"mean of the last {WINDOW} training episodes"
        for group in groups
    }
    shown = " or ".join(sorted(kinds))
    if any(len(group) > 1 for group in groups):
        shown += f"\n(interquartile mean, {CONFIDENCE:.0%} confidence as a band, each run thin)"
    return shown


def draw_group(axes: Axes, group: Group, name: str) -> None:
    """Draw each run of a group thinly, their interquartile mean, and its confidence as a band.

    :param axes: where to draw
    :param group: runs of one experiment
    :param name: name of the group
    """
    whole = aggregate(group)
    if len(group) == 1:
        axes.plot(whole.steps, whole.mean, label=f"{name}, one run")
        return
    (line,) = axes.plot(whole.steps, whole.mean, label=f"{name}, {len(group)} runs")
    color = line.get_color()
    axes.fill_between(whole.steps, whole.low, whole.high, color=color, alpha=0.2, lw=0)
    for run in group:
        axes.plot(run.steps, run.returns, color=color, alpha=0.35, lw=0.7)
