"""
The actor linearised at one batch of states: products with its Jacobian and the transpose.

====  =====================================================================
θ     actor parameters, P numbers in total
z     outputs of the action distribution (see :mod:`sb3_trpo._distributions`)
J     Jacobian dz/dθ at the batch
====  =====================================================================
"""

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_trpo._distributions import ActionDistribution, Gaussian, Head, Metric, Outputs
from sb3_trpo._mlp import Pair, Tape, flat_features, pairs_of
from sb3_trpo._plain import Mlp, read_plain
from sb3_trpo._sequences import Observations
from sb3_trpo._vectors import flatten, unflatten


class Linearization(ABC):
    """
    Derivatives of the actor at one batch of states.

    :param distribution: at these states, on a graph that :meth:`gradient` differentiates
    """

    def __init__(self, distribution: ActionDistribution) -> None:
        self.distribution = distribution

    @cached_property
    def metric(self) -> Metric:
        """Return the distribution's Fisher metric at z."""
        z = tuple(output.detach() for output in self.distribution.outputs)
        return self.distribution.family.fisher_metric(z)

    @abstractmethod
    def gradient(self, value: th.Tensor) -> th.Tensor:
        """
        Differentiate a scalar that was computed from the distribution.

        :param value: scalar
        :return: its gradient with respect to θ, shape ``(P,)``
        """

    @abstractmethod
    def jacobian_product(self, vector: th.Tensor) -> Outputs:
        """
        Compute Jv.

        :param vector: v, shape ``(P,)``
        :return: tangents of z, for logits up to a constant that the metric does not see
        """

    @abstractmethod
    def transposed_product(self, tangent: Outputs) -> th.Tensor:
        """
        Compute Jᵀu.

        :param tangent: u, shaped as z; for logits with rows that add up to 0, as the metric's do
        :return: shape ``(P,)``
        """


def views_by_id(vector: th.Tensor, parameters: Sequence[nn.Parameter]) -> dict[int, th.Tensor]:
    """
    Cut a vector into the parameters' shapes.

    :param vector: shape ``(P,)``
    :param parameters: θ
    :return: one view per parameter, by the parameter's identity
    """
    return dict(zip(map(id, parameters), unflatten(vector, parameters), strict=True))


class AutogradLinearization(Linearization):
    """
    Derivatives of any policy by autograd.

    The product Jᵀu is linear in u, so its own derivative gives Jv: two backward passes over the
    network's graph and no second-order derivative of the loss.

    :param distribution: evaluated with gradients
    :param parameters: θ
    """

    def __init__(
        self, distribution: ActionDistribution, parameters: Sequence[nn.Parameter]
    ) -> None:
        super().__init__(distribution)
        self.parameters = parameters

    def gradient(self, value: th.Tensor) -> th.Tensor:
        """Differentiate with respect to θ."""
        return flatten(_grad([value], self.parameters))

    def jacobian_product(self, vector: th.Tensor) -> Outputs:
        """Differentiate u -> Jᵀu."""
        cotangents, pullback = self._pullback
        tangents = iter(_grad(pullback, cotangents, unflatten(vector, self.parameters)))
        outputs = self.distribution.outputs
        return tuple(next(tangents) if z.requires_grad else th.zeros_like(z) for z in outputs)

    def transposed_product(self, tangent: Outputs) -> th.Tensor:
        """Differentiate uᵀz."""
        pairs = zip(self.distribution.outputs, tangent, strict=True)
        active = [u for z, u in pairs if z.requires_grad]
        return flatten(_grad(self._active_outputs, self.parameters, active))

    @cached_property
    def _active_outputs(self) -> list[th.Tensor]:
        """List the outputs that depend on a parameter which is not frozen."""
        return [z for z in self.distribution.outputs if z.requires_grad]

    @cached_property
    def _pullback(self) -> tuple[list[th.Tensor], tuple[th.Tensor, ...]]:
        """Build the graph of u -> Jᵀu."""
        cotangents = [th.zeros_like(z, requires_grad=True) for z in self._active_outputs]
        pullback = _grad(self._active_outputs, self.parameters, cotangents, create_graph=True)
        return cotangents, pullback


