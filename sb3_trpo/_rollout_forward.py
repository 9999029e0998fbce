"""The policy's forward pass while a rollout is collected, in NumPy."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim, is_image_space
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_trpo._distributions import (
    Bernoulli,
    Categorical,
    Family,
    Gaussian,
    Head,
    MultiCategorical,
    held_after,
)
from sb3_trpo._finite import is_finite
from sb3_trpo._mlp import flat_features
from sb3_trpo._plain import Mlp, read_plain

# Actions, values and log-probabilities.
Answer = tuple[th.Tensor, th.Tensor, th.Tensor]


class RolloutForward:
    """
    The forward pass of SB3's ``MlpPolicy`` for a few states, in NumPy.

    It draws from torch's generator in SB3's order, so actions, values and log-probabilities are
    SB3's to rounding. The arrays are views of the parameters, checked at every call, so changed
    weights take effect at once. Changed modules and hooks take effect when the next one is made.

    :param policy: recognised by :func:`fast_forward`
    :param actor: its actor network
    :param critic: its critic network
    :param head: how its distribution reads the actor's output
    """

    def __init__(self, policy: ActorCriticPolicy, actor: Mlp, critic: Mlp, head: Head) -> None:
        self._policy = policy
        self._actor, self._critic = _NumpyMlp(actor), _NumpyMlp(critic)
        # Where each parameter is stored: the owner's dictionary and the name in it. Two parallel
        # lists, so that one `map` reads all parameters.
        layers = (*actor.layers, *critic.layers)
        self._owners = [layer._parameters for layer in layers for _ in ("weight", "bias")]
        self._names = ["weight", "bias"] * len(layers)
        self._seen: list[Any] = []
        self._sample = _sampler(policy, head)
        self._head = head
        space = policy.observation_space
        parts = list(space.values()) if isinstance(space, spaces.Dict) else [space]
        self._is_numeric = all(isinstance(part, spaces.Box) for part in parts) and not (
            policy.normalize_images and any(map(is_image_space, parts))
        )
        self._keys = list(getattr(policy.features_extractor, "extractors", ()))
        self._action_shape = (-1, *cast(tuple[int, ...], policy.action_space.shape))

    def __call__(self, obs: PyTorchObs) -> Answer:
        """
        Act as ``ActorCriticPolicy.forward`` does.

        :param obs: n observations
        :return: actions, values of shape ``(n, 1)`` and log-probabilities of shape ``(n,)``
        :raises ValueError: if an observation is not finite
        """
        answer = self._answer(obs) if self._has_views() else None
        return cast(Answer, self._policy(obs)) if answer is None else answer

    def _answer(self, obs: PyTorchObs) -> Answer | None:
        """Compute it in NumPy; what is not finite, and unusual parameters, are left to SB3."""
        features = self._features(obs)
        if not is_finite(features):
            raise ValueError("The network's input is not finite.")
        raw = self._actor(features)
        sampled = self._sample(raw) if math.isfinite(np.vdot(raw, raw)) else None
        if sampled is None:
            return None
        policy = self._policy
        log_stds = policy.log_std.tolist() if isinstance(self._head.family, Gaussian) else ()
        policy.action_dist.distribution = held_after(self._head, th.from_numpy(raw), log_stds)
        actions, log_prob = sampled
        return (
            th.from_numpy(actions.reshape(self._action_shape)),
            th.from_numpy(self._critic(features)),
            th.from_numpy(log_prob),
        )

    def _has_views(self) -> bool:
        """Renew the views where memory was replaced; return whether NumPy can read it."""
        tensors = cast(list[th.Tensor], list(map(dict.get, self._owners, self._names)))
        try:
            # A weight may have been transposed where it is.
            seen = [*map(th.Tensor.data_ptr, tensors), *map(th.Tensor.is_contiguous, tensors[::2])]
        except TypeError:  # a parameter is missing
            return False
        if seen != self._seen:
            if not all(tensor.is_cpu and tensor.dtype == th.float32 for tensor in tensors):
                return False
            self._actor.view()
            self._critic.view()
            self._seen = seen
        return True

    def _features(self, obs: PyTorchObs) -> np.ndarray:
        """Compute the networks' input."""
        if not self._is_numeric:
            return flat_features(self._policy, obs).numpy()
        if isinstance(obs, dict):
            return np.concatenate([_as_rows(obs[key]) for key in self._keys], axis=1)
        return _as_rows(obs)


