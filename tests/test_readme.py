"""The README is short, its lines run, and its numbers are those of the documentation."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BENCHMARKS = (ROOT / "docs" / "pages" / "benchmarks.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """List the cells of the rows below a table's first row."""
    (table,) = re.findall(rf"^\| {heading} \|.*\n\|[-| ]+\n((?:\|.+\n)+)", README, re.MULTILINE)
    return [[cell.strip() for cell in row[1:-1].split("|")] for row in table.splitlines()]


def test_readme_is_short() -> None:
    assert len(README.splitlines()) < 150


def test_returns_are_those_of_the_benchmarks() -> None:
    found = rows(r"environment \| steps .*")
    assert len(found) >= 5
    for env, _, *returns in found:
        assert f"| {' | '.join([env, *returns])} |" in BENCHMARKS


def test_comparison_is_that_of_the_benchmarks() -> None:
    found = rows(r"environment \| mean .*")
    assert len(found) >= 8
    for cells in found:
        assert f"| {' | '.join(cells)} |" in BENCHMARKS


def test_speed_is_that_of_the_benchmarks() -> None:
    found = rows("work")
    assert len(found) == 4
    for work, result in found:
        assert f"| {work} | {result} |" in BENCHMARKS


@pytest.mark.slow
def test_ten_lines_run_and_print_what_they_compute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len([line for line in script.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text(re.sub(r"\d+_000", "1024", script))
    runpy.run_path("script.py")
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in printed] == [
        "mean return and spread before",
        "mean return and spread after",
        "action of the saved model",
    ]


def test_test_line_is_the_one_of_the_check() -> None:
    (line,) = re.findall(r"^<!-- test line -->\n```bash\n(.+)\n```$", README, flags=re.MULTILINE)
    assert line in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize("target", re.findall(r"\]\(([\w./]+)\)", README))
def test_every_file_that_is_linked_exists(target: str) -> None:
    assert (ROOT / target).exists()
