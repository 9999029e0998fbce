"""Episodes, or parts of them, as the sequences that a recurrent policy reads."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch as th

Observations = th.Tensor | dict[str, th.Tensor]
Memory = tuple[th.Tensor, th.Tensor]


def select(observations: Observations, index: slice | th.Tensor) -> Observations:
    """
    Take some of the states.

    :param observations: tensor, or dict of tensors, whose first dimension is the state
    :param index: slice (the result is a view) or indices (a copy)
    :return: the same structure with the selected states
    """
    if isinstance(observations, dict):
        return {key: value[index] for key, value in observations.items()}
    return observations[index]


class RecurrentInputs(NamedTuple):
    """
    What contrib's recurrent policies take for n sequences of at most L states.

    :param observations: first dimension n · L, one sequence after the other
    :param states: hidden and cell state that every sequence starts from, shape ``(layers, n,
        hidden)``
    :param episode_starts: zeros, shape ``(n · L,)``: no episode starts inside a sequence, so that
        the LSTM takes a sequence in one call
    """

    observations: Observations
    states: Memory
    episode_starts: th.Tensor


class PaddedStates(NamedTuple):
    """
    A recurrent critic's minibatch.

    :param inputs: of n sequences
    :param is_state: tells states from padding, shape ``(n · L,)``
    """

    inputs: RecurrentInputs
    is_state: th.Tensor


@dataclass(frozen=True, eq=False)
class Sequences:
    """
    Where the n sequences of a rollout are, each within one episode.

    :param rows: of the states in the rollout, shape ``(n, L)``; a shorter sequence goes on with
        its last row, whose numbers are as harmless as any state's
    :param lengths: number of states in each sequence, shape ``(n,)``
    """

    rows: th.Tensor
    lengths: th.Tensor

    @cached_property
    def is_state(self) -> th.Tensor:
        """Tell states from padding, shape ``(n · L,)``."""
        steps = th.arange(self.rows.shape[1], device=self.rows.device)
        return (steps < self.lengths.unsqueeze(1)).flatten()

    def select(self, index: slice | th.Tensor) -> "Sequences":
        """
        Take some of the sequences.

        :param index: slice or indices
        :return: them, padded to the longest of them
        """
        lengths = self.lengths[index]
        return Sequences(self.rows[index, : int(lengths.max())], lengths)

    def inputs(self, observations: Observations, memory: Memory) -> RecurrentInputs:
        """
        Gather what a recurrent policy takes.

        :param observations: of the rollout
        :param memory: states of the LSTM before every row, shape ``(N, layers, hidden)``
        :return: padded inputs
        """
        first = self.rows[:, 0]
        hidden, cell = (state[first].transpose(0, 1).contiguous() for state in memory)
        starts = th.zeros(self.rows.numel(), device=self.rows.device)
        return RecurrentInputs(select(observations, self.rows.flatten()), (hidden, cell), starts)


def cut_sequences(rows: th.Tensor, is_start: th.Tensor) -> Sequences:
    """
    Cut a rollout where an episode or an environment starts.

    :param rows: of the states, one environment after the other, shape ``(N,)``
    :param is_start: whether a sequence starts there, in the same order; the first state does
    :return: the sequences, the longest first, so that chunks of them have little padding
    """
    first = is_start.nonzero().flatten()
    lengths = th.diff(first, append=first.new_tensor([len(rows)]))
    order = th.argsort(lengths, descending=True, stable=True)
    first, lengths = first[order], lengths[order]
    steps = th.arange(int(lengths[0]), device=rows.device)
    return Sequences(rows[first[:, None] + steps.clamp(max=lengths[:, None] - 1)], lengths)


def shuffled(sequences: Sequences, batch_size: int) -> Iterator[Sequences]:
    """
    Go over all sequences in a random order.

    :param sequences: of a rollout
    :param batch_size: number of states that a minibatch has on average, if no sequence is longer
    :return: minibatches
    """
    n = len(sequences.lengths)
    per_minibatch = max(1, batch_size * n // int(sequences.lengths.sum()))
    order = th.as_tensor(np.random.permutation(n), device=sequences.rows.device)
    return (sequences.select(some) for some in th.split(order, per_minibatch))
