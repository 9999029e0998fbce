from dataclasses import dataclass

import numpy as np
import pytest
import torch as th

from sb3_trpo._state_mean import state_mean
from tests import reference


@dataclass
class Group:
    values: th.Tensor
    weights: th.Tensor

    @property
    def weight_sum(self) -> float:
        return float(self.weights.sum())


def weighted_sum(group: Group) -> th.Tensor:
    return (group.weights * group.values).sum()


def cut(values: th.Tensor, weights: th.Tensor, size: int) -> list[Group]:
    pieces = zip(th.split(values, size), th.split(weights, size), strict=True)
    return [Group(*piece) for piece in pieces]


@pytest.mark.parametrize("size", [1, 7, 20])
def test_mean_equals_a_loop_over_the_states(size: int, rng: np.random.Generator) -> None:
    values, weights = th.tensor(rng.normal(size=20)), th.tensor(rng.random(20))
    mean = state_mean(weighted_sum, cut(values, weights, size))
    expected = reference.weighted_mean(values.tolist(), weights.tolist())
    assert float(mean) == pytest.approx(expected, rel=1e-13)


def test_states_of_weight_zero_do_not_count() -> None:
    values, weights = th.tensor([1.0, 5.0, 3.0, 9.0]), th.tensor([1.0, 0.0, 1.0, 0.0])
    assert float(state_mean(weighted_sum, cut(values, weights, 1))) == 2.0


def test_chunks_of_unequal_size_are_not_averaged_as_equals() -> None:
    values, ones = th.tensor([0.0, 0.0, 0.0, 4.0]), th.ones(4)
    assert float(state_mean(weighted_sum, cut(values, ones, 3))) == 1.0


def test_vectors_are_averaged_entry_by_entry() -> None:
    groups = [Group(th.tensor([2.0]), th.ones(1)), Group(th.tensor([4.0]), th.ones(1))]
    mean = state_mean(lambda group: th.cat([group.values, 10 * group.values]), groups)
    assert mean.tolist() == [3.0, 30.0]


def test_every_chunk_is_asked_once() -> None:
    groups = cut(th.ones(5), th.ones(5), 2)
    asked: list[Group] = []

    def note(group: Group) -> th.Tensor:
        asked.append(group)
        return weighted_sum(group)

    state_mean(note, groups)
    assert asked == groups


def test_a_single_chunk_is_not_changed_by_the_sum() -> None:
    total = th.tensor([6.0])
    assert state_mean(lambda _: total, [Group(th.ones(3), th.ones(3))]).tolist() == [2.0]
    assert total.tolist() == [6.0]
