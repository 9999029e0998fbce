"""The state of a training between two updates."""

import time
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo._environment import vector_layers
from sb3_trpo._environment_state import (
    copy_state,
    copy_states,
    layer_names,
    put_state,
    put_states,
)
from sb3_trpo._plain_data import NotPlainError, classes_in, plain_dumps, plain_loads
from sb3_trpo._random_states import random_states, set_random_states
from sb3_trpo._state_check import LAST, NOISE
from sb3_trpo.trpo import TRPO


def training_state(model: TRPO) -> dict[str, Any]:
    """
    Copy what ``save`` leaves out and the rest of the training depends on.

    :param model: at the start of a rollout, or after its last update
    :return: plain data
    """
    assert model.env is not None
    return {
        "algorithm": type(model).__name__,
        "saved_at": time.time_ns(),
        "num_timesteps": model.num_timesteps,
        "total_timesteps": model._total_timesteps,
        "last": _last_step(model),
        "episodes": [list(model.ep_info_buffer or ()), list(model.ep_success_buffer or ())],
        "logged": _logged(model),
        "noise": {name: value for name, value in _noise(model).items() if value is not None},
        "random": random_states(),
        "environments": environment_state(model.env),
    }


def put_training_state(model: TRPO, state: dict[str, Any]) -> str | None:
    """
    Restore a training at the same moment of ``learn`` as it was copied.

    :param model: loaded from the checkpoint, its environments just reset
    :param state: from :func:`training_state`
    :return: why environments start new episodes; ``None`` if they are as they were
    :raises ValueError: naming the part that is not of this model and its environments
    """
    assert model.env is not None
    if state["environments"]["reason"] is None:
        _check_last_step(model, state["last"])
    _check_noise(model, state["noise"])
    try:
        reason = put_environment_state(model.env, state["environments"])
    except ValueError as error:
        raise ValueError(f"its environments cannot be restored: {error}") from error
    if reason is None:
        _put_last_step(model, state["last"])
    for buffer, items in zip(_episode_buffers(model), state["episodes"], strict=True):
        buffer.clear()
        buffer.extend(items)
    for current, saved in zip(_log(model), state["logged"], strict=True):
        current.update(saved)
    for name, value in state["noise"].items():
        setattr(model.policy.action_dist, name, value.to(model.device))
    set_random_states(state["random"])
    return reason


def _last_step(model: TRPO) -> dict[str, Any]:
    """Copy what the next step starts from."""
    states = model._last_lstm_states
    return {
        "_last_obs": model._last_obs,
        "_last_original_obs": model._last_original_obs,
        "_last_episode_starts": model._last_episode_starts,
        "_last_lstm_states": None if states is None else [list(states.pi), list(states.vf)],
    }


def _check_last_step(model: TRPO, last: dict[str, Any]) -> None:
    """Refuse observations and LSTM states of another model, before anything is changed."""
    current = _last_step(model)
    for name, value in last.items():
        if not _is_alike(value, current[name]):
            raise ValueError(f"its last {name.removeprefix('_last_')} is not one of this model")


def _is_alike(value: Any, current: Any) -> bool:
    """Return whether arrays and tensors have the same shapes and hold numbers."""
    if isinstance(current, dict):
        is_dict = isinstance(value, dict) and value.keys() == current.keys()
        return is_dict and all(_is_alike(value[key], current[key]) for key in current)
    if isinstance(current, (list, tuple)):
        is_same = type(value) is type(current) and len(value) == len(current)
        return is_same and all(map(_is_alike, value, current))
    if not isinstance(current, (np.ndarray, th.Tensor)):
        return type(value) is type(current)
    is_same = type(value) is type(current) and value.shape == current.shape
    return (
        is_same and np.asarray(value.cpu() if th.is_tensor(value) else value).dtype.kind in "biuf"
    )


def _check_noise(model: TRPO, noise: dict[str, Any]) -> None:
    """Refuse noise of another shape than the model's; the number of matrices may differ."""
    current = _noise(model)
    for name, value in noise.items():
        own = current[name]
        if own is None or (value.ndim, value.shape[-2:]) != (own.ndim, own.shape[-2:]):
            raise ValueError(f"its noise {name} is not that of this model")


def _put_last_step(model: TRPO, last: dict[str, Any]) -> None:
    """Restore what the next step starts from."""
    for name in LAST[:3]:
        setattr(model, name, last[name])
    pairs: list[list[th.Tensor]] | None = last["_last_lstm_states"]
    if pairs is not None:
        pi, vf = (tuple(state.to(model.device) for state in pair) for pair in pairs)
        model._last_lstm_states = RNNStates(pi, vf)


