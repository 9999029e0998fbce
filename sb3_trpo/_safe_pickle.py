"""
Load values from an untrusted pickle.

:mod:`~sb3_trpo._pickle_tree` reads what the pickle describes; this module makes values of it. Of
what a pickle can name, only two kinds exist here. A few types of values each have a function in
``_MAKERS`` that checks what it is given and calls the type's own constructor; ``__reduce__``,
``__setstate__`` and ``__new__`` are not used. A space of a class of the program is made of its
attributes. Classes may occur as values, too, if they are in a module that the program has already
imported and derive from a class that saved models refer to, such as a features extractor. There
are no functions.
"""

import collections
import math
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from torch import nn

from sb3_trpo._pickle_tree import Name, Node, read_tree

# No saved attribute comes near these; more is a bomb.
_MAX_DEPTH = 30
_MAX_VALUES = 100_000

_BY_VALUE = ("cloudpickle", "types", "_cloudpickle", "dill", "marshal")


class UntrustedError(ValueError):
    """A pickle describes what cannot be loaded without trust; the message says what."""


class ByValueError(UntrustedError):
    """A pickle contains a function or a class, not just its name."""


@dataclass(frozen=True)
class Parts:
    """
    What a pickle wants an object to be made of, as values.

    :param arguments: of its constructor
    :param items: what is appended to it
    :param pairs: keys and values that are set in it
    :param state: its state; ``None`` if it has none
    """

    arguments: tuple[Any, ...]
    items: list[Any]
    pairs: list[tuple[Any, Any]]
    state: Any


Maker = Callable[[Parts], Any]


@dataclass(frozen=True)
class FromState:
    """
    Makes an object of its attributes alone.

    :param make: makes the object of a dictionary of attributes
    :param attributes: those that are read; the others may be anything. ``None`` for all but the
        random generator of a space
    """

    make: Callable[[dict[str, Any]], Any]
    attributes: tuple[str, ...] | None

    def of(self, node: Node) -> Node:
        """Return the dictionary of the attributes that are read, of what a pickle describes."""
        state = node.state
        has_more = node.arguments or node.items or node.pairs
        if has_more or not isinstance(state, Node) or state.kind != "dict":
            raise UntrustedError("an object that is not made of its attributes")
        return replace(state, pairs=[pair for pair in state.pairs if self._reads(pair[0])])

    def _reads(self, name: Any) -> bool:
        """Return whether an attribute is read."""
        return name != "_np_random" if self.attributes is None else name in self.attributes


Makers = Mapping[tuple[str, str], Maker | FromState]


def safe_loads(data: bytes, *, what: str, also: Makers | None = None) -> Any:
    """
    Load a value from a pickle without running anything that the pickle names.

    :param data: the pickle
    :param what: names the value in errors
    :param also: further objects that may occur, by module and name, each with a function that
        checks its parts and makes it, or a :class:`FromState`
    :return: the value
    :raises ValueError: if the pickle is damaged, too large for what it holds, or describes anything
        that is not allowed
    """
    loader = _Loader({**_MAKERS, **(also or {})}, _MAX_VALUES + 2 * len(data))
    try:
        return loader.value(read_tree(data), 0)
    except UntrustedError as error:
        raise type(error)(f"{what} holds {error}") from None
    except _MISMATCHES as error:
        raise UntrustedError(f"{what} is damaged: {error}") from error


# What constructors raise when their arguments are of other kinds.
_MISMATCHES = (
    *(ValueError, TypeError, ArithmeticError, AttributeError, LookupError),
    AssertionError,
)


