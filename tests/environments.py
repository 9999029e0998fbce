"""Toy environments and the table of cases that the tests of whole updates go over."""

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trpo import TRPO, MaskableRecurrentTRPO, MaskableTRPO, RecurrentTRPO

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
SMALL_LSTM: dict[str, Any] = {"net_arch": [3], "lstm_hidden_size": 3}


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


class Case(NamedTuple):
    """
    One kind of policy on one kind of environment.

    ``kwargs`` are the model's; ``kind`` is its class; with ``masks`` the allowed actions change at
    every step.
    """

    policy: str
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    kwargs: dict[str, Any]
    kind: type[Any] = TRPO
    masks: bool = False


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


def _lstm(observations: spaces.Space[Any], actions: spaces.Space[Any], **options: Any) -> Case:
    """Make a case with an LSTM, the options being the policy's."""
    policy = "MultiInputLstmPolicy" if observations is DICT else "MlpLstmPolicy"
    return Case(
        policy, observations, actions, {"policy_kwargs": {**SMALL_LSTM, **options}}, RecurrentTRPO
    )


def _masked(case: Case) -> Case:
    """Make the same case with masks."""
    kind = MaskableTRPO if case.kind is TRPO else MaskableRecurrentTRPO
    return case._replace(kind=kind, masks=True)


_LSTM: dict[str, Case] = {
    "box": _lstm(VECTOR, BOX_ACTIONS),
    "discrete": _lstm(VECTOR, DISCRETE_ACTIONS),
    "multi_discrete": _lstm(VECTOR, MULTI_DISCRETE_ACTIONS),
    "multi_binary": _lstm(VECTOR, MULTI_BINARY_ACTIONS),
    "dict": _lstm(DICT, BOX_ACTIONS),
    "gsde": _lstm(VECTOR, BOX_ACTIONS)._replace(
        kwargs={"policy_kwargs": SMALL_LSTM, "use_sde": True}
    ),
    "two_layers": _lstm(VECTOR, BOX_ACTIONS, n_lstm_layers=2),
    "shared": _lstm(VECTOR, BOX_ACTIONS, shared_lstm=True, enable_critic_lstm=False),
    "no_critic_lstm": _lstm(VECTOR, BOX_ACTIONS, enable_critic_lstm=False),
}
_MASKABLE = ("discrete", "multi_discrete", "multi_binary")

# Every class of the package, for what has to hold for all of them.
EVERY: dict[str, Case] = {
    **CASES,
    **{f"masked_{name}": _masked(CASES[name]) for name in (*_MASKABLE, "cnn")},
    "masked_dict": _masked(Case("MultiInputPolicy", DICT, DISCRETE_ACTIONS, {})),
    **{f"lstm_{name}": case for name, case in _LSTM.items()},
    **{f"masked_lstm_{name}": _masked(_LSTM[name]) for name in _MASKABLE},
    "masked_lstm_dict": _masked(_lstm(DICT, DISCRETE_ACTIONS)),
}


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


def toy_envs(case: Case, n_envs: int = 1) -> DummyVecEnv:
    """
    Make the environments of a case, each with a random stream of its own.

    :param case: of the table
    :param n_envs: number of environments
    :return: vectorized environment
    """
    steps: Iterator[int] = iter(range(10**6))
    masks = random_masks(case.action_space) if case.masks else None

    def make() -> gym.Env[Any, Any]:
        env = ToyEnv(copy.deepcopy(case.observation_space), copy.deepcopy(case.action_space))
        env.masks = None if masks is None else lambda: masks(next(steps))
        return env

    return DummyVecEnv([make] * n_envs)


def toy_model(
    case: Case | str = "box", n_envs: int = 2, kind: type[Any] | None = None, **kwargs: Any
) -> Any:
    """
    Make a small model.

    :param case: of the table, or its name
    :param n_envs: number of environments
    :param kind: class of the model, if not the case's
    :param kwargs: of the model, over those of the case
    :return: the model, seeded, on the CPU
    """
    case = EVERY[case] if isinstance(case, str) else case
    kind = kind or case.kind
    settings: dict[str, Any] = {
        "n_steps": 32,
        "batch_size": 32,
        "n_critic_updates": 2,
        "target_kl": 0.01,
        "cg_damping": 0.1,
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
