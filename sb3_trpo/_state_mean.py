"""The weighted mean over states, by chunk and process: everything that the update needs is one."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch as th

from sb3_trpo._processes import ALONE, Processes


class Weighted(Protocol):
    """A group of states that knows the sum of their weights."""

    @property
    def weight_sum(self) -> float:
        """Return the sum of the weights of all states in the group."""


Chunk = TypeVar("Chunk", bound=Weighted)


def state_mean(
    weighted_sum: Callable[[Chunk], th.Tensor],
    chunks: Sequence[Chunk],
    processes: Processes = ALONE,
) -> th.Tensor:
    r"""
    Average over the states of all processes, one chunk in memory at a time.

    .. math:: \Big(\sum_c \sum_{s \in c} w_s f(s)\Big) \Big/ \sum_c \sum_{s \in c} w_s

    :param weighted_sum: chunk -> the inner sum over its states, a tensor of one shape for every
        chunk
    :param chunks: at least one chunk of this process; each state belongs to exactly one
    :param processes: that have states, too; all of them call this together
    :return: the mean, of the shape that ``weighted_sum`` returns
    """
    total = weighted_sum(chunks[0])
    for chunk in chunks[1:]:
        total = total + weighted_sum(chunk)
    return processes.mean(total, sum(chunk.weight_sum for chunk in chunks))
