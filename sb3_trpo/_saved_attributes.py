"""Read the attributes of an untrusted saved model."""

import base64
import collections
import math
import pathlib
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_trpo._hyperparameters import (
    RANGES,
    TOTAL_TIMESTEPS,
    Ranges,
    is_integer,
    is_number,
)
from sb3_trpo._safe_pickle import ByValueError, safe_loads

# Rollout buffers of more bytes are refused.
_MAX_ROLLOUT = 8 * 2**30

# Containers that classes of these have are tables of the library, and no defaults of attributes.
_LIBRARIES = ("sb3_trpo", "sb3_contrib", "stable_baselines3", "rl_zoo3")

_NEEDED = ("policy_class", "observation_space", "action_space")

# Never taken from a file: the program's own, or made anew.
_NEVER = {
    *("policy", "device", "env", "eval_env", "action_noise", "_vec_normalize_env", "replay_buffer"),
    *("rollout_buffer", "_logger", "_custom_logger", "_episode_storage", "_last_lstm_states"),
}
_STATISTICS = ("ep_info_buffer", "ep_success_buffer")
# Left out where it is not plain: `learn` makes it anew.
_REBUILT = {
    *("lr_schedule", "clip_range", "clip_range_vf", "start_time"),
    *(*_STATISTICS, "_last_dones"),
    *("_last_obs", "_last_original_obs", "_last_episode_starts"),
}


def read_attributes(
    saved: Mapping[str, Any],
    kind: type,
    custom_objects: Mapping[str, Any],
    overridden: Collection[str],
    weights: Mapping[str, Any],
) -> dict[str, Any]:
    """
    Read the attributes that a model takes from its file.

    :param saved: attributes as they are in the file, some of them pickled
    :param kind: the algorithm's class
    :param custom_objects: replacements for saved objects, by attribute name
    :param overridden: attributes that the caller sets to something else
    :param weights: state dictionaries
    :return: the attributes, checked
    :raises ValueError: naming the first one that cannot be taken, and the remedy
    """
    skipped = _NEVER.union(overridden) - {"policy_kwargs", *_NEEDED}
    attributes: dict[str, Any] = {"verbose": 0, "policy_kwargs": {}}
    for name, raw in saved.items():
        if name in custom_objects:
            attributes[name] = custom_objects[name]
        elif name not in skipped:
            _read_attribute(attributes, name, raw, kind, weights)
    missing = [name for name in _NEEDED if name not in attributes]
    if missing:
        raise ValueError(f"the attribute {missing[0]!r} is missing")
    if not set(_STATISTICS) <= attributes.keys():  # SB3 makes both anew, or none
        attributes = {k: v for k, v in attributes.items() if k not in _STATISTICS}
    attributes["policy_kwargs"] = _as_today(attributes["policy_kwargs"])
    return attributes


