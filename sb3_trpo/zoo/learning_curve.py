"""Draw the learning curve of a run."""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from sb3_trpo.zoo.figure_style import (
    EVALUATION,
    RETURN_LABEL,
    TRAINING,
    add_legend,
    label_steps,
    new_figure,
    set_style,
)
from sb3_trpo.zoo.runs import EVALUATIONS_FILE, read_arrays, training_episodes


def draw_learning_curve(run: Path, title: str) -> Path:
    """Draw training and evaluation returns against environment steps.

    :param run: the run's folder, which holds the Monitor files and the evaluations
    :param title: what was trained
    :return: path of the picture, ``learning_curve.png`` in the run's folder
    """
    figure = new_figure()
    axes = figure.subplots()
    set_style(axes)
    draw_training(axes, training_episodes(run))
    draw_evaluations(axes, run / EVALUATIONS_FILE)
    figure.suptitle(title, fontsize="medium")
    axes.set_ylabel(RETURN_LABEL)
    label_steps(axes)
    add_legend(axes)
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
    saved = read_arrays(path, {"timesteps": 1, "results": 2})
    steps, returns = saved["timesteps"], saved["results"]
    count = returns.shape[1]
    band = axes.fill_between(steps, returns.min(axis=1), returns.max(axis=1))
    band.set(color=EVALUATION, alpha=0.15, lw=0, label=f"evaluation, range of {count} episodes")
    label = f"evaluation, mean of {count} episodes"
    axes.plot(steps, returns.mean(axis=1), "o-", color=EVALUATION, markersize=4, label=label)
