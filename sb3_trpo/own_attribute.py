"""Attributes that one object has for as long as a block runs."""

from collections.abc import Iterator
from contextlib import contextmanager


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
        if attributes.get(name) is value:
            del attributes[name]
            attributes.update(before)
