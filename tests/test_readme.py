"""The README says what there is."""

import inspect
import json
import re
from pathlib import Path

import pytest

import sb3_trpo
from sb3_trpo import TRPO
from tests.environments import BOX_ACTIONS, VECTOR, ToyEnv

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
LEARNING = sorted((ROOT / "benchmarks" / "results").glob("learning_*.json"))
ARGUMENTS = [name for name in inspect.signature(TRPO).parameters]


@pytest.mark.parametrize("name", [n for n in sb3_trpo.__all__ if n != "__version__"])
def test_every_public_name_occurs(name: str) -> None:
    assert name in README


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_constructor_argument_occurs(name: str) -> None:
    assert f"`{name}`" in README


def test_every_default_that_is_given_is_the_one_in_the_code() -> None:
    given = dict(re.findall(r"`(\w+)` \(`?([^)`]+)`?\)", README))
    defaults = {name: p.default for name, p in inspect.signature(TRPO).parameters.items()}
    named = {name: value for name, value in given.items() if name in defaults}
    assert len(named) > 15
    for name, text in named.items():
        assert str(defaults[name]) == text.strip('"') or float(text) == defaults[name]


def test_every_logger_key_occurs() -> None:
    model = TRPO("MlpPolicy", ToyEnv(VECTOR, BOX_ACTIONS, 9), n_steps=32, batch_size=32)
    model.learn(32)
    keys = [key for key in model.logger.name_to_value if key.startswith("train/")]
    assert len(keys) >= 19
    assert not [key for key in keys if f"`{key}`" not in README]


@pytest.mark.parametrize("path", LEARNING, ids=lambda path: path.stem)
def test_every_learning_result_is_the_one_in_the_table(path: Path) -> None:
    result = json.loads(path.read_text())
    returns = {int(seed): value for seed, value in result["returns"].items()}
    row = f"| {result['env']} | {result['mean']:.1f} | {min(returns.values()):.1f} |"
    first, last = min(returns), max(returns)
    if len(returns) == last - first + 1:  # else they are listed in parts
        row += f" {first} to {last} |"
    assert row in README


@pytest.mark.slow
# tqdm says that its rich progress bar is new.
@pytest.mark.filterwarnings("ignore:rich is experimental")
@pytest.mark.parametrize("script", re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
def test_every_script_runs(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(re.sub(r"\d+_000", "1024", script), {})


def test_test_line_is_the_one_of_the_check() -> None:
    (line,) = re.findall(r"^<!-- test line -->\n```bash\n(.+)\n```$", README, flags=re.MULTILINE)
    assert line in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize("target", re.findall(r"\]\(([\w./]+)\)", README))
def test_every_file_that_is_linked_exists(target: str) -> None:
    assert (ROOT / target).exists()
