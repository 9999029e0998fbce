import math
from dataclasses import replace
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trpo._actor import Actor
from sb3_trpo._batch import ActorBatch
from sb3_trpo._surrogate import improvement_and_kl
from tests import reference
from tests.cases import POLICIES, Case, actor_and_batch, collected, data_of, surrogate_of, toy_model
from tests.environments import DISCRETE_ACTIONS, VECTOR

# Means over 24 states in float64.
RTOL, ATOL = 1e-9, 1e-12

ENTROPY = ("box", "discrete", "multi_discrete", "multi_binary", "gsde", "gsde_squashed", "beta")

# The whole table with an entropy bonus; that the bonus can be 0 needs no table.
WITH_ENTROPY = [pytest.param(case, 0.5, id=case) for case in POLICIES]
WITH_ENTROPY += [pytest.param(case, 0.0, id=f"{case}-0") for case in POLICIES[:8]]


def move(actor: Actor, scale: float = 0.05) -> None:
    """Go to other parameters."""
    generator = th.Generator().manual_seed(2)
    with th.no_grad():
        for parameter in actor.parameters:
            noise = th.randn(parameter.shape, generator=generator, dtype=th.float64)
            parameter.add_(scale * noise.to(parameter.dtype))


def value_of(actor: Actor, batch: ActorBatch, ent_coef: float) -> th.Tensor:
    return reference.surrogate(actor.policy, *data_of(batch), ent_coef=ent_coef)


