"""Read a rollout buffer: all of it as tensors, and minibatches for the critic."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable import buffers as maskable
from sb3_contrib.common.recurrent import buffers as recurrent
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

from sb3_trpo._batch import Layout, Minibatch, Rollout, rows_of
from sb3_trpo._processes import Processes
from sb3_trpo._sequences import Observations, Sequences, cut_sequences, select

# Buffers whose arrays are read directly.
_KNOWN: tuple[Any, ...] = (
    *(RolloutBuffer, DictRolloutBuffer),
    *(maskable.MaskableRolloutBuffer, maskable.MaskableDictRolloutBuffer),
    *(recurrent.RecurrentRolloutBuffer, recurrent.RecurrentDictRolloutBuffer),
)

# Converts an array of a buffer into a tensor with one row per state of the given shape.
Reader = Callable[[np.ndarray, tuple[int, ...]], th.Tensor]


def read_rollout(buffer: RolloutBuffer, device: th.device, dtype: th.dtype) -> Rollout:
    """
    Read a full rollout buffer.

    The arrays of SB3's own buffers are used directly, without a copy on the CPU. Any other
    one (see :func:`is_sb3_buffer`) is read through ``get(None)``.

    :param buffer: buffer after ``compute_returns_and_advantage``
    :param device: the policy's device
    :param dtype: floating-point type of the policy's parameters
    :return: the buffer's content
    :raises ValueError: if it is not full, or contains an infinity or a NaN, naming the step and the
        environment
    """
    if not getattr(buffer, "full", True):
        raise ValueError(
            f"The rollout buffer holds {buffer.pos} of {buffer.buffer_size} steps: the rest would "
            f"be trained on as zeros. Collect a whole rollout before train."
        )
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


def check_size(buffer: RolloutBuffer, n_steps: int) -> None:
    """
    Refuse a rollout that has another length than its buffer.

    :param buffer: the buffer; one that is not SB3's may store steps in its own way
    :param n_steps: steps per environment
    :raises ValueError: naming both
    """
    if is_sb3_buffer(buffer) and buffer.buffer_size != n_steps:
        raise ValueError(
            f"n_steps={n_steps}, but the rollout buffer was made for {buffer.buffer_size} steps. "
            f"To change it, save the model and pass n_steps={n_steps} to load."
        )


def is_sb3_buffer(buffer: RolloutBuffer) -> bool:
    """
    Return whether a buffer returns its content as SB3's own buffers do.

    :param buffer: the buffer
    :return: False if ``get``, ``_get_samples`` or ``to_torch`` is overridden
    """
    names = ("get", "_get_samples", "to_torch")
    return not {*names} & vars(buffer).keys() and any(
        all(getattr(type(buffer), name) is getattr(known, name) for name in names)
        for known in _KNOWN
    )


def minibatches(
    buffer: RolloutBuffer,
    rollout: Rollout,
    batch_size: int,
    n_epochs: int = 1,
    features: Callable[[Observations], Observations] = lambda observations: observations,
    n_parts: int | None = None,
) -> Iterator[Minibatch]:
    """
    Iterate over all states for several epochs, reshuffled each time.

    The order and the random numbers used are those of ``RolloutBuffer.get``.

    :param buffer: the buffer that the rollout was read from; if it is not SB3's, its own
        minibatches are used
    :param rollout: the buffer's content
    :param batch_size: number of states in a minibatch; the last one of an epoch may be smaller
    :param n_epochs: number of passes over all states
    :param features: function of the observations whose result takes their place; it is evaluated
        once, unless the buffer is not SB3's
    :param n_parts: number of minibatches of an epoch, of nearly equal size, in place of
        ``batch_size``; see :func:`minibatches_per_epoch`
    :return: pairs of features and returns
    """
    sequences = rollout.critic_sequences
    if sequences is not None:
        epochs = (sequences.shuffled(batch_size, n_parts) for _ in range(n_epochs))
        for part in chain.from_iterable(epochs):
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
        parts = th.split(rows, int(batch_size)) if n_parts is None else rows.tensor_split(n_parts)
        for some in parts:
            yield select(prepared, some), rollout.returns.index_select(0, some)


def minibatches_per_epoch(
    rollout: Rollout, batch_size: int, processes: Processes, least: int = 1
) -> int | None:
    """
    Count the minibatches to which every process contributes a share.

    :param rollout: of this process
    :param batch_size: number of states in a minibatch, those of all processes together
    :param processes: that fit the critic together
    :param least: smallest share of a process, in states
    :return: a number that is the same in all processes, small enough for every process to have a
        share of each minibatch; ``None`` if there is one process, whose minibatches have
        ``batch_size`` states each
    """
    if processes.size == 1:
        return None
    n_states = len(rollout.returns)
    sequences = rollout.critic_sequences
    shares = n_states // least if sequences is None else len(sequences.lengths)
    everyone = processes.gather((shares, n_states))
    most, total = min(each[0] for each in everyone), sum(each[1] for each in everyone)
    return max(1, min(math.ceil(total / batch_size), most))


def _read_in_place(buffer: RolloutBuffer, device: th.device, dtype: th.dtype) -> Rollout:
    """Use the arrays of one of SB3's own buffers directly."""
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
    # SB3's buffers return float32 actions whatever the type of the action space.
    actions = rows(buffer.actions.astype(np.float32, copy=False), (buffer.action_dim,))
    # The first `get` reorders the arrays: one environment after the other.
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


def _read_masks(buffer: Any, rows: Reader) -> th.Tensor | None:
    """Read the action masks if the buffer has any."""
    masks = getattr(buffer, "action_masks", None)
    if masks is None:
        return None
    if buffer.generator_ready and masks.ndim == 3:  # a recurrent buffer's `get` does not
        masks = buffer.swap_and_flatten(masks)
    return rows(masks.astype(bool), (buffer.mask_dims,))


def _read_sequences(
    buffer: Any, network: str, layout: Layout, rows: Reader, dtype: th.dtype
) -> Sequences | None:
    """Cut the rollout into sequences if the buffer has LSTM states."""
    if not hasattr(buffer, "hidden_states_pi"):
        return None
    starts = rows(buffer.episode_starts, ()) > 0

    def states(name: str) -> th.Tensor:
        array = getattr(buffer, f"{name}_states_{network}")
        if not buffer.generator_ready:  # (step, layer, environment, hidden) until the first `get`
            array = array.swapaxes(1, 2)
        memory = rows(array, array.shape[-2:]).to(dtype)
        # An episode starts with an empty memory.
        return memory.masked_fill(starts[:, None, None], 0.0)

    order = rows_of(th.arange(len(starts), device=starts.device), layout)
    is_start = starts[order]
    is_start[:: buffer.buffer_size] = True  # the first state of every environment
    return cut_sequences(order, is_start, (states("hidden"), states("cell")))


def _read_samples(buffer: RolloutBuffer) -> Rollout:
    """Read a buffer that is not SB3's, in the order that it chooses."""
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
    """Raise if a number of the rollout is infinite or NaN."""
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
    """Name a state by step and environment, or by its row if the buffer has its own order."""
    if not is_sb3_buffer(buffer):
        return f"row {row} of get(None)"
    n_envs = layout[1]
    step, env = divmod(row, n_envs) if n_envs > 1 else divmod(row, buffer.buffer_size)[::-1]
    return f"(step, env) = ({step}, {env})"
