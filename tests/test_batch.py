from collections.abc import Generator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from sb3_trpo._batch import ActorBatch, Minibatch, Rollout
from sb3_trpo._read_buffer import is_sb3_buffer, minibatches, read_rollout
from sb3_trpo._sequences import Observations

CPU = th.device("cpu")
BOX = spaces.Box(-1.0, 1.0, (2,))
DICT = spaces.Dict({"a": BOX, "image": spaces.Box(0, 255, (1, 4, 4), np.uint8)})
ACTIONS: dict[str, spaces.Space[Any]] = {
    "box": BOX,
    "float64": spaces.Box(-1.0, 1.0, (2,), np.float64),
    "matrix": spaces.Box(-1.0, 1.0, (2, 3)),
    "discrete": spaces.Discrete(4),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(3),
}


class BufferOfItsOwn(RolloutBuffer):
    """A user's buffer that hands out half of its advantages, in its own order."""

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        for samples in super().get(batch_size):
            yield samples._replace(advantages=samples.advantages / 2)


class BufferWithSamplesOfItsOwn(RolloutBuffer):
    def _get_samples(self, *args: object, **kwargs: object) -> RolloutBufferSamples:
        samples = super()._get_samples(*args, **kwargs)  # type: ignore[arg-type]
        return samples._replace(advantages=samples.advantages / 2)


def filled(
    n_steps: int,
    n_envs: int,
    kind: type[RolloutBuffer] = RolloutBuffer,
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Space[Any] | None = None,
) -> RolloutBuffer:
    """Fill a buffer so that value and log-probability name (step, env) as 100 step + env."""
    observation_space = BOX if observation_space is None else observation_space
    action_space = BOX if action_space is None else action_space
    buffer = kind(n_steps, observation_space, action_space, device="cpu", n_envs=n_envs)
    for step in range(n_steps):
        observations = [observation_space.sample() for _ in range(n_envs)]
        stacked = (
            {key: np.stack([obs[key] for obs in observations]) for key in observations[0]}
            if isinstance(observation_space, spaces.Dict)
            else np.stack(observations)
        )
        buffer.add(
            stacked,  # type: ignore[arg-type]
            np.stack([np.asarray(action_space.sample()) for _ in range(n_envs)]),
            np.random.randn(n_envs),
            np.zeros(n_envs),
            100.0 * step + th.arange(n_envs),
            100.0 * step + th.arange(n_envs),
        )
    buffer.compute_returns_and_advantage(th.zeros(n_envs), np.zeros(n_envs, dtype=bool))
    return buffer


def read(buffer: RolloutBuffer, dtype: th.dtype = th.float32) -> Rollout:
    return read_rollout(buffer, CPU, dtype)


def sb3_order(buffer: RolloutBuffer) -> RolloutBufferSamples:
    """Let SB3 hand out all states in its own order, one environment after the other."""
    next(iter(buffer.get(None)))
    return buffer._get_samples(np.arange(buffer.buffer_size * buffer.n_envs))


def equal(one: Observations, two: Observations) -> bool:
    if isinstance(one, dict):
        assert isinstance(two, dict)
        return one.keys() == two.keys() and all(th.equal(one[key], two[key]) for key in one)
    assert isinstance(two, th.Tensor)
    return th.equal(one, two)


SHAPES = [(8, 1), (4, 2), (8, 3), (5, 4), (1, 6)]


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("offset", [0, 1, 5])
@pytest.mark.parametrize(("n_steps", "n_envs"), SHAPES)
def test_every_kth_state_is_counted_in_sb3s_order(
    n_steps: int, n_envs: int, offset: int, k: int
) -> None:
    """SB3's order is one environment after the other; it is what sb3-contrib thins."""
    buffer = filled(n_steps, n_envs)
    picked = read(buffer).actor_batch.every(k, offset)
    expected = sb3_order(buffer)
    start = 0 if k == 1 else offset % k
    order = sorted if k == 1 else list  # the whole batch is left in the order of the memory
    assert order(picked.old_log_prob.tolist()) == order(expected.old_log_prob[start::k].tolist())
    if k > 1:
        assert equal(picked.observations, expected.observations[start::k])
        assert th.equal(picked.actions, expected.actions[start::k])
        assert th.equal(picked.advantages, expected.advantages[start::k])


@pytest.mark.parametrize(("n_steps", "n_envs"), SHAPES)
def test_subset_is_the_same_after_sb3_has_reordered_the_arrays(n_steps: int, n_envs: int) -> None:
    buffer = filled(n_steps, n_envs)
    before = read(buffer).actor_batch.every(3, 1)
    sb3_order(buffer)
    after = read(buffer).actor_batch.every(3, 1)
    assert th.equal(before.old_log_prob, after.old_log_prob)
    assert equal(before.observations, after.observations)


