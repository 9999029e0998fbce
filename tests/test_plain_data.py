"""Plain data come back as they were, and name no code."""

import collections
import json
import os
import random
import subprocess
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_trpo._plain_data import NotPlainError, classes_in, plain_dumps, plain_loads

VALUES: list[Any] = [
    None,
    True,
    -(2**70),
    0.1,
    float("inf"),
    "text \ud800 \x00",
    b"\x00bytes",
    [1, "two", [3.0]],
    [0.1, float("nan"), -0.0],
    (),
    (1, (2,)),
    {"a": 1, 2: "b", (3, 4): None},
    {1, 2},
    collections.deque([1, 2], maxlen=5),
    collections.OrderedDict(b=1, a=2),
    np.arange(6, dtype=np.int16).reshape(2, 3),
    np.zeros((0, 3)),
    np.array(7.0),
    np.float32(0.1),
    np.dtype(np.uint8),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    th.arange(4.0).reshape(2, 2),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_value_comes_back_with_its_type(value: Any) -> None:
    again = plain_loads(plain_dumps(value))
    assert type(again) is type(value)
    plain: list[Any] = [
        each.numpy() if isinstance(each, th.Tensor) else each for each in (again, value)
    ]
    np.testing.assert_equal(plain[0], plain[1])
    assert getattr(again, "strides", None) == getattr(value, "strides", None)
    assert getattr(again, "maxlen", None) == getattr(value, "maxlen", None)


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.random.default_rng(3),
        lambda: np.random.Generator(np.random.MT19937(3)),
        lambda: np.random.RandomState(3),
        lambda: random.Random(3),
    ],
)
def test_random_generator_continues(make: Any) -> None:
    generator = make()
    generator.random()
    again = plain_loads(plain_dumps(generator))
    assert [again.random() for _ in range(5)] == [generator.random() for _ in range(5)]


def test_what_would_come_back_in_another_way_is_refused() -> None:
    whole = np.zeros((2, 2))
    with pytest.raises(NotPlainError, match="share their memory"):
        plain_dumps([whole, whole[0]])
    plain_dumps([whole[0], whole[1], whole[0, :1].copy()])
    numbers = set(range(100))
    numbers -= set(range(1, 90))
    numbers |= {1001, 8, 64}
    assert list(set(list(numbers))) != list(numbers)
    with pytest.raises(NotPlainError, match="a set in an order"):
        plain_dumps(numbers)


def test_object_that_occurs_twice_is_one_again_and_may_hold_itself() -> None:
    shared: list[Any] = [np.ones(2)]
    shared.append(shared)
    again = plain_loads(plain_dumps({"one": shared, "other": [shared]}))
    assert again["one"] is again["other"][0]
    assert again["one"][1] is again["one"]


def test_object_is_rebuilt_from_its_attributes_if_its_class_is_expected() -> None:
    space = spaces.Discrete(5, seed=3)
    data = plain_dumps(space)
    with pytest.raises(NotPlainError, match="Discrete, which is not expected here"):
        plain_loads(data)
    again = plain_loads(data, classes_in(space))
    assert again == space
    assert [again.sample() for _ in range(9)] == [space.sample() for _ in range(9)]


def test_object_that_is_there_is_named_and_not_copied() -> None:
    there = [Exception("of no plain class"), {}]
    data = plain_dumps({"one": [there[1]], "other": there[0]}, there)
    others: list[Any] = [object(), object()]
    assert plain_loads(data, (), others) == {"one": [others[1]], "other": others[0]}
    with pytest.raises(ValueError, match="damaged data"):
        plain_loads(data)


@pytest.mark.parametrize(
    "value",
    [
        len,
        os,
        int,
        lambda: 0,
        open(os.devnull),  # noqa: SIM115 (closed with the process)
        np.array([object()]),
        subprocess.CompletedProcess("words", 0),
        Exception("with state in C"),
        iter([1]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_plain_data_is_refused(value: Any) -> None:
    with pytest.raises(NotPlainError):
        plain_dumps([value])


def hostile(root: Any, nodes: list[Any], blob: bytes = b"") -> bytes:
    text = json.dumps({"root": root, "nodes": nodes}).encode()
    return len(text).to_bytes(8, "little") + text + blob


DEEP = [["list", [position + 1]] for position in range(5000)] + [["list"]]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage that is longer than the length",
        (2**60).to_bytes(8, "little") + b"{}",
        hostile([0], [["object", "subprocess.Popen", [1]], ["dict"]]),
        hostile([0], [["object", "builtins.dict", [1]], ["dict"]]),
        hostile([0], [["eval", "1"]]),
        hostile([5], []),
        hostile([0], [["array", "<f8", [10**12], 0]], bytes(16)),
        hostile([0], [["array", "|O", [2], 0]], bytes(16)),
        hostile([0], [["array", "<f8", [2], 10**12]], bytes(16)),
        hostile([0], [["tuple", [0]]]),
        hostile([0], [["generator", "__class__", [1]], ["dict"]]),
        hostile([0], [["generator", "PCG64", [1]], ["dict"]]),
        hostile([0], [["random", [1]], ["tuple", 3]]),
        hostile([0], DEEP),
        hostile([0], [["dict", [[1], 2]], ["list"]]),
    ],
)
def test_damaged_or_hostile_data_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"damaged data|not expected|random generator"):
        plain_loads(data)
