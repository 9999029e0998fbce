"""Check what a checkpoint says about its training, before anything is done with it."""

import re
from typing import Any

from sb3_trpo._hyperparameters import Ranges, check_values, is_integer

# Attributes of gSDE's distribution, which `state_dict` does not have.
NOISE = ("exploration_mat", "exploration_matrices")

_RUN = re.compile("[0-9a-f]{8}").fullmatch

_SINCE_0 = ("an integer of at least 0", is_integer(0, 2**63 - 1))
_DICT = ("a dictionary", lambda value: isinstance(value, dict))
_LIST = ("a list", lambda value: isinstance(value, list))
_FLAG = ("True or False", lambda value: isinstance(value, bool))
_TEXT = ("text", lambda value: isinstance(value, str))

_PARTS = {"names", "num_envs", "wrappers", "spaces", "episodes", "reason"}


def _are_runs(value: Any) -> bool:
    """Return whether a value names trainings; their files may be removed."""
    return isinstance(value, list) and all(isinstance(run, str) and _RUN(run) for run in value)


_STATE: Ranges = {
    **dict.fromkeys(("saved_at", "num_timesteps", "total_timesteps", "rollouts"), _SINCE_0),
    **dict.fromkeys(("last", "random", "arguments"), _DICT),
    "environments": (
        "the state of environments",
        lambda value: isinstance(value, dict) and value.keys() >= _PARTS,
    ),
    **dict.fromkeys(("episodes", "logged"), _LIST),
    "runs": ("a list of names of trainings", _are_runs),
    "noise": ("that of gSDE", lambda value: isinstance(value, dict) and value.keys() <= {*NOISE}),
    "n_calls": _SINCE_0,
    "algorithm": _TEXT,
}
# What a resumed `learn` is given.
_ARGUMENTS: Ranges = {
    "log_interval": (
        "None or an integer of at least 1",
        lambda value: value is None or is_integer(1)(value),
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
