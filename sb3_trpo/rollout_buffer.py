"""
The rollout buffer's methods without what SB3's do twice.

Arrays and numbers are those of ``stable_baselines3.common.buffers.RolloutBuffer``, bit for bit.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common import buffers
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_trpo.own_attribute import is_unpatched, own_attribute


# Under this name a pickle of the bound function is that of the buffer's own method.
def add(
    buffer: RolloutBuffer,
    obs: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    episode_start: np.ndarray,
    value: th.Tensor,
    log_prob: th.Tensor,
) -> None:
    """
    Write a step of all environments into the buffer's arrays, which is a copy already.

    :param buffer: the buffer
    :param obs: what the policy saw
    :param action: what it did
    :param reward: what came of it, shape ``(n_envs,)``
    :param episode_start: whether ``obs`` is an episode's first, shape ``(n_envs,)``
    :param value: the critic's prediction, ``n_envs`` numbers
    :param log_prob: of the action, ``n_envs`` numbers
    """
    step, n_envs = buffer.pos, buffer.n_envs
    if isinstance(buffer.observation_space, spaces.Discrete):
        obs = obs.reshape(n_envs, *buffer.obs_shape)
    buffer.observations[step] = obs
    buffer.actions[step] = action.reshape(n_envs, buffer.action_dim)
    buffer.rewards[step] = reward
    buffer.episode_starts[step] = episode_start
    buffer.values[step] = value.cpu().numpy().ravel()
    buffer.log_probs[step] = log_prob.cpu().numpy().ravel()
    buffer.pos = step + 1
    if buffer.pos == buffer.buffer_size:
        buffer.full = True


def compute_returns_and_advantage(
    buffer: RolloutBuffer, last_values: th.Tensor, dones: np.ndarray
) -> None:
    """
    Compute advantages and returns, all temporal differences at once.

    :param buffer: full
    :param last_values: values of the states after the last step, ``n_envs`` numbers
    :param dones: whether the last step ended the episode, shape ``(n_envs,)``

    Source: Schulman et al. (2016), High-Dimensional Continuous Control Using Generalized Advantage
    Estimation, equation 16.
    """
    rewards, values, gamma = buffer.rewards, buffer.values, buffer.gamma
    # The last one by itself: its value comes from the policy and may have another precision.
    goes_on = 1.0 - dones.astype(np.float32)
    advantage = rewards[-1] + gamma * last_values.cpu().numpy().ravel() * goes_on - values[-1]
    buffer.advantages[-1] = advantage
    goes_on = 1.0 - buffer.episode_starts[1:]
    deltas = rewards[:-1] + gamma * values[1:] * goes_on - values[:-1]
    decays = gamma * buffer.gae_lambda * goes_on
    steps = zip(deltas[::-1], decays[::-1], buffer.advantages[-2::-1], strict=True)
    for delta, decay, place in steps:
        place[:] = advantage = delta + decay * advantage
    buffer.returns = buffer.advantages + values


@contextmanager
def filling_fast(buffer: RolloutBuffer) -> Iterator[None]:
    """
    Let a buffer use these methods for the duration of a block, where its own are SB3's.

    :param buffer: any rollout buffer
    :return: context manager
    """
    with ExitStack() as stack:
        for method in (add, compute_returns_and_advantage):
            name = method.__name__
            known, used = getattr(RolloutBuffer, name), getattr(type(buffer), name)
            if used is known and is_unpatched(known, buffers) and name not in vars(buffer):
                stack.enter_context(own_attribute(buffer, name, MethodType(method, buffer)))
        yield
