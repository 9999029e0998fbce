"""What an installation has: type hints that checkers find, hyperparameters, one top-level name."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SOURCES = ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
FOLDERS = ("sb3_trpo", "zoo_configs")

SCRIPT = """\
from sb3_trpo import TRPO

model = TRPO("MlpPolicy", "CartPole-v1", target_kl=0.02)
model.learn(1000).save("model")
TRPO("MlpPolicy", "CartPole-v1", n_steps="many")
"""
# Reading torch takes three times as long as all the rest.
MYPY = """\
[mypy]
strict = True
[mypy-torch.*,scipy.*,pandas.*,matplotlib.*]
follow_imports = skip
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what an installation reads: installing writes beside it."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        shutil.copy(ROOT / name, copy)
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    (copy / "tests").mkdir()
    return copy


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps"]
    run([sys.executable, *build, "--wheel-dir", folder, sources])
    (found,) = folder.glob("*.whl")
    return found


def run(words: list[str | Path], folder: Path | None = None, status: int = 0) -> str:
    without_paths = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, cwd=folder, env=without_paths, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=["editable", "wheel"])
def python(
    request: pytest.FixtureRequest, sources: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Make an environment with the package, and with this one's for what it depends on."""
    venv = tmp_path_factory.mktemp(request.param) / "venv"
    run([sys.executable, "-m", "venv", venv])
    (site,) = venv.glob("lib/python*/site-packages")
    # These are searched after the environment's own, so that its package is the one that is found.
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (site / "zzz_dependencies.pth").write_text("\n".join(ours))
    what: Any = ["-e", sources]
    if request.param == "wheel":
        what = [request.getfixturevalue("wheel")]
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--ignore-installed"]
    run([venv / "bin" / "python", *pip, *what])
    return venv / "bin" / "python"


def test_type_checker_finds_the_package_in_a_users_script(
    python: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "mypy.ini").write_text(MYPY)
    cache = tmp_path_factory.getbasetemp() / "mypy"  # of the dependencies, which take long
    mypy: list[str | Path] = [sys.executable, "-m", "mypy", "--cache-dir", cache]
    report = run([*mypy, "--python-executable", python, "script.py"], tmp_path, status=1)
    found, count = report.splitlines()
    assert found.startswith('script.py:5: error: Argument "n_steps"')
    assert count.startswith("Found 1 error")


def test_installed_package_has_its_hyperparameters(
    python: Path, sources: Path, tmp_path: Path
) -> None:
    code = (
        "import sb3_trpo\nfrom sb3_trpo.zoo.manager import packaged_config\n"
        "print(sb3_trpo.__file__)\nprint(packaged_config('trpo'))"
    )
    package, config = map(Path, run([python, "-c", code], tmp_path).split())
    place = sources if sources in package.parents else python.parents[1]
    assert place in package.parents
    assert place in config.parents
    assert config.read_text() == (ROOT / "zoo_configs" / "trpo.yml").read_text()


def test_wheel_has_one_top_level_name_and_every_file(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "sb3_trpo").rglob("*.py")}
    configs = {f"sb3_trpo/zoo_configs/{path.name}" for path in ROOT.glob("zoo_configs/*.yml")}
    assert names == modules | configs | {"sb3_trpo/py.typed"}


def test_description_links_the_repository(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        targets = re.findall(r"\]\(([^)]+)\)", archive.read(name).decode())
    assert len(targets) > 10
    assert [target for target in targets if not target.startswith("https://")] == []