def _as_today(policy_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Convert what SB3 1 had in the arguments of policies."""
    net_arch = policy_kwargs.get("net_arch")
    if isinstance(net_arch, list) and any(isinstance(each, dict) for each in net_arch[1:]):
        raise ValueError("net_arch has layers that actor and critic share, which SB3 2 has not")
    if policy_kwargs.get("sde_net_arch", "missing") is None:  # its default
        policy_kwargs = {k: v for k, v in policy_kwargs.items() if k != "sde_net_arch"}
    return policy_kwargs


def _read_attribute(
    attributes: dict[str, Any], name: str, raw: Any, kind: type, weights: Mapping[str, Any]
) -> None:
    """Read one attribute, or leave it out if it can be made anew."""
    try:
        value = _unpickled(name, raw) if _is_pickled(raw) else raw
        _check_attribute(name, value, kind)
        attributes[name] = value
    except ByValueError as error:
        if name == "learning_rate" and "policy.optimizer" in weights:
            attributes[name] = _last_learning_rate(weights)
            attributes["_needs_learning_rate"] = True
        elif name not in _REBUILT:
            raise _with_remedy(name, error) from error
    except ValueError as error:
        if name not in _REBUILT:
            raise _with_remedy(name, error) from error
        if name in _STATISTICS and raw is not None:
            warnings.warn(f"The statistics of past episodes are left out: {error}.", stacklevel=5)


def _with_remedy(name: str, error: ValueError) -> ValueError:
    return ValueError(
        f"{error}. Pass custom_objects={{{name[:40]!r}: ...}} to replace it or, if you made this "
        f"file yourself, trust_checkpoint=True, which lets the file run any code."
    )


def _is_pickled(raw: Any) -> bool:
    return isinstance(raw, dict) and ":serialized:" in raw


def _unpickled(name: str, raw: Mapping[str, Any]) -> Any:
    """Load an attribute that SB3 has pickled."""
    what = f"the attribute {name[:40]!r}"
    try:
        data = base64.b64decode(raw[":serialized:"], validate=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} is damaged ({error})") from error
    return safe_loads(data, what=what)


def _last_learning_rate(weights: Mapping[str, Any]) -> float:
    """Take the optimizer's learning rate in place of a function; it serves prediction only."""
    # SB3's schedules end a little below 0 where the last rollout exceeds the total.
    rate = max(float(weights["policy.optimizer"]["param_groups"][0]["lr"]), 0.0)
    warnings.warn(
        f"The saved learning_rate is a function, which is not taken from a file that is not "
        f"trusted. The model predicts; to train on, pass learning_rate to load. The optimizer's "
        f"latest is {rate:.3g}, which a schedule may have decreased.",
        stacklevel=6,
    )
    return rate


def _check_attribute(name: str, value: Any, kind: type) -> None:
    """Refuse a value of another type than the attribute has, and one that hides a method."""
    if _is_taken(kind, name):
        raise ValueError(f"the attribute {name[:40]!r} would replace a part of {kind.__name__}")
    expected, is_allowed = _EXPECTED.get(name, ("anything", lambda _: True))
    if not is_allowed(value):
        raise ValueError(f"the attribute {name!r} has to be {expected}, but it is {_short(value)}")


def _short(value: Any) -> str:
    """Describe a value that may be very long."""
    if isinstance(value, (str, int, float, type(None))) and len(str(value)[:80]) < 60:
        return repr(value)
    return f"a {type(value).__name__}"


def _is_taken(kind: type, name: str) -> bool:
    """Return whether a class has a method, a property or a table of the library by a name."""
    found = getattr(kind, name, None)
    if isinstance(found, (bool, int, float, str, type(None))):
        return name.startswith("__")
    if name.startswith("_") or callable(found) or hasattr(type(found), "__get__"):
        return True
    owner = next((each for each in kind.__mro__ if name in vars(each)), None)
    return owner is None or owner.__module__.partition(".")[0] in _LIBRARIES


_is_number = is_number()


def _is_class_of(base: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, type) and base in value.__mro__


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _are_episodes(value: Any) -> bool:
    """Return whether episode statistics can be averaged."""
    return isinstance(value, collections.deque) and all(
        isinstance(episode, dict) and all(_is_number(episode.get(name)) for name in "rl")
        for episode in value
    )


def _is_success(value: Any) -> bool:
    """Return whether a value says if an episode succeeded, and can be averaged."""
    return isinstance(value, (bool, np.bool_)) or _is_number(value)


def _are_arrays(value: Any) -> bool:
    """Return whether observations are arrays, or there are none."""
    arrays = value.values() if isinstance(value, dict) else [value]
    return value is None or all(isinstance(each, np.ndarray) for each in arrays)


# Of a rollout buffer; the algorithm sets them.
_SIZES = {"buffer_size", "n_envs", "hidden_state_shape", "observation_space", "action_space"}

_ROLES: dict[str, type] = {
    "features_extractor_class": BaseFeaturesExtractor,
    "activation_fn": nn.Module,
    "optimizer_class": th.optim.Optimizer,
}


def _are_policy_kwargs(value: Any) -> bool:
    """Return whether each class that the policy will call is of its kind."""
    return _is_mapping(value) and all(
        _is_class_of(base)(value[name]) for name, base in _ROLES.items() if name in value
    )


_COUNT = ("a whole number of at least 0", is_integer(0, 2**63 - 1))
_HYPERPARAMETERS = "learning_rate", "verbose", "seed", "use_sde", "sde_sample_freq"
_SPACE = ("a space", lambda value: isinstance(value, spaces.Space))
_NUMBER = ("a finite number", _is_number)

# What an attribute has to be. Hyperparameters that are missing here are
# checked where the model is built.
_EXPECTED: Ranges = {
    **dict.fromkeys(
        (
            *("num_timesteps", "_num_timesteps_at_start", "_episode_num"),
            *("_n_updates", "_last_own_update", "_skipped_updates", "_skipped_in_a_row"),
        ),
        _COUNT,
    ),
    "_total_timesteps": TOTAL_TIMESTEPS,
    **dict.fromkeys(("observation_space", "action_space"), _SPACE),
    **dict.fromkeys(("start_time", "ent_coef", "vf_coef", "max_grad_norm"), _NUMBER),
    "n_envs": ("a whole number from 1 to 2**20", is_integer(1, 2**20)),
    "_stats_window_size": RANGES["stats_window_size"],
    "_current_progress_remaining": _NUMBER,
    **{name: RANGES[name] for name in _HYPERPARAMETERS},
    "_needs_learning_rate": ("True or False", lambda value: isinstance(value, bool)),
    "tensorboard_log": (
        "None or a folder",
        lambda value: (
            isinstance(value, (str, pathlib.Path, type(None))) and "://" not in str(value)
        ),
    ),
    "policy_class": ("a policy", _is_class_of(nn.Module)),
    "policy_kwargs": ("a dictionary whose classes are of the right kinds", _are_policy_kwargs),
    "rollout_buffer_class": (
        "None or a rollout buffer",
        lambda value: value is None or _is_class_of(BaseBuffer)(value),
    ),
    "rollout_buffer_kwargs": (
        "a dictionary without sizes",
        lambda value: _is_mapping(value) and not _SIZES & value.keys(),
    ),
    **dict.fromkeys(("_last_obs", "_last_original_obs"), ("observations", _are_arrays)),
    "_last_episode_starts": ("an array", _are_arrays),
    "ep_info_buffer": ("episode statistics", _are_episodes),
    "ep_success_buffer": (
        "numbers or truth values",
        lambda value: isinstance(value, collections.deque) and all(map(_is_success, value)),
    ),
}


def check_rollout(attributes: Mapping[str, Any], n_envs: int) -> None:
    """
    Refuse a rollout buffer that is too large for a file that is not trusted.

    :param attributes: hyperparameters and spaces
    :param n_envs: environments
    :raises ValueError: naming ``n_steps``
    """
    n_steps = attributes.get("n_steps", 1)
    if not RANGES["n_steps"][1](n_steps):
        return  # refused where the model is built, as in the constructor
    step = sum(_bytes_of(attributes[f"{name}_space"]) for name in ("observation", "action"))
    size = int(n_steps) * n_envs * (step + 24)
    if size > _MAX_ROLLOUT:
        raise ValueError(
            f"n_steps={n_steps} with {n_envs} environments needs a rollout buffer of about "
            f"{size / 2**30:.3g} GiB. Pass n_steps to load to choose, or trust_checkpoint=True if "
            f"this is your own file."
        )


def _bytes_of(space: spaces.Space[Any]) -> int:
    """Count the bytes that observations or actions, or masks for them, take."""
    if isinstance(space, spaces.Dict):
        return sum(map(_bytes_of, space.values()))
    if isinstance(space, spaces.Box):
        return math.prod(space.shape) * space.dtype.itemsize
    return 4 * spaces.flatdim(space)
