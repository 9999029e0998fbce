"""Notice that a method of a class was replaced, as some packages patch torch's and SB3's."""

from collections.abc import Iterable, Mapping


class ClassMethods:
    """
    Methods of some classes, as they are now.

    :param names: names of methods by class
    """

    def __init__(self, names: Mapping[type, Iterable[str]]) -> None:
        self._found = [
            (kind, name, getattr(kind, name)) for kind, each in names.items() for name in each
        ]

    def are_untouched(self) -> bool:
        """Return whether they still are what they were."""
        return all(getattr(kind, name) is found for kind, name, found in self._found)
