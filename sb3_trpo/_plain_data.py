"""
Write values as plain data: JSON, and the bytes of arrays.

Reading runs nothing that the data name. Numbers, text, containers, arrays, tensors and random
generators are rebuilt here; an object is rebuilt from its attributes, without its constructor, and
only if the caller passes its class. An object that occurs twice is one object again, and one that
the caller has already is not written but named.
"""

import collections
import json
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch as th

_ATOMS = (type(None), bool, int, float, str)
_BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
_HEAP_TYPE = 1 << 9  # of a class that was written in Python
# Their objects stand for something outside of this process, which attributes do not hold.
_OUTSIDE = ("ctypes", "multiprocessing", "socket", "subprocess", "threading")


class NotPlainError(ValueError):
    """A value that cannot be written as plain data."""


def plain_dumps(value: Any, there: Sequence[Any] = ()) -> bytes:
    """
    Write a value.

    :param value: numbers, text, containers, arrays, tensors, random generators, and objects with
        nothing but such attributes
    :param there: objects that the reader has; of these, their positions are written
    :return: a length, JSON and the arrays' bytes
    :raises NotPlainError: if it holds anything else
    """
    written = _written(value, there)
    text = json.dumps({"root": written.root, "nodes": written.nodes}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(written.blob)


def plain_loads(data: bytes, classes: Iterable[type] = (), there: Sequence[Any] = ()) -> Any:
    """
    Read a value.

    :param data: from :func:`plain_dumps`
    :param classes: of objects that may be rebuilt
    :param there: the objects that were named by their positions
    :return: the value
    :raises ValueError: if the data are damaged or name another class
    """
    try:
        end = 8 + int.from_bytes(data[:8], "little")
        content = json.loads(data[8:end])
        return _Reader(content["nodes"], data[end:], classes, there).value(content["root"])
    except NotPlainError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, RecursionError, AttributeError) as error:
        raise ValueError(f"damaged data: {type(error).__name__}: {error}") from error


def classes_in(value: Any, there: Sequence[Any] = ()) -> set[type]:
    """
    List the classes of the objects that a value holds.

    :param value: as for :func:`plain_dumps`
    :param there: as for :func:`plain_dumps`
    :return: the classes
    :raises NotPlainError: as :func:`plain_dumps` does
    """
    return _written(value, there).classes


def texts_in(value: Any, there: Sequence[Any] = ()) -> set[str]:
    """
    List the text that a value holds, keys included.

    :param value: as for :func:`plain_dumps`
    :param there: as for :func:`plain_dumps`
    :return: each text once
    :raises NotPlainError: as :func:`plain_dumps` does
    """
    return _written(value, there).texts


def _written(value: Any, there: Sequence[Any]) -> "_Writer":
    writer = _Writer(there)
    try:
        writer.root = writer.node(value)
    except RecursionError:
        raise NotPlainError("objects that refer to each other in too long a chain") from None
    return writer


