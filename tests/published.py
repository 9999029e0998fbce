"""
Rewrite models of today as older versions of Python, NumPy, gym and SB3 wrote them.

What published agents of 2021 to 2024 contain: pickles of protocol 3 (Python 3.7), 4 or 5; spaces of
``gym`` with other attributes and generators of random numbers; ``numpy.core``; schedules that are
functions, pickled by value; attributes and arguments that SB3 has no more, and none of the newer.
"""

import base64
import io
import json
import pickle
import re
from collections.abc import Callable
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import torch as th
from gymnasium import spaces

from tests.hostile import Entries, pack, unpack

_OLD_NAMES = {b"numpy._core": b"numpy.core", b"gymnasium.spaces": b"gym.spaces"}
_NEWER = ("_stats_window_size", "rollout_buffer_class", "rollout_buffer_kwargs")


def old_pickle(value: Any, protocol: int) -> bytes:
    """Pickle a value under the names of then."""
    data: bytes = cloudpickle.dumps(value, protocol=protocol)
    for new, old in _OLD_NAMES.items():
        if protocol < 4:
            data = data.replace(b"c" + new, b"c" + old)
        else:
            data = re.sub(b"\x8c(.)" + re.escape(new), _shortened(new, old), data, flags=re.S)
    return data


def _shortened(new: bytes, old: bytes) -> Callable[[re.Match[bytes]], bytes]:
    """Correct the length that stands before a text."""
    return lambda match: b"\x8c" + bytes([match[1][0] - len(new) + len(old)]) + old


def old_space(space: Any) -> Any:
    """Give a space the attributes of gym 0.17 to 0.21."""
    state = vars(space)
    state["shape"] = state.pop("_shape")
    for name in ("start", "low_repr", "high_repr", "_np_random"):
        state.pop(name, None)
    state["np_random"] = np.random.RandomState(3)
    if isinstance(space, spaces.Discrete):
        state["n"] = int(space.n)
    return space


def linear_schedule(initial_value: float) -> Callable[[float], float]:
    """Make the RL Zoo's schedule of then, which is a closure."""

    def func(progress_remaining: float) -> float:
        return progress_remaining * initial_value

    func.__module__ = "__main__"
    return func


def published(model: Any, protocol: int, **attributes: Any) -> bytes:
    """
    Save a model as an agent of then.

    :param model: a model of sb3-contrib
    :param protocol: of pickle
    :param attributes: that it has besides, or in place of its own
    :return: the zip file
    """
    file = io.BytesIO()
    model.save(file)
    entries = unpack(file.getvalue())
    changes = {
        "observation_space": old_space(pickle.loads(pickle.dumps(model.observation_space))),
        "action_space": old_space(pickle.loads(pickle.dumps(model.action_space))),
        "_last_obs": model._last_obs,
        "_last_original_obs": None,
        "ep_info_buffer": model.ep_info_buffer,
        "lr_schedule": linear_schedule(1.0),
        "eval_env": None,
        "start_time": 1633000000.25,
        "remove_time_limit_termination": False,
        **attributes,
    }
    data = {k: v for k, v in json.loads(entries["data"]).items() if k not in _NEWER}
    data |= {name: _saved(value, protocol) for name, value in changes.items()}
    return pack({**entries, "data": json.dumps(data).encode()})


def _saved(value: Any, protocol: int) -> Any:
    """Write an attribute as SB3 does."""
    try:
        json.dumps(value)
    except TypeError:
        pickled = base64.b64encode(old_pickle(value, protocol)).decode()
        return {":type:": str(type(value)), ":serialized:": pickled}
    return value


def without_separate_extractors(content: bytes) -> bytes:
    """Leave out the weights that SB3 has stored three times since 1.7."""
    entries: Entries = unpack(content)
    state = th.load(io.BytesIO(entries["policy.pth"]), weights_only=True)
    file = io.BytesIO()
    th.save({k: v for k, v in state.items() if not k.startswith(("pi_", "vf_"))}, file)
    return pack({**entries, "policy.pth": file.getvalue()})
