"""
The interface of MaskablePPO and RecurrentPPO, stated for sb3-contrib's classes and for ours.

Each test holds for both, so ours can take their place. What is learned is tested elsewhere.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.envs import (
    InvalidActionEnvDiscrete,
    InvalidActionEnvMultiBinary,
    InvalidActionEnvMultiDiscrete,
)
from sb3_contrib.common.maskable import callbacks as contrib_callbacks
from sb3_contrib.common.maskable import evaluation as contrib_evaluation
from sb3_contrib.common.maskable.utils import is_masking_supported
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.callbacks import EventCallback, StopTrainingOnNoModelImprovement
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, IdentityEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

import sb3_trpo.evaluation
from sb3_trpo import MaskableRecurrentTRPO, MaskableTRPO, RecurrentTRPO
from tests.environments import all_finite, changed, state_of

# What evaluates a feed-forward masked model: contrib's functions and ours, for either class.
EVALUATIONS = {"contrib": contrib_evaluation, "ours": sb3_trpo.evaluation}
CALLBACKS = {"contrib": contrib_callbacks, "ours": sb3_trpo.evaluation}

masked = pytest.mark.parametrize("kind", [MaskablePPO, MaskableTRPO])
with_an_lstm = pytest.mark.parametrize("kind", [RecurrentPPO, RecurrentTRPO])
by_evaluation = pytest.mark.parametrize("evaluation", EVALUATIONS.values(), ids=EVALUATIONS)


def learned(kind: type[Any], policy: Any, env: Any, **options: Any) -> Any:
    """Train for two rollouts and check that the policy has moved."""
    model = kind(policy, env, **{"n_steps": 32, "batch_size": 32, "seed": 8, **options})
    before = state_of(model)
    model.learn(2 * model.n_steps * model.n_envs)
    assert changed(before, state_of(model))
    assert all_finite(model)
    return model


class InDict(gym.ObservationWrapper[Any, Any, Any]):
    """The observation as the only entry of a dictionary."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = spaces.Dict({"only": env.observation_space})

    def observation(self, observation: Any) -> dict[str, Any]:
        return {"only": observation}

    def action_masks(self) -> Any:
        return self.get_wrapper_attr("env").action_masks()


# Environments by how many actions are invalid: some, and all but the one that is paid.
MASKED_ENVS: dict[str, tuple[gym.Env[Any, Any], gym.Env[Any, Any]]] = {
    "discrete": (InvalidActionEnvDiscrete(20, 100, 10), InvalidActionEnvDiscrete(20, 100, 19)),
    "multi_discrete": (
        InvalidActionEnvMultiDiscrete([2, 3], 100, 1),
        InvalidActionEnvMultiDiscrete([2, 3], 100, 3),
    ),
    "multi_binary": (
        InvalidActionEnvMultiBinary(3, 100, 1),
        InvalidActionEnvMultiBinary(3, 100, 3),
    ),
}


@masked
@pytest.mark.parametrize("policy", ["MlpPolicy", "MultiInputPolicy"])
@pytest.mark.parametrize("actions", MASKED_ENVS)
def test_masked_spaces_train(actions: str, policy: str, kind: type[Any]) -> None:
    some, _ = MASKED_ENVS[actions]
    learned(kind, policy, InDict(some) if policy == "MultiInputPolicy" else some)


@masked
@by_evaluation
@pytest.mark.parametrize("actions", MASKED_ENVS)
def test_with_one_action_left_an_untrained_policy_is_perfect_and_only_with_masks(
    actions: str, evaluation: Any, kind: type[Any]
) -> None:
    _, one_left = MASKED_ENVS[actions]
    model = kind("MlpPolicy", one_left, seed=8)
    best, spread = evaluation.evaluate_policy(model, one_left, 2, warn=False)
    assert (best, spread) == (100.0, 0.0)
    chance, _ = evaluation.evaluate_policy(model, one_left, 2, warn=False, use_masking=False)
    assert chance < best


@masked
@by_evaluation
@pytest.mark.parametrize("n_envs", [1, 2])
def test_without_masks_learning_and_evaluation_need_to_be_told(
    n_envs: int, evaluation: Any, kind: type[Any]
) -> None:
    env = make_vec_env(IdentityEnv, n_envs, env_kwargs={"dim": 2})
    assert not is_masking_supported(env)
    model = kind("MlpPolicy", env, n_steps=32, batch_size=32, seed=8)
    with pytest.raises(ValueError, match="mask"):
        model.learn(32)
    with pytest.raises(ValueError, match="mask"):
        evaluation.evaluate_policy(model, env, warn=False)
    model.learn(32, use_masking=False)
    evaluation.evaluate_policy(model, env, 2, warn=False, use_masking=False)


@masked
@by_evaluation
def test_masks_of_several_environments_are_used(evaluation: Any, kind: type[Any]) -> None:
    env = make_vec_env(InvalidActionEnvDiscrete, 2, env_kwargs={"dim": 20, "n_invalid_actions": 19})
    assert is_masking_supported(env)
    model = learned(kind, "MlpPolicy", env)
    assert evaluation.evaluate_policy(model, env, 4, warn=False) == (100.0, 0.0)


@masked
def test_masks_under_a_time_limit(kind: type[Any]) -> None:
    env = gym.wrappers.TimeLimit(InvalidActionEnvDiscrete(20, 100, 10), 10)
    model = learned(kind, "MlpPolicy", env)
    assert {episode["l"] for episode in model.ep_info_buffer} == {10}


