"""Draw the learning curve of a run."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from sb3_trpo.zoo.errors import UsageError, user_errors
from sb3_trpo.zoo.runs import EVALUATIONS_FILE, training_episodes

TRAINING, EVALUATION = "#4477aa", "#cc3311"  # colour-blind readers can distinguish them
RETURN_LABEL = "return per episode (sum of rewards)"
STEPS_LABEL = "environment steps"


def label_steps(axes: Axes) -> None:
    """Label the horizontal axis as environment steps.

    :param axes: axes of any figure against steps
    """
    axes.set_xlabel(STEPS_LABEL)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.3)


def save_figure(figure: Figure, path: Path, **options: Any) -> None:
    """Write a figure to a file that the user has named.

    :param figure: the figure
    :param path: of the file
    :param options: as for ``Figure.savefig``
    :raises UsageError: if the format is unknown or the file cannot be written
    """
    formats = figure.canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in formats:
        raise UsageError(f"the picture '{path}' has to end in one of .{', .'.join(formats)}")
    with user_errors(OSError):
        figure.savefig(path, **options)


def draw_learning_curve(run: Path, title: str) -> Path:
    """Draw training and evaluation returns against environment steps.

    :param run: the run's folder, which holds the Monitor files and the evaluations
    :param title: what was trained
    :return: path of the picture, ``learning_curve.png`` in the run's folder
    """
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    draw_training(axes, training_episodes(run))
    draw_evaluations(axes, run / EVALUATIONS_FILE)
    axes.set_title(title, fontsize="medium")
    axes.set_ylabel(RETURN_LABEL)
    label_steps(axes)
    if axes.get_legend_handles_labels()[0]:  # nothing is drawn yet after a few steps
        figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    path = run / "learning_curve.png"
    figure.savefig(path)
    return path


def draw_training(axes: Axes, episodes: pd.DataFrame) -> None:
    """Draw one dot per training episode and their moving mean.

    :param axes: where to draw
    :param episodes: as :func:`training_episodes` returns them
    """
    if episodes.empty:  # the run ended before its first episode did
        return
    window = min(100, max(1, len(episodes) // 10))
    smooth = episodes["return"].rolling(window).mean()
    (dots,) = axes.plot(episodes["step"], episodes["return"], ".", label="training episode")
    dots.set(color=TRAINING, alpha=0.5, markersize=5, markeredgewidth=0)
    label = f"training, mean of the last {window} episodes"
    axes.plot(episodes["step"], smooth, color=TRAINING, label=label)


def draw_evaluations(axes: Axes, path: Path) -> None:
    """Draw the mean of each evaluation, and the range of its episodes as a band.

    :param axes: where to draw
    :param path: ``evaluations.npz`` as SB3's ``EvalCallback`` writes it; it may be missing
    """
    if not path.is_file():  # evaluations can be switched off
        return
    with np.load(path) as saved:
        steps, returns = saved["timesteps"], saved["results"]
    count = returns.shape[1]
    band = axes.fill_between(steps, returns.min(axis=1), returns.max(axis=1))
    band.set(color=EVALUATION, alpha=0.15, lw=0, label=f"evaluation, range of {count} episodes")
    label = f"evaluation, mean of {count} episodes"
    axes.plot(steps, returns.mean(axis=1), "o-", color=EVALUATION, markersize=4, label=label)
