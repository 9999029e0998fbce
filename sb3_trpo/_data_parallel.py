"""What the processes of a data-parallel training share besides gradients."""

import re
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from io import BytesIO
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common import utils
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    ConvertCallback,
    ProgressBarCallback,
)
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_trpo._finite import running_statistics
from sb3_trpo._hyperparameters import shared_settings
from sb3_trpo._merged_weights import weights_apart
from sb3_trpo._processes import Processes


def seed_of(rank: int, seed: int) -> int:
    """
    Derive a process's seed, so that no two processes collect the same rollout.

    :param rank: of the process
    :param seed: of the training
    :return: the seed itself for rank 0
    """
    if rank == 0:
        return seed
    # Below 2³¹, because SB3 adds the number of the environment to it.
    return int(np.random.SeedSequence([seed, rank]).generate_state(1)[0] >> 1)


def start_equal(
    model: OnPolicyAlgorithm, settings: Mapping[str, Any], processes: Processes
) -> None:
    """
    Give all processes the weights, counters and VecNormalize statistics of rank 0.

    :param model: before training
    :param settings: that have to be the same in all processes, besides the hyperparameters
    :param processes: that train together
    :raises ValueError: naming a setting, or another part of the model, that is not the same
    """
    if processes.size == 1:
        return
    with processes.together():
        shared = {**settings, **shared_settings(model)}
    _check_same(processes.gather(shared))
    progress = model.num_timesteps, model._n_updates
    with weights_apart(model.policy):
        weights = _weights(model)
    weights, statistics, progress = processes.of_first(
        (weights, running_statistics(model.env), progress)
    )
    with processes.together():
        with weights_apart(model.policy):
            _put_weights(model, weights)
        model.num_timesteps, model._n_updates = progress
        for own, first in zip(running_statistics(model.env), statistics, strict=True):
            vars(own).update(vars(first))


def _check_same(settings: list[dict[str, Any]]) -> None:
    """Refuse settings that differ from those of rank 0."""
    for rank, others in enumerate(settings):
        for name, value in settings[0].items():
            if others.get(name) != value:
                raise ValueError(
                    f"{name} is {value!r} in process 0 and {others.get(name)!r} in process {rank}. "
                    f"All processes of a data-parallel training need the same."
                )


def _weights(model: OnPolicyAlgorithm) -> bytes:
    """Write the layers' descriptions, the weights and the optimizer's state."""
    stream = BytesIO()
    states = model.policy.state_dict(), model.policy.optimizer.state_dict()
    th.save([_layers(model.policy), *states], stream)
    return stream.getvalue()


def _layers(policy: nn.Module) -> str:
    """Describe a policy's layers, without the addresses that differ between processes."""
    return re.sub("0x[0-9a-f]+", "", repr(policy))


def _put_weights(model: OnPolicyAlgorithm, weights: bytes) -> None:
    """Read the weights and the optimizer's state."""
    layers, *states = th.load(BytesIO(weights), map_location=model.device, weights_only=True)
    policy, optimizer = states
    try:
        if layers != _layers(model.policy):
            raise ValueError("its layers differ")
        model.policy.load_state_dict(policy)
        model.policy.optimizer.load_state_dict(optimizer)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"The policy is another one than that of process 0: {error}. Build the model with the "
            f"same arguments in all processes."
        ) from error


def silent_logger() -> Logger:
    """Make the logger of the processes that do not log."""
    return Logger(None, [])


class ProgressBar(ProgressBarCallback):
    """SB3's progress bar, which counts the steps of all processes."""

    _shown = 0

    def _on_training_start(self) -> None:
        """Show the bar."""
        super()._on_training_start()
        self._shown = self.num_timesteps

    def _on_step(self) -> bool:
        """Move the bar."""
        self.pbar.update(self.num_timesteps - self._shown)
        self._shown = self.num_timesteps
        return True

    def _on_training_end(self) -> None:
        """Close the bar. The RL Zoo asks for it after every error, even before there is one."""
        if hasattr(self, "pbar"):
            super()._on_training_end()


class StartingTogether(CallbackList):
    """
    Callbacks of which an exception at the start of training ends it in all processes.

    They must not communicate with other processes there.

    :param callback: as for ``learn``
    :param processes: that train together
    """

    def __init__(self, callback: MaybeCallback, processes: Processes) -> None:
        given = callback if isinstance(callback, list) else [callback]
        super().__init__([c if isinstance(c, BaseCallback) else ConvertCallback(c) for c in given])
        self._processes = processes

    def _on_training_start(self) -> None:
        """Start all callbacks, before another process starts a rollout."""
        with self._processes.together():
            super()._on_training_start()


def joined_rollout(
    model: OnPolicyAlgorithm, env: VecEnv, processes: Processes
) -> AbstractContextManager[None]:
    """
    Collect a rollout in all processes at once, and share what was seen.

    Afterwards all have the same VecNormalize statistics, finished episodes and number of steps. An
    exception in one process ends the block in all.

    :param model: whose rollout the block collects
    :param env: training environment
    :param processes: that train together
    :return: context manager
    """
    return _joined_rollout(model, env, processes) if processes.size > 1 else nullcontext()


