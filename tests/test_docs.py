"""
The documentation names what there is, and its build refuses what it cannot show.

The tests of the build are slow ones because they need the extra that these run with.
"""

import ast
import inspect
import json
import re
import runpy
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import sb3_trpo
from sb3_trpo import TRPO
from tests.environments import BOX_ACTIONS, VECTOR, ToyEnv

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "pages"
PAGES = sorted(DOCS.glob("*.md"))
PARAMETERS = (DOCS / "parameters.md").read_text()
BENCHMARKS = (DOCS / "benchmarks.md").read_text()
ARGUMENTS = list(inspect.signature(TRPO).parameters)
LEARNING = sorted((ROOT / "benchmarks" / "results").glob("learning_*.json"))
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@by_page
def test_every_logger_key_is_one_that_is_explained(page: Path) -> None:
    keys = re.findall(r"`(train/\w+)`", page.read_text())
    assert not [key for key in keys if f"`{key}`" not in PARAMETERS]


def test_every_logger_key_is_explained() -> None:
    model = TRPO("MlpPolicy", ToyEnv(VECTOR, BOX_ACTIONS, 9), n_steps=32, batch_size=32)
    model.learn(32)
    keys = [key for key in model.logger.name_to_value if key.startswith("train/")]
    assert len(keys) >= 19
    assert not [key for key in keys if f"`{key}`" not in PARAMETERS]


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_constructor_argument_is_explained(name: str) -> None:
    assert f"`{name}`" in PARAMETERS


def test_every_default_that_is_given_is_the_one_in_the_code() -> None:
    given = dict(re.findall(r"`(\w+)` \(`?([^)`]+)`?\)", PARAMETERS))
    defaults = {name: p.default for name, p in inspect.signature(TRPO).parameters.items()}
    named = {name: value for name, value in given.items() if name in defaults}
    assert len(named) > 15
    for name, text in named.items():
        assert str(defaults[name]) == text.strip('"') or float(text) == defaults[name]


@pytest.mark.parametrize("name", [n for n in sb3_trpo.__all__ if n != "__version__"])
def test_every_public_name_occurs(name: str) -> None:
    assert [page for page in PAGES if f"`{name}`" in page.read_text()]


@pytest.mark.parametrize("path", LEARNING, ids=lambda path: path.stem)
def test_every_learning_result_is_the_one_in_the_table(path: Path) -> None:
    result = json.loads(path.read_text())
    returns = {int(seed): value for seed, value in result["returns"].items()}
    row = f"| {result['env']} | {result['mean']:.1f} | {min(returns.values()):.1f} |"
    first, last = min(returns), max(returns)
    if len(returns) == last - first + 1:  # else they are listed in parts
        row += f" {first} to {last} |"
    assert row in BENCHMARKS


@pytest.mark.slow
def test_scripts_of_the_variants_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scripts = re.findall(
        r"```python\n(.*?)```", (DOCS / "variants.md").read_text(), flags=re.DOTALL
    )
    assert scripts
    for script in scripts:
        exec(re.sub(r"\d+_000", "1024", script), {})


@pytest.mark.slow
def test_environment_of_ones_own_trains_as_its_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (DOCS / "environment.md").read_text()
    environment, train, masks, train_masked = re.findall(
        r"```python[^\n]*\n(.*?)```", page, re.DOTALL
    )
    place = environment.index("    def place(self)")
    source = environment[:place] + masks + "\n" + environment[place:]
    (tmp_path / "drawers.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    names: dict[str, Any] = {}
    for script in (train, train_masked):
        exec(re.sub(r"\d+_000", "2048", script), names)
    assert not names["env"].locked[names["action"]]


@by_page
def test_every_script_is_python(page: Path) -> None:
    for script in re.findall(r"```python[^\n]*\n(.*?)```", page.read_text(), flags=re.DOTALL):
        ast.parse(textwrap.dedent(script).replace("--8<--", "#"))


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
def test_link_to_a_file_leads_to_the_repository_or_is_refused(build: dict[str, Any]) -> None:
    config = SimpleNamespace(repo_url="https://repository")
    text = build["on_page_markdown"]("[a](../../setup.cfg) [b](../../tests) [c](api.md)", config)
    places = ("blob/main/setup.cfg", "tree/main/tests")
    assert text == "[a](https://repository/{}) [b](https://repository/{}) [c](api.md)".format(
        *places
    )
    with pytest.raises(ValueError, match="no_such_file"):
        build["on_page_markdown"]("[a](../../no_such_file)", config)


@pytest.mark.slow
def test_file_of_the_repository_is_a_page_with_its_links(build: dict[str, Any]) -> None:
    config = SimpleNamespace(repo_url="https://repository")
    text = build["on_page_markdown"]("<!-- FILE --> [README](../../benchmarks/README.md)", config)
    assert text.startswith("# Benchmarks")
    assert "[`results`](https://repository/tree/main/benchmarks/results)" in text


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_file_that_a_page_links_exists(path: Path) -> None:
    for target in re.findall(r"\]\(\.\./\.\./([^)#]+)", path.read_text()):
        assert (ROOT / target).exists(), target


@pytest.mark.slow
def test_formula_of_a_docstring_goes_over_its_continuation_lines(build: dict[str, Any]) -> None:
    directive = build["MATH_DIRECTIVE"].search("Solve.\n\n.. math:: a +\n    b\n\n:param x: c")
    assert build["fenced"](directive) == "```math\na + b\n```"


def test_every_outcome_of_a_fault_is_shown_by_what_exists() -> None:
    table = (ROOT / "docs" / "pages" / "long_runs.md").read_text().partition("| shown by |")[2]
    shown = re.findall(r"\| `([\w./]+)` \|\n", table.partition("\n\n")[0])
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    assert len(shown) > 10
    for name in shown:
        assert f"def {name}(" in tests or (ROOT / name).is_file(), name
