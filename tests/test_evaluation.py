"""Evaluation with masks that keeps the states of an LSTM."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from sb3_contrib import MaskablePPO
from sb3_contrib.common.envs import InvalidActionEnvDiscrete
from sb3_contrib.common.maskable import callbacks, evaluation
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trpo import TRPO, MaskableRecurrentTRPO, MaskableTRPO, RecurrentTRPO
from sb3_trpo.evaluation import MaskableEvalCallback, Masking, evaluate_policy, takes_masks
from tests.environments import DISCRETE_ACTIONS
from tests.test_maskable_recurrent import maskable_recurrent


def recording(model: Any) -> list[Any]:
    """Record the states that the policy is given."""
    states: list[Any] = []
    predict = model.policy.predict

    def call(observation: Any, state: Any = None, *arguments: Any, **options: Any) -> Any:
        states.append(state)
        return predict(observation, state, *arguments, **options)

    model.policy.predict = call
    return states


def test_only_maskable_algorithms_take_masks() -> None:
    assert all(takes_masks(kind) for kind in (MaskableTRPO, MaskableRecurrentTRPO, MaskablePPO))
    assert not any(takes_masks(kind) for kind in (TRPO, RecurrentTRPO, PPO))


def test_the_lstms_states_are_kept_from_step_to_step() -> None:
    model = maskable_recurrent(DISCRETE_ACTIONS)
    states = recording(model)
    evaluate_policy(model, model.get_env(), 2, warn=False)
    assert states[0] is None
    assert all(state is not None for state in states[1:])
    del states[:]
    evaluation.evaluate_policy(model, model.get_env(), 2, warn=False)
    assert all(state is None for state in states)  # why contrib's does not do


def test_a_feed_forward_model_is_evaluated_as_by_contrib() -> None:
    env = DummyVecEnv([lambda: InvalidActionEnvDiscrete(dim=6, n_invalid_actions=3)])
    model: Any = MaskableTRPO("MlpPolicy", env, n_steps=32, batch_size=32, seed=0).learn(32)
    scores = []
    for evaluate in (evaluate_policy, evaluation.evaluate_policy):
        env.action_space.seed(7)
        np.random.seed(7)
        scores.append(evaluate(model, env, 5, return_episode_rewards=True, warn=False))
    assert scores[0] == scores[1]


@pytest.mark.parametrize("kind", [MaskableTRPO, MaskableRecurrentTRPO])
def test_the_callback_evaluates_with_masks_and_saves_the_model(
    kind: type[Any], tmp_path: Any
) -> None:
    env = InvalidActionEnvDiscrete(dim=6, n_invalid_actions=5)
    names = {MaskableTRPO: "MlpPolicy", MaskableRecurrentTRPO: "MlpLstmPolicy"}
    model = kind(names[kind], env, n_steps=32, batch_size=32, seed=0)
    callback = MaskableEvalCallback(
        DummyVecEnv([lambda: InvalidActionEnvDiscrete(dim=6, n_invalid_actions=5)]),
        eval_freq=32,
        n_eval_episodes=2,
        best_model_save_path=str(tmp_path),
        warn=False,
        verbose=0,
    )
    model.learn(64, callback=callback)
    assert callback.best_mean_reward == 100  # the only allowed action is the right one
    loaded = kind.load(tmp_path / "best_model", env)
    action, _ = loaded.predict(np.array(0), action_masks=np.eye(6, dtype=bool)[2])
    assert action == 2


def test_what_is_written_to_a_masking_model_is_the_models() -> None:
    env = DummyVecEnv([lambda: InvalidActionEnvDiscrete(dim=6, n_invalid_actions=5)])
    model = MaskableTRPO("MlpPolicy", env, n_steps=32, batch_size=32)
    masking: Any = Masking(model, env)
    masking.target_kl = 0.123
    masking.note = "new"
    assert (model.target_kl, masking.target_kl) == (0.123, 0.123)
    assert vars(model)["note"] == "new"
    for same in (copy.copy(masking), copy.deepcopy(masking), pickle.loads(pickle.dumps(masking))):
        assert same.target_kl == 0.123
        assert same.predict(env.reset())[0].shape == (1,)


class Halving(BaseCallback):
    """Changes the model's settings, as schedules of one's own do."""

    def _on_step(self) -> bool:
        assert isinstance(self.model, MaskableTRPO)
        self.model.n_critic_updates = 1
        return True


def test_callbacks_inside_the_callback_get_the_model_itself() -> None:
    env = DummyVecEnv([lambda: InvalidActionEnvDiscrete(dim=6, n_invalid_actions=5)])
    model = MaskableTRPO("MlpPolicy", env, n_steps=32, batch_size=32)
    settings: dict[str, Any] = {"eval_freq": 16, "n_eval_episodes": 1, "warn": False, "verbose": 0}
    inside: dict[str, Any] = {"callback_after_eval": Halving(), "callback_on_new_best": Halving()}
    model.learn(32, callback=MaskableEvalCallback(env, **inside, **settings))
    assert {callback.model for callback in inside.values()} == {model}
    assert model.n_critic_updates == 1


def test_contribs_callback_evaluates_a_feed_forward_model() -> None:
    env = InvalidActionEnvDiscrete(dim=6, n_invalid_actions=5)
    model = MaskableTRPO("MlpPolicy", env, n_steps=32, batch_size=32, seed=0)
    callback = callbacks.MaskableEvalCallback(
        DummyVecEnv([lambda: env]), eval_freq=32, n_eval_episodes=1, warn=False, verbose=0
    )
    model.learn(32, callback=callback)
    assert callback.best_mean_reward == 100
