"""The sequences that a recurrent policy reads: episodes, or the parts of them in a rollout."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch as th

Observations = th.Tensor | dict[str, th.Tensor]
Memory = tuple[th.Tensor, th.Tensor]
RecurrentInputs = tuple[Observations, Memory, th.Tensor]


def select(observations: Observations, index: slice | th.Tensor) -> Observations:
    """
    Take some of the states.

    :param observations: tensor, or dict of tensors, whose first dimension is the state
    :param index: slice (the result is a view) or indices (a copy)
    :return: the same structure with the selected states
    """
    if isinstance(observations, dict):
        return {key: _select(value, index) for key, value in observations.items()}
    return _select(observations, index)


def _select(tensor: th.Tensor, index: slice | th.Tensor) -> th.Tensor:
    """Take some of a tensor's rows."""
    # Half of the time that brackets take where there are few rows.
    return tensor[index] if isinstance(index, slice) else tensor.index_select(0, index)


@dataclass(frozen=True, eq=False)
class Sequences:
    """
    Where n sequences are in a rollout of N states.

    :param rows: of their states, shape ``(n, L)``; shorter ones are padded with their last row,
        whose numbers are as harmless as any state's
    :param lengths: number of states in each, shape ``(n,)``, on the CPU: shapes depend on them, and
        reading them from an accelerator would wait for it
    :param memory: hidden and cell state of the LSTM before every row, shape ``(N, layers, hidden)``
    """

    rows: th.Tensor
    lengths: th.Tensor
    memory: Memory

    @cached_property
    def is_padding(self) -> th.Tensor:
        """Tell padding from states, shape ``(n · L,)``."""
        return ~self._is_state().to(self.rows.device)

    @property
    def states(self) -> th.Tensor:
        """List the places among n · L that are states."""
        return self._is_state().nonzero().flatten().to(self.rows.device)

    def _is_state(self) -> th.Tensor:
        """Tell states from padding, on the CPU."""
        return (th.arange(self.rows.shape[1]) < self.lengths.unsqueeze(1)).flatten()

    def select(self, index: slice | th.Tensor) -> "Sequences":
        """Take some of the sequences, padded to the longest of them."""
        lengths = self.lengths[index]
        return Sequences(self.rows[index, : int(lengths.max())], lengths, self.memory)

    def inputs(self, observations: Observations) -> RecurrentInputs:
        """
        Gather what contrib's recurrent policies take.

        :param observations: of the rollout
        :return: padded observations, first dimension n · L; the states that the sequences start
            from, shape ``(layers, n, hidden)``; and no start of an episode inside a sequence, so
            that the LSTM takes a sequence in one call
        """
        first = self.rows[:, 0]
        hidden, cell = (state[first].transpose(0, 1).contiguous() for state in self.memory)
        starts = th.zeros(self.rows.numel(), device=self.rows.device)
        return select(observations, self.rows.flatten()), (hidden, cell), starts

    def shuffled(self, batch_size: int) -> Iterator["Sequences"]:
        """Go over all sequences in random order, about ``batch_size`` states at a time."""
        n = len(self.lengths)
        per_minibatch = max(1, batch_size * n // int(self.lengths.sum()))
        order = th.as_tensor(np.random.permutation(n))
        return (self.select(some) for some in th.split(order, per_minibatch))


def cut_sequences(rows: th.Tensor, is_start: th.Tensor, memory: Memory) -> Sequences:
    """
    Cut a rollout where an episode or an environment starts.

    :param rows: of the states, one environment after the other, shape ``(N,)``
    :param is_start: whether a sequence starts there, in the same order; the first state does
    :param memory: of :class:`Sequences`
    :return: the sequences, the longest first, so that chunks of them have little padding
    """
    first = is_start.nonzero().flatten()
    lengths = th.diff(first, append=first.new_tensor([len(rows)]))
    order = th.argsort(lengths, descending=True, stable=True)
    first, lengths = first[order], lengths[order]
    steps = th.arange(int(lengths[0]), device=rows.device)
    padded = first[:, None] + th.minimum(steps, lengths[:, None] - 1)
    return Sequences(rows[padded], lengths.cpu(), memory)
