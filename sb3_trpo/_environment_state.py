"""
Copy what environments are in the middle of, and put it into others that are built alike.

An environment is a chain of layers: wrappers, and what they wrap. The state of a layer is its
attributes and its closures' variables, except those that belong to the process (windows, files,
code, paths) or name other layers. MuJoCo's data are read and written as arrays. A layer with any
other attribute that is not plain data, such as a simulator written in C, cannot be copied.

A state may come from elsewhere: it sets only what a copy would hold, no code and no path.
"""

import hashlib
import os
import types
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from sb3_trpo._plain_data import NotPlainError, classes_in, plain_dumps, plain_loads, texts_in
from sb3_trpo._random_states import are_random_states, random_states, set_random_states

# Attributes that are as the environment was built, or are other layers.
_BUILT = frozenset(
    {"spec", "class_attributes", "metadata", "render_mode", "results_writer", "_metadata"}
    | {"reset_infos", "_cached_spec", "_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs"}
)
_CODE = (type, types.ModuleType, types.BuiltinFunctionType)
# Packages of windows, files and constant models, and modules of these.
_PROCESS = ("_io", "mujoco", "matplotlib", "gymnasium.envs.mujoco.mujoco_rendering")
# pygame's classes that are no numbers of a game.
_PYGAME = ("Surface", "Clock", "Font", "Window", "Renderer", "Texture", "Sound", "Channel")
_MUJOCO_DATA = "MjData"


def layers_of(env: gym.Env[Any, Any]) -> list[gym.Env[Any, Any]]:
    """
    List an environment's wrappers from the outside in, and the environment that they wrap.

    :param env: any environment
    :return: at least one layer
    """
    return [env] if not isinstance(env, gym.Wrapper) else [env, *layers_of(env.env)]


def layer_names(layers: list[Any]) -> list[str]:
    """
    Name the classes of layers.

    :param layers: of one environment
    :return: their names
    """
    return [type(layer).__name__ for layer in layers]


def copy_state(layers: list[Any]) -> bytes:
    """
    Copy the state of an environment.

    :param layers: of the environment
    :return: plain data
    :raises NotPlainError: if a layer has an attribute that cannot be copied; the message names it
    """
    names = layer_names(layers)
    states = [_carried(layer, layers) for layer in layers]
    for layer, state in zip(names, states, strict=True):
        for attribute, value in state.items():
            try:
                classes_in(value, layers)
            except NotPlainError as error:
                raise NotPlainError(f"{layer}.{attribute} holds {error}") from None
    return plain_dumps({"layers": names, "states": states}, layers)


def put_state(layers: list[Any], data: bytes) -> None:
    """
    Put a state into an environment, whose own state says which classes may be rebuilt.

    :param layers: of an environment that is built as the copied one was, after a reset
    :param data: from :func:`copy_state`
    :raises NotPlainError: if the environment is another one; nothing is changed
    :raises ValueError: if the state is not that of an environment
    """
    _set_states(layers, _read_states(layers, data))


def _read_states(layers: list[Any], data: bytes) -> list[dict[str, Any]]:
    """Read the attributes to set in each layer, and refuse what no copy holds."""
    current = [_carried(layer, layers) for layer in layers]
    saved = plain_loads(data, classes_in(current, layers), layers)
    _check_layers(layers, saved)
    states = [_settable(*pair, layers) for pair in zip(layers, saved["states"], strict=True)]
    foreign = sorted(filter(_is_path, texts_in(states, layers) - texts_in(current, layers)))
    if foreign:
        raise NotPlainError(f"it holds the path {foreign[0]!r}, which this one does not")
    return states


def _set_states(layers: list[Any], states: list[dict[str, Any]]) -> None:
    """Set the attributes of each layer."""
    for layer, state in zip(layers, states, strict=True):
        for name, value in state.items():
            try:
                _put(layer, name, value, layers)
            except (TypeError, ValueError, LookupError, AttributeError) as error:
                what = f"{type(layer).__name__}.{name}"
                raise ValueError(f"its {what} does not fit: {error}") from error


def _check_layers(layers: list[Any], saved: Any) -> None:
    """Refuse what is not the attributes of these layers."""
    if not (isinstance(saved, dict) and {"layers", "states"} <= saved.keys()):
        raise ValueError("it is not the state of an environment")
    if saved["layers"] != layer_names(layers):
        raise NotPlainError(
            f"it was saved from {saved['layers']} and this one is {layer_names(layers)}"
        )
    states = saved["states"]
    is_whole = isinstance(states, list) and all(isinstance(state, dict) for state in states)
    if not is_whole or len(states) != len(layers):
        raise ValueError("it does not have the attributes of each layer")