class _Loader:
    """
    Make values of a tree.

    :param makers: functions that make objects
    :param budget: largest number of values and bytes, each counted as often as it is referred to
    """

    def __init__(self, makers: Makers, budget: int) -> None:
        self.makers = makers
        self.budget = budget

    def value(self, node: Any, depth: int) -> Any:
        """Make the value of one node."""
        self._spend(1 + (len(node) if isinstance(node, (bytes, bytearray)) else 0))
        if depth > _MAX_DEPTH:
            raise UntrustedError(f"values nested more than {_MAX_DEPTH} deep")
        if isinstance(node, Name):
            return class_of(node)
        if not isinstance(node, Node):
            return node
        if isinstance(node.kind, str):
            return _CONTAINERS[node.kind](self._parts(node, depth + 1))
        maker = self.makers.get(_today(node.kind)) or _own_space(node.kind)
        if maker is None:
            raise _refusal(node.kind, "an object made by")
        if isinstance(maker, FromState):
            return maker.make(self.value(maker.of(node), depth + 1))
        return maker(self._parts(node, depth + 1))

    def _parts(self, node: Node, depth: int) -> Parts:
        """Make the values of what a node consists of."""
        items = [self.value(item, depth) for item in node.items]
        pairs = [(self.value(key, depth), self.value(item, depth)) for key, item in node.pairs]
        arguments = tuple(self.value(each, depth) for each in node.arguments)
        return Parts(arguments, items, pairs, self.value(node.state, depth))

    def _spend(self, count: int) -> None:
        self.budget -= count
        if self.budget < 0:
            raise UntrustedError("more than its size allows: a bomb")


# Where names have moved since files were written.
_MOVED = (
    (re.compile(r"numpy\.core(\..*)?"), r"numpy._core\1"),
    (re.compile(r"gym(nasium)?\.spaces(\..*)?"), "gymnasium.spaces"),
    (re.compile(r"pathlib\._local"), "pathlib"),
)


def _today(name: Name) -> tuple[str, str]:
    """Return the module and name under which something is known now."""
    for pattern, module in _MOVED:
        match = pattern.fullmatch(name.module)
        if match:
            return match.expand(module), name.name
    return name.module, name.name


def _refusal(name: Name, action: str) -> UntrustedError:
    """Say what a pickle wants, in one line."""
    if name.module.partition(".")[0] in _BY_VALUE:
        return ByValueError(
            "code pickled by value: a function, or a class defined in a script or a notebook"
        )
    return UntrustedError(f"{action} {name}")


# What may occur as a class, not to be called here. A class of the program itself has to derive
# from one of these.
_BASES: tuple[type, ...] = (nn.Module, spaces.Space, BaseBuffer, th.optim.Optimizer)


def class_of(name: Name) -> Any:
    """
    Find a class, or a dtype of torch, that is loaded already.

    Modules are looked up and never imported, and their attributes are read from their dictionary,
    so that no ``__getattr__`` runs.

    :param name: its module and name
    :return: the class
    :raises UntrustedError: if it is not there, or is not one of those that may occur
    """
    found = _imported(name)
    if isinstance(found, th.dtype) or (isinstance(found, type) and _may_occur(found)):
        return found
    if _today(name)[0] not in sys.modules:
        raise _refusal(name, "the name of something that this program has not imported:")
    raise _refusal(name, "the name")


def _imported(name: Name) -> Any:
    """Look up what a module that is loaded already has by a name."""
    module_name, attribute = _today(name)
    module = sys.modules.get(module_name)
    return module.__dict__.get(attribute) if isinstance(module, ModuleType) else None


def _may_occur(kind: type) -> bool:
    """Return whether a class may occur as a value; no hook of the class is asked."""
    module = kind.__module__
    if module.partition(".")[0] == "torch":  # of its modules, the layers, not the compilers
        return module == "torch.optim" or module.startswith(("torch.nn.modules.", "torch.optim."))
    if module.partition(".")[0] == "numpy":
        return np.number in kind.__mro__ or kind in (np.ndarray, np.bool_)
    return any(base in kind.__mro__ for base in _BASES)


def _plain_keys(keys: Iterable[Any]) -> None:
    """Refuse a key whose hash could take long or run code."""
    for key in keys:
        if not isinstance(key, (str, int, float, bytes, type(None), np.generic)):
            raise UntrustedError(f"a dictionary or set with a key of type {type(key).__name__}")


def _dictionary(parts: Parts) -> dict[Any, Any]:
    _plain_keys(key for key, _ in parts.pairs)
    return dict(parts.pairs)


def _set(parts: Parts) -> set[Any]:
    _plain_keys(parts.items)
    return set(parts.items)


_CONTAINERS: dict[str, Maker] = {
    "list": lambda parts: parts.items,
    "tuple": lambda parts: tuple(parts.items),
    "dict": _dictionary,
    "set": _set,
    "frozenset": lambda parts: frozenset(_set(parts)),
}


