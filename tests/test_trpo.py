"""The algorithm as SB3 users meet it, and what every update keeps."""

import copy
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import pytest
import sb3_contrib
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from sb3_trpo import TRPO, trpo
from sb3_trpo._fisher import FisherProduct
from sb3_trpo.trpo import ACTOR_UPDATES
from tests import stepped
from tests.cases import CASES, copy_rollout, toy_envs, toy_model
from tests.environments import (
    changed,
    changed_actor,
    collect,
    critic_only,
    logged,
    state_of,
    step_of,
)

# Rounding of a float32 mean over some hundred states.
ROUNDING = 1e-4

KEYS = {
    "policy_objective",
    "value_loss",
    "kl_divergence_loss",
    "explained_variance",
    "is_line_search_success",
    "learning_rate",
    "std",
    "n_updates",
    "target_kl",
    "cg_damping",
    "entropy",
    "grad_norm",
    "cg_iterations",
    "cg_residual",
    "step_size",
    "backtracks",
    "expected_improvement",
    "actual_improvement",
    "skipped_updates",
}


def collected(case: str = "box", **kwargs: Any) -> Any:
    model = toy_model(case, **kwargs)
    collect(model)
    return model


def flat_batch(model: Any) -> tuple[Any, th.Tensor, th.Tensor, th.Tensor]:
    buffer = copy.deepcopy(model.rollout_buffer)
    next(buffer.get(None))  # in random order, but afterwards the arrays are flat
    samples = buffer._get_samples(np.arange(model.n_steps * model.n_envs))
    actions = samples.actions
    if model.action_space.__class__.__name__ == "Discrete":
        actions = actions.long().flatten()
    advantages = samples.advantages
    if model.normalize_advantage:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    return samples.observations, actions, samples.old_log_prob, advantages


class TestSignature:
    def test_contribs_arguments_come_first_in_its_order_with_its_defaults(self) -> None:
        ours = list(inspect.signature(TRPO).parameters.values())
        theirs = list(inspect.signature(sb3_contrib.TRPO).parameters.values())
        own = {"cg_damping": None, "target_kl": None}  # theirs, in the unit of kl_reduction
        described = [(p.name, own.get(p.name, p.default), p.kind) for p in theirs]
        assert [(p.name, p.default, p.kind) for p in ours[: len(theirs)]] == described

    def test_our_arguments_are_keyword_only_after_contribs(self) -> None:
        ours = list(inspect.signature(TRPO).parameters.values())
        rest = ours[len(inspect.signature(sb3_contrib.TRPO).parameters) :]
        assert {p.kind for p in rest} == {inspect.Parameter.KEYWORD_ONLY}
        assert {p.name: p.default for p in rest} == {
            "kl_reduction": None,
            "ent_coef": 0.0,
            "fisher_sub_sampling_factor": 1,
            "cg_residual_tol": 1e-5,
            "damped_step_size": True,
            "line_search_accept_ratio": 0.0,
            "max_states_per_chunk": None,
            "data_parallel": False,
        }

    def test_every_argument_is_stored_under_its_own_name(self) -> None:
        values: dict[str, Any] = {
            "learning_rate": 0.002,
            "n_steps": 24,
            "batch_size": 12,
            "gamma": 0.9,
            "cg_max_steps": 7,
            "cg_damping": 0.2,
            "line_search_shrinking_factor": 0.7,
            "line_search_max_iter": 6,
            "n_critic_updates": 3,
            "gae_lambda": 0.8,
            "use_sde": True,
            "sde_sample_freq": 4,
            "rollout_buffer_class": RolloutBuffer,
            "rollout_buffer_kwargs": {},
            "normalize_advantage": False,
            "target_kl": 0.02,
            "sub_sampling_factor": 2,
            "tensorboard_log": "logs",
            "policy_kwargs": {"net_arch": [4]},
            "verbose": 0,
            "seed": 3,
            "kl_reduction": "mean",
            "ent_coef": 0.01,
            "fisher_sub_sampling_factor": 2,
            "cg_residual_tol": 1e-3,
            "damped_step_size": False,
            "line_search_accept_ratio": 0.1,
            "max_states_per_chunk": 10,
            "data_parallel": False,
        }
        model = toy_model(**values)
        # SB3 adds the optimizer's defaults and the gSDE switch to its own copies of these two.
        stored = {name: getattr(model, name) for name in values}
        assert stored["policy_kwargs"].pop("use_sde", None) in (True, None)
        assert stored == values
        named = set(inspect.signature(TRPO).parameters) - values.keys()
        assert named == {"policy", "env", "device", "stats_window_size", "_init_setup_model"}

    def test_policy_aliases_are_contribs(self) -> None:
        assert TRPO.policy_aliases == sb3_contrib.TRPO.policy_aliases

    def test_learn_has_contribs_signature(self) -> None:
        def described(kind: type[Any]) -> list[tuple[str, Any]]:
            return [(p.name, p.default) for p in inspect.signature(kind.learn).parameters.values()]

        assert described(TRPO) == described(sb3_contrib.TRPO)