def _as_rows(observations: th.Tensor) -> np.ndarray:
    """Flatten the observation of every state, in single precision."""
    array = observations.numpy()
    if array.dtype != np.float32:
        with np.errstate(over="ignore"):  # the caller refuses infinities
            array = array.astype(np.float32)
    return array if array.ndim == 2 else array.reshape(len(array), -1)


class _NumpyMlp:
    """A chain of layers on NumPy views of its parameters."""

    def __init__(self, mlp: Mlp) -> None:
        self._mlp = mlp
        self._activations = [_NUMPY_ACTIVATIONS.get(type(module)) for module in mlp.activations]
        self._layers: list[tuple[np.ndarray, np.ndarray, Callable[..., Any] | None]] = []

    def view(self) -> None:
        """View the current parameters."""
        pairs = [(weight.numpy().T, bias.numpy()) for weight, bias in self._mlp.weights]
        self._layers = [
            (*pair, activation) for pair, activation in zip(pairs, self._activations, strict=True)
        ]

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Run the layers on n states; the result has shape (n, outputs)."""
        # Vectors are faster than matrices of one row.
        h = features[0] if len(features) == 1 else features
        for weight, bias, activation in self._layers:
            h = h.dot(weight) + bias
            if activation is not None:
                activation(h, out=h)
        return h.reshape(len(features), -1)


# Elementwise, in place with ``out``.
_NUMPY_ACTIVATIONS: dict[type, Callable[..., Any]] = {
    nn.Tanh: np.tanh,
    nn.ReLU: partial(np.maximum, 0.0),
}

Sampled = tuple[np.ndarray, np.ndarray]
Sampler = Callable[[np.ndarray], Sampled | None]

# Up to this many outputs of a single state, plain Python is faster than NumPy.
_FEW = 16

# Smallest positive number in single precision: an exponential variate can be exactly 0.
_TINY = 1e-45

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)

# Beyond it the variance is near the ends of single precision.
_LARGEST_LOG_STD = 40.0


def _sampler(policy: ActorCriticPolicy, head: Head) -> Sampler:
    """Choose how actions are drawn from means or logits."""
    space = policy.action_space
    actions = get_action_dim(space)
    logits = int(space.n) if isinstance(space, spaces.Discrete) else 1
    samplers: dict[type[Family], Sampler] = {
        Gaussian: partial(_sample_gaussian, policy, _single_precision(1, actions)),
        Categorical: partial(_sample_categorical, work=_single_precision(1, logits)),
        MultiCategorical: partial(_sample_multi_categorical, head.sizes),
        Bernoulli: _sample_bernoulli,
    }
    return samplers[type(head.family)]


def _is_few(outputs: np.ndarray) -> bool:
    """Return whether these are few outputs of a single state."""
    return len(outputs) == 1 and outputs.size <= _FEW


def _single_precision(*shape: int) -> th.Tensor:
    """Make a tensor for NumPy to read, whatever torch's defaults are."""
    return th.empty(shape, dtype=th.float32, device="cpu")


def _sample_gaussian(
    policy: ActorCriticPolicy, work: th.Tensor, mean: np.ndarray
) -> Sampled | None:
    """Draw from independent normal distributions; give up where σ is shared or out of range."""
    n, size = mean.shape
    log_std = policy.log_std.detach()
    if log_std.shape != (size,):
        return None
    if _is_few(mean):
        return _sample_few_gaussian(log_std.tolist(), work, mean)
    log_stds = log_std.numpy()
    if not np.abs(log_stds).max() < _LARGEST_LOG_STD:
        return None
    std = np.exp(log_stds)
    actions = _single_precision(n, size).normal_().numpy()
    actions *= std
    actions += mean
    # Use the rounded action: with a small σ the rounding matters.
    distance = (actions - mean) / std
    log_prob = np.vecdot(distance, distance)
    log_prob *= -0.5
    log_prob -= np.add.reduce(log_stds) + size * _HALF_LOG_2PI
    return actions, log_prob


