"""Masks and LSTM together: what holds for each of them alone."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trpo import MaskableRecurrentTRPO, MaskableTRPO, RecurrentTRPO
from sb3_trpo.evaluation import evaluate_policy
from tests import reference, stepped
from tests.cases import (
    SMALL_LSTM,
    Case,
    actor_and_batch,
    copy_rollout,
    move_off_the_start,
    surrogate_of,
    toy_model,
)
from tests.environments import (
    DICT,
    DISCRETE_ACTIONS,
    MULTI_BINARY_ACTIONS,
    MULTI_DISCRETE_ACTIONS,
    VECTOR,
    all_finite,
    changed,
    collect,
    logged,
    random_masks,
    state_of,
)
from tests.policies import TinyCnn
from tests.test_recurrent import (
    RECALL,
    RECALL_LSTM,
    RECALL_STEPS,
    SMALL_IMAGE,
    Recall,
    nothing_left_to_learn,
    open_forget_gates,
)

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
    case = Case(policy, observation_space, action_space, {}, MaskableRecurrentTRPO, masks=True)
    settings = {"n_steps": 12, "batch_size": 24, **kwargs}
    return toy_model(case, policy_kwargs={**SMALL_LSTM, **(options or {})}, **settings)


def collected(space: spaces.Space[Any]) -> Any:
    return stepped.collected(maskable_recurrent(space))


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


def test_reading_a_buffer_after_its_get_gives_the_same_batch() -> None:
    model, twin = collected(MULTI_BINARY_ACTIONS), maskable_recurrent(MULTI_BINARY_ACTIONS)
    reference.run_in_float64(twin.policy)
    copy_rollout(model, twin)
    next(twin.rollout_buffer.get(None))
    gradients = []
    for m in (model, twin):
        actor, batch = actor_and_batch(m)
        gradients.append(surrogate_of(actor, (batch,)).gradient)
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


@nothing_left_to_learn
@pytest.mark.slow
def test_a_cue_is_remembered_while_the_mask_changes_at_every_step() -> None:
    env = DummyVecEnv([MaskedRecall] * 32)
    model = MaskableRecurrentTRPO("MlpLstmPolicy", env, policy_kwargs=RECALL_LSTM, seed=0, **RECALL)
    open_forget_gates(model.policy)
    model.learn(RECALL_STEPS)
    success, _ = evaluate_policy(model, env, 100, warn=False)
    assert success >= 0.95


@nothing_left_to_learn
@pytest.mark.slow
def test_a_cue_is_not_remembered_with_masks_alone() -> None:
    env = DummyVecEnv([MaskedRecall] * 32)
    forgetful = MaskableTRPO("MlpPolicy", env, seed=2, **RECALL).learn(RECALL_STEPS)
    chance, _ = evaluate_policy(forgetful, env, 200, warn=False)
    assert 0.35 <= chance <= 0.65
