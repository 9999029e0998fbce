"""Link what a package requires, and nothing else, into an environment, which pip would copy."""

import argparse
import importlib.metadata as metadata
from pathlib import Path

from packaging.requirements import Requirement


def required(name: str, extras: frozenset[str]) -> dict[str, metadata.Distribution]:
    """
    Follow the requirements of an installed package.

    :param name: of the package
    :param extras: names of those that count
    :return: by name, all that it requires and all that these require
    """
    found: dict[str, metadata.Distribution] = {}
    seen, waiting = set(), [(name, extras)]
    while waiting:
        each = waiting.pop()
        if each in seen:
            continue
        seen.add(each)
        for text in metadata.requires(each[0]) or ():
            requirement = Requirement(text)
            if is_needed(requirement, each[1]):
                found[requirement.name] = metadata.distribution(requirement.name)
                waiting.append((requirement.name, frozenset(requirement.extras)))
    return found


def is_needed(requirement: Requirement, extras: frozenset[str]) -> bool:
    """Evaluate a requirement's marker for no extra and for each of them."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": each}) for each in ("", *extras))


def link(distribution: metadata.Distribution, site: Path) -> None:
    """Link a distribution's modules and metadata; packages may share a folder."""
    for name in {path.parts[0] for path in distribution.files or ()} - {"..", "__pycache__"}:
        if not (site / name).exists():
            (site / name).symlink_to(Path(str(distribution.locate_file(name))))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("requirement", type=Requirement)
    parser.add_argument("site", type=Path)
    arguments = parser.parse_args()
    wanted = arguments.requirement
    for distribution in required(wanted.name, frozenset(wanted.extras)).values():
        link(distribution, arguments.site)
