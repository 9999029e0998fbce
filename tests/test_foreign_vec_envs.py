"""
VecEnvs, wrappers, writers and callbacks that only use SB3's documented interface.

Whatever PPO and sb3-contrib train with, ours trains with: only the outermost interface of a VecEnv
may be assumed, every logged value is a number, and only what is used has to be finite.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import sb3_contrib
import torch as th
from gymnasium import spaces
from sb3_contrib.common.envs import InvalidActionEnvDiscrete
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
)

import sb3_trpo
from tests.environments import ToyEnv, all_finite, changed, state_of

LEARNERS: dict[str, type[Any]] = {
    "ppo": PPO,
    "contrib": sb3_contrib.TRPO,
    "ours": sb3_trpo.TRPO,
}
by_learner = pytest.mark.parametrize("learner", LEARNERS.values(), ids=LEARNERS)

N_ENVS = 2
Pack = Callable[[np.ndarray], Any]


def learned(learner: type[Any], env: Any, callback: Any = None, **kwargs: Any) -> Any:
    """Train for three rollouts and check that something was learned."""
    model = learner("MlpPolicy", env, n_steps=32, batch_size=32, seed=0, device="cpu", **kwargs)
    before = state_of(model)
    model.learn(3 * 32 * model.n_envs, callback)
    assert changed(before, state_of(model))
    assert all_finite(model)
    return model


class BatchedEnv(VecEnv):
    """Environments that step all at once, as a simulator on a GPU does; no gym.Env inside."""

    def __init__(self, pack: Pack = lambda observations: observations) -> None:
        super().__init__(N_ENVS, spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (2,)))
        self.pack = pack
        self.rng = np.random.default_rng(0)

    def _observe(self) -> Any:
        return self.pack(self.rng.uniform(-1, 1, (N_ENVS, 3)).astype(np.float32))

    def reset(self) -> Any:
        return self._observe()

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        dones = np.zeros(N_ENVS, dtype=bool)
        return self._observe(), self.actions.sum(axis=1), dones, [{} for _ in range(N_ENVS)]

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * N_ENVS

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kw: Any) -> list[Any]:
        return [None] * N_ENVS

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * N_ENVS


class SimulatedEnv(BatchedEnv):
    """``unwrapped`` is the simulator itself, which is a gym.Env and not a VecEnv."""

    @property
    def unwrapped(self) -> Any:
        return ToyEnv()


@by_learner
@pytest.mark.parametrize("wrap", [VecMonitor, VecNormalize])
def test_unwrapped_may_be_a_simulator(learner: type[Any], wrap: Callable[[VecEnv], VecEnv]) -> None:
    learned(learner, wrap(SimulatedEnv()))


class Unpack(VecEnvWrapper):
    """Turn what the inner VecEnv returns into SB3's arrays."""

    def __init__(self, venv: VecEnv, unpack: Callable[[Any], np.ndarray]) -> None:
        super().__init__(venv)
        self.unpack = unpack

    def reset(self) -> Any:
        return self.unpack(self.venv.reset())

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        return self.unpack(observations), rewards, dones, infos


FORMS: dict[str, tuple[Pack, Callable[[Any], np.ndarray]]] = {
    "tuple": (
        lambda observations: (observations[:, :1], observations[:, 1:]),
        lambda parts: np.concatenate(parts, axis=1),
    ),
    "nested_dict": (
        lambda observations: {"robot": {"joints": observations}},
        lambda packed: packed["robot"]["joints"],
    ),
    "tensor": (th.from_numpy, lambda tensor: tensor.numpy()),
}


@by_learner
@pytest.mark.parametrize("form", FORMS)
def test_inner_vec_env_may_return_what_a_wrapper_converts(form: str, learner: type[Any]) -> None:
    pack, unpack = FORMS[form]
    learned(learner, Unpack(BatchedEnv(pack), unpack))


