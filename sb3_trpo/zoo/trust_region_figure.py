"""Draw the trust region's metrics over a run."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sb3_trpo.zoo.figure_style import (
    EVALUATION,
    TRAINING,
    add_legend,
    label_steps,
    new_figure,
    set_style,
)
from sb3_trpo.zoo.progress import PROGRESS, STEPS, UPDATE_STEPS, read_progress
from sb3_trpo.zoo.settings import read_mapping, settings_of

# Explained variance has no lower bound, and only values near 1 are informative.
LEAST_EXPLAINED = -1.0
# A relative residual below this is small enough: the line search measures the resulting step.
ENOUGH_RESIDUAL = 0.1


def draw_trust_region(run: Path, title: str) -> bool:
    """Draw the metrics of each update of a run.

    :param run: the run's folder, which holds ``progress.csv``
    :param title: what was trained
    :return: whether the run's algorithm logs a trust region; if so, the picture is
        ``trust_region.png`` in the run's folder
    """
    updates = read_updates(run / PROGRESS)
    if updates.empty:
        return False
    tried = updates[updates["target_kl"] > 0]  # with a bound of 0 no step is tried
    figure = new_figure(13, 7)
    panels = figure.subplots(2, 3, sharex=True)
    drawings: tuple[tuple[Callable[[Axes, pd.DataFrame], None], pd.DataFrame], ...] = (
        (partial(draw_kl, unit=kl_unit(run)), updates),
        (draw_backtracks, tried),
        (draw_residual, updates),
        (draw_improvement, tried),
        (draw_explained_variance, updates),
        (draw_entropy, updates),
    )
    for axes, (draw, data) in zip(panels.flat, drawings, strict=True):
        set_style(axes)
        draw(axes, data)
        label_steps(axes)
        axes.tick_params(labelbottom=True)
        add_legend(axes)
    figure.suptitle(title, fontsize="medium")
    figure.savefig(run / "trust_region.png")
    return True


def read_updates(path: Path) -> pd.DataFrame:
    """Read the log of the updates.

    :param path: ``progress.csv``; it may be missing
    :return: a row per update, at the step at which it was made, columns named without ``train/``;
        no rows for an algorithm without a trust region
    """
    log = read_progress(path)
    if "train/target_kl" not in log:
        return pd.DataFrame()
    updates = log.dropna(subset=["train/target_kl"])
    updates = updates.set_index(UPDATE_STEPS if UPDATE_STEPS in updates else STEPS)
    return updates.filter(like="train/").rename(columns=lambda name: name.removeprefix("train/"))


def kl_unit(run: Path) -> str:
    """Return the unit of a run's KL divergence and of its bound.

    :param run: the run's folder
    :return: the unit, which depends on ``kl_reduction``
    """
    settings = read_mapping(settings_of(run) / "config.yml")
    # Without the setting, the RL Zoo's trpo means what sb3-contrib's does.
    default = "mean" if run.resolve().parent.name == "trpo" else "sum"
    is_mean = settings.get("kl_reduction", default) == "mean"
    return "nats per action dimension" if is_mean else "nats per state"


def draw_kl(axes: Axes, updates: pd.DataFrame, unit: str) -> None:
    """Draw the KL divergence of each step and its bound.

    :param axes: where to draw
    :param updates: as :func:`read_updates` returns them
    :param unit: unit of both
    """
    axes.plot(updates["target_kl"], color=EVALUATION, label="bound (target_kl)")
    divergence = updates["kl_divergence_loss"]
    axes.plot(divergence[divergence > 0], ".", color=TRAINING, label="step taken")
    axes.set_ylabel(f"KL divergence\n({unit})")
    axes.set_ylim(bottom=0)


def draw_backtracks(axes: Axes, updates: pd.DataFrame) -> None:
    """Draw how many candidates the line search rejected, and mark where it rejected all.

    :param axes: where to draw
    :param updates: as :func:`read_updates` returns them
    """
    moved = updates["backtracks"][updates["kl_divergence_loss"] > 0]
    stayed = updates["backtracks"].drop(moved.index)
    axes.plot(moved, ".", color=TRAINING, label="step taken")
    if not stayed.empty:
        axes.plot(stayed, "x", color=EVALUATION, label="no step taken, policy unchanged")
    axes.set_ylabel("candidates rejected")
    axes.set_ylim(-0.3, max([3, *updates["backtracks"]]) + 0.3)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def draw_residual(axes: Axes, updates: pd.DataFrame) -> None:
    """Draw the relative residual of the conjugate gradient method.

    :param axes: where to draw
    :param updates: as :func:`read_updates` returns them
    """
    if "cg_residual" in updates:  # missing if there was no gradient to follow
        axes.semilogy(updates["cg_residual"], ".", color=TRAINING, label="residual left")
    axes.axhline(ENOUGH_RESIDUAL, color=EVALUATION, label=f"small enough below {ENOUGH_RESIDUAL}")
    axes.set_ylabel("relative CG residual")


def draw_improvement(axes: Axes, updates: pd.DataFrame) -> None:
    """Draw the realised improvement as a share of the predicted one.

    :param axes: where to draw
    :param updates: as :func:`read_updates` returns them
    """
    taken = updates[updates["expected_improvement"] > 0]
    shares = taken["actual_improvement"] / taken["expected_improvement"]
    axes.axhline(1, color=EVALUATION, label="as predicted")
    axes.plot(shares, ".", color=TRAINING, label="step taken")
    axes.set_ylabel("realised gain / predicted gain")
    axes.set_ylim(min([0, *shares]), max([1.2, *(1.05 * shares)]))


def draw_explained_variance(axes: Axes, updates: pd.DataFrame) -> None:
    """Draw how well the critic predicts the returns; mark values below the panel at its edge.

    :param axes: where to draw
    :param updates: as :func:`read_updates` returns them
    """
    explained = updates["explained_variance"]
    below = explained[explained < LEAST_EXPLAINED]
    axes.plot(explained[explained >= LEAST_EXPLAINED], ".", color=TRAINING)
    if not below.empty:
        floor = np.full(len(below), LEAST_EXPLAINED)
        label = f"below {LEAST_EXPLAINED:g} (least: {below.min():.2g})"
        axes.plot(below.index, floor, "v", color=EVALUATION, label=label)
    axes.set_ylabel("explained variance (1 = all)")
    axes.set_ylim(max(LEAST_EXPLAINED, min(0, explained.min())) - 0.05, 1.05)


def draw_entropy(axes: Axes, updates: pd.DataFrame) -> None:
    """Draw the entropy of the policy.

    :param axes: where to draw
    :param updates: as :func:`read_updates` returns them
    """
    axes.plot(updates["entropy"], ".", color=TRAINING)
    axes.set_ylabel("entropy of the policy (nats)")
