"""
Put the hyperparameter files into the built package; all else about it is in ``setup.cfg``.

The hyperparameter files lie beside the package and not in it, where users find them. To map the
folder with ``package_dir`` would do the same, but then an editable install is found by an import
hook, which type checkers cannot follow. The README's links become absolute, as the package index
shows it without its repository.
"""

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FILES = "https://github.com/sb3-trpo/sb3_trpo"
CONFIGS = sorted(path.as_posix() for path in Path("zoo_configs").glob("*.yml"))


class BuildWithConfigs(build_py):
    """Copy ``zoo_configs`` to ``sb3_trpo/zoo_configs``; an editable install reads the original."""

    def run(self) -> None:
        """Build the package."""
        super().run()
        if not self.editable_mode:
            for path in CONFIGS:
                target = Path(self.build_lib, "sb3_trpo", path)
                target.parent.mkdir(exist_ok=True)
                self.copy_file(path, str(target))

    def get_source_files(self) -> list[str]:
        """List what a source distribution holds."""
        return [*super().get_source_files(), *CONFIGS]


def with_absolute_links(markdown: str) -> str:
    """Let links lead to the repository's files, and pictures to their raw content."""
    pictures = re.sub(r"(!\[[^\]]*\]\()(?!https?:)", rf"\1{FILES}/raw/main/", markdown)
    return re.sub(r"(\]\()(?!https?:|#)", rf"\1{FILES}/blob/main/", pictures)


setup(
    cmdclass={"build_py": BuildWithConfigs},
    long_description=with_absolute_links(Path("README.md").read_text(encoding="utf-8")),
)
