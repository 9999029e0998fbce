"""The interquartile mean over runs, with a bootstrap confidence interval."""

from dataclasses import dataclass

import numpy as np

from sb3_trpo.zoo.runs import Array, Run

RESAMPLINGS = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Aggregate:
    """Interquartile mean over runs and its bootstrap confidence interval."""

    steps: Array
    """environment steps, shape (points,)"""
    mean: Array
    """interquartile mean of the returns, shape (points,)"""
    low: Array
    """lower end of the confidence interval, shape (points,)"""
    high: Array
    """upper end of the confidence interval, shape (points,)"""


def interquartile_mean(scores: Array) -> Array:
    """Average the middle half of the runs, as rliable's interquartile mean does.

    :param scores: shape (runs, environments, points); NaN where a run has no value
    :return: shape (points,); NaN where a run has none
    """
    flat = np.sort(scores.reshape(-1, scores.shape[-1]), axis=0)
    cut = len(flat) // 4
    middle = flat[cut : len(flat) - cut].mean(axis=0)
    return np.asarray(np.where(np.isnan(flat[-1]), np.nan, middle))  # NaN is sorted to the end


def aggregate(runs: list[Run]) -> Aggregate:
    """Aggregate the curves of several runs.

    :param runs: runs with the same steps
    :return: interquartile mean and confidence interval; for one run the interval is its value
    """
    return Aggregate(runs[0].steps, *estimate(np.stack([run.returns for run in runs])))


def estimate(scores: Array) -> tuple[Array, Array, Array]:
    """Estimate the interquartile mean over runs.

    :param scores: shape (runs, points)
    :return: interquartile mean, lower and upper end of its confidence interval; all three are the
        run's values if there is only one run
    """
    if len(scores) == 1:
        return scores[0], scores[0], scores[0]
    from rliable.library import get_interval_estimates  # slow to import, and rarely needed

    state = np.random.get_state()
    np.random.seed(0)  # rliable draws from the global generator and ignores other seeds
    point, interval = get_interval_estimates(
        {"runs": scores[:, None, :]},
        interquartile_mean,
        reps=RESAMPLINGS,
        confidence_interval_size=CONFIDENCE,
    )
    np.random.set_state(state)
    return point["runs"], interval["runs"][0], interval["runs"][1]
