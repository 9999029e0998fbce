"""A buffer that is filled fast holds what SB3's own methods would have put into it, bit for bit."""

import functools
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trpo import TRPO, MaskableTRPO, RecurrentTRPO
from sb3_trpo.rollout_buffer import fastest
from tests.environments import BOX_ACTIONS, VECTOR, ToyEnv

ARRAYS = ("actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns")
SPACES: dict[str, tuple[spaces.Space[Any], spaces.Space[Any]]] = {
    "box": (VECTOR, BOX_ACTIONS),
    "matrix": (spaces.Box(-1, 1, (2, 3)), spaces.Box(-1, 1, (2, 3))),
    "discrete": (spaces.Discrete(5), spaces.Discrete(4)),
    "multi": (spaces.MultiDiscrete([3, 4]), spaces.MultiDiscrete([3, 2])),
    "binary": (spaces.MultiBinary(4), spaces.MultiBinary(3)),
    "dict": (spaces.Dict({"one": VECTOR, "two": spaces.Discrete(3)}), BOX_ACTIONS),
}


def filled(buffer: RolloutBuffer, fast: bool, dtype: th.dtype = th.float32) -> RolloutBuffer:
    """Fill a buffer with random numbers of a policy's precision, always the same ones."""
    rng = np.random.default_rng(0)
    space, n_envs = buffer.observation_space, buffer.n_envs
    space.seed(0)

    def observation() -> Any:
        samples = [space.sample() for _ in range(n_envs)]
        if isinstance(space, spaces.Dict):
            return {key: np.stack([sample[key] for sample in samples]) for key in space}
        return np.stack(samples)

    def numbers(*shape: int) -> th.Tensor:
        return th.as_tensor(rng.normal(size=shape), dtype=dtype)

    def method(name: str) -> Any:
        return fastest(buffer, name) if fast else getattr(buffer, name)

    for _ in range(buffer.buffer_size):
        method("add")(
            observation(),
            numbers(n_envs, buffer.action_dim).numpy(),
            rng.normal(size=n_envs).astype(np.float32),
            rng.random(n_envs) < 0.2,
            numbers(n_envs, 1),
            numbers(n_envs),
        )
    method("compute_returns_and_advantage")(numbers(n_envs, 1), rng.random(n_envs) < 0.5)
    return buffer


def assert_same_content(ours: RolloutBuffer, theirs: RolloutBuffer) -> None:
    assert (ours.pos, ours.full) == (theirs.pos, theirs.full)
    for name in ARRAYS:
        actual, expected = getattr(ours, name), getattr(theirs, name)
        assert actual.dtype == expected.dtype, name
        np.testing.assert_array_equal(actual, expected, name)
    np.testing.assert_equal(ours.observations, theirs.observations)


@pytest.mark.parametrize("discounts", [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (np.float64(0.9), 1)])
@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("case", SPACES)
def test_content_is_bitwise_that_of_sb3(case: str, n_envs: int, discounts: tuple[Any, Any]) -> None:
    observation_space, action_space = SPACES[case]
    kind: Any = DictRolloutBuffer if case == "dict" else RolloutBuffer

    def make() -> Any:
        gamma, gae_lambda = discounts
        sizes = 50, observation_space, action_space, "cpu"
        return kind(*sizes, gae_lambda=gae_lambda, gamma=gamma, n_envs=n_envs)

    assert_same_content(filled(make(), fast=True), filled(make(), fast=False))


@pytest.mark.parametrize("buffer_size", [1, 2, 50])
def test_double_precision_is_rounded_where_sb3_rounds_it(buffer_size: int) -> None:
    def make() -> RolloutBuffer:
        return RolloutBuffer(buffer_size, VECTOR, BOX_ACTIONS, "cpu", n_envs=2)

    ours, theirs = (filled(make(), fast, th.float64) for fast in (True, False))
    assert_same_content(ours, theirs)


@pytest.mark.parametrize("kind", [TRPO, MaskableTRPO, RecurrentTRPO])
def test_rollout_of_every_class_is_bitwise_the_one_without(
    kind: type[TRPO], monkeypatch: Any
) -> None:
    models = []
    for fast in (True, False):
        if not fast:
            monkeypatch.setattr("sb3_trpo.trpo.fastest", getattr)
        env = DummyVecEnv([lambda: ToyEnv(VECTOR, spaces.Discrete(3), 9)] * 2)
        policy = "MlpLstmPolicy" if kind is RecurrentTRPO else "MlpPolicy"
        model = kind(policy, env, n_steps=32, batch_size=32, seed=0)
        models.append(model.learn(64))
    assert_same_content(*(model.rollout_buffer for model in models))


def buffer_of(kind: type[RolloutBuffer] = RolloutBuffer) -> RolloutBuffer:
    return kind(5, VECTOR, BOX_ACTIONS, "cpu")


@pytest.mark.parametrize(
    ("kind", "replaced"),
    [
        (RolloutBuffer, {"add", "compute_returns_and_advantage"}),
        (DictRolloutBuffer, {"compute_returns_and_advantage"}),
        (MaskableRolloutBuffer, {"compute_returns_and_advantage"}),
    ],
)
def test_methods_that_are_sb3s_are_replaced(kind: Any, replaced: set[str]) -> None:
    spaces_of = SPACES["dict" if kind is DictRolloutBuffer else "discrete"]
    buffer = kind(5, *spaces_of, "cpu")
    names = ("add", "compute_returns_and_advantage")
    assert {name for name in names if fastest(buffer, name) != getattr(buffer, name)} == replaced


def test_patch_of_sb3s_class_is_respected(monkeypatch: Any) -> None:
    add: Any = functools.wraps(RolloutBuffer.add)(mock.Mock())
    monkeypatch.setattr(RolloutBuffer, "add", add)
    filled(buffer_of(), fast=True)
    assert add.call_count == 5


class OwnAdd(RolloutBuffer):
    """A buffer that counts."""

    added = 0

    def add(self, *args: Any, **kwargs: Any) -> None:
        self.added += 1
        super().add(*args, **kwargs)


class OwnReturns(RolloutBuffer):
    """A buffer with returns of its own."""

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        self.returns = np.full_like(self.values, 7.0)


def test_methods_of_a_users_buffer_are_used() -> None:
    assert filled(buffer_of(OwnAdd), fast=True).added == 5  # type: ignore[attr-defined]
    assert (filled(buffer_of(OwnReturns), fast=True).returns == 7.0).all()


def test_method_that_an_object_was_given_is_used() -> None:
    buffer = buffer_of()
    add = mock.Mock(side_effect=buffer.add)
    vars(buffer)["add"] = add
    filled(buffer, fast=True)
    assert add.call_count == 5
    assert "add" in vars(buffer)