@pytest.mark.parametrize(("case", "ent_coef"), WITH_ENTROPY)
def test_gradient_equals_the_dense_gradient(case: str, ent_coef: float) -> None:
    actor, batch = actor_and_batch(collected(case, float64=True))
    surrogate = surrogate_of(actor, (batch,), ent_coef)
    value = value_of(actor, batch, ent_coef)
    expected = reference.dense_gradient(value, actor.parameters)
    assert surrogate.value == pytest.approx(reference.number(value), rel=RTOL, abs=ATOL)
    th.testing.assert_close(surrogate.gradient, expected, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("case", POLICIES)
def test_chunks_change_no_number(case: str) -> None:
    actor, batch = actor_and_batch(collected(case, float64=True))
    whole = surrogate_of(actor, (batch,), 0.5)
    chunked = surrogate_of(actor, batch.chunks(7), 0.5)
    th.testing.assert_close(chunked.gradient, whole.gradient, rtol=1e-10, atol=1e-12)
    assert chunked.value == pytest.approx(whole.value, rel=1e-10, abs=1e-12)
    assert chunked.entropy == pytest.approx(whole.entropy, rel=1e-10, abs=1e-12)
    move(actor)
    assert improvement_and_kl(actor, chunked.old, 0.5) == pytest.approx(
        improvement_and_kl(actor, whole.old, 0.5), rel=1e-10, abs=1e-12
    )


@pytest.mark.parametrize(("case", "ent_coef"), WITH_ENTROPY)
def test_improvement_and_kl_equal_the_dense_differences(case: str, ent_coef: float) -> None:
    actor, batch = actor_and_batch(collected(case, float64=True))
    old = reference.old_distributions(actor.policy, batch.observations)
    before = reference.number(value_of(actor, batch, ent_coef))
    surrogate = surrogate_of(actor, (batch,), ent_coef)
    move(actor)
    improvement, kl = improvement_and_kl(actor, surrogate.old, ent_coef)
    expected = reference.number(value_of(actor, batch, ent_coef)) - before
    expected_kl = reference.number(reference.mean_kl(actor.policy, batch.observations, old))
    assert abs(expected) > 1e-6
    assert improvement == pytest.approx(expected, rel=RTOL, abs=ATOL)
    assert kl == pytest.approx(expected_kl, rel=RTOL, abs=ATOL)
    assert kl > 0


@pytest.mark.parametrize("name", ["box", "multi_binary", "multi_discrete", "beta"])
def test_mean_reduction_measures_contribs_kl(name: str) -> None:
    actor, batch = actor_and_batch(collected(name, float64=True), kl_reduction="mean")
    old = reference.old_distributions(actor.policy, batch.observations)
    surrogate = surrogate_of(actor, (batch,))
    move(actor)
    divergence = reference.mean_kl(actor.policy, batch.observations, old, "mean")
    expected = reference.number(divergence)
    assert improvement_and_kl(actor, surrogate.old)[1] == pytest.approx(expected, rel=RTOL)


@pytest.mark.parametrize("case", POLICIES)
def test_nothing_has_changed_at_the_old_parameters(case: str) -> None:
    """Exactly: dropout or batch norm in training mode would make a difference."""
    actor, batch = actor_and_batch(collected(case))
    surrogate = surrogate_of(actor, (batch,), 0.5)
    improvement, kl = improvement_and_kl(actor, surrogate.old, 0.5)
    # The closed forms of linear layers may round once differently with and without a graph.
    assert improvement == pytest.approx(0.0, abs=1e-6)
    assert kl == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("case", POLICIES)
def test_ratio_is_one_at_the_parameters_that_collected_the_data(case: str) -> None:
    """The denominator is the rollout buffer's log-probability."""
    actor, batch = actor_and_batch(collected(case))
    (old,) = surrogate_of(actor, (batch,)).old
    th.testing.assert_close(old.ratio, th.ones(24), rtol=1e-4, atol=1e-4)


def test_denominator_is_the_buffers_log_probability_and_not_a_new_one() -> None:
    actor, batch = actor_and_batch(collected("box", float64=True))
    plain = surrogate_of(actor, (batch,))
    halved = surrogate_of(actor, (replace(batch, old_log_prob=batch.old_log_prob + math.log(2)),))
    th.testing.assert_close(halved.gradient, plain.gradient / 2)
    th.testing.assert_close(halved.old[0].ratio, plain.old[0].ratio / 2)


@pytest.mark.parametrize("name", ENTROPY)
def test_reported_entropy_is_sb3s(name: str) -> None:
    actor, batch = actor_and_batch(collected(name, float64=True))
    surrogate = surrogate_of(actor, (batch,))
    _, log_prob, entropy = actor.policy.evaluate_actions(batch.observations, batch.actions)
    if entropy is None:  # the squashed Gaussian's; ρ is 1
        entropy = -log_prob
    assert surrogate.entropy == pytest.approx(reference.number(entropy.mean()), rel=1e-5)


@pytest.mark.parametrize("name", ENTROPY)
def test_entropy_coefficient_adds_the_gradient_of_the_entropy(name: str) -> None:
    """For the squashed Gaussian too, where the gradient of -E[log π] over samples would be 0."""
    actor, batch = actor_and_batch(collected(name, float64=True))
    step = 1e-3
    gradients = [surrogate_of(actor, (batch,), c).gradient for c in (0.0, 1.0)]
    direction = gradients[1] - gradients[0]
    assert direction.norm() > 1e-3
    start = surrogate_of(actor, (batch,), 1.0)
    without = surrogate_of(actor, (batch,), 0.0)
    reference.add_to(actor.parameters, step * direction / direction.norm())
    gain = improvement_and_kl(actor, start.old, 1.0)[0]
    gain -= improvement_and_kl(actor, without.old, 0.0)[0]
    assert gain == pytest.approx(step * float(direction.norm()), rel=0.05)


@pytest.mark.parametrize("name", ["box", "gsde", "discrete", "beta"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_candidate_that_is_no_distribution_is_never_acceptable(name: str, bad: float) -> None:
    actor, batch = actor_and_batch(collected(name))
    surrogate = surrogate_of(actor, (batch,))
    with th.no_grad():
        actor.parameters[-1].fill_(bad)
    improvement, kl = improvement_and_kl(actor, surrogate.old)
    assert not (improvement > 0 and kl <= 1e9)


def test_candidate_whose_distribution_raises_is_never_acceptable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Cholesky factor of a matrix that is not positive definite, say."""
    actor, batch = actor_and_batch(collected("box"))
    surrogate = surrogate_of(actor, (batch,))

    def get_distribution(observations: th.Tensor) -> None:
        th.linalg.cholesky(-th.eye(2))

    monkeypatch.setattr(actor.policy, "get_distribution", get_distribution)
    improvement, kl = improvement_and_kl(actor, surrogate.old)
    assert math.isnan(improvement)
    assert kl == math.inf


class MaskingPolicy(ActorCriticPolicy):
    """Forbids the first or the last of four actions by a logit of -inf."""

    def get_distribution(self, obs: Any) -> Any:
        distribution: Any = super().get_distribution(obs)
        first = (obs[:, 0] > 0).unsqueeze(1)
        never = th.zeros_like(first)
        forbidden = th.cat([first, never, never, ~first], dim=1)
        logits = distribution.distribution.logits.masked_fill(forbidden, -math.inf)
        return distribution.proba_distribution(logits)

    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> Any:
        distribution = self.get_distribution(obs)
        return None, distribution.log_prob(actions), distribution.entropy()

    def forward(self, obs: Any, deterministic: bool = False) -> Any:
        distribution = self.get_distribution(obs)
        actions = distribution.get_actions(deterministic)
        return actions, self.predict_values(obs), distribution.log_prob(actions)


MASKING = Case(MaskingPolicy, VECTOR, DISCRETE_ACTIONS)


@pytest.mark.parametrize("ent_coef", [0.0, 0.5])
def test_impossible_outcomes_contribute_nothing(ent_coef: float) -> None:
    actor, batch = actor_and_batch(collected(MASKING, float64=True))
    surrogate = surrogate_of(actor, (batch,), ent_coef)
    assert any(bool(z.isinf().any()) for z in surrogate.old[0].outputs)
    expected = reference.dense_gradient(value_of(actor, batch, ent_coef), actor.parameters)
    th.testing.assert_close(surrogate.gradient, expected, rtol=RTOL, atol=ATOL)
    old = reference.old_distributions(actor.policy, batch.observations)
    move(actor)
    _, kl = improvement_and_kl(actor, surrogate.old, ent_coef)
    divergence = reference.mean_kl(actor.policy, batch.observations, old)
    assert kl == pytest.approx(reference.number(divergence), rel=RTOL)


def test_policy_with_impossible_outcomes_learns() -> None:
    model = toy_model(MASKING, n_envs=3, n_steps=8, batch_size=8, ent_coef=0.1)
    model.learn(72)
    assert model.logger.name_to_value["train/skipped_updates"] == 0


def test_improvement_keeps_digits_that_a_difference_of_means_would_lose() -> None:
    """In float32 L is 1e4 with a spacing of 1e-3, and the improvement is smaller than that."""
    actor, batch = actor_and_batch(collected("box"))
    batch = replace(batch, advantages=batch.advantages + 1e4)
    exact_actor, exact_batch = actor_and_batch(collected("box", float64=True))
    exact_batch = replace(exact_batch, advantages=exact_batch.advantages + 1e4)
    results = []
    for a, b in ((actor, batch), (exact_actor, exact_batch)):
        surrogate = surrogate_of(a, (b,))
        move(a, 1e-6)
        results.append(improvement_and_kl(a, surrogate.old)[0])
    # Ratios are rounded by 1e-7, which 24 advantages of 1e4 turn into 2e-4.
    assert results[0] == pytest.approx(results[1], abs=1e-3)


def test_evaluating_a_candidate_builds_no_graph() -> None:
    actor, batch = actor_and_batch(collected("dict_box"))
    surrogate = surrogate_of(actor, (batch,))
    assert not surrogate.gradient.requires_grad
    assert not any(z.requires_grad for z in surrogate.old[0].outputs)
    assert not surrogate.old[0].ratio.requires_grad


@pytest.mark.parametrize("case", POLICIES)
def test_scaling_the_advantages_scales_the_gradient(case: str) -> None:
    actor, batch = actor_and_batch(collected(case, float64=True))
    plain = surrogate_of(actor, (batch,)).gradient
    scaled = surrogate_of(actor, (replace(batch, advantages=1e6 * batch.advantages),)).gradient
    th.testing.assert_close(scaled, 1e6 * plain, rtol=1e-12, atol=1e-9)


def test_tensors_kept_from_all_chunks_are_in_one_block_of_memory() -> None:
    actor, batch = actor_and_batch(collected("cnn"))
    old = surrogate_of(actor, batch.chunks(5)).old
    assert len(old) == 5
    for tensors in zip(*((each.ratio, each.entropy, *each.outputs) for each in old), strict=True):
        assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
