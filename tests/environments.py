"""Toy environments and the table of cases that the tests of whole updates go over."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trpo import TRPO

State = dict[str, th.Tensor]

VECTOR = spaces.Box(-1.0, 1.0, (3,))
IMAGE = spaces.Box(0, 255, (36, 36, 1), dtype=np.uint8)
DICT = spaces.Dict({"position": VECTOR, "mode": spaces.Discrete(3)})
IMAGE_DICT = spaces.Dict({"position": VECTOR, "camera": IMAGE})

BOX_ACTIONS = spaces.Box(-2.0, 2.0, (3,))
DISCRETE_ACTIONS = spaces.Discrete(4)
MULTI_DISCRETE_ACTIONS = spaces.MultiDiscrete([3, 2])
MULTI_BINARY_ACTIONS = spaces.MultiBinary(3)

SMALL: dict[str, Any] = {"net_arch": [8]}


class ToyEnv(gym.Env[Any, Any]):
    """
    Random observations and a noisy reward that grows with the action.

    :param observation_space: where observations are drawn from
    :param action_space: what the agent does
    :param episode_length: steps until the time limit
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any] = VECTOR,
        action_space: spaces.Space[Any] = BOX_ACTIONS,
        episode_length: int = 7,
    ) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self.episode_length = episode_length
        self.step_in_episode = 0
        self.masks: Callable[[], np.ndarray] | None = None

    def action_masks(self) -> np.ndarray:
        """Allow what ``masks`` allows, and at first everything."""
        if self.masks is not None:
            return self.masks()
        space: Any = self.action_space
        sizes = {spaces.MultiDiscrete: "nvec", spaces.MultiBinary: "n", spaces.Discrete: "n"}
        size = int(np.sum(getattr(space, sizes[type(space)])))
        return np.ones(2 * size if isinstance(space, spaces.MultiBinary) else size, dtype=bool)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.step_in_episode = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.step_in_episode += 1
        reward = float(np.mean(action)) + 0.1 * float(self.np_random.normal())
        truncated = self.step_in_episode >= self.episode_length
        return self.observation_space.sample(), reward, False, truncated, {}


class Case(NamedTuple):
    """One kind of policy on one kind of environment."""

    policy: str
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    kwargs: dict[str, Any]


# One case for every kind of action distribution, of observation and of sharing.
CASES: dict[str, Case] = {
    "box": Case("MlpPolicy", VECTOR, BOX_ACTIONS, {}),
    "discrete": Case("MlpPolicy", VECTOR, DISCRETE_ACTIONS, {}),
    "multi_discrete": Case("MlpPolicy", VECTOR, MULTI_DISCRETE_ACTIONS, {}),
    "multi_binary": Case("MlpPolicy", VECTOR, MULTI_BINARY_ACTIONS, {}),
    "gsde": Case("MlpPolicy", VECTOR, BOX_ACTIONS, {"use_sde": True}),
    "cnn": Case("CnnPolicy", IMAGE, DISCRETE_ACTIONS, {}),
    "dict": Case("MultiInputPolicy", DICT, BOX_ACTIONS, {}),
}


def toy_envs(case: Case, n_envs: int = 1) -> DummyVecEnv:
    """
    Make the environments of a case, each with a random stream of its own.

    :param case: of the table
    :param n_envs: number of environments
    :return: vectorized environment
    """

    def make() -> gym.Env[Any, Any]:
        return ToyEnv(copy.deepcopy(case.observation_space), copy.deepcopy(case.action_space))

    return DummyVecEnv([make] * n_envs)


def toy_model(
    case: Case | str = "box", n_envs: int = 2, kind: type[Any] = TRPO, **kwargs: Any
) -> Any:
    """
    Make a small model.

    :param case: of the table, or its name
    :param n_envs: number of environments
    :param kind: class of the model
    :param kwargs: of the model, over those of the case
    :return: the model, seeded, on the CPU
    """
    case = CASES[case] if isinstance(case, str) else case
    settings: dict[str, Any] = {
        "n_steps": 32,
        "batch_size": 32,
        "n_critic_updates": 2,
        "policy_kwargs": SMALL,
        "seed": 1,
        "device": "cpu",
        **case.kwargs,
        **kwargs,
    }
    return kind(case.policy, settings.pop("env", None) or toy_envs(case, n_envs), **settings)


def collect(model: OnPolicyAlgorithm) -> None:
    """
    Fill a model's rollout buffer without an update.

    :param model: any on-policy model
    """
    _, callback = model._setup_learn(model.n_steps * model.n_envs)
    assert model.env is not None
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)


def logged(model: OnPolicyAlgorithm) -> dict[str, Any]:
    """
    Read what the latest update recorded.

    :param model: after ``collect`` and ``train``
    :return: key -> value
    """
    logger: Logger = model.logger
    return dict(logger.name_to_value)


def state_of(model: OnPolicyAlgorithm) -> State:
    """
    Copy all parameters and statistics of a policy.

    :param model: any on-policy model
    :return: name -> tensor
    """
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def critic_only(name: str) -> bool:
    """
    Tell whether a parameter of one of SB3's own policies belongs to the critic alone.

    :param name: of the parameter
    :return: whether it does
    """
    return "value" in name or "vf_" in name


def changed(before: State, after: State) -> set[str]:
    """
    Name the tensors that are not bitwise the same.

    :param before: earlier state
    :param after: later state
    :return: their names
    """
    assert before.keys() == after.keys()
    return {name for name in before if not th.equal(before[name], after[name])}


def changed_actor(before: State, after: State) -> set[str]:
    """
    Name the actor's tensors that are not bitwise the same.

    :param before: earlier state of one of SB3's own policies
    :param after: later state
    :return: their names
    """
    return {name for name in changed(before, after) if not critic_only(name)}


def all_finite(model: OnPolicyAlgorithm) -> bool:
    """
    Tell whether every tensor of a policy is finite.

    :param model: any on-policy model
    :return: whether it is
    """
    return all(bool(value.isfinite().all()) for value in model.policy.state_dict().values())


def copy_rollout(source: OnPolicyAlgorithm, target: OnPolicyAlgorithm) -> None:
    """
    Give a model the parameters and the rollout of another one.

    :param source: has collected a rollout
    :param target: with the same networks and sizes
    """
    target.policy.load_state_dict(source.policy.state_dict())
    target.rollout_buffer = copy.deepcopy(source.rollout_buffer)
    target._setup_learn(1)


class Faulty(gym.Wrapper[Any, Any, Any, Any]):
    """
    Replace what the environment returns at one moment.

    :param env: wrapped
    :param at: number of the step, counted over all episodes; 0 for the first reset
    :param spoil_observation: observation -> the one that is returned
    :param reward: replaces that step's reward unless it is ``None``
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        at: int,
        spoil_observation: Callable[[Any], Any] | None = None,
        reward: float | None = None,
    ) -> None:
        super().__init__(env)
        self.at = at
        self.spoil_observation = spoil_observation
        self.spoilt_reward = reward
        self.steps = 0

    def _spoil(self, observation: Any) -> Any:
        if self.steps != self.at or self.spoil_observation is None:
            return observation
        return self.spoil_observation(copy.deepcopy(observation))

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        return (self._spoil(observation) if self.at == 0 else observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        if self.steps == self.at and self.spoilt_reward is not None:
            reward = self.spoilt_reward
        return self._spoil(observation), reward, terminated, truncated, info
