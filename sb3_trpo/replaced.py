"""Attributes that one object has for as long as a block runs."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """
    Give an object an attribute of its own for the duration of a block.

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
        attributes.pop(name, None)
        attributes.update(before)