def _deque(parts: Parts) -> collections.deque[Any]:
    items, maxlen = parts.arguments or ((), None)
    return collections.deque([*items, *parts.items], maxlen)


def _ordered_dict(parts: Parts) -> collections.OrderedDict[Any, Any]:
    pairs = [tuple(pair) for pair in parts.arguments[0]] if parts.arguments else parts.pairs
    _plain_keys(key for key, _ in pairs)
    return collections.OrderedDict(pairs)


def _path(parts: Parts) -> pathlib.Path:
    if not all(isinstance(part, str) for part in parts.arguments):
        raise UntrustedError("a path that is not text")
    return pathlib.Path(*parts.arguments)


_NUMERIC = re.compile(r"b1|[iu][1248]|f[248]|c8|c16")


def _dtype(parts: Parts) -> np.dtype[Any]:
    """Make a dtype of numbers; others may hold objects, or be larger than their data."""
    kind = parts.arguments[0]
    if not (isinstance(kind, str) and _NUMERIC.fullmatch(kind)):
        raise UntrustedError(f"an array of dtype {str(kind)[:40]!r}, which is not numeric")
    order: Any = parts.state[1] if parts.state else "="
    return np.dtype(kind).newbyteorder("=" if order == "|" else order)


def _array(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    """Make an array whose data are all there."""
    if not isinstance(dtype, np.dtype) or not isinstance(data, (bytes, bytearray)):
        raise UntrustedError("an array that is not made of bytes and a dtype")
    array = np.frombuffer(data, dtype) if data else np.zeros(0, dtype)
    return array.reshape(shape, order="F" if order == "F" else "C").copy(order="K")


def _reconstructed(parts: Parts) -> np.ndarray:
    if parts.arguments[0] is not np.ndarray:
        raise UntrustedError("a subclass of numpy.ndarray")
    _, shape, dtype, is_fortran, data = parts.state
    return _array(data, dtype, shape, "F" if is_fortran else "C")


def _scalar(parts: Parts) -> Any:
    dtype, data = parts.arguments
    return _array(data, dtype, (), "C")[()]


def _number(value: Any) -> float:
    """Check that a parameter of a schedule is a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise UntrustedError(f"a schedule of {type(value).__name__}")
    if not math.isfinite(value):
        raise UntrustedError(f"a schedule of {value}")
    return float(value)


def _constant_schedule(state: dict[str, Any]) -> ConstantSchedule:
    return ConstantSchedule(_number(state["val"]))


def _linear_schedule(state: dict[str, Any]) -> LinearSchedule:
    numbers = [_number(state[key]) for key in ("start", "end", "end_fraction")]
    if numbers[2] <= 0:
        raise UntrustedError(f"a schedule with end_fraction={numbers[2]}")
    return LinearSchedule(*numbers)


def _zoos_schedule(state: dict[str, Any]) -> LinearSchedule:
    """Make SB3's schedule of the RL Zoo's, which falls from a value to 0."""
    return LinearSchedule(_number(state["initial_value"]), 0.0, 1.0)


def _float_schedule(state: dict[str, Any]) -> FloatSchedule:
    inner = state["value_schedule"]
    if type(inner) not in (ConstantSchedule, LinearSchedule):
        raise UntrustedError(f"a schedule of {type(inner).__name__}")
    return FloatSchedule(inner)


def _shape(state: dict[str, Any]) -> tuple[int, ...]:
    """Read the shape of a space, which older versions of gym had under another name."""
    return tuple(state["_shape"] if "_shape" in state else state["shape"])


def _type(state: dict[str, Any]) -> Any:
    """Read the type of a space's elements."""
    return np.dtype(state["dtype"]).type


def _box(state: dict[str, Any]) -> spaces.Box:
    low, high = state["low"], state["high"]
    if not (isinstance(low, np.ndarray) and isinstance(high, np.ndarray)):
        raise UntrustedError("a Box whose bounds are not arrays")
    return spaces.Box(low, high, _shape(state), _type(state))


def _discrete(state: dict[str, Any]) -> spaces.Discrete:
    return spaces.Discrete(
        int(state["n"]), start=int(state.get("start", 0)), dtype=_type({"dtype": "i8", **state})
    )


def _multi_discrete(state: dict[str, Any]) -> spaces.MultiDiscrete:
    nvec, start = state["nvec"], state.get("start")
    if not isinstance(nvec, np.ndarray) or not isinstance(start, (np.ndarray, type(None))):
        raise UntrustedError("a MultiDiscrete whose counts are not an array")
    return spaces.MultiDiscrete(nvec, dtype=_type(state), start=start)


def _multi_binary(state: dict[str, Any]) -> spaces.MultiBinary:
    shape = _shape(state)
    return spaces.MultiBinary(shape[0] if len(shape) == 1 else list(shape))


def _dict_space(state: dict[str, Any]) -> spaces.Dict:
    inner = state["spaces"]
    kinds = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    if not isinstance(inner, dict) or not all(isinstance(each, kinds) for each in inner.values()):
        raise UntrustedError("a Dict space of something else than plain spaces")
    space = spaces.Dict(inner)
    space.spaces = inner  # the constructor may sort them, and networks depend on their order
    return space


def _own_space(name: Name) -> FromState | None:
    """
    Find how a space of a class of the program is made, which is derived from one of gymnasium's.

    Gymnasium's part of its attributes is checked, the others are values. No method of it is called.
    """
    kind = _imported(name)
    parents = kind.__mro__ if isinstance(kind, type) else ()
    base = next((each for each in parents if each in _SPACES), None)
    if base is None:
        return None

    def make(state: dict[str, Any]) -> Any:
        if any(_owner(kind, method) not in (base, spaces.Space, object) for method in _OF_PICKLE):
            raise UntrustedError(f"a {name}, whose class restores its attributes by own code")
        methods = [key for key in state if any(callable(vars(each).get(key)) for each in parents)]
        if methods:
            raise UntrustedError(f"a {name} whose method {methods[0]} is replaced")
        made = object.__new__(kind)
        vars(made).update({**state, **vars(_SPACES[base].make(state))})
        return made

    return FromState(make, None)


def _owner(kind: type, method: str) -> type:
    """Return the class that a method comes from."""
    return next((each for each in kind.__mro__ if method in vars(each)), object)


_OF_PICKLE = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")
_SHAPED = ("_shape", "shape", "dtype")

_SPACES: dict[type, FromState] = {
    spaces.Box: FromState(_box, ("low", "high", *_SHAPED)),
    spaces.Discrete: FromState(_discrete, ("n", "start", *_SHAPED)),
    spaces.MultiDiscrete: FromState(_multi_discrete, ("nvec", "start", *_SHAPED)),
    spaces.MultiBinary: FromState(_multi_binary, _SHAPED),
    spaces.Dict: FromState(_dict_space, ("spaces",)),
}

# What may be made, by today's module and name.
_MAKERS: Makers = {
    ("builtins", "set"): lambda parts: _set(replace(parts, items=parts.arguments[0])),
    ("builtins", "frozenset"): lambda parts: frozenset(
        _set(replace(parts, items=parts.arguments[0]))
    ),
    ("collections", "OrderedDict"): _ordered_dict,
    ("collections", "deque"): _deque,
    ("numpy", "dtype"): _dtype,
    ("numpy._core.multiarray", "_reconstruct"): _reconstructed,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): lambda parts: _array(*parts.arguments),
    ("pathlib", "PosixPath"): _path,
    ("pathlib", "WindowsPath"): _path,
    ("torch", "Size"): lambda parts: tuple(parts.arguments[0]),
    **{("gymnasium.spaces", kind.__name__): maker for kind, maker in _SPACES.items()},
    ("stable_baselines3.common.utils", "ConstantSchedule"): FromState(_constant_schedule, ("val",)),
    ("stable_baselines3.common.utils", "LinearSchedule"): FromState(
        _linear_schedule, ("start", "end", "end_fraction")
    ),
    ("stable_baselines3.common.utils", "FloatSchedule"): FromState(
        _float_schedule, ("value_schedule",)
    ),
    ("rl_zoo3.utils", "SimpleLinearSchedule"): FromState(_zoos_schedule, ("initial_value",)),
}
