"""
Slow, obvious twins of what the package does fast. They use torch and SB3 only.

Everything is dense and runs over the whole rollout at once, in float64 where the policy is.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from torch import distributions as td
from torch import nn
from torch.nn import functional as F

Observations = th.Tensor | dict[str, th.Tensor]


def run_in_float64(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    """
    Make an SB3 policy compute in float64, in place.

    ``policy.double()`` alone fails: SB3's preprocessing hands float32 to the features extractors.
    What only flattens is hooked one level deeper, so that it still counts as plain.
    """
    policy.double()
    extractors = {policy.pi_features_extractor, policy.vf_features_extractor}
    for extractor in {*extractors, policy.features_extractor}:
        parts = [module for module in extractor.modules() if type(module) is nn.Flatten]
        only_flattens = type(extractor) in (FlattenExtractor, CombinedExtractor)
        for module in parts if only_flattens else [extractor]:
            module.register_forward_pre_hook(_cast_to_float64)
    if getattr(policy, "use_sde", False):
        policy.reset_noise()
    return policy


def _cast_to_float64(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    (observations,) = args
    if isinstance(observations, dict):
        return ({key: value.double() for key, value in observations.items()},)
    return (observations.double(),)


def torch_distributions(
    policy: ActorCriticPolicy, observations: Observations
) -> list[td.Distribution]:
    """List the torch distributions of an SB3 policy, one per MultiDiscrete block, else one."""
    distribution = policy.get_distribution(observations).distribution
    return list(distribution) if isinstance(distribution, list) else [distribution]


def kl_per_state(
    new: Sequence[td.Distribution], old: Sequence[td.Distribution], reduction: str = "sum"
) -> th.Tensor:
    """Compute KL(new ‖ old): blocks are summed, action dimensions summed or averaged."""
    total = th.zeros(())
    for p, q in zip(new, old, strict=True):
        divergence = td.kl_divergence(p, q)
        if divergence.dim() > 1:
            divergence = divergence.sum(1) if reduction == "sum" else divergence.mean(1)
        total = total + divergence
    return total


def mean_kl(
    policy: ActorCriticPolicy,
    observations: Observations,
    old: Sequence[td.Distribution],
    reduction: str = "sum",
) -> th.Tensor:
    """Compute D(θ) at the policy's current parameters."""
    return kl_per_state(torch_distributions(policy, observations), old, reduction).mean()


def old_distributions(
    policy: ActorCriticPolicy, observations: Observations
) -> list[td.Distribution]:
    """Evaluate the distributions without a graph."""
    with th.no_grad():
        return torch_distributions(policy, observations)


def actor_parameters(policy: ActorCriticPolicy, observations: Observations) -> list[nn.Parameter]:
    """Find the trainable parameters that move the action distribution, by moving each of them."""
    before = old_distributions(policy, observations)
    found = []
    for parameter in policy.parameters():
        changes = [th.randn_like(parameter), th.ones_like(parameter), -th.ones_like(parameter)]
        if parameter.requires_grad and any(
            _moves(policy, observations, before, parameter, change) for change in changes
        ):
            found.append(parameter)
    return found


@th.no_grad()
def _moves(
    policy: ActorCriticPolicy,
    observations: Observations,
    before: Sequence[td.Distribution],
    parameter: nn.Parameter,
    change: th.Tensor,
) -> bool:
    """Tell whether the distribution is another one after a change, which is undone."""
    original = parameter.clone()
    parameter.add_(change)
    after = torch_distributions(policy, observations)
    parameter.copy_(original)
    return bool(kl_per_state(after, before).abs().max() > 0)


def number(value: th.Tensor) -> float:
    """Read a scalar off a graph; torch warns of a plain ``float``."""
    return float(value.detach())


def flat(tensors: Sequence[th.Tensor]) -> th.Tensor:
    """Join tensors into a vector."""
    return th.cat([tensor.detach().reshape(-1) for tensor in tensors]).clone()


def add_to(parameters: Sequence[th.Tensor], step: th.Tensor) -> None:
    """Add a flat vector to parameters, in place."""
    position = 0
    with th.no_grad():
        for parameter in parameters:
            size = parameter.numel()
            parameter.add_(step[position : position + size].reshape(parameter.shape))
            position += size


def _slope(value: th.Tensor, parameters: Sequence[th.Tensor]) -> th.Tensor:
    """Differentiate a scalar such that the gradient can be differentiated again."""
    slopes = th.autograd.grad(
        value, parameters, create_graph=True, allow_unused=True, materialize_grads=True
    )
    return th.cat([s.reshape(-1) for s in slopes])


