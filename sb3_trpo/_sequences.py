"""The sequences that a recurrent policy reads: the rollout's episodes, or parts of episodes."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch as th

Observations = th.Tensor | dict[str, th.Tensor]
Memory = tuple[th.Tensor, th.Tensor]  # hidden and cell state of an LSTM
RecurrentInputs = tuple[Observations, Memory, th.Tensor]  # see Sequences.inputs


def select(observations: Observations, index: slice | th.Tensor) -> Observations:
    """
    Select states.

    :param observations: tensor, or dict of tensors, whose first dimension is the state
    :param index: slice (the result is a view) or indices (the result is a copy)
    :return: the same structure with the selected states
    """
    if isinstance(observations, dict):
        return {key: _select(value, index) for key, value in observations.items()}
    return _select(observations, index)


def _select(tensor: th.Tensor, index: slice | th.Tensor) -> th.Tensor:
    """Select rows of a tensor."""
    # `index_select` is twice as fast as indexing for few rows.
    return tensor[index] if isinstance(index, slice) else tensor.index_select(0, index)


@dataclass(frozen=True, eq=False)
class Sequences:
    """
    The places of n sequences in a rollout of N states.

    :param rows: the row in the rollout of every state, shape ``(n, L)``; shorter sequences are
        padded by repeating their last row, so that padding is a valid state
    :param lengths: number of states in each sequence, shape ``(n,)``; on the CPU, because shapes
        depend on them and reading them from an accelerator would wait for it
    :param memory: hidden and cell state of the LSTM before every state of the rollout, shape
        ``(N, layers, hidden)`` each
    """

    rows: th.Tensor
    lengths: th.Tensor
    memory: Memory

    @cached_property
    def is_padding(self) -> th.Tensor:
        """Return which of the n · L places are padding, shape ``(n · L,)``."""
        return ~self._is_state().to(self.rows.device)

    @property
    def states(self) -> th.Tensor:
        """Return the indices of the n · L places that are states."""
        return self._is_state().nonzero().flatten().to(self.rows.device)

    def _is_state(self) -> th.Tensor:
        """Return which places are states, on the CPU."""
        return (th.arange(self.rows.shape[1]) < self.lengths.unsqueeze(1)).flatten()

    def select(self, index: slice | th.Tensor) -> "Sequences":
        """Select sequences, padded to the longest of the selected ones."""
        lengths = self.lengths[index]
        return Sequences(self.rows[index, : int(lengths.max())], lengths, self.memory)

    def inputs(self, observations: Observations) -> RecurrentInputs:
        """
        Collect the arguments that sb3-contrib's recurrent policies take.

        :param observations: the rollout's observations, first dimension N
        :return: padded observations, first dimension n · L; the LSTM's state at the start of each
            sequence, shape ``(layers, n, hidden)``; and episode starts that are all 0, since no
            episode starts inside a sequence, so that the LSTM runs a sequence in one call
        """
        first = self.rows[:, 0]
        hidden, cell = (state[first].transpose(0, 1).contiguous() for state in self.memory)
        starts = th.zeros(self.rows.numel(), device=self.rows.device)
        return select(observations, self.rows.flatten()), (hidden, cell), starts

    def shuffled(self, batch_size: int, n_parts: int | None = None) -> Iterator["Sequences"]:
        """
        Iterate over all sequences in random order, about ``batch_size`` states at a time.

        :param batch_size: number of states
        :param n_parts: into how many parts of nearly equal size to cut, whatever ``batch_size`` is
        """
        n = len(self.lengths)
        # batch_size states are batch_size / (mean length) sequences
        per_minibatch = max(1, batch_size * n // int(self.lengths.sum()))
        order = th.as_tensor(np.random.permutation(n))
        parts = th.split(order, per_minibatch) if n_parts is None else order.tensor_split(n_parts)
        return (self.select(some) for some in parts)


def cut_sequences(rows: th.Tensor, is_start: th.Tensor, memory: Memory) -> Sequences:
    """
    Cut a rollout wherever an episode starts or another environment's states begin.

    :param rows: rows of the states, one environment after the other, shape ``(N,)``
    :param is_start: whether a sequence starts at each state, in the same order; True for the first
    :param memory: see :class:`Sequences`
    :return: the sequences, longest first, so that chunks of similar length need little padding
    """
    # A sequence ends where the next one starts.
    first = is_start.nonzero().flatten()
    lengths = th.diff(first, append=first.new_tensor([len(rows)]))
    order = th.argsort(lengths, descending=True, stable=True)
    first, lengths = first[order], lengths[order]
    # Places beyond the end of a sequence repeat its last state.
    steps = th.arange(int(lengths[0]), device=rows.device)
    padded = first[:, None] + th.minimum(steps, lengths[:, None] - 1)
    return Sequences(rows[padded], lengths.cpu(), memory)