class FiveResults:
    """Gymnasium's vectorized interface: two results of ``reset``, five of ``step``; no VecEnv."""

    num_envs, observation_space, action_space = (
        N_ENVS,
        ToyEnv().observation_space,
        spaces.Discrete(2),
    )
    render_mode = None

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def _observe(self) -> np.ndarray:
        return self.rng.uniform(-1, 1, (N_ENVS, 3)).astype(np.float32)

    def reset(self) -> Any:
        return self._observe(), {}

    def step(self, actions: np.ndarray) -> Any:
        never = np.zeros(N_ENVS, dtype=bool)
        return self._observe(), actions.astype(float), never, never, {}


class FiveResultsAdapter(VecEnvWrapper):
    """SB3's interface over Gymnasium's, with nothing else of a VecEnv inside."""

    def __init__(self, venv: Any) -> None:
        super().__init__(venv, venv.observation_space, venv.action_space)

    def seed(self, seed: int | None = None) -> Any:
        return [seed] * N_ENVS

    def reset(self) -> Any:
        return self.venv.reset()[0]  # type: ignore[index]

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        observations, rewards, ended, _, _ = self.venv.step(self.actions)  # type: ignore[misc]
        return observations, rewards, ended, [{} for _ in range(N_ENVS)]


# SB3 asks it for its render mode.
@pytest.mark.filterwarnings("ignore:The `render_mode` attribute is not defined")
@by_learner
def test_wrapped_object_need_not_be_a_vec_env(learner: type[Any]) -> None:
    learned(learner, FiveResultsAdapter(FiveResults()))


class StepsByKeyword(BaseCallback):
    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        assert isinstance(self.training_env, VecEnv)
        self.training_env.step(actions=np.zeros((1, 3), dtype=np.float32))


@by_learner
def test_callback_may_step_the_environment_by_keyword(learner: type[Any]) -> None:
    learned(learner, ToyEnv(), StepsByKeyword())


class NumbersOnly(KVWriter):
    """Take every value for a number, as writers for plots do."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self.rows.append({key: float(value) for key, value in key_values.items()})

    def close(self) -> None:
        pass


@by_learner
def test_every_logged_value_is_a_number(learner: type[Any]) -> None:
    writer = NumbersOnly()
    model = learner("MlpPolicy", ToyEnv(), n_steps=32, batch_size=32, seed=0, device="cpu")
    model.set_logger(Logger(None, [writer]))
    model.learn(96)
    assert any("train/explained_variance" in row for row in writer.rows)


CLASSES = {
    "TRPO": "MlpPolicy",
    "MaskableTRPO": "MlpPolicy",
    "RecurrentTRPO": "MlpLstmPolicy",
    "MaskableRecurrentTRPO": "MlpLstmPolicy",
}


@pytest.mark.parametrize("target_kl", [0.01, 0.0, 20.0], ids=["step", "no_radius", "rejected"])
@pytest.mark.parametrize("kind", CLASSES)
def test_every_logged_value_is_a_number_whatever_the_update_came_to(
    kind: str, target_kl: float
) -> None:
    env = InvalidActionEnvDiscrete(8, n_invalid_actions=4)
    options = {"target_kl": target_kl, "line_search_accept_ratio": 0.999, "line_search_max_iter": 2}
    model = getattr(sb3_trpo, kind)(CLASSES[kind], env, n_steps=32, batch_size=32, **options)
    writer = NumbersOnly()
    model.set_logger(Logger(None, [writer]))
    model.learn(96)
    assert any("train/value_loss" in row for row in writer.rows)


class Gaps(ToyEnv):
    """A sensor that fails at every third step."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        if self.step_in_episode % 3 == 0:
            observation[1] = np.nan
        return observation, reward, terminated, truncated, info


class Unstable(ToyEnv):
    """A simulation that ends in NaN: the last observation of an episode is read by nobody."""

    def step(self, action: Any) -> Any:
        observation, reward, _, ended, info = super().step(action)
        return (
            (np.full_like(observation, np.nan) if ended else observation),
            reward,
            ended,
            False,
            info,
        )


class Fill(VecEnvWrapper):
    """Replace missing values by 0, in terminal observations too."""

    def reset(self) -> Any:
        return np.nan_to_num(self.venv.reset())  # type: ignore[arg-type]

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = np.nan_to_num(info["terminal_observation"])
        return np.nan_to_num(observations), rewards, dones, infos  # type: ignore[arg-type]


