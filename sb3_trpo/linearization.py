"""
The actor at one batch of states with all that derivatives at the current parameters take.

====  =====================================================================
θ     actor parameters, P numbers in total
z     outputs of the action distribution (see :mod:`sb3_trpo.distributions`)
J     Jacobian dz/dθ at the batch
====  =====================================================================
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_trpo.distributions import (
    ActionDistribution,
    Gaussian,
    Head,
    Metric,
    Outputs,
    head_of,
)
from sb3_trpo.mlp import Mlp, Pair, Tape, activated, actor_mlp, flat_features, pairs_of
from sb3_trpo.sequences import Observations
from sb3_trpo.vectors import flatten, unflatten


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
        self._parameters = parameters

    def gradient(self, value: th.Tensor) -> th.Tensor:
        """Differentiate with respect to θ."""
        return flatten(_grad([value], self._parameters))

    def jacobian_product(self, vector: th.Tensor) -> Outputs:
        """Differentiate u -> Jᵀu."""
        cotangents, pullback = self._pullback
        tangents = iter(_grad(pullback, cotangents, unflatten(vector, self._parameters)))
        outputs = self.distribution.outputs
        return tuple(next(tangents) if z.requires_grad else th.zeros_like(z) for z in outputs)

    def transposed_product(self, tangent: Outputs) -> th.Tensor:
        """Differentiate uᵀz."""
        pairs = zip(self.distribution.outputs, tangent, strict=True)
        active = [u for z, u in pairs if z.requires_grad]
        return flatten(_grad(self._active_outputs, self._parameters, active))

    @cached_property
    def _active_outputs(self) -> list[th.Tensor]:
        """List the outputs that depend on a parameter which is not frozen."""
        return [z for z in self.distribution.outputs if z.requires_grad]

    @cached_property
    def _pullback(self) -> tuple[list[th.Tensor], tuple[th.Tensor, ...]]:
        """Build the graph of u -> Jᵀu."""
        cotangents = [th.zeros_like(z, requires_grad=True) for z in self._active_outputs]
        pullback = _grad(self._active_outputs, self._parameters, cotangents, create_graph=True)
        return cotangents, pullback


# How far <Jv, u> and <v, Jᵀu> may be apart in float32, as a share.
_ADJOINT_TOLERANCE = 1e-3


def second_derivative_fault(linearization: Linearization, gradient: th.Tensor) -> str | None:
    """
    Check a linearization's Jv, which autograd takes from a second backward pass.

    :param linearization: of a few states
    :param gradient: g = Jᵀ1, the gradient of the sum of all outputs
    :return: what is wrong, in torch's words where it has some; ``None`` if 1ᵀJg = gᵀg
    """
    if not isinstance(linearization, AutogradLinearization):
        return None
    try:
        tangents = linearization.jacobian_product(gradient)
    except RuntimeError as error:
        if isinstance(error, th.cuda.OutOfMemoryError):
            raise
        return str(error)
    ours, expected = sum(float(t.sum()) for t in tangents), float(th.dot(gradient, gradient))
    if abs(ours - expected) > _ADJOINT_TOLERANCE * expected:  # false for numbers not finite
        return "a backward pass that leaves autograd"
    return None


def bytes_of_rows(distribution: ActionDistribution, gradient: th.Tensor) -> float:
    """
    Compute what :class:`RowwiseLinearization` keeps for one state.

    :param distribution: of any states
    :param gradient: of θ, shape ``(P,)``
    :return: number of bytes
    """
    columns = sum(z[0].numel() for z in distribution.outputs)
    return columns * gradient.numel() * gradient.element_size()


class RowwiseLinearization(AutogradLinearization):
    """
    Derivatives of a policy that can be differentiated once only: J itself, row by row.

    Every entry of z takes one backward pass, so this is for few states.
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
        return th.stack([flatten(_grad([entry], self._parameters)) for entry in entries])


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