def _episode_buffers(model: TRPO) -> tuple[Any, Any]:
    return model.ep_info_buffer, model.ep_success_buffer


def _log(model: TRPO) -> list[dict[str, Any]]:
    """List the logger's dictionaries of what it will write next."""
    logger = model.logger
    return [logger.name_to_value, logger.name_to_count, logger.name_to_excluded]


def _logged(model: TRPO) -> list[dict[str, Any]]:
    """Copy the numbers that the logger will write next."""
    values = model.logger.name_to_value
    names = [name for name, value in values.items() if isinstance(value, (int, float, np.number))]
    return [{name: part[name] for name in names if name in part} for part in _log(model)]


def _noise(model: TRPO) -> dict[str, Any]:
    """Take gSDE's noise, if there is any."""
    distribution = getattr(model.policy, "action_dist", None)
    return {name: getattr(distribution, name, None) for name in NOISE}


def environment_state(env: VecEnv) -> dict[str, Any]:
    """
    Copy the state of a vectorised environment.

    :param env: with its wrappers
    :return: plain data: ``reason`` says why the episodes cannot be copied, or is ``None``
    """
    wrappers, base = vector_layers(env)
    state: dict[str, Any] = {"names": layer_names(wrappers), "num_envs": env.num_envs}
    copies: list[bytes | None] = [None] * len(wrappers)
    state |= {"wrappers": copies, "spaces": None, "episodes": None, "reason": None}
    for position, wrapper in enumerate(wrappers):
        try:
            copies[position] = copy_state([wrapper])
        except NotPlainError as error:  # the others, such as VecNormalize, are copied all the same
            state["reason"] = str(error)
    try:
        if state["reason"] is None:
            state["spaces"] = plain_dumps(_spaces(base))
            state["episodes"] = copy_states(base)
    except NotPlainError as error:
        state["reason"] = str(error)
    return state


def put_environment_state(env: VecEnv, state: dict[str, Any]) -> str | None:
    """
    Restore the state of a vectorised environment.

    :param env: after a reset
    :param state: from :func:`environment_state`
    :return: why episodes start anew; ``None`` if they are as they were
    """
    if state["reason"] is not None:
        return str(state["reason"])
    base = vector_layers(env)[1]
    try:
        saved = _saved_spaces(base, state["spaces"])
        put_states(base, state["episodes"])
    except NotPlainError as error:
        return str(error)
    for space, copied in zip(_spaces(base), saved, strict=True):
        vars(space).update(vars(copied))
    put_wrapper_states(env, state)
    return None


def put_wrapper_states(env: VecEnv, state: dict[str, Any]) -> None:
    """
    Restore the wrappers of a vectorised environment, such as VecNormalize.

    :param env: with its wrappers
    :param state: from :func:`environment_state`
    :raises ValueError: naming the wrapper whose state is not of its kind
    """
    for wrapper, data in zip(vector_layers(env)[0], state["wrappers"], strict=True):
        try:
            if data is not None:
                put_state([wrapper], data)
        except ValueError as error:
            name = type(wrapper).__name__
            raise ValueError(f"the {name} of its environments is not restored: {error}") from error


def _saved_spaces(base: VecEnv, data: bytes) -> list[spaces.Space[Any]]:
    """Read the spaces of a vectorised environment, whose generators are part of its state."""
    saved = plain_loads(data, classes_in(_spaces(base)))
    kinds = [type(space) for space in _spaces(base)]
    if not isinstance(saved, list) or [type(space) for space in saved] != kinds:
        raise ValueError("its environments have no spaces like these")
    return saved


def _spaces(base: VecEnv) -> list[spaces.Space[Any]]:
    return [base.observation_space, base.action_space]


def check_environment(env: VecEnv, state: dict[str, Any]) -> None:
    """
    Refuse an environment that is built in another way than that of a checkpoint.

    :param env: with its wrappers
    :param state: from :func:`environment_state`
    :raises ValueError: if number or wrappers differ
    """
    names = layer_names(vector_layers(env)[0])
    if names != state["names"]:
        raise ValueError(
            f"env has the wrappers {names}, and that of the checkpoint had {state['names']}. Wrap "
            f"it in the same ones, in this order from the outside in."
        )
    if env.num_envs != state["num_envs"]:
        raise ValueError(
            f"env has {env.num_envs} environments, and that of the checkpoint had "
            f"{state['num_envs']}. Pass as many."
        )
