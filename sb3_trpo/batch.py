"""What an update reads: the rollout buffer's content as tensors, and what the actor sees of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable import buffers as maskable
from sb3_contrib.common.recurrent import buffers as recurrent
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

from sb3_trpo.sequences import Observations, RecurrentInputs, Sequences, cut_sequences, select
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


def minibatches(
    buffer: RolloutBuffer,
    rollout: Rollout,
    batch_size: int,
    n_epochs: int = 1,
    features: Callable[[Observations], Observations] = lambda observations: observations,
) -> Iterator[Minibatch]:
    """
    Go several times over all states, each time in a new random order.

    Order and random stream are those of ``RolloutBuffer.get``.

    :param buffer: where the rollout was read from; one with a ``get`` of its own chooses the
        minibatches itself
    :param rollout: the buffer's content
    :param batch_size: number of states in a minibatch; the last one of an epoch may be smaller
    :param n_epochs: how often
    :param features: what to hand out in the observations' place, computed once for the rollout
    :return: pairs of features and returns
    """
    sequences = rollout.critic_sequences
    if sequences is not None:
        for part in chain.from_iterable(sequences.shuffled(batch_size) for _ in range(n_epochs)):
            padded = part.inputs(rollout.observations), part.states
            yield padded, rollout.returns[part.rows.flatten()[part.states]]
        return
    if not is_sb3_buffer(buffer):
        for samples in chain.from_iterable(buffer.get(batch_size) for _ in range(n_epochs)):
            returns = samples.returns.flatten().to(rollout.returns.dtype)
            yield features(samples.observations), returns
        return
    prepared = features(rollout.observations) if n_epochs > 0 else rollout.observations
    for _ in range(n_epochs):
        shuffled = th.as_tensor(np.random.permutation(len(rollout.returns)))
        rows = rows_of(shuffled, rollout.layout).to(rollout.returns.device)
        for some in th.split(rows, int(batch_size)):
            yield select(prepared, some), rollout.returns.index_select(0, some)


def read_rollout(buffer: RolloutBuffer, device: th.device, dtype: th.dtype) -> Rollout:
    """
    Read a full rollout buffer.

    SB3's own buffers are read where they are, without a copy on the CPU. A class with a ``get`` of
    its own is asked through ``get(None)``.

    :param buffer: buffer after ``compute_returns_and_advantage``
    :param device: where the policy is
    :param dtype: floating-point type of the policy's parameters
    :return: its content
    :raises ValueError: if a number of it is not finite, naming it and its step and environment
    """
    is_known = is_sb3_buffer(buffer)
    rollout = _read_in_place(buffer, device, dtype) if is_known else _read_samples(buffer)
    _check_finite(rollout, buffer)
    actions = rollout.actions
    if isinstance(buffer.action_space, spaces.Discrete):
        actions = actions.long().flatten()
    else:
        actions = actions.to(dtype)
    return replace(
        rollout,
        actions=actions,
        old_log_prob=rollout.old_log_prob.to(dtype),
        advantages=rollout.advantages.to(dtype),
        returns=rollout.returns.to(dtype),
    )


# Buffers whose arrays are read in place.
_KNOWN: tuple[Any, ...] = (
    *(RolloutBuffer, DictRolloutBuffer),
    *(maskable.MaskableRolloutBuffer, maskable.MaskableDictRolloutBuffer),
    *(recurrent.RecurrentRolloutBuffer, recurrent.RecurrentDictRolloutBuffer),
)


def is_sb3_buffer(buffer: RolloutBuffer) -> bool:
    """
    Tell whether a buffer hands out its arrays as SB3's own do.

    :param buffer: the buffer
    :return: whether neither ``get`` nor ``_get_samples`` is overridden
    """
    kind = type(buffer)
    return not {"get", "_get_samples"} & vars(buffer).keys() and any(
        kind.get is known.get and kind._get_samples is known._get_samples for known in _KNOWN
    )


def _read_in_place(buffer: RolloutBuffer, device: th.device, dtype: th.dtype) -> Rollout:
    """Wrap the arrays of one of SB3's own buffers."""
    size = buffer.buffer_size * buffer.n_envs

    def rows(array: np.ndarray, shape: tuple[int, ...]) -> th.Tensor:
        return th.as_tensor(array.reshape(size, *shape), device=device)

    observations: Observations
    if isinstance(buffer, DictRolloutBuffer):
        observations = {
            key: rows(array, buffer.obs_shape[key]) for key, array in buffer.observations.items()
        }
    else:
        observations = rows(buffer.observations, buffer.obs_shape)
    # SB3 hands out single-precision actions whatever the action space's own type.
    actions = rows(buffer.actions.astype(np.float32, copy=False), (buffer.action_dim,))
    # After a first `get` the arrays are in SB3's order already.
    layout = (size, 1) if buffer.generator_ready else (buffer.buffer_size, buffer.n_envs)
    return Rollout(
        observations,
        actions,
        old_log_prob=rows(buffer.log_probs, ()),
        advantages=rows(buffer.advantages, ()),
        returns=rows(buffer.returns, ()),
        old_values=rows(buffer.values, ()),
        layout=layout,
        masks=_read_masks(buffer, rows),
        actor_sequences=_read_sequences(buffer, "pi", layout, rows, dtype),
        critic_sequences=_read_sequences(buffer, "vf", layout, rows, dtype),
    )


