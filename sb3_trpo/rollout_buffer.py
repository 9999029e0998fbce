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
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_trpo.replaced import replaced


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
    last = last_values.cpu().numpy().reshape(1, -1)
    next_values = np.concatenate([buffer.values[1:], last])
    goes_on = 1.0 - np.concatenate([buffer.episode_starts[1:], dones.astype(np.float32)[None]])
    deltas = buffer.rewards + buffer.gamma * next_values * goes_on - buffer.values
    decays = buffer.gamma * buffer.gae_lambda * goes_on
    advantage: np.ndarray | int = 0
    backwards = slice(None, None, -1)
    steps = zip(deltas[backwards], decays[backwards], buffer.advantages[backwards], strict=True)
    for delta, decay, place in steps:
        place[:] = advantage = delta + decay * advantage
    buffer.returns = buffer.advantages + buffer.values


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
            is_sb3s = getattr(type(buffer), name) is getattr(RolloutBuffer, name)
            if is_sb3s and name not in vars(buffer):
                stack.enter_context(replaced(buffer, name, MethodType(method, buffer)))
        yield
