"""Masks and LSTM together: what holds for each of them alone."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trpo import MaskableRecurrentTRPO, MaskableTRPO, RecurrentTRPO
from sb3_trpo.evaluation import evaluate_policy
from sb3_trpo.fisher import FisherProduct
from sb3_trpo.surrogate import surrogate_at
from tests import reference, stepped
from tests.cases import TinyCnn, actor_and_batch, move_off_the_start
from tests.environments import (
    DICT,
    DISCRETE_ACTIONS,
    MULTI_BINARY_ACTIONS,
    MULTI_DISCRETE_ACTIONS,
    VECTOR,
    Case,
    all_finite,
    changed,
    collect,
    copy_rollout,
    logged,
    state_of,
    toy_model,
)
from tests.test_maskable import random_masks
from tests.test_recurrent import RECALL, RECALL_STEPS, SMALL, SMALL_IMAGE, Recall

SPACES = [DISCRETE_ACTIONS, MULTI_DISCRETE_ACTIONS, MULTI_BINARY_ACTIONS]
ROUNDING = 1e-10


def maskable_recurrent(
    action_space: spaces.Space[Any],
    policy: str = "MlpLstmPolicy",
    observation_space: spaces.Space[Any] = VECTOR,
    options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Make a model whose environments have a mask that changes every step."""
    settings = {"n_steps": 12, "batch_size": 24, **kwargs}
    case = Case(policy, observation_space, action_space, {})
    policy_kwargs = {**SMALL, **(options or {})}
    kind = settings.pop("kind", MaskableRecurrentTRPO)
    model = toy_model(case, kind=kind, policy_kwargs=policy_kwargs, **settings)
    masks, steps = random_masks(action_space), iter(range(10**6))
    for env in model.get_env().envs:
        env.unwrapped.masks = lambda: masks(next(steps))
    return model