class PlainActor:
    """
    The network of SB3's ``MlpPolicy``, evaluated without its modules.

    :param policy: its ``action_dist`` makes the distribution
    :param mlp: from features to means or logits
    :param head: what the distribution makes of them
    :param parameters: θ
    """

    def __init__(
        self, policy: ActorCriticPolicy, mlp: Mlp, head: Head, parameters: Sequence[nn.Parameter]
    ) -> None:
        self.mlp = mlp
        self.sizes = head.sizes
        self.parameters = parameters
        self.log_std = policy.log_std if isinstance(head.family, Gaussian) else None
        self._policy = policy

    def features(self, observations: Observations) -> th.Tensor:
        """
        Compute the network's input.

        :param observations: n states
        :return: shape ``(n, features)``
        """
        return flat_features(self._policy, observations)

    def distribution(self, raw: th.Tensor, log_std: th.Tensor | None) -> ActionDistribution:
        """
        Make the action distribution.

        :param raw: the network's output, means or logits
        :param log_std: of a Gaussian
        :return: the distribution
        """
        arguments = [raw] if log_std is None else [raw, log_std]
        return ActionDistribution(self._policy.action_dist.proba_distribution(*arguments))

    def evaluate(self, features: th.Tensor) -> ActionDistribution:
        """
        Evaluate the network at the current θ.

        :param features: of n states
        :return: their distribution, without a graph
        """
        with th.no_grad():
            raw = features
            for layer, activation in zip(self.mlp.layers, self.mlp.activations, strict=True):
                raw = nn.functional.linear(raw, layer.weight, layer.bias)
                raw = activated(activation, raw)
            return self.distribution(raw, self.log_std)


def read_plain_actor(
    policy: ActorCriticPolicy, parameters: Sequence[nn.Parameter]
) -> PlainActor | None:
    """
    Recognise SB3's ``MlpPolicy``.

    :param policy: any policy
    :param parameters: θ
    :return: its network; ``None`` if anything in it is not as SB3 builds it
    """
    mlp = actor_mlp(policy)
    head = None if mlp is None else head_of(policy)
    return None if mlp is None or head is None else PlainActor(policy, mlp, head, parameters)


class MlpLinearization(Linearization):
    """
    Derivatives of a plain actor in closed form.

    Only the short way from the network's outputs to the objective is left to autograd.

    :param actor: the network
    :param features: its input, shape ``(n, features)``
    """

    def __init__(self, actor: PlainActor, features: th.Tensor) -> None:
        self._actor = actor
        self._tape = Tape(actor.mlp, actor.mlp.weights, len(features))
        self._raw = self._tape.forward(features).clone().requires_grad_()
        log_std = actor.log_std
        self._log_std = None if log_std is None else log_std.detach().clone().requires_grad_()
        with th.enable_grad():
            super().__init__(actor.distribution(self._raw, self._log_std))

    def gradient(self, value: th.Tensor) -> th.Tensor:
        """Differentiate down to the network's outputs, then multiply by its Jacobian."""
        leaves = [self._raw] if self._log_std is None else [self._raw, self._log_std]
        slopes = th.autograd.grad(
            value, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return self._pull(slopes[0], slopes[-1])

    def jacobian_product(self, vector: th.Tensor) -> Outputs:
        """Push a change of θ through the layers."""
        views = views_by_id(vector, self._actor.parameters)
        raw = self._tape.tangent(self._pairs(views))
        if self._log_std is not None:
            change = views.get(id(self._actor.log_std))
            return raw, th.zeros_like(raw) if change is None else change.expand_as(raw)
        sizes = self._actor.sizes
        return tuple(th.split(raw, list(sizes), dim=1)) if sizes else (raw,)

    def transposed_product(self, tangent: Outputs) -> th.Tensor:
        """Pull a change of z back through the layers."""
        if self._log_std is not None:
            return self._pull(tangent[0], tangent[1].sum(dim=0))
        return self._pull(th.cat(tangent, dim=1), None)

    def _pull(self, raw: th.Tensor, log_std: th.Tensor | None) -> th.Tensor:
        """Multiply by the Jacobian of (means or logits, log std) with respect to θ."""
        result = raw.new_empty(sum(parameter.numel() for parameter in self._actor.parameters))
        views = views_by_id(result, self._actor.parameters)
        self._tape.cotangent(raw, self._pairs(views))
        log_std_view = views.get(id(self._actor.log_std))
        if log_std is not None and log_std_view is not None:
            log_std_view.copy_(log_std)
        return result

    def _pairs(self, views: dict[int, th.Tensor]) -> list[Pair]:
        """Arrange the views by layer; frozen parameters have none."""
        tensors = [views.get(id(parameter)) for parameter in self._actor.mlp.parameters]
        return pairs_of(tensors)
