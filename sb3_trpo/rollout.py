"""What happens between the environment and the policy while a rollout is collected."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from torch import nn

from sb3_trpo.distributions import (
    Bernoulli,
    Categorical,
    Family,
    Gaussian,
    Head,
    MultiCategorical,
    head_of,
)
from sb3_trpo.mlp import Mlp, actor_mlp, critic_mlp, flat_features, is_plain, pairs_of


class FiniteVecEnv(VecEnvWrapper):
    """
    Hands observations and rewards on, and stops at the first one that is not finite.

    Where observations are normalised the raw ones are looked at too, and first: clipping would hide
    an infinity, and a NaN spreads to all environments through the running statistics.

    :param venv: the training environment
    :param vec_normalize: the normalisation inside it, if any
    """

    def __init__(self, venv: VecEnv, vec_normalize: VecNormalize | None) -> None:
        super().__init__(venv)
        self._vec_normalize = vec_normalize
        self._step = 0

    def reset(self) -> VecEnvObs:
        """
        Reset all environments.

        :return: their first observations
        """
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """
        Wait for the step of all environments.

        :return: observations, rewards, dones and infos
        :raises ValueError: if an observation or a reward is not finite
        """
        observations, rewards, dones, infos = self.venv.step_wait()
        self._step += 1
        self.check_observations(observations)
        if self._vec_normalize is not None:
            self._check("reward", self._vec_normalize.old_reward)
        self._check("reward", rewards)
        for env in np.flatnonzero(dones):
            self._check_terminal(infos[env], int(env))
        return observations, rewards, dones, infos

    def check_observations(self, observations: VecEnvObs) -> None:
        """
        Refuse observations that are not finite.

        :param observations: of all environments
        :raises ValueError: naming the observation and its (step, env)
        """
        raw = None if self._vec_normalize is None else self._vec_normalize.old_obs
        for group in (raw, observations):
            for name, array in _named_arrays("observation", group):
                self._check(name, array)

    def _check(self, name: str, array: np.ndarray) -> None:
        """Raise if an array with one row per environment has a number that is not finite."""
        if not _all_finite(array):
            env = int(np.argwhere(~np.isfinite(array))[0][0])
            self._refuse(name, array[env], env)

    def _check_terminal(self, info: dict[str, Any], env: int) -> None:
        """Raise if an episode's last observation is not finite: the critic reads it at a limit."""
        last = info.get("terminal_observation")
        for name, array in _named_arrays("terminal observation", last):
            if not _all_finite(np.asarray(array)):
                self._refuse(name, array, env)

    def _refuse(self, name: str, value: np.ndarray, env: int) -> None:
        fault = np.asarray(value)[~np.isfinite(value)].flat[0]
        raise ValueError(
            f"The environment's {name} is not finite: {fault} at (step, env) = "
            f"({self._step}, {env}) of this rollout, step 0 being the observation it starts from. "
            f"The policy has not seen it, and parameters and optimizer are unchanged. Correct the "
            f"environment, or clip what it returns."
        )


def _named_arrays(name: str, observations: Any) -> list[tuple[str, np.ndarray]]:
    """List the arrays of an observation with their names."""
    if observations is None:
        return []
    if isinstance(observations, dict):
        return [(f"{name} '{key}'", array) for key, array in observations.items()]
    return [(name, observations)]


def _all_finite(array: np.ndarray) -> bool:
    """Tell whether all numbers are finite; integers always are."""
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