class _Writer:
    """
    Turn values into nodes. A node is an atom, or ``[position]`` of an entry in ``nodes``.

    :param there: objects that the reader has
    """

    def __init__(self, there: Sequence[Any]) -> None:
        self._there = {id(each): position for position, each in enumerate(there)}
        self.root: Any = None
        self.nodes: list[Any] = []
        self.blob = bytearray()
        self.classes: set[type] = set()
        self.texts: set[str] = set()
        self._positions: dict[int, int] = {}
        self._parts: dict[int, list[np.ndarray]] = collections.defaultdict(list)
        self._alive: list[Any] = []  # so that no id is used twice

    def node(self, value: Any) -> Any:
        """Write a value, once."""
        if isinstance(value, str):
            self.texts.add(str(value))
        if type(value) in _ATOMS:
            return value
        if id(value) not in self._positions:
            self._positions[id(value)] = position = len(self.nodes)
            self._alive.append(value)
            self.nodes.append(None)
            self.nodes[position] = self._entry(value)
        return [self._positions[id(value)]]

    def _entry(self, value: Any) -> list[Any]:
        """Describe a value: its kind and what it consists of."""
        if id(value) in self._there:
            return ["there", self._there[id(value)]]
        write = _WRITERS.get(type(value))
        if write is not None:
            return write(self, value)
        if isinstance(value, np.generic):
            return ["scalar", *self.array(np.asarray(value))]
        if isinstance(value, np.dtype) and not value.hasobject:
            return ["dtype", value.str]
        return self._object(value)

    def array(self, value: np.ndarray) -> list[Any]:
        """Write an array's dtype, its shape and where its bytes are."""
        if value.dtype.hasobject or value.dtype.names is not None:
            raise NotPlainError(f"an array of dtype {value.dtype}")
        offset = len(self.blob)
        self.blob += value.tobytes()
        return [value.dtype.str, list(value.shape), offset]

    def tensor(self, value: th.Tensor) -> list[Any]:
        """Write a tensor that NumPy could hold, too."""
        try:
            return ["tensor", *self.array(value.detach().cpu().numpy())]
        except (TypeError, RuntimeError) as error:
            raise NotPlainError(f"a tensor of dtype {value.dtype}: {error}") from None

    def own_array(self, value: np.ndarray) -> list[Any]:
        """Write an array that shares its memory with no other one, in its own order."""
        whole: Any = value
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        if any(np.may_share_memory(value, other) for other in self._parts[id(whole)]):
            raise NotPlainError("arrays that share their memory")
        self._parts[id(whole)].append(value)
        if value.flags.f_contiguous and not value.flags.c_contiguous:
            return ["fortran", *self.array(value.T)]
        return ["array", *self.array(value)]

    def set_(self, value: set[Any]) -> list[Any]:
        """Write a set whose order does not depend on what it has held before."""
        if list(set(list(value))) != list(value):
            raise NotPlainError("a set in an order that depends on what it has held before")
        return ["set", *self.items(value)]

    def _object(self, value: Any) -> list[Any]:
        """Write an object's class and attributes."""
        kind = type(value)
        if not _is_plain_class(kind):
            raise NotPlainError(f"a {_name_of(kind)}")
        self.classes.add(kind)
        return ["object", _name_of(kind), self.node(vars(value))]

    def items(self, values: Iterable[Any]) -> list[Any]:
        """Write the values of a container."""
        return [self.node(value) for value in values]

    def list_(self, value: list[Any]) -> list[Any]:
        """Write a list; one of floats, of which there may be many, as an array."""
        if value and all(type(item) is float for item in value):
            return ["floats", *self.array(np.array(value))]
        return ["list", *self.items(value)]

    def dict_(self, value: dict[Any, Any]) -> list[Any]:
        """Write a dictionary's keys and values."""
        kind = "ordered" if type(value) is collections.OrderedDict else "dict"
        return [kind, *([self.node(key), self.node(item)] for key, item in value.items())]

    def generator(self, value: np.random.Generator) -> list[Any]:
        """Write the kind and the state of NumPy's generator."""
        name = type(value.bit_generator).__name__
        if name not in _BIT_GENERATORS:
            raise NotPlainError(f"a random generator of the kind {name}")
        return ["generator", name, self.node(dict(value.bit_generator.state))]


_WRITERS: dict[type, Callable[[_Writer, Any], list[Any]]] = {
    list: _Writer.list_,
    dict: _Writer.dict_,
    collections.OrderedDict: _Writer.dict_,
    tuple: lambda writer, value: ["tuple", *writer.items(value)],
    set: _Writer.set_,
    collections.deque: lambda writer, value: ["deque", value.maxlen, *writer.items(value)],
    bytes: lambda writer, value: ["bytes", *writer.array(np.frombuffer(value, np.uint8))],
    np.ndarray: _Writer.own_array,
    th.Tensor: _Writer.tensor,
    np.random.Generator: _Writer.generator,
    np.random.RandomState: lambda writer, value: [
        "random_state",
        writer.node(value.get_state(legacy=False)),
    ],
    random.Random: lambda writer, value: ["random", writer.node(value.getstate())],
}


def _is_plain_class(kind: type) -> bool:
    """Return whether an object is nothing but a dictionary of attributes."""
    if _module_of(kind).partition(".")[0] in _OUTSIDE or issubclass(kind, type):
        return False
    parents = [parent for parent in kind.__mro__ if parent is not object]
    slots = [vars(parent).get("__slots__") for parent in parents]
    is_python = all(parent.__flags__ & _HEAP_TYPE for parent in parents)
    return is_python and not any(slots) and bool(kind.__dictoffset__)


def _name_of(kind: type) -> str:
    return f"{_module_of(kind)}.{kind.__qualname__}"