def _settable(layer: Any, saved: dict[str, Any], layers: list[Any]) -> dict[str, Any]:
    """Take the attributes of a layer to set: paths stay as the environment was built."""
    for name, value in saved.items():
        _check_attribute(layer, name, value, layers)
        _check_model(layer, name, value)
    stays = {name for name in saved if _is_outside(vars(layer).get(name)) or _is_path(saved[name])}
    return {name: value for name, value in saved.items() if name not in stays}


def _check_attribute(layer: Any, name: Any, value: Any, layers: list[Any]) -> None:
    """Refuse to set what :func:`copy_state` leaves out."""
    what = f"{type(layer).__name__}.{str(name)[:40]}"
    if not isinstance(name, str) or name in _BUILT or _is_next(name, layer):
        raise ValueError(f"it sets {what}, which is no state of an environment")
    current = vars(layer).get(name)
    if isinstance(current, types.FunctionType):
        if not isinstance(value, list) or len(value) != len(_cells(current, layers)):
            raise NotPlainError(f"it holds the variables of another {what}")
        return
    if callable(getattr(type(layer), name, None)) and type(value) is not type(current):
        raise ValueError(f"it sets {what}, which is a method")
    if isinstance(current, str) and isinstance(value, bytes):
        raise ValueError(f"it sets {what}, which is text, to bytes")
    if _is_kept(current, layers) and not _is_outside(current):
        raise NotPlainError(f"it holds {what}, which is code or another layer in this one")


def _check_model(layer: Any, name: str, value: Any) -> None:
    """Refuse the data of a MuJoCo model that is not this one, as a reset may change it."""
    if type(vars(layer).get(name)).__name__ != _MUJOCO_DATA:
        return
    if not isinstance(value, dict) or value.get("model") != _digest(layer.model):
        raise NotPlainError(f"{type(layer).__name__}.{name} is of another MuJoCo model")


def _carried(layer: Any, layers: list[Any]) -> dict[str, Any]:
    """Take the attributes of a layer that are its state."""
    state: dict[str, Any] = {}
    for name, value in vars(layer).items():
        if type(value).__name__ == _MUJOCO_DATA:
            state[name] = _read_mujoco(layer.model, value)
        elif isinstance(value, types.FunctionType):
            state[name] = [cell.cell_contents for cell in _cells(value, layers)]
        elif not (name in _BUILT or _is_next(name, layer) or _is_kept(value, layers)):
            state[name] = value
    return state


def _is_next(name: str, layer: Any) -> bool:
    """Return whether an attribute is what a wrapper wraps."""
    wrapper = {"env": gym.Wrapper, "venv": VecEnvWrapper}.get(name)
    return wrapper is not None and isinstance(layer, wrapper)


def _cells(function: types.FunctionType, layers: list[Any]) -> list[types.CellType]:
    """List the variables that a closure shares with where it was defined, code excepted."""
    cells = [cell for cell in function.__closure__ or () if cell != types.CellType()]
    return [cell for cell in cells if not _is_kept(cell.cell_contents, layers)]


def _is_kept(value: Any, layers: list[Any]) -> bool:
    """Return whether a value belongs to the process, or is state that a layer carries."""
    if isinstance(value, types.MethodType):
        value = value.__self__
    if isinstance(value, types.FunctionType):
        return not _cells(value, layers)
    # Some wrappers of vectorised environments keep what they wrap under a second name.
    is_layer = isinstance(value, VecEnv) or any(value is layer for layer in layers)
    return is_layer or isinstance(value, _CODE) or _is_outside(value)


def _is_outside(value: Any) -> bool:
    """Return whether a value is of the process, or a path."""
    module, name = str(getattr(type(value), "__module__", "")), type(value).__name__
    if module.partition(".")[0] == "pygame":
        return name in _PYGAME
    is_of_process = f"{module}.".startswith(tuple(f"{each}." for each in _PROCESS))
    return (is_of_process and name != _MUJOCO_DATA) or _is_path(value)


def _is_path(value: Any) -> bool:
    """Return whether a value may name a place on the disk, other than by a single name."""
    if not isinstance(value, str):
        return isinstance(value, os.PathLike)
    return value.startswith(("~", "..")) or "/" in value or "\\" in value


def _put(layer: Any, attribute: str, value: Any, layers: list[Any]) -> None:
    """Set an attribute; a space and a simulator stay the same object, as others refer to them."""
    current = vars(layer).get(attribute)
    if type(current).__name__ == _MUJOCO_DATA:
        _write_mujoco(layer.model, current, value)
    elif isinstance(current, types.FunctionType):
        for cell, content in zip(_cells(current, layers), value, strict=True):
            cell.cell_contents = content
    elif isinstance(current, spaces.Space) and type(current) is type(value):
        vars(current).update(vars(value))
    else:
        vars(layer)[attribute] = value


