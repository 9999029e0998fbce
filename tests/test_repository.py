"""What surrounds the package: workflows, metadata and templates agree with setup.cfg."""

import configparser
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import sb3_trpo

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SETUP = configparser.ConfigParser()
SETUP.read_string((ROOT / "setup.cfg").read_text())
REPOSITORY = SETUP["metadata"]["url"]

# The Python versions that have a release of every dependency.
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def commands(workflow: Path) -> list[str]:
    jobs = read_yaml(workflow)["jobs"].values()
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_every_workflow_runs_the_checks_of_the_repository(workflow: Path) -> None:
    assert ".ci/run" in commands(workflow)


def test_tests_that_are_too_long_for_the_check_have_a_job_of_their_own() -> None:
    assert "not long" in (ROOT / ".ci" / "run").read_text()
    assert any(text.endswith("pytest -n auto -m long") for text in commands(WORKFLOWS[0]))


def test_every_supported_python_is_checked() -> None:
    supported = SpecifierSet(SETUP["options"]["python_requires"])
    oldest = min(Version(python) for python in PYTHONS)
    assert all(supported.contains(python) for python in PYTHONS)
    assert not supported.contains(f"3.{oldest.minor - 1}")
    matrix = read_yaml(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["check"]["strategy"]
    assert matrix["matrix"]["python"] == PYTHONS
    classifiers = re.findall(r":: Python :: (3\.\d+)$", SETUP["metadata"]["classifiers"], re.M)
    assert classifiers == PYTHONS


def test_lowest_dependencies_are_checked_on_the_oldest_python() -> None:
    matrix = read_yaml(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["check"]["strategy"]
    assert {"python": PYTHONS[0], "dependencies": "lowest"} in matrix["matrix"]["include"]


def test_lowest_dependencies_are_the_lower_bounds() -> None:
    lowest_versions = runpy.run_path(str(ROOT / ".ci" / "lowest.py"))["lowest_versions"]
    text = (
        "[options]\ninstall_requires =\n    torch>=2.1\n    tqdm\n"
        "[options.extras_require]\nzoo =\n    rl_zoo3[plots]>=2.9.2\n    sb3_trpo[test]\n"
    )
    assert lowest_versions(text) == ["torch==2.1", "rl_zoo3==2.9.2"]
    required = SETUP["options"]["install_requires"].split()
    pinned = lowest_versions((ROOT / "setup.cfg").read_text())
    assert {name.replace("==", ">=") for name in pinned} >= set(required)


def test_publishing_needs_no_token_and_waits_for_the_checks() -> None:
    jobs = read_yaml(ROOT / ".github" / "workflows" / "release.yml")["jobs"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["needs"] == "build"
    assert "secrets." not in (ROOT / ".github" / "workflows" / "release.yml").read_text()


def test_metadata_name_one_repository_and_one_version() -> None:
    citation = read_yaml(ROOT / "CITATION.cff")
    assert citation["version"] == sb3_trpo.__version__
    assert citation["repository-code"] == REPOSITORY
    urls = re.findall(r"https://\S+", SETUP["metadata"]["project_urls"])
    assert urls
    assert all(url.startswith(REPOSITORY) for url in urls)


def test_hooks_before_a_commit_run_the_tools_of_the_checks() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    for hook in read_yaml(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]:
        tool = hook["entry"].removeprefix(".venv/bin/python ").split(" --force")[0]
        assert tool in script or "pytest" in tool


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem
)
def test_issue_templates_have_what_github_asks_for(path: Path) -> None:
    template = read_yaml(path)
    if path.stem != "config":
        assert {"name", "description", "body"} <= template.keys()