Reader = Callable[[np.ndarray, tuple[int, ...]], th.Tensor]


def _read_masks(buffer: Any, rows: Reader) -> th.Tensor | None:
    """Read the masks of a buffer that has them."""
    masks = getattr(buffer, "action_masks", None)
    if masks is None:
        return None
    if buffer.generator_ready and masks.ndim == 3:  # `get` of a recurrent buffer leaves them
        masks = buffer.swap_and_flatten(masks)
    return rows(masks.astype(bool), (buffer.mask_dims,))


def _read_sequences(
    buffer: Any, network: str, layout: Layout, rows: Reader, dtype: th.dtype
) -> Sequences | None:
    """Cut a buffer that has LSTM states into sequences."""
    if not hasattr(buffer, "hidden_states_pi"):
        return None
    starts = rows(buffer.episode_starts, ()) > 0

    def states(name: str) -> th.Tensor:
        array = getattr(buffer, f"{name}_states_{network}")
        if not buffer.generator_ready:  # (step, layer, environment, ...) until the first `get`
            array = array.swapaxes(1, 2)
        memory = rows(array, array.shape[-2:]).to(dtype)
        return memory.masked_fill(starts[:, None, None], 0.0)

    order = rows_of(th.arange(len(starts), device=starts.device), layout)
    is_start = starts[order]
    is_start[:: buffer.buffer_size] = True
    return cut_sequences(order, is_start, (states("hidden"), states("cell")))


def _read_samples(buffer: RolloutBuffer) -> Rollout:
    """Ask a buffer that has its own way of handing out its content."""
    samples = next(iter(buffer.get(None)))
    return Rollout(
        samples.observations,
        samples.actions,
        old_log_prob=samples.old_log_prob.flatten(),
        advantages=samples.advantages.flatten(),
        returns=samples.returns.flatten(),
        old_values=samples.old_values.flatten(),
        layout=(len(samples.actions), 1),
        masks=getattr(samples, "action_masks", None),
    )


def _check_finite(rollout: Rollout, buffer: RolloutBuffer) -> None:
    """Refuse a rollout with a number that is not finite."""
    named = {
        "value": rollout.old_values,
        "log-probability": rollout.old_log_prob,
        "advantage": rollout.advantages,
        "return": rollout.returns,
    }
    for name, numbers in named.items():
        faults = (~numbers.isfinite()).nonzero()
        if len(faults) > 0:
            place = _place(int(faults[0]), rollout.layout, buffer)
            raise ValueError(
                f"The {name} of {place} in the rollout buffer is "
                f"{float(numbers[faults[0]])}. Nothing was changed. Look at the policy's "
                f"parameters and the size of the rewards, or try a smaller learning_rate."
            )


def _place(row: int, layout: Layout, buffer: RolloutBuffer) -> str:
    """Name a state by step and environment; where a buffer has its own order, by its row."""
    if not is_sb3_buffer(buffer):
        return f"row {row} of get(None)"
    n_envs = layout[1]
    step, env = divmod(row, n_envs) if n_envs > 1 else divmod(row, buffer.buffer_size)[::-1]
    return f"(step, env) = ({step}, {env})"