class RolloutForward:
    """
    The forward pass of SB3's ``MlpPolicy`` for a few states, in NumPy.

    It draws from torch's generator in SB3's order, so actions, values and log-probabilities are
    SB3's to rounding. The arrays are views of the parameters, checked at every call, so weights
    that were written or replaced a moment ago are the ones that act. Copies and pickles of the
    policy get SB3's own forward pass.

    :param policy: recognised by :func:`fast_forward`
    :param actor: its actor network
    :param critic: its critic network
    :param head: what its distribution makes of the actor's output
    """

    def __init__(self, policy: ActorCriticPolicy, actor: Mlp, critic: Mlp, head: Head) -> None:
        self._policy = policy
        self._actor, self._critic = _NumpyMlp(actor), _NumpyMlp(critic)
        self._sample = _SAMPLERS[type(head.family)]
        self._head = head
        space = policy.observation_space
        is_image = policy.normalize_images and is_image_space(space)
        self._is_vector = isinstance(space, spaces.Box) and not is_image
        self._action_shape = (-1, *cast(tuple[int, ...], policy.action_space.shape))

    def __call__(
        self, obs: PyTorchObs, deterministic: bool = False
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        Act as ``ActorCriticPolicy.forward`` does.

        :param obs: n observations
        :param deterministic: whether to take the most likely action
        :return: actions, values of shape ``(n, 1)`` and log-probabilities of shape ``(n,)``
        """
        if (
            deterministic
            or th.is_grad_enabled()
            or not (self._actor.fits() and self._critic.fits())
        ):
            return ActorCriticPolicy.forward(self._policy, cast(th.Tensor, obs), deterministic)
        features = self._features(obs)
        raw, values = self._actor(features), self._critic(features)
        actions, log_prob = self._sample(self._policy, self._head, raw)
        return actions.reshape(self._action_shape), th.from_numpy(values), log_prob

    def _features(self, obs: PyTorchObs) -> np.ndarray:
        """Compute the networks' input."""
        if not self._is_vector:
            return flat_features(self._policy, obs).numpy()
        array = cast(th.Tensor, obs).numpy()
        return array.reshape(len(array), -1).astype(np.float32, copy=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> MethodType:
        """Give a copy of the policy its class's method."""
        return MethodType(ActorCriticPolicy.forward, memo[id(self._policy)])

    def __reduce__(self) -> tuple[Any, ...]:
        """Give an unpickled policy its class's method: it has no attributes yet when this runs."""
        return getattr, (self._policy, "forward")


class _NumpyMlp:
    """A chain of layers on NumPy views of its parameters."""

    def __init__(self, mlp: Mlp) -> None:
        self._layers = [layer._parameters for layer in mlp.layers]
        self._activations = [_NUMPY_ACTIVATIONS.get(type(module)) for module in mlp.activations]
        self._addresses: list[int] = []
        self._views: list[tuple[np.ndarray, np.ndarray]] = []

    def fits(self) -> bool:
        """Renew views of parameters whose memory was replaced; tell whether NumPy can do it."""
        tensors = [cast(th.Tensor, group[name]) for group in self._layers for name in group]
        addresses = [tensor.data_ptr() for tensor in tensors]
        if addresses != self._addresses:
            if not all(tensor.is_cpu and tensor.dtype == th.float32 for tensor in tensors):
                return False
            arrays = [tensor.detach().numpy() for tensor in tensors]
            self._views = [(weight.T, bias) for weight, bias in pairs_of(arrays)]
            self._addresses = addresses
        return True

    def __call__(self, h: np.ndarray) -> np.ndarray:
        """Run the layers."""
        for (weight, bias), activation in zip(self._views, self._activations, strict=True):
            h = h @ weight
            h += bias
            if activation is not None:
                activation(h)
        return h


_NUMPY_ACTIVATIONS: dict[type, Callable[[np.ndarray], Any]] = {
    nn.Tanh: lambda h: np.tanh(h, out=h),
    nn.ReLU: lambda h: np.maximum(h, 0.0, out=h),
}

Sampled = tuple[th.Tensor, th.Tensor]


def _sample_gaussian(policy: ActorCriticPolicy, head: Head, mean: np.ndarray) -> Sampled:
    """Draw from independent normal distributions."""
    log_std = policy.log_std.detach().numpy()
    noise = th.randn(mean.shape).numpy()
    actions = mean + np.exp(log_std) * noise
    log_prob = -0.5 * (noise * noise).sum(axis=1) - (log_std.sum() + mean.shape[1] * _HALF_LOG_2PI)
    return th.from_numpy(actions), th.from_numpy(log_prob)


def _sample_categorical(policy: ActorCriticPolicy, head: Head, logits: np.ndarray) -> Sampled:
    """Draw from one categorical distribution, as ``th.multinomial`` does from these numbers."""
    logits = logits - logits.max(axis=1, keepdims=True)
    probs = np.exp(logits)
    noise = th.empty(probs.shape).exponential_().numpy()
    actions = (probs / noise).argmax(axis=1)
    log_prob = logits[np.arange(len(actions)), actions] - np.log(probs.sum(axis=1))
    return th.from_numpy(actions), th.from_numpy(log_prob)


def _sample_multi_categorical(policy: ActorCriticPolicy, head: Head, logits: np.ndarray) -> Sampled:
    """Draw from every block."""
    blocks = np.split(logits, np.cumsum(head.sizes)[:-1], axis=1)
    samples = [_sample_categorical(policy, head, block) for block in blocks]
    log_prob = th.stack([log_prob for _, log_prob in samples], dim=1).sum(dim=1)
    return th.stack([actions for actions, _ in samples], dim=1), log_prob


def _sample_bernoulli(policy: ActorCriticPolicy, head: Head, logits: np.ndarray) -> Sampled:
    """Draw from independent binary distributions."""
    raw = th.from_numpy(logits)
    actions = th.bernoulli(raw.sigmoid())
    return actions, -nn.functional.softplus(raw * (1 - 2 * actions)).sum(dim=1)


_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)

_SAMPLERS: dict[type[Family], Callable[[ActorCriticPolicy, Head, np.ndarray], Sampled]] = {
    Gaussian: _sample_gaussian,
    Categorical: _sample_categorical,
    MultiCategorical: _sample_multi_categorical,
    Bernoulli: _sample_bernoulli,
}


def fast_forward(policy: ActorCriticPolicy) -> RolloutForward | None:
    """
    Make the fast forward pass of a policy.

    :param policy: any policy
    :return: the pass; ``None`` where the policy is not exactly SB3's ``MlpPolicy`` on the CPU in
        single precision with layers that NumPy has
    """
    actor, critic = actor_mlp(policy), critic_mlp(policy)
    if actor is None or critic is None or not is_plain(policy):
        return None
    head = head_of(policy.action_dist)
    if head is None:
        return None
    activations = [a for a in (*actor.activations, *critic.activations) if a is not None]
    if not all(type(activation) in _NUMPY_ACTIVATIONS for activation in activations):
        return None
    parameters = (*actor.parameters, *critic.parameters)
    is_single = all(p.is_cpu and p.dtype == th.float32 for p in parameters)
    return RolloutForward(policy, actor, critic, head) if is_single else None


@contextmanager
def acting_fast(policy: ActorCriticPolicy) -> Iterator[None]:
    """
    Let a policy use its fast forward pass, if it has one, for the duration of a block.

    :param policy: any policy
    :return: context manager
    """
    forward = fast_forward(policy)
    if forward is None:
        yield
        return
    vars(policy)["forward"] = forward
    try:
        yield
    finally:
        vars(policy).pop("forward", None)
