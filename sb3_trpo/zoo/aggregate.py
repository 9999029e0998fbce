"""The interquartile mean over runs, with bootstrap confidence."""

from dataclasses import dataclass

import numpy as np
from rliable.library import get_interval_estimates
from scipy.stats import trim_mean

from sb3_trpo.zoo.runs import Array, Run

RESAMPLINGS = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Aggregate:
    """Interquartile mean over runs with its bootstrap confidence interval."""

    steps: Array
    """environment steps at each evaluation, shape (evaluations,)"""
    mean: Array
    """interquartile mean of the returns, shape (evaluations,)"""
    low: Array
    """lower end of the confidence interval, shape (evaluations,)"""
    high: Array
    """upper end of the confidence interval, shape (evaluations,)"""


def interquartile_mean(scores: Array) -> Array:
    """Average the middle half of the runs; with one environment, rliable's interquartile mean.

    :param scores: shape (runs, environments, evaluations)
    :return: shape (evaluations,)
    """
    flat = scores.reshape(-1, scores.shape[-1])
    return np.asarray(trim_mean(flat, proportiontocut=0.25, axis=0))


def aggregate(runs: list[Run]) -> Aggregate:
    """Aggregate the evaluations of several runs.

    :param runs: runs that were evaluated at the same steps
    :return: interquartile mean and confidence interval; for one run the interval is its value
    """
    return Aggregate(runs[0].steps, *estimate(np.stack([run.returns for run in runs])))


def estimate(scores: Array) -> tuple[Array, Array, Array]:
    """Estimate the interquartile mean over runs.

    :param scores: shape (runs, evaluations)
    :return: interquartile mean, lower and upper end of its confidence interval; of one run, three
        times its values
    """
    if len(scores) == 1:
        return scores[0], scores[0], scores[0]
    state = np.random.get_state()
    np.random.seed(0)  # rliable draws from the global generator, whatever seed it is given
    point, interval = get_interval_estimates(
        {"runs": scores[:, None, :]},
        interquartile_mean,
        reps=RESAMPLINGS,
        confidence_interval_size=CONFIDENCE,
    )
    np.random.set_state(state)
    return point["runs"], interval["runs"][0], interval["runs"][1]