@contextmanager
def _joined_rollout(model: OnPolicyAlgorithm, env: VecEnv, processes: Processes) -> Iterator[None]:
    with (
        merged_statistics(env, processes),
        _merged_episodes(model, processes),
        processes.together(),
    ):
        yield
    model.num_timesteps = processes.of_first(model.num_timesteps)


def merged_statistics(env: VecEnv | None, processes: Processes) -> AbstractContextManager[None]:
    """
    Merge into VecNormalize's statistics what the other processes see within the block.

    :param env: training environment
    :param processes: whose statistics are the same before the block; if those of process 0 were
        just resumed, all continue with these
    :return: context manager
    """
    statistics = running_statistics(env) if processes.size > 1 else []
    return _merged(statistics, processes) if statistics else nullcontext()


@contextmanager
def _merged(statistics: list[RunningMeanStd], processes: Processes) -> Iterator[None]:
    before = [copy(each) for each in statistics]
    yield
    seen = [_since(old, new) for old, new in zip(before, statistics, strict=True)]
    everyone = processes.gather((before if processes.rank == 0 else [], seen))
    olds, parts_by_rank = everyone[0][0], [parts for _, parts in everyone]
    for owner, old, *parts in zip(statistics, olds, *parts_by_rank, strict=True):
        merged = copy(old)
        for part in parts:
            if part.count > 0:
                merged.update_from_moments(part.mean, part.var, part.count)
        vars(owner).update(vars(merged))


def _since(old: RunningMeanStd, new: RunningMeanStd) -> RunningMeanStd:
    """
    Compute the statistics of what was added to a mean and a variance: the merge, backwards.

    Source: Chan, Golub and LeVeque (1983), Algorithms for computing the sample variance, equation
    2.1.
    """
    added = copy(new)
    added.count = new.count - old.count
    if added.count > 0:
        # The new mean lies between the old one and that of what was added.
        added.mean = new.mean + (new.mean - old.mean) * (old.count / added.count)
        between = (added.mean - old.mean) ** 2 * (old.count * added.count / new.count)
        squares = new.var * new.count - old.var * old.count - between
        added.var = np.maximum(squares / added.count, 0.0)
    return added


@contextmanager
def _merged_episodes(model: OnPolicyAlgorithm, processes: Processes) -> Iterator[None]:
    """Add the episodes that the other processes finish within the block, in the order of ranks."""
    names = "ep_info_buffer", "ep_success_buffer"
    before = [list(getattr(model, name)) for name in names]
    for name, episodes in zip(names, before, strict=True):
        setattr(model, name, deque(episodes))  # of any length: none of the new ones is lost
    merged = before
    try:
        yield
        new = [
            list(getattr(model, name))[len(old) :] for name, old in zip(names, before, strict=True)
        ]
        everyone = processes.gather(new)
        merged = [
            [*old, *(episode for each in everyone for episode in each[kind])]
            for kind, old in enumerate(before)
        ]
    finally:
        for name, episodes in zip(names, merged, strict=True):
            setattr(model, name, deque(episodes, maxlen=model._stats_window_size))


def check_equal_parameters(policy: nn.Module, processes: Processes) -> None:
    """
    Refuse to continue with parameters that have drifted apart.

    :param policy: after an update
    :param processes: that train together
    :raises RuntimeError: naming the processes whose parameters are not those of rank 0
    """
    if processes.size == 1:
        return
    checksum = 0
    for parameter in policy.parameters():
        numbers = parameter.detach().cpu().contiguous().flatten().view(th.uint8)
        checksum = zlib.crc32(numbers.numpy().tobytes(), checksum)
    checksums = processes.gather(checksum)
    others = [rank for rank, each in enumerate(checksums) if each != checksums[0]]
    if others:
        raise RuntimeError(
            f"After an update the parameters of process {', '.join(map(str, others))} differ "
            f"from those of process 0. Every process needs the same policy, libraries and kind of "
            f"processor, and nothing but learn() may change the parameters. Resume from the latest "
            f"checkpoint."
        )


def explained_variance(values: np.ndarray, returns: np.ndarray, processes: Processes) -> float:
    """
    Compute the share of the returns' variance that the critic explains, in all processes together.

    :param values: the critic's predictions for the states of this process
    :param returns: their returns
    :param processes: that train together
    :return: 1 - Var[R - V] / Var[R]; NaN if all returns are equal
    """
    if processes.size == 1:
        return float(utils.explained_variance(values, returns))
    own = th.as_tensor(np.stack([returns, returns - values]), dtype=th.float64)
    n = own.shape[1]
    deviation = own - processes.mean(own.sum(1), n)[:, None]
    variance, unexplained = processes.mean(deviation.square().sum(1), n).tolist()
    return 1 - unexplained / variance if variance > 0 else np.nan
