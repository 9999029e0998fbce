"""What one object has in place of its class's method for as long as a block runs."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType, ModuleType
from typing import Any


class OwnMethod:
    """
    A callable that stands in for a method of one object.

    Copies and pickles of the object get what is stood in for: its class's method, or what the
    object was given before. After the block a reference to this that someone has kept, such as a
    wrapper's, should come to the same; ``is_current`` tells.

    :param owner: of the method
    :param name: of the method
    """

    def __init__(self, owner: object, name: str) -> None:
        self._owner, self._name = owner, name
        self._given = vars(owner).get(name)
        self.is_current = True

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Return the method of the owner's copy."""
        if self._given is not None:
            return copy.deepcopy(self._given, memo)
        owner = memo.get(id(self._owner), self._owner)
        return MethodType(getattr(type(self._owner), self._name), owner)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return the unpickled owner's method: it has no attributes yet when this runs."""
        if self._given is not None:
            return _itself, (self._given,)
        return getattr, (self._owner, self._name)


def _itself(value: object) -> object:
    """Unpickle what was pickled."""
    return value


def is_unpatched(method: object, module: ModuleType) -> bool:
    """
    Tell whether a method is the one of a module's file, and not what someone has patched in.

    :param method: of a class of the module
    :param module: where the class is
    :return: whether the method was written there; a wrapper that bears its name was not
    """
    return getattr(method, "__globals__", None) is vars(module)


@contextmanager
def own_attribute(owner: object, name: str, value: object) -> Iterator[None]:
    """
    Give an object an attribute of its own for the duration of a block.

    What replaces it in the block, such as a user's wrapper, stays.

    :param owner: with a dictionary
    :param name: of the attribute
    :param value: what it is in the block
    :return: context manager
    """
    attributes = vars(owner)
    before = {name: attributes[name]} if name in attributes else {}
    attributes[name] = value
    try:
        yield
    finally:
        if isinstance(value, OwnMethod):
            value.is_current = False
        if attributes.get(name) is value:
            del attributes[name]
            attributes.update(before)