class MissingValues(BaseFeaturesExtractor):
    """Features for missing values: 0 and a flag."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 6)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return th.cat([observations.nan_to_num(), observations.isnan().float()], dim=1)


@by_learner
def test_nan_in_the_last_observation_of_a_terminated_episode_is_nobodys_fault(
    learner: type[Any],
) -> None:
    learned(learner, VecCheckNan(DummyVecEnv([Unstable]), raise_exception=True))


@by_learner
def test_nan_that_a_wrapper_fills_in_is_not_refused(learner: type[Any]) -> None:
    learned(learner, Fill(DummyVecEnv([Gaps])))


@by_learner
def test_nan_that_the_features_extractor_handles_is_not_refused(learner: type[Any]) -> None:
    policy_kwargs = {"features_extractor_class": MissingValues}
    learned(learner, DummyVecEnv([Gaps]), policy_kwargs=policy_kwargs)


def test_nan_that_reaches_the_policy_is_refused_with_its_step() -> None:
    # Mistake: making the cases above pass by checking nothing.
    model = sb3_trpo.TRPO("MlpPolicy", DummyVecEnv([Gaps]), n_steps=32, batch_size=32)
    before = state_of(model)
    with pytest.raises(ValueError, match="observation"):
        model.learn(32)
    assert not changed(before, state_of(model))


class ReadsMasks(BaseCallback):
    """Count the allowed actions of every step, as with MaskablePPO."""

    def _on_training_start(self) -> None:
        self.allowed: list[int] = []

    def _on_step(self) -> bool:
        self.allowed.append(int(np.sum(self.locals["action_masks"])))
        return True


MASKABLE: dict[str, tuple[type[Any], str]] = {
    "ppo": (sb3_contrib.MaskablePPO, "MlpPolicy"),
    "ours": (sb3_trpo.MaskableTRPO, "MlpPolicy"),
    "ours_recurrent": (sb3_trpo.MaskableRecurrentTRPO, "MlpLstmPolicy"),
}


@pytest.mark.parametrize("name", MASKABLE)
def test_callbacks_find_the_masks_of_the_step(name: str) -> None:
    kind, policy = MASKABLE[name]
    env = InvalidActionEnvDiscrete(8, n_invalid_actions=3)
    callback = ReadsMasks()
    kind(policy, env, n_steps=32, batch_size=32, seed=0).learn(32, callback)
    assert callback.allowed == [5] * 32


def critic_errors(learner: type[Any], rate: float | Callable[[float], float]) -> Sequence[float]:
    """Measure the critic's error on the last rollout before and after the fit."""
    model = learner("MlpPolicy", "CartPole-v1", n_steps=256, learning_rate=rate, seed=0)
    model.learn(100)  # SB3 collects whole rollouts, so the progress that remains is negative
    buffer = model.rollout_buffer
    returns, old = buffer.returns.ravel(), buffer.values.ravel()
    with th.no_grad():
        observations = th.as_tensor(buffer.observations.reshape(len(returns), -1))
        new = model.policy.predict_values(observations).numpy().ravel()
    return [float(np.mean((values - returns) ** 2)) for values in (old, new)]


def test_learning_rate_is_never_negative() -> None:
    # SB3 and contrib ask the schedule at a negative progress; their critic climbs.
    before, after = critic_errors(sb3_trpo.TRPO, lambda progress: 1e-2 * progress)
    # The rollout's values and these come from two forward passes in float32.
    assert after == pytest.approx(before, rel=1e-4)


def test_schedules_are_asked_at_a_progress_between_0_and_1() -> None:
    asked: list[float] = []

    def schedule(progress: float) -> float:
        asked.append(progress)
        return 1e-3

    schedules: dict[str, Any] = dict.fromkeys(
        ("learning_rate", "target_kl", "cg_damping"), schedule
    )
    sb3_trpo.TRPO("MlpPolicy", "CartPole-v1", n_steps=256, seed=0, **schedules).learn(300)
    assert min(asked) == 0.0
    assert max(asked) <= 1.0
