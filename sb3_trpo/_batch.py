"""The records that an update reads: a rollout as tensors, and the batch of the actor's update."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch as th

from sb3_trpo._processes import ALONE, Processes
from sb3_trpo._sequences import Observations, RecurrentInputs, Sequences, select

# What the critic reads. For a recurrent critic: its inputs and the indices of the real states.
Features = Observations | tuple[RecurrentInputs, th.Tensor]
Minibatch = tuple[Features, th.Tensor]  # features and returns
Layout = tuple[int, int]  # (n_steps, n_envs), see rows_of

# SB3's constant; it avoids a division by zero if all advantages are equal.
_STD_EPSILON = 1e-8


def rows_of(states: th.Tensor, layout: Layout) -> th.Tensor:
    """
    Convert SB3's numbering of the states into rows of the arrays.

    SB3 numbers the states one environment after the other. Row i of the arrays is step i // n_envs
    of environment i % n_envs.

    :param states: numbers of the states
    :param layout: (n_steps, n_envs); (n, 1) if the rows are in SB3's order already
    :return: their rows
    """
    n_steps, n_envs = layout
    return states % n_steps * n_envs + states // n_steps


def size_of(observations: Observations) -> int:
    """
    Count the states.

    :param observations: tensor, or dict of tensors, whose first dimension is the state
    :return: number of states
    """
    if isinstance(observations, dict):
        return len(next(iter(observations.values())))
    return len(observations)


@dataclass(frozen=True, eq=False)
class ActorBatch:
    """
    The n states that the actor's update averages over.

    :param observations: first dimension n
    :param actions: in the form that the policy's ``log_prob`` takes, first dimension n
    :param old_log_prob: log π_θk(a|s) from the rollout buffer, the denominator of every ratio,
        shape ``(n,)``
    :param advantages: A, shape ``(n,)``
    :param layout: (n_steps, n_envs) of the rows, see :func:`rows_of`
    :param masks: which actions are allowed, shape ``(n, logits)``; ``None`` if all are
    """

    observations: Observations
    actions: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    layout: Layout
    masks: th.Tensor | None = None

    def __len__(self) -> int:
        return len(self.advantages)

    @property
    def inputs(self) -> tuple[Any, ...]:
        """Return the arguments of the policy's ``get_distribution``."""
        return (self.observations,)

    @property
    def weight_sum(self) -> float:
        """Return the sum of the weights; every state weighs 1."""
        return float(len(self))

    def weigh(self, per_state: th.Tensor) -> th.Tensor:
        """Multiply by the states' weights; the first dimension is the state."""
        return per_state

    def weighted_sum(self, per_state: th.Tensor) -> th.Tensor:
        """
        Sum over the states with their weights.

        :param per_state: shape ``(n,)`` or ``(n, k)``
        :return: scalar or shape ``(k,)``
        """
        return self.weigh(per_state).sum(dim=0)

    def select(self, index: slice | th.Tensor) -> "ActorBatch":
        """
        Select states.

        :param index: slice or indices
        :return: a batch of these states
        """
        advantages = self.advantages[index]
        return ActorBatch(
            select(self.observations, index),
            self.actions[index],
            self.old_log_prob[index],
            advantages,
            layout=(len(advantages), 1),
            masks=None if self.masks is None else self.masks[index],
        )

    def every(self, k: int, offset: int) -> "ActorBatch":
        """
        Take every k-th state, one environment after the other.

        :param k: at least 1
        :param offset: number of the first state, taken modulo k
        :return: a batch of these states; the batch itself for k = 1
        """
        if k == 1:
            return self
        states = th.arange(offset % k, len(self), k, device=self.advantages.device)
        return self.select(rows_of(states, self.layout))

    def in_sequences(self, rows: th.Tensor, sequences: Sequences) -> "SequenceBatch":
        """
        Arrange the states as padded sequences for a recurrent actor.

        :param rows: row of this batch for every place of the sequences, shape ``(n · L,)``
        :param sequences: n sequences padded to L states
        :return: the padded batch
        """
        return SequenceBatch(
            self.observations,
            self.actions[rows],
            self.old_log_prob[rows],
            self.advantages[rows],
            self.layout,
            None if self.masks is None else self.masks[rows],
            sequences=sequences,
        )

    def chunks(self, max_states: int) -> tuple["ActorBatch", ...]:
        """
        Cut the batch into chunks that share its memory.

        :param max_states: largest number of states in a chunk
        :return: the chunks in order; only the batch itself if it is small enough
        """
        if len(self) <= max_states:
            return (self,)
        starts = range(0, len(self), max_states)
        return tuple(self.select(slice(start, start + max_states)) for start in starts)

    def normalized(self, processes: Processes = ALONE) -> "ActorBatch":
        """
        Shift and scale the advantages to mean 0 and standard deviation 1 (with divisor n - 1).

        :param processes: whose n states have these moments together
        :return: the batch with normalised advantages; a single state has no standard deviation and
            is returned unchanged
        """
        own = self.weight_sum
        n = processes.total(own)
        if n < 2:
            return self
        # Two passes: the mean of squares minus the square of the mean would lose digits.
        deviation = self.advantages - processes.mean(self.weighted_sum(self.advantages), own)
        variance = processes.mean(self.weighted_sum(deviation.square()), own)
        std = (variance * n / (n - 1)).sqrt()
        return replace(self, advantages=deviation / (std + _STD_EPSILON))