def _module_of(kind: type) -> str:
    return str(getattr(kind, "__module__", ""))  # some classes written in C have none


class _Reader:
    """
    Turn nodes into values.

    :param nodes: the entries
    :param blob: the arrays' bytes
    :param classes: of objects that may be rebuilt
    :param there: objects that the data name by their positions
    """

    def __init__(
        self, nodes: list[Any], blob: bytes, classes: Iterable[type], there: Sequence[Any]
    ) -> None:
        self.there = there
        self._nodes = nodes
        self._blob = blob
        self._classes = {_name_of(kind): kind for kind in classes}
        self._made: dict[int, Any] = {}

    def value(self, node: Any) -> Any:
        """Make the value of a node, once."""
        if not isinstance(node, list):
            return node
        (position,) = node
        if position not in self._made:
            kind, *parts = self._nodes[position]
            made = _SHELLS[kind](self, parts)
            self._made[position] = made
            if kind in _FILLERS:  # after it is known, as it may hold itself
                _FILLERS[kind](self, made, parts)
        return self._made[position]

    def array(self, parts: list[Any]) -> np.ndarray:
        """Make an array whose bytes are all there."""
        name, shape, offset = parts
        dtype = np.dtype(name)
        size = int(np.prod(shape, dtype=object))
        if size == 0:
            return np.zeros(shape, dtype)
        return np.frombuffer(self._blob, dtype, size, offset).reshape(shape).copy()

    def object_(self, parts: list[Any]) -> Any:
        """Make an object without attributes."""
        name = parts[0]
        if name not in self._classes:
            raise NotPlainError(f"an object of the class {name}, which is not expected here")
        return object.__new__(self._classes[name])

    def generator(self, parts: list[Any]) -> np.random.Generator:
        """Make a generator of NumPy."""
        name, state = parts
        if name not in _BIT_GENERATORS:
            raise NotPlainError(f"a random generator of the kind {name}")
        bits = getattr(np.random, name)()
        bits.state = self.value(state)
        return np.random.Generator(bits)

    def random_state(self, parts: list[Any]) -> np.random.RandomState:
        """Make an old-style generator of NumPy."""
        made = np.random.RandomState()
        made.set_state(self.value(parts[0]))
        return made

    def random_(self, parts: list[Any]) -> random.Random:
        """Make a generator of Python."""
        made = random.Random()
        made.setstate(self.value(parts[0]))
        return made

    def items(self, parts: list[Any]) -> list[Any]:
        """Make the values of a container."""
        return [self.value(part) for part in parts]


_SHELLS: dict[str, Callable[[_Reader, list[Any]], Any]] = {
    "list": lambda reader, parts: [],
    "floats": lambda reader, parts: reader.array(parts).tolist(),
    "dict": lambda reader, parts: {},
    "ordered": lambda reader, parts: collections.OrderedDict(),
    "set": lambda reader, parts: set(),
    "deque": lambda reader, parts: collections.deque(maxlen=parts[0]),
    "tuple": lambda reader, parts: tuple(reader.items(parts)),
    "bytes": lambda reader, parts: reader.array(parts).tobytes(),
    "array": _Reader.array,
    "fortran": lambda reader, parts: reader.array(parts).T,
    "scalar": lambda reader, parts: reader.array(parts)[()],
    "dtype": lambda reader, parts: np.dtype(parts[0]),
    "tensor": lambda reader, parts: th.from_numpy(reader.array(parts)),
    "object": _Reader.object_,
    "there": lambda reader, parts: reader.there[parts[0]],
    "generator": _Reader.generator,
    "random_state": _Reader.random_state,
    "random": _Reader.random_,
}


def _fill_dict(reader: _Reader, made: dict[Any, Any], parts: list[Any]) -> None:
    made.update((reader.value(key), reader.value(item)) for key, item in parts)


_FILLERS: dict[str, Callable[[_Reader, Any, list[Any]], None]] = {
    "list": lambda reader, made, parts: made.extend(reader.items(parts)),
    "dict": _fill_dict,
    "ordered": _fill_dict,
    "set": lambda reader, made, parts: made.update(reader.items(parts)),
    "deque": lambda reader, made, parts: made.extend(reader.items(parts[1:])),
    "object": lambda reader, made, parts: vars(made).update(reader.value(parts[1])),
}