def test_subsets_of_all_offsets_make_up_the_batch() -> None:
    batch = read(filled(5, 3)).actor_batch
    parts = [batch.every(4, offset).old_log_prob for offset in range(4, 8)]
    assert sorted(th.cat(parts).tolist()) == sorted(batch.old_log_prob.tolist())


def test_thinning_a_thinned_batch_counts_the_states_that_are_left() -> None:
    batch = read(filled(8, 3)).actor_batch.every(2, 0)
    assert th.equal(batch.every(3, 1).old_log_prob, batch.old_log_prob[1::3])


@pytest.mark.parametrize("kind", ["box", "dict"])
def test_sb3s_buffers_are_read_in_place(kind: str) -> None:
    buffer = (
        filled(4, 2) if kind == "box" else filled(4, 2, DictRolloutBuffer, observation_space=DICT)
    )
    rollout = read(buffer)
    batch = rollout.actor_batch
    shared = [
        (batch.actions, buffer.actions),
        (batch.old_log_prob, buffer.log_probs),
        (batch.advantages, buffer.advantages),
        (rollout.returns, buffer.returns),
        (rollout.old_values, buffer.values),
    ]
    if isinstance(batch.observations, dict):
        arrays: dict[str, np.ndarray] = buffer.observations  # type: ignore[assignment]
        shared += [(batch.observations[key], arrays[key]) for key in arrays]
    else:
        shared.append((batch.observations, buffer.observations))
    for tensor, array in shared:
        assert tensor.data_ptr() == array.ctypes.data
    assert not buffer.generator_ready


def test_chunks_share_the_memory_of_the_batch() -> None:
    batch = read(filled(4, 2, DictRolloutBuffer, observation_space=DICT)).actor_batch
    assert isinstance(batch.observations, dict)
    first, second, last = batch.chunks(3)
    assert [len(first), len(second), len(last)] == [3, 3, 2]
    for chunk in (first, second, last):
        assert isinstance(chunk.observations, dict)
        storage = chunk.observations["image"].untyped_storage()
        assert storage.data_ptr() == batch.observations["image"].untyped_storage().data_ptr()
    assert th.equal(th.cat([c.advantages for c in batch.chunks(3)]), batch.advantages)
    assert batch.chunks(8) == (batch,)


@pytest.mark.parametrize("name", ACTIONS)
@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_actions_are_as_the_policys_log_prob_takes_them(name: str, dtype: th.dtype) -> None:
    buffer = filled(4, 2, action_space=ACTIONS[name])
    actions = read(buffer, dtype).actions
    expected = sb3_order(buffer).actions
    if name == "discrete":
        assert actions.dtype == th.int64
        assert actions.shape == (8,)
    else:
        assert actions.dtype == dtype
    by_env = actions.reshape(4, 2, -1).transpose(0, 1).reshape(8, -1)
    assert th.equal(by_env.float(), expected.float())


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_actions_are_rounded_to_single_precision_as_sb3_does(dtype: th.dtype) -> None:
    """A float64 action that was not rounded would have another log-probability than SB3's."""
    buffer = filled(4, 2, action_space=ACTIONS["float64"])
    assert buffer.actions.dtype == np.float64
    rounded = buffer.actions.astype(np.float32)
    assert not np.array_equal(rounded, buffer.actions)
    actions = read(buffer, dtype).actions
    assert th.equal(actions, th.as_tensor(rounded).reshape(8, 2).to(dtype))


@pytest.mark.parametrize("kind", [BufferOfItsOwn, BufferWithSamplesOfItsOwn])
def test_custom_buffer_is_read_through_its_own_get(kind: type[RolloutBuffer]) -> None:
    buffer = filled(4, 2, kind)
    plain = {
        float(key): float(a)
        for key, a in zip(buffer.log_probs.flat, buffer.advantages.flat, strict=True)
    }
    assert not is_sb3_buffer(buffer)
    batch = read(buffer).actor_batch
    assert sorted(batch.old_log_prob.tolist()) == sorted(plain)
    for key, advantage in zip(batch.old_log_prob.tolist(), batch.advantages.tolist(), strict=True):
        assert advantage == pytest.approx(plain[key] / 2)


def test_subclass_that_overrides_neither_is_read_in_place() -> None:
    class Plain(RolloutBuffer):
        """Another name for the same thing."""

    assert is_sb3_buffer(filled(2, 2, Plain))


def test_wrapper_around_a_buffers_get_is_used() -> None:
    buffer = filled(2, 2)
    vars(buffer)["get"] = buffer.get
    assert not is_sb3_buffer(buffer)


def random_state() -> np.ndarray:
    state: Any = np.random.get_state()
    return np.array(state[1])