def _read_mujoco(model: Any, data: Any) -> dict[str, Any]:
    """
    Copy a MuJoCo simulation: its state, and what the last step computed from it.

    The latter is of the state before the last step, and rewards and observations read it.
    """
    import mujoco  # type: ignore[import-untyped] # it has no annotations

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, state, kind)
    arrays = {name: array.copy() for name, array in _arrays(data)}
    return {"state": state, "arrays": arrays, "model": _digest(model)}


def _write_mujoco(model: Any, data: Any, saved: dict[str, Any]) -> None:
    """Put a copied simulation into another one of the same model."""
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    mujoco.mj_setState(model, data, saved["state"], kind)
    mujoco.mj_forward(model, data)  # which makes the lists of contacts and constraints
    for name, array in _arrays(data):
        computed = saved["arrays"].get(name)
        if computed is not None and computed.shape == array.shape:
            array[...] = computed
    mujoco.mj_setState(model, data, saved["state"], kind)


def _digest(model: Any) -> str:
    """Identify a model by its numbers."""
    digest = hashlib.sha256()
    for owner in (model, model.opt):
        for name in dir(owner):
            value = None if name.startswith("_") else getattr(owner, name, None)
            if isinstance(value, (np.ndarray, float)):
                digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _arrays(data: Any) -> list[tuple[str, np.ndarray]]:
    """List the arrays of a simulation that have a size of their own, and are no constraint's."""
    names = [name for name in dir(data) if not name.startswith(("_", "efc_", "iefc_", "efm_"))]
    values = [(name, getattr(data, name, None)) for name in names]
    return [(name, value) for name, value in values if isinstance(value, np.ndarray)]


class Resumable(gym.Wrapper[Any, Any, Any, Any]):
    """
    Let an environment in a process of its own take part in checkpoints.

    Make it the outermost wrapper of each environment of a ``SubprocVecEnv``. Those of a
    ``DummyVecEnv`` do not need it.
    """

    # Both return errors: one that is raised in the environment's process would end the process.
    def copy_checkpoint_state(self) -> bytes | str:
        """
        Copy the state of the environment.

        :return: plain data, or why it cannot be copied
        """
        try:
            return plain_dumps([copy_state(layers_of(self.env)), random_states()])
        except NotPlainError as error:
            return str(error)

    def put_checkpoint_state(self, data: bytes) -> ValueError | None:
        """
        Restore the state of the environment.

        :param data: from ``copy_checkpoint_state``
        :return: the error that says why it cannot be restored; ``None`` if it was
        """
        try:
            state, random = _state_and_generators(data)
            put_state(layers_of(self.env), state)
        except ValueError as error:
            return error
        set_random_states(random)
        return None


def _state_and_generators(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """Read the state of an environment in a process of its own, and the process's generators."""
    parts = plain_loads(data)
    is_pair = isinstance(parts, list) and len(parts) == 2 and isinstance(parts[0], bytes)
    if not (is_pair and are_random_states(parts[1])):
        raise ValueError("it is not the state of an environment and its process")
    return parts[0], parts[1]


def copy_states(base: VecEnv) -> list[bytes]:
    """
    Copy the states of all environments.

    :param base: vectorised environment without wrappers
    :return: plain data for each
    :raises NotPlainError: if they cannot be copied
    """
    if isinstance(base, DummyVecEnv):
        return [copy_state(layers_of(env)) for env in base.envs]
    if not _are_resumable(base):
        raise NotPlainError(
            f"a {type(base).__name__} whose environments are not wrapped in "
            f"sb3_trpo.checkpoint.Resumable, outermost"
        )
    states = base.env_method("copy_checkpoint_state")
    reasons = [state for state in states if isinstance(state, str)]
    if reasons:
        raise NotPlainError(reasons[0])
    return states


def put_states(base: VecEnv, states: list[bytes]) -> None:
    """
    Restore the states of all environments.

    :param base: vectorised environment without wrappers
    :param states: from :func:`copy_states`
    :raises NotPlainError: if the environments are others
    :raises ValueError: if a state is not that of an environment; those in processes of their own
        may have theirs by then
    """
    if isinstance(base, DummyVecEnv):
        all_layers = [layers_of(env) for env in base.envs]
        read = [_read_states(*pair) for pair in zip(all_layers, states, strict=True)]
        for layers, attributes in zip(all_layers, read, strict=True):
            _set_states(layers, attributes)
        return
    if not _are_resumable(base):
        raise NotPlainError(f"the environments of this {type(base).__name__} are not Resumable")
    for index, state in enumerate(states):
        (error,) = base.env_method("put_checkpoint_state", state, indices=index)
        if error is not None:
            raise error


def _are_resumable(base: VecEnv) -> bool:
    """Return whether all environments have the wrapper :class:`Resumable` outermost."""
    try:
        names = base.env_method("class_name") if base.has_attr("copy_checkpoint_state") else [""]
    except Exception:  # vectorised environments of other packages may have neither method
        return False
    return set(names) == {Resumable.__name__}
