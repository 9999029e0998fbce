"""The records that an update works on: a rollout as tensors, and the states of the actor's part."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch as th

from sb3_trpo.sequences import Observations, RecurrentInputs, Sequences, select
from sb3_trpo.state_mean import state_mean

# Of a recurrent critic: its inputs, and what in them is no padding.
Features = Observations | tuple[RecurrentInputs, th.Tensor]
Minibatch = tuple[Features, th.Tensor]
Layout = tuple[int, int]

# SB3's own constant, which keeps constant advantages from being divided by zero.
_STD_EPSILON = 1e-8


def rows_of(states: th.Tensor, layout: Layout) -> th.Tensor:
    """
    Locate states in arrays whose row i holds step i // n_envs of environment i % n_envs.

    :param states: numbers of the states as SB3 counts them, one environment after the other
    :param layout: (n_steps, n_envs); (n, 1) where the rows are in SB3's order
    :return: their rows
    """
    n_steps, n_envs = layout
    return states % n_steps * n_envs + states // n_steps


def size_of(observations: Observations) -> int:
    """
    Count the states.

    :param observations: tensor, or dict of tensors, whose first dimension is the state
    :return: n
    """
    if isinstance(observations, dict):
        return len(next(iter(observations.values())))
    return len(observations)


@dataclass(frozen=True, eq=False)
class ActorBatch:
    """
    States, actions and advantages that the actor's update averages over.

    :param observations: first dimension n
    :param actions: as the policy's ``log_prob`` takes them, first dimension n
    :param old_log_prob: log π_θk(a|s) from the rollout buffer, the denominator of every ratio,
        shape ``(n,)``
    :param advantages: A, shape ``(n,)``
    :param layout: which rows belong to which environment, see :func:`rows_of`
    :param masks: which actions are allowed, shape ``(n, logits)``; ``None`` for all
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
        """Return what the policy's ``get_distribution`` takes."""
        return (self.observations,)

    @property
    def weight_sum(self) -> float:
        """Return the sum of the states' weights, each being 1."""
        return float(len(self))

    def weigh(self, per_state: th.Tensor) -> th.Tensor:
        """Multiply by the states' weights, whatever the further dimensions."""
        return per_state

    def weighted_sum(self, per_state: th.Tensor) -> th.Tensor:
        """
        Sum over the states.

        :param per_state: shape ``(n,)`` or ``(n, k)``
        :return: scalar or shape ``(k,)``
        """
        return self.weigh(per_state).sum(dim=0)

    def select(self, index: slice | th.Tensor) -> "ActorBatch":
        """
        Take some of the states.

        :param index: slice or indices
        :return: a batch of them
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
        :return: a batch of them; the batch itself for k = 1
        """
        if k == 1:
            return self
        states = th.arange(offset % k, len(self), k, device=self.advantages.device)
        return self.select(rows_of(states, self.layout))

    def in_sequences(self, rows: th.Tensor, sequences: Sequences) -> "SequenceBatch":
        """
        Arrange the states for a recurrent actor.

        :param rows: of the states in this batch, shape ``(n · L,)``
        :param sequences: n sequences padded to L states
        :return: the sequences
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
        Cut the batch into pieces that share its memory.

        :param max_states: largest number of states in a piece
        :return: the pieces in order; the batch itself where it is small enough
        """
        if len(self) <= max_states:
            return (self,)
        starts = range(0, len(self), max_states)
        return tuple(self.select(slice(start, start + max_states)) for start in starts)

    def normalized(self) -> "ActorBatch":
        """
        Shift and scale the advantages to mean 0 and standard deviation 1 (n - 1 in its divisor).

        :return: the batch with other advantages; a single state, which has no spread, stays as it
            is
        """
        if self.weight_sum < 2:
            return self
        mean = state_mean(lambda batch: batch.weighted_sum(batch.advantages), [self])
        variance = state_mean(
            lambda batch: batch.weighted_sum((batch.advantages - mean).square()), [self]
        )
        std = (variance * self.weight_sum / (self.weight_sum - 1)).sqrt()
        return replace(self, advantages=(self.advantages - mean) / (std + _STD_EPSILON))


@dataclass(frozen=True, eq=False)
class SequenceBatch(ActorBatch):
    """
    The same as n whole sequences padded to L states. Padding has weight 0.

    All is padded but ``observations``, which are the whole rollout's; :attr:`inputs` gathers.

    :param sequences: which ones
    """

    sequences: Sequences = field(kw_only=True)

    @property
    def inputs(self) -> tuple[Any, ...]:
        """Return what a recurrent policy's ``get_distribution`` takes."""
        return self.sequences.inputs(self.observations)

    @property
    def weight_sum(self) -> float:
        """Return the number of states without padding."""
        return float(self.sequences.lengths.sum())

    def weigh(self, per_state: th.Tensor) -> th.Tensor:
        """Multiply padding by 0."""
        is_padding = self.sequences.is_padding
        return per_state.masked_fill(is_padding.reshape(-1, *[1] * (per_state.dim() - 1)), 0.0)

    def select(self, index: slice | th.Tensor) -> "SequenceBatch":
        """Take some of the sequences, padded to the longest of them."""
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
        Cut the batch between sequences; padding counts, and one sequence may be longer.

        Where padding would more than double the batch, the sequences, which come the longest first,
        are put together with others that are at least half as long.
        """
        lengths = self.sequences.lengths.tolist()
        if len(self) <= min(max_states, 2 * self.weight_sum):
            return (self,)
        pieces, first = [], 0
        while first < len(lengths):
            most = max(1, max_states // lengths[first])
            similar = sum(2 * length >= lengths[first] for length in lengths[first:])
            pieces.append(self.select(slice(first, first + min(most, similar))))
            first += min(most, similar)
        return tuple(pieces)


@dataclass(frozen=True, eq=False)
class Rollout:
    """
    A rollout of N = n_steps · n_envs states.

    :param observations: first dimension N
    :param actions: first dimension N
    :param old_log_prob: shape ``(N,)``
    :param advantages: shape ``(N,)``, not normalised
    :param returns: targets of the critic, shape ``(N,)``
    :param old_values: the critic's predictions while collecting, shape ``(N,)``
    :param layout: (n_steps, n_envs) of the rows, see :func:`rows_of`
    :param masks: which actions were allowed, shape ``(N, logits)``; ``None`` for all
    :param actor_sequences: of a recurrent actor
    :param critic_sequences: the same ones with the states of the critic's LSTM
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
        """Return what the actor's update reads; it shares the rollout's memory."""
        per_state = self.actions, self.old_log_prob, self.advantages
        batch = ActorBatch(self.observations, *per_state, self.layout, self.masks)
        sequences = self.actor_sequences
        return (
            batch if sequences is None else batch.in_sequences(sequences.rows.flatten(), sequences)
        )
