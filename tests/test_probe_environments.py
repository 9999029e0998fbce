"""Environments so small that what has to be learned is known."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from sb3_trpo import TRPO

GAMMA = 0.5
VALUE_TOLERANCE = 0.1


class Probe(gym.Env[Any, Any]):
    """
    Episodes of a given length with one number as the observation.

    :param n_actions: number of actions
    """

    episode_length = 1

    def __init__(self, n_actions: int = 1) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (1,))
        self.action_space = spaces.Discrete(n_actions)
        self.steps = 0
        self.state = 0.0

    def first(self) -> float:
        """Return the episode's first observation."""
        return 0.0

    def reward(self, action: int) -> float:
        """Return the reward of an action in the current state."""
        return 1.0

    def observation(self) -> Any:
        """Return the state as an array."""
        return np.array([self.state], dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.state = 0, self.first()
        return self.observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = self.reward(int(action))
        self.steps += 1
        self.state = float(self.steps)
        return self.observation(), reward, self.steps >= self.episode_length, False, {}


class SignProbe(Probe):
    """The state is a random sign, and is the reward."""

    def first(self) -> float:
        return float(self.np_random.choice([-1.0, 1.0]))

    def reward(self, action: int) -> float:
        return self.state


class TwoStepProbe(Probe):
    """Two steps, of which the second one is rewarded."""

    episode_length = 2

    def reward(self, action: int) -> float:
        return float(self.steps == 1)


class ActionProbe(Probe):
    """The second action is rewarded, the first one punished."""

    def reward(self, action: int) -> float:
        return 1.0 if action == 1 else -1.0


class SignActionProbe(SignProbe):
    """The action has to be the state's sign."""

    def reward(self, action: int) -> float:
        return 1.0 if (action == 1) == (self.state > 0) else -1.0


class LimitProbe(Probe):
    """Reward 1 forever, cut into episodes by a time limit that says nothing about the state."""

    episode_length = 3

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        _, reward, over, _, info = super().step(action)
        self.state = 0.0
        return self.observation(), reward, False, over, info


def learned(probe: type[Probe], n_actions: int = 1, steps: int = 2048) -> TRPO:
    env = make_vec_env(lambda: probe(n_actions), n_envs=4, seed=0)
    return TRPO(
        "MlpPolicy",
        env,
        n_steps=64,
        batch_size=64,
        gamma=GAMMA,
        learning_rate=0.01,
        target_kl=0.05,
        policy_kwargs={"net_arch": [16]},
        seed=0,
        device="cpu",
    ).learn(steps)


@th.no_grad()
def value(model: TRPO, state: float) -> float:
    return model.policy.predict_values(th.tensor([[state]])).item()


@th.no_grad()
def probability(model: TRPO, state: float, action: int) -> float:
    log_prob = model.policy.get_distribution(th.tensor([[state]])).log_prob(th.tensor([action]))
    return float(log_prob.exp())


def test_value_of_a_constant_reward_is_one() -> None:
    assert value(learned(Probe), 0.0) == pytest.approx(1.0, abs=VALUE_TOLERANCE)


def test_value_depends_on_the_observation() -> None:
    model = learned(SignProbe)
    for state in (-1.0, 1.0):
        assert value(model, state) == pytest.approx(state, abs=VALUE_TOLERANCE)


def test_value_is_discounted_over_two_steps() -> None:
    model = learned(TwoStepProbe)
    assert value(model, 0.0) == pytest.approx(GAMMA, abs=VALUE_TOLERANCE)
    assert value(model, 1.0) == pytest.approx(1.0, abs=VALUE_TOLERANCE)


def test_the_rewarded_action_is_chosen() -> None:
    model = learned(ActionProbe, n_actions=2)
    assert probability(model, 0.0, action=1) > 0.95
    assert value(model, 0.0) == pytest.approx(1.0, abs=2 * VALUE_TOLERANCE)


def test_the_action_that_fits_the_observation_is_chosen() -> None:
    model = learned(SignActionProbe, n_actions=2, steps=6144)
    assert probability(model, 1.0, action=1) > 0.95
    assert probability(model, -1.0, action=0) > 0.95
    for state in (-1.0, 1.0):
        assert value(model, state) == pytest.approx(1.0, abs=2 * VALUE_TOLERANCE)


def test_a_time_limit_is_no_end() -> None:
    # Mistake: time limits treated as terminal, where the value would be far below.
    assert value(learned(LimitProbe), 0.0) == pytest.approx(1 / (1 - GAMMA), abs=VALUE_TOLERANCE)