class TestUpdate:
    def test_a_separate_critic_extractor_is_trained_by_the_fit(self) -> None:
        policy_kwargs = {"net_arch": [8], "share_features_extractor": False}
        model = collected("cnn", target_kl=0.0, policy_kwargs=policy_kwargs)
        before = state_of(model)
        model.train()
        moved = changed(before, state_of(model))
        assert any(name.startswith("vf_features_extractor") for name in moved)
        assert not any(name.startswith("pi_features_extractor") for name in moved)

    def test_the_update_is_that_of_a_policy_in_evaluation_mode(self) -> None:
        options = {"dropout": 0.5, "batch_norm": True}
        policy_kwargs = {"features_extractor_kwargs": options}
        model, training = (
            toy_model("batch_norm_shared", policy_kwargs=policy_kwargs) for _ in "ab"
        )
        collect(model)
        copy_rollout(model, training)
        training.policy.set_training_mode(True)
        for each in (model, training):
            np.random.seed(0)
            each.train()
        assert not changed(state_of(model), state_of(training))

    def test_no_gradient_is_left_behind(self) -> None:
        model = collected()
        model.train()
        assert all(parameter.grad is None for parameter in model.policy.parameters())

    @pytest.mark.parametrize("scale", [1e-25, 1e-6, 1e6, 1e25])
    @pytest.mark.parametrize("case", ["box", "discrete"])
    def test_scaled_advantages_leave_the_step_unchanged(self, case: str, scale: float) -> None:
        kwargs: dict[str, Any] = {"normalize_advantage": False, "n_critic_updates": 0}
        model, scaled = collected(case, **kwargs), toy_model(case, **kwargs)
        copy_rollout(model, scaled)
        scaled.rollout_buffer.advantages *= np.float32(scale)
        step, scaled_step = step_of(model), step_of(scaled)
        assert step.norm() > 0
        assert float((scaled_step - step).norm()) <= 1e-3 * float(step.norm())

    def test_normalised_advantages_may_be_shifted(self) -> None:
        model, shifted = collected(), toy_model()
        copy_rollout(model, shifted)
        shifted.rollout_buffer.advantages += 3.0
        step = step_of(model)
        assert float((step_of(shifted) - step).norm()) <= 1e-3 * float(step.norm())

    @pytest.mark.parametrize("case", ["box", "discrete", "multi_discrete", "multi_binary", "gsde"])
    @pytest.mark.parametrize("sign", [1, -1])
    def test_entropy_coefficient_moves_the_entropy(self, case: str, sign: int) -> None:
        model = collected(case, ent_coef=sign * 1.0, normalize_advantage=False)
        if case != "box":  # uniform distributions have no gradient to a higher entropy
            sharpen(model)
            collect(model)
        model.rollout_buffer.advantages[:] = 0.0
        observations, *_ = flat_batch(model)
        with th.no_grad():
            before = model.policy.get_distribution(observations).entropy().mean()
        model.train()
        with th.no_grad():
            after = model.policy.get_distribution(observations).entropy().mean()
        assert ACTOR_UPDATES[logged(model)["train/actor_update"]] == "accepted"
        assert sign * float(after - before) > 0

    def test_line_search_max_iter_zero_takes_the_full_step_without_a_search(self) -> None:
        strict: dict[str, Any] = {"target_kl": 5.0, "line_search_accept_ratio": 0.999}
        searched = collected("box", line_search_max_iter=1, **strict)
        full = toy_model("box", line_search_max_iter=0, **strict)
        copy_rollout(searched, full)
        assert step_of(searched).norm() == 0
        assert step_of(full).norm() > 0
        assert logged(full)["train/backtracks"] == 0
        assert logged(full)["train/is_line_search_success"] == 1.0

    def test_line_search_max_iter_zero_equals_an_accepted_first_candidate(self) -> None:
        searched = collected(target_kl=1e-4)
        full = toy_model(target_kl=1e-4, line_search_max_iter=0)
        copy_rollout(searched, full)
        step, full_step = step_of(searched), step_of(full)
        shrinkage = 0.8 ** logged(searched)["train/backtracks"]
        assert float((shrinkage * full_step - step).norm()) <= 1e-3 * float(step.norm())

    def test_expected_improvement_is_that_of_the_accepted_candidate(self) -> None:
        # Mistake: shrinking it twice per backtrack. Without damping the full step is far too long.
        model = collected("discrete", cg_damping=0.0)
        _, actions, old_log_prob, advantages = flat_batch(model)
        named = [p for n, p in model.policy.named_parameters() if not critic_only(n)]
        log_prob = model.policy.get_distribution(flat_batch(model)[0]).log_prob(actions)
        objective = (th.exp(log_prob - old_log_prob) * advantages).mean()
        gradient = th.cat([g.flatten() for g in th.autograd.grad(objective, named)])
        step = step_of(model)
        assert logged(model)["train/backtracks"] > 0
        assert logged(model)["train/expected_improvement"] == pytest.approx(
            float(gradient @ step), rel=1e-3
        )

    @pytest.mark.parametrize("ratio", [0.0, 0.5, 0.9])
    def test_accept_ratio_bounds_the_realised_share_of_the_prediction(self, ratio: float) -> None:
        model = collected("discrete", target_kl=0.5, line_search_accept_ratio=ratio)
        model.train()
        log = logged(model)
        assert log["train/is_line_search_success"] == 1.0
        assert log["train/actual_improvement"] >= ratio * log["train/expected_improvement"]
        assert log["train/actual_improvement"] > 0

    def test_no_critic_updates_leave_the_critic_bitwise_unchanged(self) -> None:
        model = collected(n_critic_updates=0)
        before = state_of(model)
        model.train()
        assert not {name for name in changed(before, state_of(model)) if critic_only(name)}
        assert changed_actor(before, state_of(model))

    def test_critic_takes_the_number_of_steps_it_was_asked_for(self) -> None:
        model = collected(n_critic_updates=3, batch_size=16)
        model.train()
        steps = {int(s["step"]) for s in model.policy.optimizer.state_dict()["state"].values()}
        assert steps == {3 * 64 // 16}


def sharpen(model: Any) -> None:
    """Move the policy away from its nearly uniform start."""
    with th.no_grad():
        model.policy.action_net.weight.mul_(100.0)
        model.policy.action_net.bias.add_(0.5)


class TestSchedules:
    @pytest.mark.parametrize("name", ["target_kl", "cg_damping"])
    def test_number_schedule_and_string_give_the_same_step(self, name: str) -> None:
        kinds: list[Any] = [0.02, lambda progress: 0.02 * progress, "lin_0.02"]
        source = collected()
        steps = []
        for kind in kinds:
            model = toy_model("box", 2, TRPO, **{name: kind})
            copy_rollout(source, model)
            steps.append(step_of(model))
        assert steps[0].norm() > 0
        assert all(th.equal(step, steps[0]) for step in steps)

    def test_half_way_the_radius_is_half(self) -> None:
        model = collected(target_kl="lin_0.02")
        model._current_progress_remaining = 0.5
        model.train()
        assert logged(model)["train/target_kl"] == pytest.approx(0.01)
        assert 0.005 < logged(model)["train/kl_divergence_loss"] <= 0.01

    def test_learning_rate_is_never_negative(self) -> None:
        model = toy_model(learning_rate=lambda progress: 1e-3 * progress)
        model.learn(1)  # a whole rollout: SB3's progress falls far below 0
        assert model.policy.optimizer.param_groups[0]["lr"] == 0.0

    @pytest.mark.parametrize("progress", [0.0, -0.3])
    @pytest.mark.parametrize("target_kl", ["lin_0.02", lambda progress: 0.02 * progress])
    def test_radius_zero_skips_the_actor_quietly(self, target_kl: Any, progress: float) -> None:
        model = collected(target_kl=target_kl, cg_damping="lin_0.1")
        model._update_current_progress_remaining(round(100 * (1 - progress)), 100)
        before = state_of(model)
        for _ in range(12):  # a series of unwanted skips would warn
            model.train()
        log = logged(model)
        assert ACTOR_UPDATES[log["train/actor_update"]] == "target_kl_is_zero"
        assert log["train/skipped_updates"] == 0
        assert "train/is_line_search_success" not in log  # nothing was searched, nothing failed
        assert log["train/target_kl"] == 0.0
        assert not changed_actor(before, state_of(model))
        assert changed(before, state_of(model))

    def test_learning_beyond_the_total_is_fine_with_schedules(self) -> None:
        model = toy_model(target_kl="lin_0.02", cg_damping="lin_0.1").learn(100)
        assert model.num_timesteps == 128
        assert model._n_updates == 2


class TestSubSampling:
    K = 4

    @pytest.mark.parametrize("n_updates", [0, 1, 7])
    @pytest.mark.parametrize("case", ["box", "dict", "cnn"])
    def test_the_actor_sees_every_kth_state_from_a_rotating_offset(
        self, case: str, n_updates: int
    ) -> None:
        source = collected(case, sub_sampling_factor=self.K)
        step_number = np.arange(source.n_steps) % self.K  # n_steps is a multiple of K
        seen = step_number == n_updates % self.K

        def step_with_spoilt(rows: Any) -> th.Tensor:
            model = toy_model(case, sub_sampling_factor=self.K)
            copy_rollout(source, model)
            model._n_updates = n_updates
            model.rollout_buffer.advantages[rows] *= -3.0
            return step_of(model)

        step = step_with_spoilt(np.zeros_like(seen))
        assert step.norm() > 0
        assert th.equal(step_with_spoilt(~seen), step)
        assert not th.equal(step_with_spoilt(seen), step) or th.equal(-step, step)

    def test_the_critic_still_uses_all_states(self) -> None:
        model = collected(sub_sampling_factor=self.K, batch_size=16, n_critic_updates=1)
        model.train()
        steps = {int(s["step"]) for s in model.policy.optimizer.state_dict()["state"].values()}
        assert steps == {64 // 16}

    @pytest.mark.parametrize("case", ["box", "dict"])
    def test_fisher_sub_sampling_changes_the_step_and_not_the_gradient(self, case: str) -> None:
        source = collected(case)

        def step_and_gradient(n_updates: int, k: int) -> tuple[th.Tensor, float]:
            model = toy_model(case, fisher_sub_sampling_factor=k)
            copy_rollout(source, model)
            model._n_updates = n_updates
            step = step_of(model)
            assert logged(model)["train/is_line_search_success"] == 1.0
            return step, logged(model)["train/grad_norm"]

        full, gradient = step_and_gradient(0, 1)
        first, first_gradient = step_and_gradient(0, self.K)
        second, second_gradient = step_and_gradient(1, self.K)
        again, _ = step_and_gradient(self.K, self.K)
        assert gradient == first_gradient == second_gradient
        assert th.equal(first, again)
        assert not th.equal(first, second)
        assert not th.equal(first, full)
        # The Fisher matrix of a quarter of the states is still an estimate of the same one.
        assert float(th.cosine_similarity(first, full, dim=0)) > 0.5

    def test_both_factors_work_together(self) -> None:
        model = toy_model(sub_sampling_factor=2, fisher_sub_sampling_factor=4).learn(192)
        assert model._n_updates == 3

    def test_both_factors_together_use_all_states_for_the_fisher_products(self) -> None:
        # Mistake: both take turns in lockstep, and some states are never multiplied with.
        model = collected(sub_sampling_factor=2, fisher_sub_sampling_factor=2)
        model.rollout_buffer.advantages[...] = np.arange(64).reshape(32, 2)
        model.normalize_advantage = False
        seen = set()
        with mock.patch.object(trpo, "FisherProduct", wraps=FisherProduct) as fisher:
            for _ in range(4):
                model.train()
        for call in fisher.call_args_list:
            seen |= {float(a) for chunk in call.args[1] for a in chunk.advantages}
        assert len(seen) == 64


class TestDampedStepSize:
    def test_without_it_the_kl_of_the_step_is_nearer_to_the_radius(self) -> None:
        kls = {}
        for damped in (True, False):
            model = collected(cg_damping=1.0, damped_step_size=damped)
            model.train()
            kls[damped] = logged(model)["train/kl_divergence_loss"]
        assert kls[True] < 0.5 * 0.01
        assert 0.6 * 0.01 < kls[False] <= 0.01


class TestLogging:
    def test_every_key_is_recorded_by_an_update(self) -> None:
        model = collected()
        model.train()
        assert {f"train/{key}" for key in KEYS} <= logged(model).keys()
        assert ACTOR_UPDATES[logged(model)["train/actor_update"]] == "accepted"

    def test_numbers_mean_what_they_say(self) -> None:
        model = collected(target_kl=0.02, cg_damping=0.3, learning_rate=0.004, cg_max_steps=3)
        observations, *_ = flat_batch(model)
        with th.no_grad():
            entropy = model.policy.get_distribution(observations).entropy().mean()
        model.train()
        log = logged(model)
        assert log["train/target_kl"] == 0.02
        assert log["train/cg_damping"] == 0.3
        assert log["train/learning_rate"] == 0.004
        assert log["train/n_updates"] == 1
        assert 1 <= log["train/cg_iterations"] <= 3
        assert log["train/cg_residual"] >= 0
        assert log["train/entropy"] == pytest.approx(float(entropy), rel=1e-5)
        assert 0 < log["train/kl_divergence_loss"] <= 0.02
        assert log["train/step_size"] > 0
        std = float(model.policy.log_std.detach().exp().mean())
        assert log["train/std"] == pytest.approx(std)

    def test_gradient_norm_is_that_of_the_surrogate(self) -> None:
        model = stepped.collected(toy_model("box", n_critic_updates=0))
        actor = [p for name, p in model.policy.named_parameters() if not critic_only(name)]
        gradient = th.autograd.grad(stepped.surrogate(model), actor)
        model.train()
        norm = float(th.cat([part.flatten() for part in gradient]).norm())
        assert logged(model)["train/grad_norm"] == pytest.approx(norm, rel=1e-6)

    def test_step_size_is_that_of_the_accepted_candidate(self) -> None:
        radius: dict[str, Any] = {"target_kl": 2.0, "cg_damping": 0.01, "damped_step_size": False}
        model = collected(line_search_shrinking_factor=0.5, **radius)
        full = toy_model(line_search_max_iter=0, **radius)
        copy_rollout(model, full)
        step, full_step = step_of(model), step_of(full)
        backtracks = logged(model)["train/backtracks"]
        assert backtracks > 0
        sizes = [logged(each)["train/step_size"] for each in (model, full)]
        assert sizes[0] / sizes[1] == pytest.approx(0.5**backtracks)
        assert float(step.norm() / full_step.norm()) == pytest.approx(0.5**backtracks, rel=1e-3)

    def test_explained_variance_is_the_old_values_share_of_the_returns(self) -> None:
        model = collected()
        returns = model.rollout_buffer.returns.flatten()
        error = returns - model.rollout_buffer.values.flatten()
        model.train()
        explained = 1 - np.var(error) / np.var(returns)
        assert logged(model)["train/explained_variance"] == pytest.approx(explained, rel=1e-4)

    def test_kl_after_the_running_statistics_moved_is_the_new_policys(self) -> None:
        model = stepped.collected(toy_model("batch_norm_shared", n_critic_updates=0))
        old = stepped.distributions(model)
        model.train()
        model.policy.set_training_mode(False)
        with th.no_grad():
            kl = float(stepped.mean_kl(model, old))
        log = logged(model)
        assert log["train/kl_after_running_statistics"] == pytest.approx(kl, rel=1e-6)
        assert kl != pytest.approx(log["train/kl_divergence_loss"], rel=1e-3)

    @pytest.mark.parametrize("log_interval", [1, 2])
    def test_the_log_is_written_at_its_interval(self, log_interval: int) -> None:
        class Counting(KVWriter):
            steps: ClassVar[list[int]] = []

            def write(self, key_values: Any, key_excluded: Any, step: int = 0) -> None:
                self.steps.append(step)

        model = toy_model()
        model.set_logger(Logger(None, [Counting()]))
        model.learn(256, log_interval=log_interval)
        assert Counting.steps == list(range(64 * log_interval, 257, 64 * log_interval))

    def test_tensorboard_run_is_called_trpo_1_and_has_the_keys(self, tmp_path: Path) -> None:
        model = toy_model(tensorboard_log=str(tmp_path))
        model.learn(192)
        model.learn(64)
        assert sorted(folder.name for folder in tmp_path.iterdir()) == ["TRPO_1", "TRPO_2"]
        events = EventAccumulator(str(tmp_path / "TRPO_1")).Reload()
        tags = set(events.Tags()["scalars"])
        assert {f"train/{key}" for key in KEYS - {"n_updates"}} <= tags
        # SB3 writes the log before the update that follows a rollout.
        assert [event.step for event in events.Scalars("train/target_kl")] == [128, 192]


class CountingCallback(BaseCallback):
    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.stop_after = stop_after
        self.rollouts = 0

    def _on_rollout_end(self) -> None:
        self.rollouts += 1

    def _on_step(self) -> bool:
        assert self.locals["rewards"].shape == (2,)
        return self.stop_after is None or self.n_calls < self.stop_after


class TestSB3Interface:
    def test_continued_learning_counts_on(self) -> None:
        model = toy_model().learn(64)
        model.learn(64, reset_num_timesteps=False)
        assert (model.num_timesteps, model._n_updates) == (128, 2)
        model.learn(64)
        assert (model.num_timesteps, model._n_updates) == (64, 3)

    def test_callbacks_are_called_at_every_step(self) -> None:
        callback = CountingCallback()
        toy_model().learn(128, callback=callback)
        assert (callback.n_calls, callback.rollouts) == (64, 2)

    def test_a_callback_can_stop_before_the_update(self) -> None:
        model = toy_model()
        before = state_of(model)
        model.learn(640, callback=CountingCallback(stop_after=10))
        assert model._n_updates == 0
        assert not changed(before, state_of(model))

    @pytest.mark.filterwarnings("ignore:rich is experimental")
    def test_progress_bar(self, capsys: pytest.CaptureFixture[str]) -> None:
        toy_model().learn(128, progress_bar=True)
        assert "128/128" in "".join(capsys.readouterr())

    def test_set_env_trains_on_in_the_new_environment(self) -> None:
        model, env = toy_model().learn(64), toy_envs(CASES["box"], 2)
        before = state_of(model)
        model.set_env(env)
        model.learn(64)
        assert model.get_env() is env
        assert changed_actor(before, state_of(model))

    def test_get_parameters_into_another_model(self) -> None:
        model, other = toy_model(seed=1).learn(64), toy_model(seed=2)
        assert model.get_parameters().keys() == {"policy", "policy.optimizer"}
        # The optimizer would share its state with the one that it was read from.
        other.set_parameters(copy.deepcopy(model.get_parameters()), exact_match=True)
        assert not changed(state_of(model), state_of(other))
        copy_rollout(model, other)
        np.random.seed(0)
        model.train()
        np.random.seed(0)
        other.train()
        assert not changed(state_of(model), state_of(other))

    def test_a_class_chooses_which_weights_its_files_hold(self, tmp_path: Path) -> None:
        class WithoutOptimizer(TRPO):
            def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
                return ["policy"], []

        model = toy_model(seed=1)
        small = toy_model(kind=WithoutOptimizer, seed=3)
        small.set_parameters(model.get_parameters(), exact_match=False)
        small.save(tmp_path / "small")
        loaded = WithoutOptimizer.load(tmp_path / "small")
        other = toy_model(seed=2)
        with pytest.raises(ValueError, match=r"weights of \['policy'\], and needs"):
            other.set_parameters(str(tmp_path / "small"))
        other.set_parameters(str(tmp_path / "small"), exact_match=False)
        for each in (loaded, other):
            assert not changed(state_of(small), state_of(each))

    @pytest.mark.parametrize("kind", [th.optim.Adafactor, th.optim.NAdam])
    def test_optimizers_of_torch_are_loaded(self, kind: Any, tmp_path: Path) -> None:
        model = toy_model(policy_kwargs={"optimizer_class": kind, "net_arch": [4]}).learn(48)
        model.save(tmp_path / "model")
        assert type(TRPO.load(tmp_path / "model").policy.optimizer) is kind

    def test_an_inexact_set_of_parameters_is_taken_only_if_asked_for(self) -> None:
        model, other = toy_model(seed=1), toy_model(seed=2)
        parameters = {"policy": model.get_parameters()["policy"]}
        with pytest.raises(ValueError, match="do not match agents"):
            other.set_parameters(parameters, exact_match=True)
        other.set_parameters(parameters, exact_match=False)
        assert not changed(state_of(model), state_of(other))

    def test_model_can_be_set_up_later(self) -> None:
        model = toy_model(_init_setup_model=False)
        assert not hasattr(model, "policy")
        model._setup_model()
        assert not changed(state_of(model), state_of(toy_model()))
        model.learn(64)
        assert model._n_updates == 1

    @pytest.mark.parametrize("case", ["box", "gsde"])
    def test_a_new_model_can_be_copied(self, case: str) -> None:
        model = toy_model(case)
        assert not changed(state_of(model), copy.deepcopy(model.policy).state_dict())

    def test_prediction_is_sb3s(self) -> None:
        model = toy_model().learn(64)
        observation = model.get_env().reset()
        action, state = model.predict(observation, deterministic=True)
        assert state is None
        assert action.shape == (2, 3)

    @pytest.mark.parametrize("case", ["box", "discrete"])
    def test_a_compiled_policy_takes_the_same_steps_and_its_zip_loads_uncompiled(
        self, case: str, tmp_path: Path
    ) -> None:
        plain, compiled = collected(case), toy_model(case)
        copy_rollout(plain, compiled)
        compiled.policy = th.compile(compiled.policy, backend="eager")
        for model in (plain, compiled):
            np.random.seed(0)
            model.train()
        for name, value in compiled.get_parameters()["policy"].items():
            th.testing.assert_close(value, plain.policy.state_dict()[name], atol=2e-4, rtol=2e-3)
        compiled.learn(64)
        compiled.save(tmp_path / "model")
        loaded = TRPO.load(tmp_path / "model", toy_envs(CASES[case], 2), device="cpu")
        assert type(loaded.policy) is type(plain.policy)
        assert not changed(state_of(loaded), compiled.get_parameters()["policy"])
        loaded.learn(64)

    @pytest.mark.parametrize(
        ("optimizer", "options"),
        [
            (th.optim.SGD, {"weight_decay": 0.1, "momentum": 0.9}),
            (th.optim.RMSprop, {}),
            (th.optim.AdamW, {"weight_decay": 0.1}),
            (th.optim.LBFGS, {"max_iter": 3, "line_search_fn": "strong_wolfe"}),
        ],
    )
    def test_other_optimizers_fit_the_critic_and_leave_the_actor(
        self, optimizer: type[th.optim.Optimizer], options: dict[str, Any]
    ) -> None:
        policy_kwargs = {
            "net_arch": [8],
            "optimizer_class": optimizer,
            "optimizer_kwargs": options,
        }
        model = collected(target_kl=0.0, policy_kwargs=policy_kwargs, learning_rate=0.01)
        before = state_of(model)
        losses = []
        for _ in range(3):
            model.train()
            losses.append(logged(model)["train/value_loss"])
        assert not changed_actor(before, state_of(model))
        assert losses[-1] < losses[0]


class ReadingBuffer(RolloutBuffer):
    """Has a ``get`` of its own, and counts how it is asked."""

    asked: list[int | None]

    def get(self, batch_size: int | None = None) -> Iterator[Any]:  # type: ignore[override]
        self.asked = [*getattr(self, "asked", []), batch_size]
        yield from super().get(batch_size)


class SameGetBuffer(RolloutBuffer):
    """Does something of its own elsewhere."""

    def reset(self) -> None:
        super().reset()
        self.was_reset = True


class TestRolloutBuffers:
    def test_options_of_the_user_win(self) -> None:
        model = toy_model(gamma=0.9, rollout_buffer_kwargs={"gamma": 0.5, "gae_lambda": 0.25})
        assert (model.rollout_buffer.gamma, model.rollout_buffer.gae_lambda) == (0.5, 0.25)

    @pytest.mark.parametrize("kind", [ReadingBuffer, SameGetBuffer])
    def test_own_buffer_class_gives_the_same_step(self, kind: type[RolloutBuffer]) -> None:
        own = collected(rollout_buffer_class=kind)
        usual = collected()
        np.testing.assert_array_equal(own.rollout_buffer.actions, usual.rollout_buffer.actions)
        step = step_of(usual)
        assert float((step_of(own) - step).norm()) <= 2e-3 * float(step.norm())

    def test_own_get_hands_out_the_critics_minibatches_too(self) -> None:
        model = collected(rollout_buffer_class=ReadingBuffer, n_critic_updates=2, batch_size=16)
        model.train()
        assert model.rollout_buffer.asked == [None, 16, 16]

    def test_buffer_kwargs_reach_the_buffer(self) -> None:
        class Configured(RolloutBuffer):
            def __init__(self, *args: Any, extra: int, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                self.extra = extra

        model = toy_model(rollout_buffer_class=Configured, rollout_buffer_kwargs={"extra": 5})
        model.learn(64)
        assert model.rollout_buffer.extra == 5
