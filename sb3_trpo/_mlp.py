"""
Closed-form derivatives of plain multi-layer perceptrons: the fast path of actor and critic.

An optimisation behind the same interfaces: a network that :mod:`sb3_trpo._plain` does not recognise
goes through autograd and gets the same numbers.

=======  ==========================================================
h_l      output of layer l; h_0 is the input
W_l, b_l weight and bias of layer l
φ'_l     slope of the activation after layer l
t_l      tangent of h_l
δ_l      cotangent of the input of the activation after layer l
=======  ==========================================================
"""

from collections.abc import Sequence
from typing import TypeVar, cast

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from torch import nn

from sb3_trpo._plain import Mlp, Weights
from sb3_trpo._sequences import Observations

T = TypeVar("T")

# A weight and a bias, or their tangents or gradients; None for one that is not involved.
Pair = tuple[th.Tensor | None, th.Tensor | None]


def preprocessed(policy: ActorCriticPolicy, observations: Observations) -> Observations:
    """
    Scale images and encode integers as SB3 does before a features extractor.

    :param policy: any policy
    :param observations: n states
    :return: what the policy's features extractors take
    """
    space, normalize = policy.observation_space, policy.normalize_images
    return preprocess_obs(observations, space, normalize_images=normalize)


def flat_features(policy: ActorCriticPolicy, observations: Observations) -> th.Tensor:
    """
    Compute the input of a plain policy's networks.

    :param policy: recognised by :func:`sb3_trpo._plain.read_plain`
    :param observations: n states
    :return: shape ``(n, features)``, in the type of the policy's parameters, which is one for all
    """
    features = cast(th.Tensor, policy.features_extractor(preprocessed(policy, observations)))
    return features.to(next(policy.parameters()).dtype)


def _tanh(h: th.Tensor) -> th.Tensor:
    """Apply tanh in place; NumPy's takes a tenth of the time of torch's on some processors."""
    if not h.is_cpu or h.dtype not in (th.float32, th.float64):
        return h.tanh_()
    array = h.numpy()
    np.tanh(array, out=array)
    return h


class Tape:
    """
    A chain of layers at n states: its activations, and products with its Jacobian.

    All intermediate results live in buffers that are made once. Whatever is returned is
    overwritten by the next call of the same method. Nothing is recorded for autograd, since the
    weights are detached.

    :param mlp: the chain
    :param weights: of its layers, detached; they may change between two calls of :meth:`forward`
    :param n_states: n
    """

    def __init__(self, mlp: Mlp, weights: Weights, n_states: int) -> None:
        self._activations = mlp.activations
        self._weights = weights
        self._outputs = [weight.new_empty(n_states, len(weight)) for weight, _ in weights[:-1]]
        self._outputs.append(_tall(weights[-1][0], n_states, len(weights[-1][0])))
        self._slopes = [th.empty_like(output) for output in self._outputs]
        self._work = [th.empty_like(output) for output in self._outputs]
        # Buffers for the gradients of weights with few columns.
        self._tall_gradients = {
            i: _tall(weight, *weight.shape)
            for i, (weight, _) in enumerate(weights)
            if weight.shape[0] > weight.shape[1]
        }
        self._one = weights[0][0].new_ones(())
        self._input = weights[0][0].new_empty(0)  # until the first forward pass

    def forward(self, features: th.Tensor) -> th.Tensor:
        """
        Compute h_l = φ(h_{l-1} W_lᵀ + b_l), and keep it with the slopes.

        :param features: h_0, shape ``(n, features)``
        :return: h_L, shape ``(n, outputs)``
        """
        self._input = h = features
        for i, (weight, bias) in enumerate(self._weights):
            h = th.addmm(bias, h, weight.T, out=self._outputs[i])
            activation = self._activations[i]
            if activation is not None:
                self._activate(activation, h, self._slopes[i])
        return h

    def _activate(self, activation: nn.Module, h: th.Tensor, slope: th.Tensor) -> None:
        """Apply an activation in place and note its slope."""
        if type(activation) is nn.Tanh:
            _tanh(h)
            th.addcmul(self._one, h, h, value=-1, out=slope)
        elif type(activation) is nn.ReLU:
            h.relu_()
            slope.copy_(h > 0)
        else:
            with th.enable_grad():
                leaf = h.clone().requires_grad_()
                value = activation(leaf.clone())  # a copy, which it may overwrite
                slope.copy_(th.autograd.grad(value.sum(), leaf)[0])
            h.copy_(value.detach())

    def tangent(self, changes: Sequence[Pair], inputs: th.Tensor | None = None) -> th.Tensor:
        """
        Compute Jv: t_l = φ'_l (h_{l-1} dW_lᵀ + t_{l-1} W_lᵀ + db_l).

        :param changes: v, as (dW_l, db_l) of every layer
        :param inputs: t_0; ``None`` for 0
        :return: t_L, shape ``(n, outputs)``
        """
        h, previous = self._input, inputs
        for i, (d_weight, d_bias) in enumerate(changes):
            t = self._work[i]
            if d_bias is None:
                t.zero_()
            else:
                t.copy_(d_bias)
            if d_weight is not None:
                t.addmm_(h, d_weight.T)
            if previous is not None:
                t.addmm_(previous, self._weights[i][0].T)
            if self._activations[i] is not None:
                t.mul_(self._slopes[i])
            h, previous = self._outputs[i], t
        return self._work[-1]

    def cotangent(
        self, cotangent: th.Tensor, gradients: Sequence[Pair], inputs: th.Tensor | None = None
    ) -> None:
        """
        Compute Jᵀu: dW_l = δ_lᵀ h_{l-1}, db_l = Σ_n δ_l, δ_{l-1} = φ'_{l-1} (δ_l W_l).

        :param cotangent: u, shape ``(n, outputs)``
        :param gradients: where to write (dW_l, db_l) of every layer
        :param inputs: where to write the cotangent of the input, δ_1 W_1
        """
        delta = cotangent
        for i in reversed(range(len(gradients))):
            if self._activations[i] is not None:
                delta = th.mul(delta, self._slopes[i], out=self._work[i])
            d_weight, d_bias = gradients[i]
            if d_weight is not None:
                h = self._outputs[i - 1] if i > 0 else self._input
                result = th.mm(delta.T, h, out=self._tall_gradients.get(i, d_weight))
                if result is not d_weight:
                    d_weight.copy_(result)
            if d_bias is not None:
                th.sum(delta, 0, out=d_bias)
            if i > 0:
                delta = th.mm(delta, self._weights[i][0], out=self._work[i - 1])
        if inputs is not None:
            th.mm(delta, self._weights[0][0], out=inputs)


def _tall(like: th.Tensor, rows: int, columns: int) -> th.Tensor:
    """
    Make a matrix of few columns in the layout that products are written to fastest.

    MKL takes up to five times as long for a result whose contiguous dimension is the short one.
    """
    return like.new_empty(columns, rows).T


def pairs_of(tensors: Sequence[T]) -> list[tuple[T, T]]:
    """
    Group tensors that alternate between weights and biases.

    :param tensors: an even number
    :return: the pairs
    """
    return list(zip(tensors[::2], tensors[1::2], strict=True))
