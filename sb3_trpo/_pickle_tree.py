"""
Read a pickle as an inert tree of what it describes.

A pickle is a program for a stack machine. This reader carries out the operations that build
containers and only writes down the others: a name stays a name, a call stays a call. Nothing is
imported, called or hashed, so nothing of the file can run here, whatever the file says.
"""

import pickletools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

# Saved attributes take hundreds, and statistics of many episodes ten in 30 bytes. Each takes
# microseconds and may take 300 bytes.
_FEW_OPERATIONS = 50_000
_MAX_OPERATIONS = 500_000
# Pickles finish lists and dictionaries by the thousand.
_MAX_OPEN = 20_000


def printable(text: str) -> str:
    """Replace what a terminal could take for a command."""
    return "".join(c if c.isprintable() else "?" for c in text)


@dataclass(frozen=True)
class Name:
    """A class or a function that a pickle refers to."""

    module: str
    name: str

    def __str__(self) -> str:
        return printable(f"{self.module}.{self.name}"[:200])


@dataclass(eq=False, slots=True)
class Node:
    """
    A container, or an object that a pickle wants to be made by a call.

    :param kind: ``list``, ``tuple``, ``dict``, ``set`` or ``frozenset``; or what is called
    :param arguments: of the call
    :param items: what is appended to a container or object
    :param pairs: keys and values that are set in it
    :param state: what ``__setstate__`` would get; ``None`` if there is none
    """

    kind: str | Name
    arguments: Sequence[Any] = ()
    items: list[Any] = field(default_factory=list)
    pairs: list[tuple[Any, Any]] | tuple[()] = ()  # a list where there may be any
    state: Any = None


def read_tree(data: bytes) -> Any:
    """
    Read a pickle.

    :param data: the pickle
    :return: a number, string, bytes or ``None``; a :class:`Name`; or a :class:`Node` of such
    :raises ValueError: if the pickle is damaged or uses an operation that values do not need
    """
    reader = _Reader()
    limit = min(_FEW_OPERATIONS + len(data) // 6, _MAX_OPERATIONS)
    try:
        for operation, argument, _ in islice(pickletools.genops(data), limit):
            if operation.name == "STOP":
                return reader.stack.pop()
            reader.run(operation.name, argument)
            if len(reader.stack) > _MAX_OPEN:
                raise ValueError(f"the pickle has more than {_MAX_OPEN} unfinished values")
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the pickle is damaged ({type(error).__name__})") from error
    raise ValueError(f"the pickle has more than {limit} operations, or no end")


class _Reader:
    """The stack machine; each operation that is known is a row of ``_OPERATIONS``."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, name: str, argument: Any) -> None:
        """Carry out or write down one operation."""
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _OPERATIONS:
            _OPERATIONS[name](self, argument)
        elif name not in _WITHOUT_EFFECT:
            raise ValueError(f"the pickle uses the operation {name}")

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def pop(self, count: int) -> list[Any]:
        """Take the uppermost entries, the last one last."""
        if count > len(self.stack):
            raise IndexError("the stack is too short")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def call(self, _: Any) -> None:
        """Write down a call."""
        function, arguments = self.pop(2)
        if isinstance(function, Node) and isinstance(function.kind, Name):
            # What a call returns is called: no value needs that, and no name ends like this.
            function = Name(function.kind.module, f"{function.kind.name}()")
        if not isinstance(function, Name) or arguments.kind != "tuple":
            raise ValueError("the pickle calls something that is no function")
        self.stack.append(Node(function, arguments.items, pairs=[]))

    def build(self, _: Any) -> None:
        """Write down the state of an object."""
        target, state = self.pop(2)
        if not isinstance(target.kind, Name) or target.state is not None:
            raise ValueError(
                "the pickle sets the state of something that has none, or sets it twice"
            )
        target.state = state
        self.stack.append(target)

    def set_items(self, entries: list[Any]) -> None:
        """Write down keys and values."""
        self.stack[-1].pairs.extend(zip(entries[::2], entries[1::2], strict=True))

    def remember(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def global_name(self, names: list[Any]) -> None:
        module, name = names
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("the pickle refers to something by a name that is not text")
        self.stack.append(Name(module, name))

    def container(self, kind: str, items: list[Any]) -> None:
        self.stack.append(Node(kind, items=items, pairs=[] if kind == "dict" else ()))


_WITHOUT_EFFECT = {"PROTO", "FRAME"}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}

_OPERATIONS: dict[str, Callable[[_Reader, Any], Any]] = {
    "NONE": lambda reader, _: reader.stack.append(None),
    "NEWTRUE": lambda reader, _: reader.stack.append(True),
    "NEWFALSE": lambda reader, _: reader.stack.append(False),
    "MARK": _Reader.mark,
    "POP": lambda reader, _: reader.stack.pop(),
    "POP_MARK": lambda reader, _: reader.pop_mark(),
    "EMPTY_LIST": lambda reader, _: reader.container("list", []),
    "EMPTY_TUPLE": lambda reader, _: reader.container("tuple", []),
    "EMPTY_DICT": lambda reader, _: reader.container("dict", []),
    "EMPTY_SET": lambda reader, _: reader.container("set", []),
    "TUPLE": lambda reader, _: reader.container("tuple", reader.pop_mark()),
    "TUPLE1": lambda reader, _: reader.container("tuple", reader.pop(1)),
    "TUPLE2": lambda reader, _: reader.container("tuple", reader.pop(2)),
    "TUPLE3": lambda reader, _: reader.container("tuple", reader.pop(3)),
    "FROZENSET": lambda reader, _: reader.container("frozenset", reader.pop_mark()),
    "APPEND": lambda reader, _: reader.stack[-2].items.append(reader.stack.pop()),
    "APPENDS": lambda reader, _: _extend(reader.pop_mark(), reader),
    "ADDITEMS": lambda reader, _: _extend(reader.pop_mark(), reader),
    "SETITEM": lambda reader, _: reader.set_items(reader.pop(2)),
    "SETITEMS": lambda reader, _: reader.set_items(reader.pop_mark()),
    "MEMOIZE": _Reader.remember,
    "BINPUT": _Reader.remember,
    "LONG_BINPUT": _Reader.remember,
    "BINGET": lambda reader, index: reader.stack.append(reader.memo[index]),
    "LONG_BINGET": lambda reader, index: reader.stack.append(reader.memo[index]),
    "GLOBAL": lambda reader, names: reader.global_name(names.split(" ", 1)),
    "STACK_GLOBAL": lambda reader, _: reader.global_name(reader.pop(2)),
    "REDUCE": _Reader.call,
    "NEWOBJ": _Reader.call,
    "BUILD": _Reader.build,
}


def _extend(items: list[Any], reader: _Reader) -> None:
    """Append to the container that is uppermost once the items are taken."""
    reader.stack[-1].items.extend(items)
