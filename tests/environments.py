"""Toy environments and what the tests read from a model."""

import copy
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

State = dict[str, th.Tensor]

VECTOR = spaces.Box(-1.0, 1.0, (3,))
IMAGE = spaces.Box(0, 255, (36, 36, 1), dtype=np.uint8)
TINY_IMAGE = spaces.Box(0, 255, (1, 8, 8), np.uint8)
DICT = spaces.Dict({"position": VECTOR, "mode": spaces.Discrete(3)})
IMAGE_DICT = spaces.Dict({"position": VECTOR, "camera": IMAGE})

BOX_ACTIONS = spaces.Box(-2.0, 2.0, (3,))
UNIT_BOX_ACTIONS = spaces.Box(0.0, 1.0, (2,))
DISCRETE_ACTIONS = spaces.Discrete(4)
MULTI_DISCRETE_ACTIONS = spaces.MultiDiscrete([3, 2])
MULTI_BINARY_ACTIONS = spaces.MultiBinary(3)


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
        return np.ones(sum(sizes_of(self.action_space)), dtype=bool)

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


def random_masks(space: spaces.Space[Any]) -> Callable[[int], np.ndarray]:
    """
    Allow each value with probability 1/2, and the first value of every dimension.

    :param space: Discrete, MultiDiscrete or MultiBinary
    :return: number of a step -> mask
    """
    sizes = sizes_of(space)
    firsts = np.cumsum([0, *sizes[:-1]])

    def masks(step: int) -> np.ndarray:
        mask = np.random.default_rng(step).random(sum(sizes)) < 0.5
        mask[firsts] = True
        return mask

    return masks


def sizes_of(space: spaces.Space[Any]) -> list[int]:
    """
    Count the values of every dimension of an action as its mask has them.

    :param space: Discrete, MultiDiscrete or MultiBinary
    :return: number of values; of a bit 2
    """
    if isinstance(space, spaces.MultiDiscrete):
        return [int(size) for size in space.nvec]
    if isinstance(space, spaces.MultiBinary):
        return [2] * int(space.shape[0])
    assert isinstance(space, spaces.Discrete)
    return [int(space.n)]


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
    Return whether a parameter of one of SB3's own policies belongs to the critic alone.

    :param name: of the parameter
    :return: whether it does
    """
    return "value" in name or "vf_" in name or "critic" in name


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
    Return whether every tensor of a policy is finite.

    :param model: any on-policy model
    :return: whether it is
    """
    return all(bool(value.isfinite().all()) for value in model.policy.state_dict().values())


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


def actor_vector(model: OnPolicyAlgorithm) -> th.Tensor:
    """
    Join the actor's parameters of one of SB3's own policies.

    :param model: any on-policy model
    :return: the parameters as one vector
    """
    state = model.policy.state_dict()
    return th.cat([value.flatten() for name, value in state.items() if not critic_only(name)])


def step_of(model: OnPolicyAlgorithm) -> th.Tensor:
    """
    Train once on what was collected.

    :param model: after ``collect``
    :return: how the actor's parameters moved
    """
    before = actor_vector(model).clone()
    model.train()
    return actor_vector(model) - before