def dense_hessian(value: th.Tensor, parameters: Sequence[th.Tensor]) -> th.Tensor:
    """Differentiate a scalar twice, row by row."""
    slope = _slope(value, parameters)
    rows = [
        th.autograd.grad(
            s, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        if s.requires_grad
        else [th.zeros_like(p) for p in parameters]
        for s in slope
    ]
    return th.stack([flat(row) for row in rows])


def hessian_products(
    value: th.Tensor, parameters: Sequence[th.Tensor], vectors: th.Tensor
) -> th.Tensor:
    """Multiply the rows by a scalar's Hessian: differentiate its gradient's products with them."""
    slope = _slope(value, parameters)
    return th.stack([dense_gradient(slope @ v, parameters, keep_graph=True) for v in vectors])


def dense_fisher(
    policy: ActorCriticPolicy,
    observations: Observations,
    parameters: Sequence[th.Tensor],
    reduction: str = "sum",
) -> th.Tensor:
    """Compute the Hessian of D at the current parameters."""
    old = old_distributions(policy, observations)
    return dense_hessian(mean_kl(policy, observations, old, reduction), parameters)


def fisher_products_by_differences(
    policy: ActorCriticPolicy,
    observations: Observations,
    parameters: Sequence[th.Tensor],
    vectors: th.Tensor,
    step: float = 1e-5,
) -> th.Tensor:
    """Multiply the rows by the Hessian of D: differences of its gradient along each of them."""
    old = old_distributions(policy, observations)

    def slope_at(change: th.Tensor) -> th.Tensor:
        add_to(parameters, change)
        slope = dense_gradient(mean_kl(policy, observations, old), parameters)
        add_to(parameters, -change)
        return slope

    steps = step * vectors
    return th.stack([slope_at(each) - slope_at(-each) for each in steps]) / (2 * step)


def surrogate(
    policy: ActorCriticPolicy,
    observations: Observations,
    actions: th.Tensor,
    old_log_prob: th.Tensor,
    advantages: th.Tensor,
    ent_coef: float = 0.0,
) -> th.Tensor:
    """Compute L = E[ρ A + c H]; without a closed form H is -ρ log π."""
    _, log_prob, entropy = policy.evaluate_actions(observations, actions)
    ratio = th.exp(log_prob - old_log_prob)
    if entropy is None:
        entropy = -ratio * log_prob
    if entropy.dim() > 1:
        entropy = entropy.sum(1)
    return th.mean(ratio * advantages + ent_coef * entropy)


def dense_gradient(
    value: th.Tensor, parameters: Sequence[th.Tensor], keep_graph: bool = False
) -> th.Tensor:
    """Differentiate a scalar."""
    slopes = th.autograd.grad(
        value, parameters, retain_graph=keep_graph, allow_unused=True, materialize_grads=True
    )
    return flat(slopes)


def natural_step(matrix: th.Tensor, gradient: th.Tensor, target_kl: float) -> th.Tensor:
    """Solve the damped system directly and go to the boundary of the quadratic model."""
    x = th.linalg.solve(matrix, gradient)
    scale = math.sqrt(2 * target_kl / float(x @ matrix @ x))
    return th.mul(x, scale)


def conjugate_gradient(matrix: th.Tensor, b: th.Tensor, steps: int) -> th.Tensor:
    """Run the textbook's conjugate gradient loop for a fixed number of steps."""
    x = th.zeros_like(b)
    residual = b.clone()
    direction = b.clone()
    for _ in range(steps):
        alpha = (residual @ residual) / (direction @ matrix @ direction)
        x = x + alpha * direction
        next_residual = residual - alpha * (matrix @ direction)
        beta = (next_residual @ next_residual) / (residual @ residual)
        direction = next_residual + beta * direction
        residual = next_residual
    return x


def line_search(
    improvement: Callable[[float], float],
    kl: Callable[[float], float],
    target_kl: float,
    shrinking_factor: float,
    max_iter: int,
) -> int | None:
    """Find the first j whose fraction of the full step is acceptable."""
    for j in range(max_iter):
        fraction = shrinking_factor**j
        if improvement(fraction) > 0 and kl(fraction) <= target_kl:
            return j
    return None


def trust_region_step(
    policy: ActorCriticPolicy,
    data: tuple[Observations, th.Tensor, th.Tensor, th.Tensor],
    target_kl: float,
    damping: float,
    shrinking_factor: float = 0.8,
    max_iter: int = 10,
) -> th.Tensor:
    """
    Compute the whole actor update densely; ``data`` as in :func:`surrogate`.

    The policy's parameters are as before afterwards. Returns θ_{k+1} - θ_k.
    """
    observations = data[0]
    parameters = actor_parameters(policy, observations)
    theta = flat(parameters)
    old = old_distributions(policy, observations)
    fisher = dense_fisher(policy, observations, parameters)
    value = surrogate(policy, *data)
    start = number(value)
    step = natural_step(
        fisher + damping * th.eye(len(fisher), dtype=fisher.dtype),
        dense_gradient(value, parameters),
        target_kl,
    )

    def at(fraction: float, function: Callable[[], th.Tensor]) -> float:
        add_to(parameters, fraction * step)
        with th.no_grad():
            value = float(function())
        add_to(parameters, theta - flat(parameters))
        return value

    j = line_search(
        lambda fraction: at(fraction, lambda: surrogate(policy, *data)) - start,
        lambda fraction: at(fraction, lambda: mean_kl(policy, observations, old)),
        target_kl,
        shrinking_factor,
        max_iter,
    )
    return th.zeros_like(step) if j is None else shrinking_factor**j * step


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Average by loops."""
    total = weight = 0.0
    for value, w in zip(values, weights, strict=True):
        total += w * value
        weight += w
    return total / weight


def fit_critic(
    policy: ActorCriticPolicy,
    buffer: RolloutBuffer,
    held: Sequence[nn.Parameter],
    batch_size: int,
    epochs: int,
) -> float:
    """Fit the critic as SB3's examples do, with the actor's gradients thrown away."""
    losses = []
    for _ in range(epochs):
        for samples in buffer.get(batch_size):
            values = policy.predict_values(samples.observations).flatten()
            loss = F.mse_loss(values, samples.returns.to(values.dtype))
            policy.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            for parameter in held:
                parameter.grad = None
            policy.optimizer.step()
            losses.append(loss.item())
    policy.optimizer.zero_grad()
    return float(np.mean(losses))
