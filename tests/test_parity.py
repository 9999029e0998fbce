"""The same results as ``sb3_contrib.TRPO`` where the two are meant to agree."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import torch as th
from gymnasium import spaces
from stable_baselines3.common.envs import (
    IdentityEnv,
    IdentityEnvMultiBinary,
    IdentityEnvMultiDiscrete,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trpo import TRPO
from tests.cases import BASIC, copy_rollout, toy_model
from tests.environments import ToyEnv, changed, collect, critic_only, logged, state_of

# Both sides solve in float32, contrib down to a residual of 1e-5 from a random start.
STEP_TOLERANCE = 2e-3
# contrib's KL goes through float32 differences of scales and logarithms.
KL_TOLERANCE = 2e-2


def actor_step(model: OnPolicyAlgorithm) -> th.Tensor:
    before = state_of(model)
    model.train()
    after = state_of(model)
    return th.cat([(after[k] - before[k]).flatten() for k in before if not critic_only(k)])


def steps_on_one_rollout(
    case: str, ours: dict[str, Any], contribs: dict[str, Any] | None = None
) -> tuple[th.Tensor, th.Tensor, Any, Any]:
    shared: dict[str, Any] = {"n_steps": 64, "n_critic_updates": 1, "cg_max_steps": 200}
    contrib = toy_model(case, kind=sb3_contrib.TRPO, **shared, **(contribs or {}))
    collect(contrib)
    model = toy_model(case, cg_residual_tol=0.0, **shared, **ours)
    copy_rollout(contrib, model)
    return actor_step(model), actor_step(contrib), model, contrib


def relative_distance(d: th.Tensor, d_contrib: th.Tensor) -> float:
    return float((d - d_contrib).norm() / d_contrib.norm())


@pytest.mark.parametrize("case", BASIC)
def test_actor_step_equals_contribs_on_one_rollout(case: str) -> None:
    d, d_contrib, model, contrib = steps_on_one_rollout(case, {"kl_reduction": "mean"})
    assert d_contrib.norm() > 0
    assert relative_distance(d, d_contrib) <= STEP_TOLERANCE
    ours, theirs = logged(model), logged(contrib)
    assert ours["train/kl_divergence_loss"] == pytest.approx(
        theirs["train/kl_divergence_loss"], rel=KL_TOLERANCE
    )
    assert ours["train/policy_objective"] == pytest.approx(
        theirs["train/policy_objective"], rel=KL_TOLERANCE
    )


@pytest.mark.parametrize("case", ["box", "multi_binary"])
def test_contrib_is_ours_with_radius_and_damping_times_action_dimensions(case: str) -> None:
    target_kl, damping, dimensions = 0.01, 0.1, 3
    ours = {"target_kl": dimensions * target_kl, "cg_damping": dimensions * damping}
    theirs = {"target_kl": target_kl, "cg_damping": damping}
    d, d_contrib, *_ = steps_on_one_rollout(case, ours, theirs)
    assert relative_distance(d, d_contrib) <= STEP_TOLERANCE


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("case", BASIC)
def test_what_is_not_set_is_as_wide_as_contribs_default(case: str, reduction: str) -> None:
    ours = {"target_kl": None, "cg_damping": None, "kl_reduction": reduction}
    d, d_contrib, model, _ = steps_on_one_rollout(case, ours)
    assert relative_distance(d, d_contrib) <= STEP_TOLERANCE
    is_averaged = isinstance(model.action_space, (spaces.Box, spaces.MultiBinary))
    dimensions = model.action_space.shape[0] if is_averaged and reduction == "sum" else 1
    assert model.target_kl == pytest.approx(0.01 * dimensions)
    assert model.cg_damping == pytest.approx(0.1 * dimensions)


@pytest.mark.parametrize("case", ["box", "multi_binary"])
def test_the_two_reductions_differ_where_contrib_averages(case: str) -> None:
    d, d_contrib, *_ = steps_on_one_rollout(case, {"kl_reduction": "sum"})
    assert relative_distance(d, d_contrib) > 0.1


@pytest.mark.parametrize("case", ["discrete", "multi_discrete"])
def test_the_two_reductions_agree_where_contrib_sums(case: str) -> None:
    d, d_contrib, *_ = steps_on_one_rollout(case, {"kl_reduction": "sum"})
    assert relative_distance(d, d_contrib) <= STEP_TOLERANCE


def test_initial_parameters_and_rollout_equal_contribs() -> None:
    model, contrib = toy_model("box"), toy_model("box", kind=sb3_contrib.TRPO)
    assert not changed(state_of(model), state_of(contrib))
    for each in (model, contrib):
        each.set_random_seed(1)
        collect(each)
    for name in ("observations", "actions", "log_probs", "advantages", "returns"):
        ours, theirs = getattr(model.rollout_buffer, name), getattr(contrib.rollout_buffer, name)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_learns_500_steps_on_classic_control(env_id: str) -> None:
    model = TRPO("MlpPolicy", env_id, policy_kwargs={"net_arch": [16]}, seed=0, device="cpu")
    before = state_of(model)
    model.learn(500)
    assert changed(before, state_of(model)) == before.keys()
    assert logged_is_inside_the_trust_region(model)


def logged_is_inside_the_trust_region(model: TRPO) -> bool:
    model.train()
    log = logged(model)
    return float(log["train/kl_divergence_loss"]) <= float(log["train/target_kl"])


def test_gsde_with_sub_sampling_trains_on_pendulum() -> None:
    model = TRPO(
        "MlpPolicy",
        "Pendulum-v1",
        policy_kwargs={"net_arch": [16]},
        sub_sampling_factor=4,
        use_sde=True,
        seed=0,
        device="cpu",
    )
    before = state_of(model)
    model.learn(500)
    assert changed(before, state_of(model)) == before.keys()


@pytest.mark.parametrize(
    "env",
    [IdentityEnv(4), IdentityEnvMultiDiscrete(4), IdentityEnvMultiBinary(4)],
    ids=["Discrete", "MultiDiscrete", "MultiBinary"],
)
def test_identity_task_is_solved_by_one_default_update(env: IdentityEnv[Any]) -> None:
    model = TRPO("MlpPolicy", DummyVecEnv([lambda: env]), gamma=0.4, seed=1, device="cpu")
    model.learn(1500)
    assert model._n_updates == 1
    reward, _ = evaluate_policy(model, DummyVecEnv([lambda: env]), n_eval_episodes=10, warn=False)
    assert isinstance(reward, float)
    assert reward >= 90


def test_dict_environment_and_its_flattened_twin_give_identical_actions() -> None:
    def twin() -> ToyEnv:
        parts: dict[str, spaces.Space[Any]] = {
            key: spaces.Box(-1.0, 1.0, (2,)) for key in ("first", "second")
        }
        return ToyEnv(spaces.Dict(parts), spaces.Box(-1.0, 1.0, (2,)))

    kwargs: dict[str, Any] = {"n_steps": 64, "batch_size": 64, "gamma": 0.5, "seed": 1}
    dict_model = TRPO("MultiInputPolicy", twin(), device="cpu", **kwargs)
    flat_model = TRPO("MlpPolicy", gym.wrappers.FlattenObservation(twin()), device="cpu", **kwargs)
    observation, _ = twin().reset(seed=3)
    flat_observation = np.concatenate([observation["first"], observation["second"]])

    def actions() -> list[Any]:
        models_and_inputs = [(dict_model, observation), (flat_model, flat_observation)]
        return [m.predict(o, deterministic=True)[0] for m, o in models_and_inputs]

    before = actions()
    np.testing.assert_array_equal(before[0], before[1])
    for model in (dict_model, flat_model):
        model.set_random_seed(1)
        model.learn(128)
    after = actions()
    # Rounding differs: a plain MlpPolicy acts and is updated through closed forms.
    np.testing.assert_allclose(after[0], after[1], rtol=1e-3, atol=1e-5)
    assert not np.array_equal(before[0], after[0])


def test_one_step_per_update_asserts() -> None:
    with pytest.raises(AssertionError, match="n_steps"):
        TRPO("MlpPolicy", "CartPole-v1", n_steps=1, device="cpu")


def test_one_step_per_update_is_enough_with_two_environments_or_without_normalisation() -> None:
    toy_model("box", n_envs=2, n_steps=1, batch_size=1).learn(4)
    toy_model("box", n_envs=1, n_steps=1, batch_size=1, normalize_advantage=False).learn(2)


def test_truncated_minibatch_warns() -> None:
    with pytest.warns(UserWarning, match="truncated"):
        TRPO("MlpPolicy", "CartPole-v1", n_steps=6, batch_size=4, device="cpu")
