"""Print setup.cfg's requirements at their lower bounds, as a constraints file for pip."""

import configparser
import re
from pathlib import Path

SETUP = Path(__file__).parents[1] / "setup.cfg"


def lowest_versions(text: str) -> list[str]:
    """
    Pin every requirement that has a lower bound.

    :param text: of setup.cfg
    :return: ``name==version`` in order; a constraint has no extras
    """
    config = configparser.ConfigParser()
    config.read_string(text)
    groups = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    bounds = re.findall(r"^([\w.-]+)(?:\[.*\])?>=([\w.]+)$", "\n".join(groups), flags=re.MULTILINE)
    return [f"{name}=={version}" for name, version in bounds]


if __name__ == "__main__":
    print(*lowest_versions(SETUP.read_text()), sep="\n")