@masked
def test_masks_for_images_come_from_a_function(kind: type[Any]) -> None:
    rng = np.random.default_rng(0)

    def all_but_one(env: gym.Env[Any, Any]) -> np.ndarray:
        return np.not_equal(np.arange(6), rng.integers(6))

    env = ActionMasker(FakeImageEnv(screen_height=40, screen_width=40), all_but_one)
    policy_kwargs = {"features_extractor_kwargs": {"features_dim": 8}}
    learned(kind, "CnnPolicy", env, n_steps=16, batch_size=16, policy_kwargs=policy_kwargs)


@masked
@pytest.mark.parametrize("callbacks", CALLBACKS.values(), ids=CALLBACKS)
@pytest.mark.parametrize("wrap", [Monitor, lambda env: env], ids=["monitored", "bare"])
def test_evaluations_with_masks_are_written_during_training(
    wrap: Any, callbacks: Any, kind: type[Any], tmp_path: Any
) -> None:
    env, evaluated = (InvalidActionEnvDiscrete(20, 20, 19) for _ in range(2))
    callback = callbacks.MaskableEvalCallback(
        wrap(evaluated), eval_freq=32, n_eval_episodes=2, log_path=str(tmp_path), warn=False
    )
    kind("MlpPolicy", env, n_steps=32, batch_size=32, seed=8).learn(64, callback)
    written = np.load(tmp_path / "evaluations.npz")
    assert written["timesteps"].tolist() == [32, 64]
    assert (written["results"] == 20).all()


@masked
@pytest.mark.parametrize("callbacks", CALLBACKS.values(), ids=CALLBACKS)
def test_callbacks_of_the_evaluation_are_called_and_can_stop(
    callbacks: Any, kind: type[Any]
) -> None:
    env, evaluated = (InvalidActionEnvDiscrete(20, 20, 19) for _ in range(2))
    stop, best = StopTrainingOnNoModelImprovement(0, 0), EventCallback()
    evaluate = callbacks.MaskableEvalCallback(
        Monitor(evaluated), eval_freq=16, callback_after_eval=stop, callback_on_new_best=best
    )
    model = kind("MlpPolicy", env, n_steps=16, batch_size=16, seed=8).learn(160, evaluate)
    assert best.n_calls == 1  # every evaluation has the same return, so only the first is new
    assert stop.n_calls == 2
    assert model.num_timesteps == 32


@masked
@pytest.mark.parametrize("callbacks", CALLBACKS.values(), ids=CALLBACKS)
def test_evaluation_during_training_goes_without_masks_where_it_is_told(
    callbacks: Any, kind: type[Any]
) -> None:
    callback = callbacks.MaskableEvalCallback(
        Monitor(IdentityEnv(2, ep_length=10)), eval_freq=32, n_eval_episodes=2, use_masking=False
    )
    model = kind("MlpPolicy", IdentityEnv(2, ep_length=10), n_steps=32, batch_size=32, seed=8)
    model.learn(32, callback, use_masking=False)
    assert 0 <= callback.last_mean_reward <= 10


IMAGES = FakeImageEnv(screen_height=40, screen_width=40, n_channels=3)
LSTM_OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "separate_extractors": {"share_features_extractor": False},
    "shared_lstm": {"shared_lstm": True, "enable_critic_lstm": False},
    "two_layers_with_dropout": {"n_lstm_layers": 2, "lstm_kwargs": {"dropout": 0.5}},
    "two_layers_without_critic": {
        "enable_critic_lstm": False,
        "n_lstm_layers": 2,
        "lstm_kwargs": {"dropout": 0.5},
    },
    "separate_extractors_without_critic": {
        "enable_critic_lstm": False,
        "share_features_extractor": False,
    },
}
LSTM_ENVS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "mlp": ("MlpLstmPolicy", "CartPole-v1", {}),
    "cnn": ("CnnLstmPolicy", IMAGES, {"features_extractor_kwargs": {"features_dim": 8}}),
    "dict": ("MultiInputLstmPolicy", InDict(gym.make("CartPole-v1")), {}),
}


@with_an_lstm
@pytest.mark.parametrize("options", LSTM_OPTIONS)
@pytest.mark.parametrize("inputs", LSTM_ENVS)
def test_options_of_an_lstm_train(inputs: str, options: str, kind: type[Any]) -> None:
    policy, env, extractor = LSTM_ENVS[inputs]
    policy_kwargs = {"lstm_hidden_size": 4, **LSTM_OPTIONS[options], **extractor}
    model = learned(kind, policy, env, n_steps=16, batch_size=16, policy_kwargs=policy_kwargs)
    if inputs == "dict":
        evaluate_policy(model, model.get_env(), 2, warn=False)


@pytest.mark.parametrize("kind", [RecurrentPPO, RecurrentTRPO, MaskableRecurrentTRPO])
@pytest.mark.parametrize(
    "options",
    [
        {"shared_lstm": True, "enable_critic_lstm": True},
        {"shared_lstm": True, "enable_critic_lstm": False, "share_features_extractor": False},
    ],
    ids=["critic_lstm", "separate_extractors"],
)
def test_a_shared_lstm_leaves_no_room_for_a_second(
    options: dict[str, Any], kind: type[Any]
) -> None:
    with pytest.raises(AssertionError):
        kind("MlpLstmPolicy", "CartPole-v1", policy_kwargs=options)


@with_an_lstm
def test_gsde_is_resampled_within_sequences(kind: type[Any]) -> None:
    options = {"use_sde": True, "sde_sample_freq": 4, "policy_kwargs": {"lstm_hidden_size": 4}}
    learned(kind, "MlpLstmPolicy", "Pendulum-v1", n_steps=16, batch_size=16, **options)
