"""Check what a checkpoint says about its training, before anything is done with it."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch as th

from sb3_trpo._hyperparameters import TOTAL_TIMESTEPS, Ranges, check_values, is_integer
from sb3_trpo._random_states import are_random_states

# Attributes of gSDE's distribution, which `state_dict` does not have.
NOISE = ("exploration_mat", "exploration_matrices")

# Attributes of a model from which the next step starts.
LAST = ("_last_obs", "_last_original_obs", "_last_episode_starts", "_last_lstm_states")

_RUN = re.compile("[0-9a-f]{8}").fullmatch

_SINCE_0 = ("an integer of at least 0", is_integer(0, 2**63 - 1))
_DICT = ("a dictionary", lambda value: isinstance(value, dict))
_FLAG = ("True or False", lambda value: isinstance(value, bool))
_TEXT = ("text", lambda value: isinstance(value, str))


def _is_list_of(value: Any, is_item: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(is_item(item) for item in value)


def _is_number(value: Any) -> bool:
    """Return whether a value is one number, also in an array."""
    if not isinstance(value, (int, float, np.generic, np.ndarray, th.Tensor)):
        return False
    return np.asarray(value).dtype.kind in "biuf" and np.size(value) == 1


def _is_episode(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_number(value.get(name)) for name in "rl")


def _are_episodes(value: Any) -> bool:
    """Return whether a value has episodes' statistics and successes."""
    if not (isinstance(value, list) and len(value) == 2):
        return False
    return _is_list_of(value[0], _is_episode) and _is_list_of(value[1], _is_number)


def _are_logged(value: Any) -> bool:
    """Return whether a value has a logger's values, their counts and formats left out."""
    if not (_is_list_of(value, lambda part: isinstance(part, dict)) and len(value) == 3):
        return False
    numbers = [number for part in value[:2] for number in part.values()]
    is_text = all(isinstance(name, str) for part in value for name in part)
    return is_text and _is_list_of(numbers, _is_number) and _is_excluded(value[2].values())


def _is_excluded(formats: Iterable[Any]) -> bool:
    """Return whether each value is None, text, or a tuple of texts."""
    texts = [each if isinstance(each, tuple) else (each,) for each in formats if each is not None]
    return all(isinstance(text, str) for each in texts for text in each)


def _is_noise(value: Any) -> bool:
    """Return whether a value is gSDE's noise."""
    if not (isinstance(value, dict) and value.keys() <= {*NOISE}):
        return False
    return all(
        isinstance(tensor, th.Tensor) and tensor.is_floating_point() for tensor in value.values()
    )


def _is_last_step(value: Any) -> bool:
    """Return whether a value has what the next step starts from."""
    if not (isinstance(value, dict) and value.keys() == {*LAST}):
        return False
    states = value["_last_lstm_states"]
    return states is None or (
        _is_list_of(states, lambda pair: _is_list_of(pair, th.is_tensor) and len(pair) == 2)
        and len(states) == 2
    )


def _are_environments(value: Any) -> bool:
    """Return whether a value is the state of environments: copies, or why there are none."""
    if not (isinstance(value, dict) and value.keys() >= _PARTS):
        return False
    is_named = _is_list_of(value["names"], lambda name: isinstance(name, str))
    if not (is_named and is_integer(1)(value["num_envs"])):
        return False
    copies = [value["spaces"], *_listed(value["episodes"]), *_listed(value["wrappers"])]
    kinds = bytes if value["reason"] is None else (bytes, type(None))
    is_whole = isinstance(value["wrappers"], list) and all(
        isinstance(copy, kinds) for copy in copies
    )
    return is_whole and len(value["wrappers"]) == len(value["names"]) and _has_episodes(value)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _has_episodes(value: dict[str, Any]) -> bool:
    """Return whether there is an episode per environment, or a reason why not."""
    if isinstance(value["reason"], str):
        return True
    episodes = value["episodes"]
    return (
        value["reason"] is None
        and isinstance(episodes, list)
        and len(episodes) == value["num_envs"]
    )


_PARTS = {"names", "num_envs", "wrappers", "spaces", "episodes", "reason"}


def _are_runs(value: Any) -> bool:
    """Return whether a value names trainings; their files may be removed."""
    return _is_list_of(value, lambda run: isinstance(run, str) and bool(_RUN(run)))


_STATE: Ranges = {
    **dict.fromkeys(("saved_at", "num_timesteps", "rollouts", "n_calls"), _SINCE_0),
    "total_timesteps": TOTAL_TIMESTEPS,
    "last": ("what the next step starts from", _is_last_step),
    "random": ("the states of random generators", are_random_states),
    "arguments": _DICT,
    "environments": ("the state of environments", _are_environments),
    "episodes": ("statistics of episodes", _are_episodes),
    "logged": ("what a logger will write next", _are_logged),
    "runs": ("a list of names of trainings", _are_runs),
    "noise": ("that of gSDE", _is_noise),
    "algorithm": _TEXT,
}
# What a resumed `learn` is given.
_ARGUMENTS: Ranges = {
    "log_interval": (
        "None or a number above 0",
        lambda value: value is None or (_is_number(value) and bool(value > 0)),
    ),
    "tb_log_name": (
        "text of at most 255 characters, none of them NUL",
        lambda value: isinstance(value, str) and len(value) <= 255 and "\0" not in value,
    ),
    "progress_bar": _FLAG,
    "use_masking": _FLAG,
}


def check_state(state: dict[str, Any]) -> None:
    """
    Check what a checkpoint says about its training, before anything is done with it.

    :param state: everything but the model, of a file that may come from elsewhere
    :raises ValueError: naming what is missing or of another kind
    """
    missing = [name for name in _STATE if name not in state]
    if missing:
        raise ValueError(f"its {missing[0]} is missing")
    check_values(_STATE, {name: state[name] for name in _STATE})
    unknown = [name for name in state["arguments"] if name not in _ARGUMENTS]
    if unknown:
        raise ValueError(f"its training was started with {str(unknown[0])[:40]!r}")
    check_values(_ARGUMENTS, state["arguments"])