def pairs(batches: list[Minibatch]) -> list[Minibatch]:
    return [(observations, returns) for observations, returns in batches]


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 5, 100])
@pytest.mark.parametrize("kind", ["box", "dict", "own_get"])
def test_minibatches_equal_those_of_sb3s_get(kind: str, batch_size: int, swapped: bool) -> None:
    buffers = {
        "box": lambda: filled(5, 3),
        "dict": lambda: filled(5, 3, DictRolloutBuffer, observation_space=DICT),
        "own_get": lambda: filled(5, 3, BufferOfItsOwn),
    }
    buffer = buffers[kind]()
    if swapped:
        sb3_order(buffer)
    rollout = read(buffer)
    np.random.seed(3)
    ours = pairs(list(minibatches(buffer, rollout, batch_size, n_epochs=2)))
    state = random_state()
    np.random.seed(3)
    theirs = [samples for _ in range(2) for samples in buffer.get(batch_size)]
    assert np.array_equal(random_state(), state)
    assert len(ours) == len(theirs)
    for (observations, returns), samples in zip(ours, theirs, strict=True):
        assert equal(cast(Observations, observations), samples.observations)
        assert th.equal(returns, samples.returns)


def test_features_are_computed_once_and_handed_out_in_the_same_order() -> None:
    buffer = filled(5, 3)
    rollout = read(buffer)
    calls: list[int] = []

    def features(observations: Observations) -> Observations:
        assert isinstance(observations, th.Tensor)
        calls.append(len(observations))
        return 2 * observations

    np.random.seed(3)
    plain = list(minibatches(buffer, rollout, 4, n_epochs=3))
    np.random.seed(3)
    doubled = list(minibatches(buffer, rollout, 4, 3, features))
    assert calls == [15]
    for (one, _), (two, _) in zip(plain, doubled, strict=True):
        assert isinstance(one, th.Tensor)
        assert isinstance(two, th.Tensor)
        assert th.equal(2 * one, two)


def test_no_epochs_are_no_minibatches_and_use_no_random_numbers() -> None:
    buffer = filled(5, 3)
    state = random_state()
    assert list(minibatches(buffer, read(buffer), 4, n_epochs=0)) == []
    assert np.array_equal(random_state(), state)


NUMBERS = {
    "value": "values",
    "log-probability": "log_probs",
    "advantage": "advantages",
    "return": "returns",
}


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", NUMBERS)
def test_number_that_is_not_finite_is_refused_by_name_and_place(name: str, number: float) -> None:
    buffer = filled(5, 3)
    getattr(buffer, NUMBERS[name])[3, 1] = number
    with pytest.raises(
        ValueError, match=rf"The {name} of \(step, env\) = \(3, 1\).* is\s+{number}"
    ):
        read(buffer)


@pytest.mark.parametrize("n_envs", [1, 3])
def test_place_is_right_after_sb3_has_reordered_the_arrays(n_envs: int) -> None:
    buffer = filled(5, n_envs)
    buffer.returns[3, n_envs - 1] = np.nan
    sb3_order(buffer)
    with pytest.raises(ValueError, match=rf"\(step, env\) = \(3, {n_envs - 1}\)"):
        read(buffer)


def test_place_in_a_buffer_with_an_order_of_its_own_is_a_row() -> None:
    buffer = filled(5, 3, BufferOfItsOwn)
    buffer.returns[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"The return of row \d+ of get\(None\) .* is nan"):
        read(buffer)


def batch_with(advantages: th.Tensor) -> ActorBatch:
    batch = read(filled(5, 3)).actor_batch
    return replace(batch, advantages=advantages)


def test_normalised_advantages_have_torchs_mean_and_standard_deviation() -> None:
    advantages = 1e3 + 5 * th.randn(15, dtype=th.float64)
    normalized = batch_with(advantages).normalized().advantages
    expected = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    th.testing.assert_close(normalized, expected, rtol=1e-12, atol=1e-12)
    assert float(normalized.std()) == pytest.approx(1.0, abs=1e-8)


def test_normalisation_has_two_passes() -> None:
    """A sum of squares minus the square of the sum would leave nothing of these digits."""
    advantages = 1e4 + th.randn(15)
    exact = advantages.double()
    expected = (exact - exact.mean()) / exact.std()
    normalized = batch_with(advantages).normalized().advantages
    th.testing.assert_close(normalized.double(), expected, rtol=0, atol=2e-3)


def test_equal_advantages_are_not_divided_by_zero() -> None:
    assert not batch_with(th.full((15,), 3.0)).normalized().advantages.any()


def test_single_state_is_not_normalised() -> None:
    """It has no standard deviation."""
    batch = read(filled(1, 1)).actor_batch
    assert th.equal(batch.normalized().advantages, batch.advantages)
    assert batch.advantages.isfinite().all()


def test_normalising_leaves_the_buffer_alone() -> None:
    buffer = filled(5, 3)
    before = buffer.advantages.copy()
    read(buffer).actor_batch.normalized()
    assert np.array_equal(buffer.advantages, before)


def test_numbers_are_read_in_the_policys_precision() -> None:
    rollout = read(filled(5, 3), th.float64)
    numbers = (rollout.old_log_prob, rollout.advantages, rollout.returns, rollout.actions)
    assert {tensor.dtype for tensor in numbers} == {th.float64}
