"""What callbacks may look at."""

from collections.abc import Iterator
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback

# Their callbacks look at no distribution.
_LIBRARIES = ("sb3_trpo", "stable_baselines3", "sb3_contrib", "rl_zoo3")


def may_read_distribution(callback: BaseCallback) -> bool:
    """
    Return whether a callback may read ``policy.action_dist`` at a step.

    :param callback: of ``learn``, with others in it
    :return: whether it, or one in it, is of none of the libraries that are known not to
    """
    return any(map(_is_foreign, _inside(callback, set())))


def _is_foreign(callback: BaseCallback) -> bool:
    """Return whether a callback was written by the user, as a class or a function."""
    library = type(callback).__module__.partition(".")[0]
    return library not in _LIBRARIES or isinstance(callback, ConvertCallback)


def _inside(value: Any, seen: set[int]) -> Iterator[BaseCallback]:
    """List a callback and those that it holds, in lists too."""
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _inside(each, seen)
    elif isinstance(value, BaseCallback) and id(value) not in seen:
        seen.add(id(value))
        yield value
        yield from _inside(list(vars(value).values()), seen)
