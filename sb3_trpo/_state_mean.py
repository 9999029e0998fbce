"""The weighted mean over states, chunk by chunk: everything that the update needs is one."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch as th


class Weighted(Protocol):
    """A group of states that knows the sum of their weights."""

    @property
    def weight_sum(self) -> float:
        """Return the sum of the weights of all states in the group."""


Chunk = TypeVar("Chunk", bound=Weighted)


def state_mean(weighted_sum: Callable[[Chunk], th.Tensor], chunks: Sequence[Chunk]) -> th.Tensor:
    r"""
    Average over all states, one chunk in memory at a time.

    .. math:: \Big(\sum_c \sum_{s \in c} w_s f(s)\Big) \Big/ \sum_c \sum_{s \in c} w_s

    :param weighted_sum: chunk -> the inner sum over its states, a tensor of one shape for every
        chunk
    :param chunks: at least one chunk; each state belongs to exactly one
    :return: the mean, of the shape that ``weighted_sum`` returns
    """
    total = weighted_sum(chunks[0])
    for chunk in chunks[1:]:
        total = total + weighted_sum(chunk)
    return total / sum(chunk.weight_sum for chunk in chunks)