@dataclass(frozen=True, eq=False)
class SequenceBatch(ActorBatch):
    """
    An :class:`ActorBatch` of n whole sequences, padded to L states each. Padding has weight 0.

    Everything is padded except ``observations``. They stay the rollout's, in its order, and
    :attr:`inputs` collects and pads them.

    :param sequences: where the sequences are in the rollout
    """

    sequences: Sequences = field(kw_only=True)

    @property
    def inputs(self) -> tuple[Any, ...]:
        """Return the arguments of a recurrent policy's ``get_distribution``."""
        return self.sequences.inputs(self.observations)

    @property
    def weight_sum(self) -> float:
        """Return the number of states, padding not included."""
        return float(self.sequences.lengths.sum())

    def weigh(self, per_state: th.Tensor) -> th.Tensor:
        """Multiply padding by 0."""
        is_padding = self.sequences.is_padding
        return per_state.masked_fill(is_padding.reshape(-1, *[1] * (per_state.dim() - 1)), 0.0)

    def select(self, index: slice | th.Tensor) -> "SequenceBatch":
        """Select sequences, padded to the longest of the selected ones."""
        some = self.sequences.select(index)
        places = th.arange(len(self), device=self.advantages.device)
        kept = places.reshape(self.sequences.rows.shape)[index, : some.rows.shape[1]]
        return self.in_sequences(kept.flatten(), some)

    def every(self, k: int, offset: int) -> "SequenceBatch":
        """Take every k-th sequence, and at least one."""
        n = len(self.sequences.lengths)
        return self if k == 1 else self.select(slice(offset % min(k, n), None, k))

    def chunks(self, max_states: int) -> tuple["SequenceBatch", ...]:
        """
        Cut the batch between sequences. Padding counts; a longer sequence is a chunk by itself.

        Sequences are sorted longest first. If padding more than doubles the batch, or the batch is
        too large, each chunk takes only sequences at least half as long as its first.
        """
        lengths = self.sequences.lengths.tolist()
        if len(self) <= min(max_states, 2 * self.weight_sum):
            return (self,)
        chunks, first = [], 0
        while first < len(lengths):
            # All sequences of a chunk are padded to the length of its first one.
            most = max(1, max_states // lengths[first])
            similar = sum(2 * length >= lengths[first] for length in lengths[first:])
            end = first + min(most, similar)
            chunks.append(self.select(slice(first, end)))
            first = end
        return tuple(chunks)


@dataclass(frozen=True, eq=False)
class Rollout:
    """
    A rollout of N = n_steps · n_envs states.

    :param observations: first dimension N
    :param actions: first dimension N
    :param old_log_prob: shape ``(N,)``
    :param advantages: shape ``(N,)``, not normalised
    :param returns: the critic's targets, shape ``(N,)``
    :param old_values: the critic's predictions during the rollout, shape ``(N,)``
    :param layout: (n_steps, n_envs) of the rows, see :func:`rows_of`
    :param masks: which actions were allowed, shape ``(N, logits)``; ``None`` if all were
    :param actor_sequences: the sequences of a recurrent actor, else ``None``
    :param critic_sequences: the same sequences with the states of the critic's LSTM
    """

    observations: Observations
    actions: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    old_values: th.Tensor
    layout: Layout
    masks: th.Tensor | None = None
    actor_sequences: Sequences | None = None
    critic_sequences: Sequences | None = None

    @property
    def actor_batch(self) -> ActorBatch:
        """Return all states for the actor's update; they share the rollout's memory."""
        per_state = self.actions, self.old_log_prob, self.advantages
        batch = ActorBatch(self.observations, *per_state, self.layout, self.masks)
        if self.actor_sequences is None:
            return batch
        return batch.in_sequences(self.actor_sequences.rows.flatten(), self.actor_sequences)
