"""Load the statistics of a normalised environment from an untrusted file."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_trpo._safe_pickle import FromState, Makers, safe_loads

_LARGEST_FILE = 2**28

_OPTIONS: Mapping[str, type] = {
    **dict.fromkeys(("training", "norm_obs", "norm_reward"), bool),
    **dict.fromkeys(("clip_obs", "clip_reward", "gamma", "epsilon"), float),
}


def load_vec_normalize(
    path: str | pathlib.Path, venv: VecEnv, trust_checkpoint: bool = False
) -> VecNormalize:
    """
    Load what ``VecNormalize.save`` wrote, without running any code of the file.

    Takes the place of ``VecNormalize.load``, which runs whatever the file's author wanted.

    :param path: path of the file
    :param venv: the environments to wrap
    :param trust_checkpoint: whether the file may run any code, as in SB3; for a file that you made
        yourself
    :return: the wrapped environments
    :raises ValueError: if the file holds something else than numbers and spaces, or its statistics
        do not fit the environments
    """
    if trust_checkpoint:
        return VecNormalize.load(str(path), venv)
    path = pathlib.Path(path)
    if path.stat().st_size > _LARGEST_FILE:
        raise ValueError(f"{path} is larger than statistics can be.")
    try:
        state = safe_loads(path.read_bytes(), what=str(path), also=_MAKERS)
    except ValueError as error:
        raise ValueError(
            f"{error}. If you made this file yourself, pass trust_checkpoint=True, which lets the "
            f"file run any code."
        ) from error
    try:
        return _build(state, venv)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(
            f"{path} holds no statistics for these environments: {error}. Choose the file of this "
            f"environment's run; for one that you made yourself, pass trust_checkpoint=True."
        ) from error


class _State(dict[str, Any]):
    """The attributes of a ``VecNormalize``."""


def _build(state: Any, venv: VecEnv) -> VecNormalize:
    """Wrap environments, and set the saved statistics."""
    if type(state) is not _State:
        raise ValueError(f"it is a {type(state).__name__}, not a VecNormalize")
    options = {name: _option(state, name) for name in _OPTIONS}
    normalized = VecNormalize(venv, norm_obs_keys=_keys(state.get("norm_obs_keys")), **options)
    if normalized.norm_obs:
        normalized.obs_rms = _fitting("obs_rms", state["obs_rms"], normalized.obs_rms)
    normalized.ret_rms = _fitting("ret_rms", state["ret_rms"], normalized.ret_rms)
    return normalized


def _option(state: Mapping[str, Any], name: str) -> Any:
    """Read an option of ``VecNormalize``."""
    value, kind = state[name], _OPTIONS[name]
    if kind is bool and isinstance(value, (int, np.bool_)) and value in (0, 1):
        return bool(value)
    if kind is float and isinstance(value, (int, float, np.number)) and float(value) >= 0:
        return float(value)
    raise ValueError(f"{name} is {str(value)[:40]!r}")


def _keys(keys: Any) -> list[str] | None:
    """Read which observations are normalised; SB3 stores a list of names for dictionaries."""
    if keys is None:
        return None
    if isinstance(keys, (list, tuple)) and all(isinstance(key, str) for key in keys):
        return list(keys)
    raise ValueError(f"norm_obs_keys is {str(keys)[:40]!r}")


def _fitting(name: str, saved: Any, fresh: Any) -> Any:
    """Check that statistics have the shape of those that they replace."""
    if isinstance(fresh, dict):
        if not isinstance(saved, dict) or saved.keys() != fresh.keys():
            raise ValueError(f"{name} is for other observations")
        return {key: _fitting(f"{name}[{key!r}]", saved[key], fresh[key]) for key in fresh}
    if not isinstance(saved, RunningMeanStd) or saved.mean.shape != fresh.mean.shape:
        shape = getattr(getattr(saved, "mean", None), "shape", None)
        raise ValueError(f"{name} has shape {shape}, and the environments {fresh.mean.shape}")
    return saved


def _statistics(state: dict[str, Any]) -> RunningMeanStd:
    """Make running statistics, which have to be finite."""
    mean, var = (np.asarray(state[name], np.float64) for name in ("mean", "var"))
    count = float(state["count"])
    is_finite = bool(np.isfinite(mean).all() and np.isfinite(var).all() and math.isfinite(count))
    if not is_finite or mean.shape != var.shape or (var < 0).any() or count <= 0:
        raise ValueError("running statistics that are not finite or contradict each other")
    statistics = RunningMeanStd(shape=mean.shape)
    statistics.mean, statistics.var, statistics.count = mean, var, count
    return statistics


_MAKERS: Makers = {
    ("stable_baselines3.common.running_mean_std", "RunningMeanStd"): FromState(
        _statistics, ("mean", "var", "count")
    ),
    ("stable_baselines3.common.vec_env.vec_normalize", "VecNormalize"): FromState(
        _State, (*_OPTIONS, "norm_obs_keys", "obs_rms", "ret_rms")
    ),
}