def collected(space: spaces.Space[Any], **kwargs: Any) -> Any:
    model = maskable_recurrent(space, **kwargs)
    move_off_the_start(model.policy)
    collect(model)
    model.policy.set_training_mode(False)
    reference.run_in_float64(model.policy)
    return model


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_gradient_and_fisher_product_equal_the_masked_stepped_twins(
    space: spaces.Space[Any],
) -> None:
    model = collected(
        space, options={"lstm_hidden_size": 2, "net_arch": []}, n_steps=6, batch_size=12
    )
    assert not model.rollout_buffer.action_masks.all()
    actor, batch = actor_and_batch(model)
    surrogate = surrogate_at(actor, batch.chunks(8))
    expected = reference.dense_gradient(stepped.surrogate(model), actor.parameters)
    th.testing.assert_close(surrogate.gradient, expected, rtol=1e-7, atol=1e-9)
    with th.no_grad():
        old = stepped.distributions(model)
    hessian = reference.dense_hessian(stepped.mean_kl(model, old), actor.parameters)
    fisher = FisherProduct(actor, (batch,))
    vectors = th.randn(3, len(hessian), dtype=th.float64)
    found = th.stack([fisher(vector).clone() for vector in vectors])
    th.testing.assert_close(found, vectors @ hessian, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("space", [DISCRETE_ACTIONS, MULTI_DISCRETE_ACTIONS], ids=str)
def test_with_all_actions_allowed_the_update_is_recurrent_trpos(space: spaces.Space[Any]) -> None:
    plain = maskable_recurrent(space, kind=RecurrentTRPO)
    ours = maskable_recurrent(space)
    move_off_the_start(plain.policy)
    collect(plain)
    ours._setup_learn(1)
    ours.policy.load_state_dict(plain.policy.state_dict())
    for name, value in vars(plain.rollout_buffer).items():
        if isinstance(value, np.ndarray):
            setattr(ours.rollout_buffer, name, value.copy())
    ours.rollout_buffer.full = True
    for model in (plain, ours):
        reference.run_in_float64(model.policy)
        np.random.seed(0)
        model.train()
    assert logged(plain)["train/is_line_search_success"] == 1.0
    found = state_of(ours)
    for name, value in state_of(plain).items():
        th.testing.assert_close(found[name], value, rtol=0, atol=1e-12)


INPUTS: dict[str, tuple[str, spaces.Space[Any], dict[str, Any]]] = {
    "mlp": ("MlpLstmPolicy", VECTOR, {}),
    "cnn": ("CnnLstmPolicy", SMALL_IMAGE, {"features_extractor_class": TinyCnn}),
    "dict": ("MultiInputLstmPolicy", DICT, {}),
}


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize("inputs", INPUTS)
def test_updates_stay_in_the_trust_region(inputs: str, space: spaces.Space[Any]) -> None:
    policy, observations, options = INPUTS[inputs]
    model = maskable_recurrent(space, policy, observations, options, n_steps=32, batch_size=32)
    collect(model)
    before = state_of(model)
    model.train()
    assert logged(model)["train/is_line_search_success"] == 1.0
    assert 0 < logged(model)["train/kl_divergence_loss"] <= 0.01
    assert {"lstm_actor.weight_hh_l0", "lstm_critic.weight_hh_l0"} <= changed(
        before, state_of(model)
    )
    assert all_finite(model)


def test_the_critics_fit_never_moves_the_actor() -> None:
    model = maskable_recurrent(DISCRETE_ACTIONS, target_kl=0.0, learning_rate=0.1)
    collect(model)
    before = state_of(model)
    model.train()
    moved = changed(before, state_of(model))
    assert moved
    assert not {n for n in moved if not ("value" in n or "critic" in n)}


def test_only_allowed_actions_are_taken_and_the_masks_are_kept_with_their_states() -> None:
    model = maskable_recurrent(DISCRETE_ACTIONS, n_steps=64, batch_size=64)
    collect(model)
    buffer = model.rollout_buffer
    actions = buffer.actions.astype(int)
    assert np.take_along_axis(buffer.action_masks, actions, axis=2).all()
    masks = random_masks(DISCRETE_ACTIONS)
    expected = np.stack([masks(step) for step in range(128)]).reshape(64, 2, 4)
    assert np.array_equal(buffer.action_masks.astype(bool), expected)


def test_a_state_with_no_allowed_action_is_an_error_at_its_step() -> None:
    model = maskable_recurrent(DISCRETE_ACTIONS)
    model.get_env().envs[1].unwrapped.masks = lambda: np.zeros(4, dtype=bool)
    before = state_of(model)
    with pytest.raises(ValueError, match=r"\(0, 1\) allows no value"):
        model.learn(24)
    assert not changed(before, state_of(model))


def test_same_seed_gives_bitwise_the_same_parameters() -> None:
    states = [state_of(maskable_recurrent(DISCRETE_ACTIONS, seed=5).learn(48)) for _ in range(2)]
    assert not changed(*states)


def test_reading_a_buffer_after_its_get_gives_the_same_batch() -> None:
    model, twin = collected(MULTI_BINARY_ACTIONS), maskable_recurrent(MULTI_BINARY_ACTIONS)
    reference.run_in_float64(twin.policy)
    copy_rollout(model, twin)
    next(twin.rollout_buffer.get(None))
    gradients = []
    for m in (model, twin):
        actor, batch = actor_and_batch(m)
        gradients.append(surrogate_at(actor, (batch,)).gradient)
    th.testing.assert_close(gradients[0], gradients[1], rtol=ROUNDING, atol=ROUNDING)


def test_predict_takes_masks_and_states() -> None:
    model = maskable_recurrent(DISCRETE_ACTIONS)
    observations = model.get_env().reset()
    state = None
    for action in range(4):
        mask = np.eye(4, dtype=bool)[[action, action]]
        found, state = model.predict(observations, state, action_masks=mask)
        assert (found == action).all()
        assert state[0].shape == (1, 2, 3)
    assert model.policy.action_masks is None
    assert isinstance(model, MaskableTRPO)
    assert isinstance(model, RecurrentTRPO)
    assert MaskableRecurrentTRPO.train is RecurrentTRPO.train


def test_saved_and_loaded_it_goes_on_as_before(tmp_path: Any) -> None:
    model = maskable_recurrent(MULTI_DISCRETE_ACTIONS).learn(24)
    model.save(tmp_path / "model")
    loaded = MaskableRecurrentTRPO.load(tmp_path / "model", model.get_env(), device="cpu")
    assert not changed(state_of(model), state_of(loaded))
    loaded.learn(48, reset_num_timesteps=False)
    assert logged(loaded)["train/n_updates"] == 3
    loaded.learn(24, use_masking=False)


class MaskedRecall(Recall):
    """Four actions, of which a random half is allowed until the choice between the first two."""

    action_space = spaces.Discrete(4)

    def action_masks(self) -> np.ndarray:
        self.mask = np.arange(4) < 2
        if self.steps < self.delay:
            self.mask = self.np_random.permutation(self.mask)
        return self.mask

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.mask[action]
        return super().step(action)


@pytest.mark.slow
def test_a_cue_is_remembered_for_twenty_steps_while_the_mask_changes_at_every_one() -> None:
    env = DummyVecEnv([MaskedRecall] * 32)
    options = {"lstm_hidden_size": 16, "net_arch": []}
    model = MaskableRecurrentTRPO("MlpLstmPolicy", env, policy_kwargs=options, seed=2, **RECALL)
    model.learn(RECALL_STEPS)
    success, _ = evaluate_policy(model, env, 100, warn=False)
    assert success >= 0.95
    forgetful = MaskableTRPO("MlpPolicy", env, seed=2, **RECALL).learn(RECALL_STEPS)
    chance, _ = evaluate_policy(forgetful, env, 200, warn=False)
    assert 0.35 <= chance <= 0.65
