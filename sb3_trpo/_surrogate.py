"""
The surrogate advantage at the parameters that collected the data, and at candidates.

====  ===================================================================
ρ_θ   ratio π_θ(a|s) / π_θk(a|s), the denominator from the rollout buffer
A     advantage
H_θ   entropy of π_θ(·|s)
c     entropy coefficient
====  ===================================================================
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch as th

from sb3_trpo._actor import Actor, LinearizedActor
from sb3_trpo._batch import ActorBatch
from sb3_trpo._distributions import ActionDistribution, Outputs
from sb3_trpo._processes import ALONE, Processes
from sb3_trpo._state_mean import state_mean

# What torch's distributions raise for parameters that are not valid.
_REFUSALS = (ValueError, th.linalg.LinAlgError)  # type: ignore[attr-defined] # not in its __all__


@dataclass(frozen=True)
class OldPolicy:
    """
    The policy of θ_k at the states of one chunk.

    :param chunk: the states, n of them
    :param outputs: z, detached
    :param ratio: ρ_θk, 1 up to rounding, shape ``(n,)``
    :param entropy: H_θk, shape ``(n,)``
    """

    chunk: ActorBatch
    outputs: Outputs
    ratio: th.Tensor
    entropy: th.Tensor

    @property
    def weight_sum(self) -> float:
        """Return the sum of the states' weights."""
        return self.chunk.weight_sum


@dataclass(frozen=True)
class Surrogate:
    """
    The objective at θ_k.

    :param value: L(θ_k), entropy bonus included
    :param entropy: mean of H_θk, in nats
    :param ratio_error: mean of |ρ_θk - 1|, 0 up to rounding if the policy still is what it was in
        the rollout
    :param gradient: g, shape ``(P,)``
    :param old: the policy of θ_k, chunk by chunk
    """

    value: float
    entropy: float
    ratio_error: float
    gradient: th.Tensor
    old: tuple[OldPolicy, ...]


class _Rows:
    """
    Tensors of all chunks, one row per state, each in one block of memory.

    Small blocks between the graphs of the chunks, which come and go, would fragment the heap: a
    rollout of images took seven times the memory.

    :param n_states: rows of all chunks together
    """

    def __init__(self, n_states: int) -> None:
        self._n_states, self._n_used = n_states, 0
        self._blocks: list[th.Tensor] = []

    def keep(self, tensors: Sequence[th.Tensor]) -> Outputs:
        """Copy the tensors of the next chunk; return views of the copies."""
        if not self._blocks:
            self._blocks = [some.new_empty(self._n_states, *some.shape[1:]) for some in tensors]
        start, self._n_used = self._n_used, self._n_used + len(tensors[0])
        pairs = zip(self._blocks, tensors, strict=True)
        return tuple(block[start : self._n_used].copy_(some) for block, some in pairs)


def _ratio_and_entropy(
    distribution: ActionDistribution, chunk: ActorBatch
) -> tuple[th.Tensor, th.Tensor]:
    """Compute ρ and H of every state; where H has no closed form, -ρ log π has its gradient."""
    log_prob = distribution.log_prob(chunk.actions)
    ratio = th.exp(log_prob - chunk.old_log_prob)
    entropy = distribution.entropy()
    return ratio, -ratio * log_prob if entropy is None else entropy


def surrogate_at(
    linearized: LinearizedActor,
    chunks: Sequence[ActorBatch],
    ent_coef: float = 0.0,
    processes: Processes = ALONE,
) -> Surrogate:
    r"""
    Evaluate the objective and its gradient at the current parameters.

    .. math:: L(\theta) = E[\rho_\theta A + c H_\theta]

    :param linearized: the actor at θ_k
    :param chunks: the states, with normalised advantages
    :param ent_coef: c
    :param processes: whose states the means are over, too
    :return: value, gradient, and the old policy for :func:`improvement_and_kl`

    Source: Schulman et al. (2015), Trust Region Policy Optimization, equation 14.
    """
    old: list[OldPolicy] = []
    rows = _Rows(sum(map(len, chunks)))

    def weighted_sum(chunk: ActorBatch) -> th.Tensor:
        linearization = linearized.at(chunk)
        with th.enable_grad():
            ratio, entropy = _ratio_and_entropy(linearization.distribution, chunk)
            value = chunk.weighted_sum(ratio * chunk.advantages + ent_coef * entropy)
        gradient = linearization.gradient(value)
        tensors = ratio, entropy, *linearization.distribution.outputs
        kept = rows.keep([tensor.detach() for tensor in tensors])
        old.append(OldPolicy(chunk, kept[2:], *kept[:2]))
        terms = th.stack([entropy.detach(), (ratio.detach() - 1).abs()], dim=1)
        return th.cat([value.detach().reshape(1), chunk.weighted_sum(terms), gradient])

    mean = state_mean(weighted_sum, chunks, processes)
    value, entropy, ratio_error = mean[:3].tolist()
    return Surrogate(value, entropy, ratio_error, mean[3:], tuple(old))


@th.no_grad()
def improvement_and_kl(
    actor: Actor,
    old: Sequence[OldPolicy],
    ent_coef: float = 0.0,
    processes: Processes = ALONE,
) -> tuple[float, float]:
    r"""
    Compare the current parameters θ with those of the rollout.

    .. math:: L(\theta) - L(\theta_k) = E[(\rho_\theta - \rho_{\theta_k}) A + c (H_\theta -
        H_{\theta_k})]

    The mean of the differences keeps the digits that the difference of two large means would lose.

    :param actor: at a candidate θ
    :param old: the policy of θ_k, chunk by chunk
    :param ent_coef: c
    :param processes: whose states the means are over, too
    :return: improvement and D(θ) in nats; NaN and infinity where θ gives no distribution
    """

    def weighted_sum(policy: OldPolicy) -> th.Tensor:
        distribution = actor.distribution(policy.chunk)
        ratio, entropy = _ratio_and_entropy(distribution, policy.chunk)
        gain = (ratio - policy.ratio) * policy.chunk.advantages
        gain = gain + ent_coef * (entropy - policy.entropy)
        kl = actor.kl(distribution, policy.outputs)
        return policy.chunk.weighted_sum(th.stack([gain, kl], dim=1))

    def weighted_sum_if_any(policy: OldPolicy) -> th.Tensor:
        try:
            return weighted_sum(policy)
        except _REFUSALS:  # caught here, because other processes wait for this one's sum
            return policy.ratio.new_tensor([math.nan, math.inf])

    improvement, kl = state_mean(weighted_sum_if_any, old, processes).tolist()
    return improvement, kl