class ClosedForm(Linearization):
    """
    Derivatives of a network in closed form, under one of SB3's distributions.

    Autograd is used only from the network's outputs to the objective.

    :param policy: its ``action_dist`` makes the distribution
    :param head: how the distribution reads the network's outputs
    :param parameters: θ
    :param outputs: of the network at n states, means or logits, shape ``(n, outputs)``
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        head: Head,
        parameters: Sequence[nn.Parameter],
        outputs: th.Tensor,
    ) -> None:
        self._sizes, self._parameters = head.sizes, parameters
        self._leaves = [outputs.clone().requires_grad_()]
        self._log_std = policy.log_std if isinstance(head.family, Gaussian) else None
        if self._log_std is not None:
            self._leaves.append(self._log_std.detach().clone().requires_grad_())
        with th.enable_grad():
            # A copy: a graph on the policy's own object would keep the policy from being copied.
            distribution = copy.copy(policy.action_dist).proba_distribution(*self._leaves)
            super().__init__(ActionDistribution(distribution))

    @abstractmethod
    def _push(self, changes: dict[int, th.Tensor]) -> th.Tensor:
        """Return the tangent of the network's outputs; the changes are by identity."""

    @abstractmethod
    def _pull(self, raw: th.Tensor, gradients: dict[int, th.Tensor]) -> None:
        """Write the gradients that a cotangent of the network's outputs gives its parameters."""

    def gradient(self, value: th.Tensor) -> th.Tensor:
        """Differentiate down to the network's outputs, then multiply by its Jacobian."""
        slopes = _grad([value], self._leaves)
        return self._transposed(slopes[0], slopes[-1])

    @th.no_grad()
    def jacobian_product(self, vector: th.Tensor) -> Outputs:
        """Push a change of θ through the network."""
        changes = views_by_id(vector, self._parameters)
        raw = self._push(changes)
        if self._log_std is not None:
            change = changes.get(id(self._log_std))
            return raw, th.zeros_like(raw) if change is None else change.expand_as(raw)
        return tuple(th.split(raw, list(self._sizes), dim=1)) if self._sizes else (raw,)

    def transposed_product(self, tangent: Outputs) -> th.Tensor:
        """Pull a change of z back through the network."""
        if self._log_std is not None:
            return self._transposed(tangent[0], tangent[1].sum(dim=0))
        return self._transposed(th.cat(tangent, dim=1), None)

    @th.no_grad()
    def _transposed(self, raw: th.Tensor, log_std: th.Tensor | None) -> th.Tensor:
        """Multiply (means or logits, log std) by the transposed Jacobian."""
        result = raw.new_empty(sum(parameter.numel() for parameter in self._parameters))
        gradients = views_by_id(result, self._parameters)
        self._pull(raw, gradients)
        if log_std is not None and id(self._log_std) in gradients:
            gradients[id(self._log_std)].copy_(log_std)
        return result


