"""Numerical trouble: no crash, no NaN, and either a valid step or none."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trpo.trpo import ACTOR_UPDATES
from tests.cases import BASIC, CASES, Case, toy_model
from tests.environments import (
    VECTOR,
    all_finite,
    changed,
    changed_actor,
    collect,
    critic_only,
    logged,
    state_of,
)


def without_advantages(model: Any) -> None:
    model.rollout_buffer.advantages[:] = 0.0


def assert_skipped(model: Any, status: str) -> None:
    """Check that an update leaves the actor, says why, and still fits the critic."""
    before = state_of(model)
    model.train()
    after, log = state_of(model), logged(model)
    assert ACTOR_UPDATES[log["train/actor_update"]] == status
    assert log["train/is_line_search_success"] == 0.0
    assert log["train/kl_divergence_loss"] == 0.0
    assert log["train/actual_improvement"] == 0.0
    assert log["train/skipped_updates"] == 1
    assert not changed_actor(before, after)
    assert {name for name in changed(before, after) if critic_only(name)}
    assert all_finite(model)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("case", BASIC)
def test_zero_gradient_is_skipped(case: str, normalize: bool) -> None:
    model = toy_model(case, normalize_advantage=normalize)
    collect(model)
    without_advantages(model)
    assert_skipped(model, "zero_gradient")


@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("case", BASIC)
def test_constant_advantages_give_no_random_step(case: str, damping: float) -> None:
    # Mistake: noise in the solver's start becomes a full-size random step.
    model = toy_model(case, cg_damping=damping)
    collect(model)
    model.rollout_buffer.advantages[:] = 3.0
    before = state_of(model)
    model.train()
    assert logged(model)["train/is_line_search_success"] == 0.0
    assert not changed_actor(before, state_of(model))


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12])
def test_tiny_and_huge_advantages_give_a_valid_step(scale: float) -> None:
    model = toy_model("box", normalize_advantage=False)
    collect(model)
    model.rollout_buffer.advantages *= np.float32(scale)
    model.train()
    log = logged(model)
    assert ACTOR_UPDATES[log["train/actor_update"]] == "accepted"
    assert 0.001 < log["train/kl_divergence_loss"] <= 0.01
    assert all_finite(model)


def test_overflowing_advantages_are_skipped_or_valid() -> None:
    model = toy_model("box", normalize_advantage=False)
    collect(model)
    model.rollout_buffer.advantages *= np.float32(1e38)
    assert np.isfinite(model.rollout_buffer.advantages).all()
    check_update(model)


def check_update(model: Any) -> bool:
    """Make an update and check that it left the actor alone or made a valid step."""
    before = state_of(model)
    model.train()
    log = logged(model)
    assert all_finite(model)
    if log["train/is_line_search_success"] == 0.0:
        assert not changed_actor(before, state_of(model))
        assert log["train/skipped_updates"] > 0
        return False
    assert 0 <= log["train/kl_divergence_loss"] <= 0.01
    assert log["train/actual_improvement"] > 0
    return True


# With a standard deviation of 2e-9 rounding alone changes the ratios.
@pytest.mark.filterwarnings("ignore:The rollout's actions were not drawn")
@pytest.mark.parametrize("log_std", [-20.0, -10.0, 10.0])
@pytest.mark.parametrize("case", ["box", "gsde", "dict"])
def test_extreme_standard_deviation(case: str, log_std: float) -> None:
    model = toy_model(case)
    with th.no_grad():
        model.policy.log_std.fill_(log_std)
    for _ in range(3):
        collect(model)
        check_update(model)


@pytest.mark.parametrize("logit", [-50.0, 50.0])
@pytest.mark.parametrize("case", ["discrete", "multi_discrete", "multi_binary"])
def test_extreme_logits(case: str, logit: float) -> None:
    model = toy_model(case)
    with th.no_grad():
        model.policy.action_net.bias[0] = logit
    for _ in range(3):
        collect(model)
        check_update(model)


class FragilePolicy(ActorCriticPolicy):
    """Its distribution raises, or is not finite, away from the parameters it started with."""

    fault: Callable[[], None] | None = None
    start: Any = None
    raising_calls = 0

    def get_distribution(self, obs: Any) -> Distribution:
        if self.fault is not None and bool((self.action_net.weight != self.start).any()):
            self.raising_calls += 1
            self.fault()
        return super().get_distribution(obs)


def raise_value_error() -> None:
    # what torch's distributions do with parameters that are not finite
    raise ValueError("Expected parameter loc to satisfy the constraint Real(), found invalid NaN")


def raise_runtime_error() -> None:
    raise RuntimeError("out of memory")


def fragile_model(fault: Callable[[], None]) -> Any:
    case = Case(FragilePolicy, VECTOR, CASES["box"].action_space, {})
    model = toy_model(case, line_search_max_iter=4)
    collect(model)
    model.policy.start = model.policy.action_net.weight.detach().clone()
    model.policy.fault = fault
    return model


def test_candidates_whose_distribution_raises_are_rejected() -> None:
    model = fragile_model(raise_value_error)
    assert_skipped(model, "line_search_failed")
    assert model.policy.raising_calls == 4


def test_another_exception_in_a_candidate_leaves_no_trace() -> None:
    model = fragile_model(raise_runtime_error)
    before = state_of(model)
    with pytest.raises(RuntimeError, match="out of memory"):
        model.train()
    assert not changed(before, state_of(model))


@pytest.mark.parametrize("case", ["box", "discrete"])
def test_candidates_with_nan_in_the_network_are_rejected(case: str) -> None:
    # The step overflows the weights, so the distribution's own check raises.
    model = toy_model(case, target_kl=1e30, line_search_max_iter=3, cg_damping=0.0)
    collect(model)
    before = state_of(model)
    model.train()
    assert all_finite(model)
    if logged(model)["train/is_line_search_success"] == 0.0:
        assert not changed_actor(before, state_of(model))


@pytest.mark.parametrize("optimizer", [th.optim.Adam, th.optim.AdamW, th.optim.SGD])
@pytest.mark.parametrize("learning_rate", [1e20, 1e30])
def test_absurd_learning_rate_of_the_critic_is_undone_and_said(
    learning_rate: float, optimizer: type[th.optim.Optimizer]
) -> None:
    policy_kwargs = {"net_arch": [8], "optimizer_class": optimizer}
    model = toy_model(
        "box", learning_rate=learning_rate, n_critic_updates=10, policy_kwargs=policy_kwargs
    )
    collect(model)
    before = state_of(model)
    with pytest.warns(UserWarning, match="learning_rate"):
        model.train()
    after = state_of(model)
    assert all_finite(model)
    assert not {name for name in changed(before, after) if critic_only(name)}
    assert changed_actor(before, after)
    assert not model.policy.optimizer.state_dict()["state"]


@pytest.mark.parametrize("learning_rate", [1.0, 1e6, 1e12, 1e20])
@pytest.mark.filterwarnings("ignore:The critic's fit")
def test_learning_goes_on_with_any_learning_rate(learning_rate: float) -> None:
    model = toy_model("box", learning_rate=learning_rate, n_critic_updates=5)
    before = state_of(model)
    model.learn(256)
    assert all_finite(model)
    assert changed_actor(before, state_of(model))


def test_ten_skips_in_a_row_warn_once_and_are_counted() -> None:
    model = toy_model("box")
    collect(model)
    without_advantages(model)
    for count in range(1, 10):
        model.train()  # a warning would be an error
        assert logged(model)["train/skipped_updates"] == count
    with pytest.warns(UserWarning, match=r"last 10 updates.*zero_gradient.*advantages"):
        model.train()
    for _ in range(9):
        model.train()
    with pytest.warns(UserWarning, match="last 20 updates"):
        model.train()
    assert logged(model)["train/skipped_updates"] == 20


def test_an_accepted_update_ends_the_series() -> None:
    model = toy_model("box")
    for _ in range(2):
        collect(model)
        without_advantages(model)
        for _ in range(9):
            model.train()
        collect(model)
        model.train()
        assert ACTOR_UPDATES[logged(model)["train/actor_update"]] == "accepted"
    assert logged(model)["train/skipped_updates"] == 18


def test_skips_are_counted_over_save_and_load(tmp_path: Any) -> None:
    model = toy_model("box")
    collect(model)
    without_advantages(model)
    model.train()
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", model.get_env(), device="cpu")
    collect(loaded)
    loaded.train()
    assert logged(loaded)["train/skipped_updates"] == 1


def test_no_damping_is_enough_for_a_singular_fisher_matrix() -> None:
    # One logit too many makes F singular, and 64 states leave most directions unseen.
    model = toy_model("discrete", cg_damping=0.0)
    for _ in range(3):
        collect(model)
        assert check_update(model)


def test_logged_kl_is_the_accepted_candidates() -> None:
    # Mistake: averaged with the zeros measured at the old parameters.
    model = toy_model("box", target_kl=0.01)
    collect(model)
    model.train()
    assert 0.005 < logged(model)["train/kl_divergence_loss"] <= 0.01


def test_no_warning_and_no_nan_in_any_log_of_a_skipped_update() -> None:
    model = toy_model("box")
    collect(model)
    without_advantages(model)
    model.train()
    numbers = [value for value in logged(model).values() if isinstance(value, (int, float))]
    assert len(numbers) > 10
    assert all(math.isfinite(number) for number in numbers)
