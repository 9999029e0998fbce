"""Torch's distributions, made when something of them is read."""

from collections.abc import Callable
from typing import Any

import torch as th
from torch import distributions as td


class _Lazy:
    """Becomes the distribution that its class derives from when anything of it is read."""

    def __getattribute__(self, name: str) -> Any:
        arguments = object.__getattribute__(self, "__dict__").pop("_arguments")
        kind: Any = type(self).__mro__[2]
        object.__setattr__(self, "__class__", kind)
        kind.__init__(self, **arguments())
        return getattr(self, name)


class _Normal(_Lazy, td.Normal):
    pass


class _Categorical(_Lazy, td.Categorical):
    pass


class _Bernoulli(_Lazy, td.Bernoulli):
    pass


_LAZY: dict[type[td.Distribution], type[Any]] = {
    td.Normal: _Normal,
    td.Categorical: _Categorical,
    td.Bernoulli: _Bernoulli,
}


def later(
    kind: type[td.Distribution], arguments: Callable[[], dict[str, th.Tensor]]
) -> td.Distribution:
    """
    Make a distribution that costs next to nothing until something reads it.

    A policy has a new one at every step, and hardly any program looks at it.

    :param kind: ``Normal``, ``Categorical`` or ``Bernoulli``
    :param arguments: returns those of its constructor, whenever it is called
    :return: an object that is of this class from the first look at it on
    """
    lazy: td.Distribution = object.__new__(_LAZY[kind])
    object.__setattr__(lazy, "_arguments", arguments)
    return lazy