class MlpLinearization(ClosedForm):
    """
    Derivatives of a plain multi-layer perceptron in closed form.

    A Fisher product takes about three quarters of what it takes by autograd.

    :param policy: its ``action_dist`` makes the distribution
    :param mlp: from features to means or logits
    :param head: how the distribution reads them
    :param parameters: θ
    :param features: the network's input, shape ``(n, features)``
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        mlp: Mlp,
        head: Head,
        parameters: Sequence[nn.Parameter],
        features: th.Tensor,
    ) -> None:
        self._mlp = mlp
        self._tape = Tape(mlp, mlp.weights, len(features))
        super().__init__(policy, head, parameters, self._tape.forward(features))

    def _push(self, changes: dict[int, th.Tensor]) -> th.Tensor:
        """Push a change of θ through the layers."""
        return self._tape.tangent(by_layer(self._mlp, changes))

    def _pull(self, raw: th.Tensor, gradients: dict[int, th.Tensor]) -> None:
        """Pull a change of the outputs back through the layers."""
        self._tape.cotangent(raw, by_layer(self._mlp, gradients))


def by_layer(mlp: Mlp, views: dict[int, th.Tensor]) -> list[Pair]:
    """
    Arrange views of θ by layer.

    :param mlp: a chain of layers
    :param views: by the parameter's identity; frozen parameters have none
    :return: weight and bias of every layer
    """
    return pairs_of([views.get(id(parameter)) for parameter in mlp.parameters])


def linearize_mlp(
    policy: ActorCriticPolicy, parameters: Sequence[nn.Parameter], observations: Observations
) -> MlpLinearization | None:
    """
    Linearise SB3's ``MlpPolicy`` in closed form.

    :param policy: any policy
    :param parameters: θ
    :param observations: n states
    :return: the linearization; ``None`` if anything in the policy is not as SB3 builds it
    """
    plain = read_plain(policy)
    if plain is None or plain.actor is None or plain.head is None:
        return None
    features = flat_features(policy, observations)
    return MlpLinearization(policy, plain.actor, plain.head, parameters, features)


class RowwiseLinearization(AutogradLinearization):
    """
    Derivatives of a policy that can be differentiated once only: J itself, row by row.

    Every entry of z takes one backward pass, so this is for few states.

    :param distribution: evaluated with gradients
    :param parameters: θ
    """

    def jacobian_product(self, vector: th.Tensor) -> Outputs:
        """Multiply by J."""
        outputs = self.distribution.outputs
        parts = th.split(self._jacobian @ vector, [z.numel() for z in outputs])
        return tuple(part.view(z.shape) for part, z in zip(parts, outputs, strict=True))

    def transposed_product(self, tangent: Outputs) -> th.Tensor:
        """Multiply by Jᵀ."""
        return self._jacobian.T @ flatten(tangent)

    @cached_property
    def _jacobian(self) -> th.Tensor:
        """Differentiate every entry of z."""
        entries = [entry for z in self.distribution.outputs for entry in z.flatten()]
        return th.stack([flatten(_grad([entry], self.parameters)) for entry in entries])


# How far uᵀJg and gᵀg may be apart in float32, as a share of the larger of gᵀg and Σ|Jg|.
_ADJOINT_TOLERANCE = 1e-3


def differentiable(linearization: AutogradLinearization) -> AutogradLinearization:
    """
    Choose a linearization by checking Jv, which autograd takes from a second backward pass.

    Torch has no forward mode for the operations that lack a second derivative.

    :param linearization: of a few states
    :return: the linearization itself if uᵀJg = gᵀg for g = Jᵀu; otherwise, after a warning, row by
        row
    """
    fault = _second_derivative_fault(linearization)
    if fault is None:
        return linearization
    warnings.warn(
        f"The policy runs an operation that torch cannot differentiate twice ({fault}). The "
        f"actor's update is correct but slow: it takes one backward pass for every state and "
        f"output. An operation with a second derivative avoids that: Embedding with a sum in "
        f"place of EmbeddingBag, attention without flash kernels, another activation.",
        stacklevel=4,
    )
    return RowwiseLinearization(linearization.distribution, linearization.parameters)


def _second_derivative_fault(linearization: AutogradLinearization) -> str | None:
    """Say what is wrong with Jv, in torch's words where it has some."""
    signs = tuple(_alternating(z) for z in linearization.distribution.outputs)
    gradient = linearization.transposed_product(signs)
    try:
        tangents = linearization.jacobian_product(gradient)
    except RuntimeError as error:
        if isinstance(error, th.cuda.OutOfMemoryError):
            raise
        return str(error)
    products = [u * tangent for u, tangent in zip(signs, tangents, strict=True)]
    ours, expected = sum(float(p.sum()) for p in products), float(th.dot(gradient, gradient))
    # What cancels in the sum is rounded as well.
    scale = max(expected, sum(float(p.abs().sum()) for p in products))
    # False for numbers that are not finite, which are no fault of the derivative.
    is_wrong = abs(ours - expected) > _ADJOINT_TOLERANCE * scale
    return "a backward pass that leaves autograd" if is_wrong else None


def _alternating(z: th.Tensor) -> th.Tensor:
    """Return 1, -1, 1, … in every row: equal numbers would cancel in the gradient of logits."""
    signs = th.ones_like(z)
    signs[:, 1::2] = -1
    return signs.detach()


def _grad(
    outputs: Sequence[th.Tensor],
    inputs: Sequence[th.Tensor],
    cotangents: Sequence[th.Tensor] | None = None,
    create_graph: bool = False,
) -> tuple[th.Tensor, ...]:
    """Differentiate, with zeros for what is not involved, and keep the graph for the next call."""
    attached = [i for i, output in enumerate(outputs) if output.requires_grad]
    return th.autograd.grad(
        [outputs[i] for i in attached],
        inputs,
        None if cotangents is None else [cotangents[i] for i in attached],
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
