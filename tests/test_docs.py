"""
The documentation names what there is, and its build refuses what it cannot show.

The tests of the build are slow ones because they need the extra that these run with.
"""

import ast
import inspect
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from sb3_trpo import TRPO

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs" / "pages").glob("*.md"))
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@by_page
def test_every_logger_key_is_one_that_the_readme_has(page: Path) -> None:
    assert not [key for key in re.findall(r"`(train/\w+)`", page.read_text()) if key not in README]


@by_page
def test_every_script_is_python(page: Path) -> None:
    for script in re.findall(r"```python[^\n]*\n(.*?)```", page.read_text(), flags=re.DOTALL):
        ast.parse(script.replace("--8<--", "#"))


def test_every_example_is_on_its_page() -> None:
    text = (ROOT / "docs" / "pages" / "examples.md").read_text()
    shown = set(re.findall(r'^--8<-- "examples/(\w+\.py)"$', text, flags=re.MULTILINE))
    assert shown == {path.name for path in (ROOT / "examples").glob("*.py")}


def test_every_knob_is_an_argument() -> None:
    table = (ROOT / "docs" / "pages" / "parameters.md").read_text()
    knobs = set(re.findall(r"[`\s](\w+)=", table))
    assert len(knobs) > 5
    assert knobs <= inspect.signature(TRPO).parameters.keys()


@pytest.fixture(scope="module")
def build() -> dict[str, Any]:
    pytest.importorskip("griffe")
    pytest.importorskip("latex2mathml")
    return runpy.run_path(str(ROOT / "docs" / "build.py"))


@pytest.mark.slow
def test_unknown_command_in_a_formula_is_refused(build: dict[str, Any]) -> None:
    assert "<mfrac>" in build["formula"](r"\frac{x}{2}")
    with pytest.raises(ValueError, match="nosuch"):
        build["formula"](r"\nosuch x")


@pytest.mark.slow
def test_section_that_the_readme_does_not_have_is_refused(build: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no section 'Resluts'"):
        build["on_page_markdown"]("<!-- README: Resluts -->")


@pytest.mark.slow
def test_section_of_the_readme_comes_without_links_to_files(build: dict[str, Any]) -> None:
    text = build["on_page_markdown"]("above\n<!-- README: The update -->")
    assert text.startswith("above\nThe policy")
    assert "`FisherProduct`" in text
    assert "](" not in text


@pytest.mark.slow
def test_formula_of_a_docstring_goes_over_its_continuation_lines(build: dict[str, Any]) -> None:
    directive = build["MATH_DIRECTIVE"].search("Solve.\n\n.. math:: a +\n    b\n\n:param x: c")
    assert build["fenced"](directive) == "```math\na + b\n```"