def _sample_few_gaussian(
    log_stds: list[float], work: th.Tensor, mean: np.ndarray
) -> Sampled | None:
    """Do the same for one state in Python's arithmetic."""
    if not all(-_LARGEST_LOG_STD < log_std < _LARGEST_LOG_STD for log_std in log_stds):
        return None
    means, stds = mean[0].tolist(), list(map(math.exp, log_stds))
    noise = work.normal_().tolist()[0]
    draws = [[mu + sigma * z for mu, sigma, z in zip(means, stds, noise, strict=True)]]
    actions = np.array(draws, np.float32)
    rounded = zip(actions.tolist()[0], means, stds, strict=True)
    squares = sum([((action - mu) / sigma) ** 2 for action, mu, sigma in rounded])
    log_density = -0.5 * squares - sum(log_stds) - len(means) * _HALF_LOG_2PI
    return actions, np.array([log_density], np.float32)


def _sample_categorical(logits: np.ndarray, work: th.Tensor | None = None) -> Sampled:
    """Draw from one categorical distribution, as ``th.multinomial`` does from these numbers."""
    n, size = logits.shape
    if work is None or work.shape != (n, size):
        work = _single_precision(n, size)
    variates = work.exponential_()
    if _is_few(logits):
        values = logits[0].tolist()
        top = max(values)
        weights = [math.exp(value - top) for value in values]
        scores = [w / max(e, _TINY) for w, e in zip(weights, variates.tolist()[0], strict=True)]
        action = scores.index(max(scores))
        log_mass = values[action] - top - math.log(sum(weights))
        return np.array([action]), np.array([log_mass], np.float32)
    logits = logits - np.maximum.reduce(logits, axis=1, keepdims=True)
    with np.errstate(under="ignore"):  # of actions that are hardly ever taken
        probs = np.exp(logits)
        actions = (probs / variates.numpy()).argmax(axis=1)
    log_prob = logits.ravel().take(actions + np.arange(0, n * size, size))
    log_prob -= np.log(np.add.reduce(probs, axis=1))
    return actions, log_prob


def _sample_multi_categorical(sizes: tuple[int, ...], logits: np.ndarray) -> Sampled:
    """Draw from every block."""
    blocks = np.split(logits, np.cumsum(sizes)[:-1], axis=1)
    actions, log_probs = zip(*map(_sample_categorical, blocks), strict=True)
    return np.stack(actions, axis=1), np.add.reduce(log_probs)


def _sample_bernoulli(logits: np.ndarray) -> Sampled:
    """Draw from independent binary distributions."""
    raw = th.from_numpy(logits)
    actions = th.bernoulli(raw.sigmoid())
    log_prob = -nn.functional.softplus(raw * (1 - 2 * actions)).sum(dim=1)
    return actions.numpy(), log_prob.numpy()


def fast_forward(policy: ActorCriticPolicy) -> RolloutForward | None:
    """
    Make the fast forward pass of a policy.

    :param policy: any policy
    :return: the pass; ``None`` where the policy is not exactly SB3's ``MlpPolicy`` on the CPU in
        single precision with activations that are implemented here
    """
    plain = read_plain(policy)
    if plain is None or not plain.acts_plainly:
        return None
    actor, critic, head = plain.actor, plain.critic, plain.head
    if actor is None or critic is None or head is None:
        return None
    activations = [a for a in (*actor.activations, *critic.activations) if a is not None]
    if not all(type(activation) in _NUMPY_ACTIVATIONS for activation in activations):
        return None
    parameters = (*actor.parameters, *critic.parameters)
    is_single = all(p.is_cpu and p.dtype == th.float32 for p in parameters)
    return RolloutForward(policy, actor, critic, head) if is_single else None
