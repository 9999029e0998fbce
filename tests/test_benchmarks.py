"""The scripts that measure. Those of returns import the RL Zoo, hence inside the tests."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch as th

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def learning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script with an empty folder of results."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("learning")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def test_seeds_are_added_to_those_that_were_measured_before(learning: Any) -> None:
    assert learning.add_return("trpo", "CartPole-v1", 5, 100.0) == 100
    assert learning.add_return("trpo", "CartPole-v1", 3, 200.0) == 150
    assert learning.add_return("trpo", "CartPole-v1", 5, 400.0) == 300
    assert learning.read_returns("trpo", "CartPole-v1") == {3: 200, 5: 400}
    assert "| CartPole-v1 | 300.0 | 200.0 | 3, 5 | 495.6 |" in learning.table("trpo")


def test_every_seed_is_with_the_call_that_measured_it_last(
    learning: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command, seed in (("first", 5), ("first", 3), ("second", 5), ("second", 7)):
        monkeypatch.setattr("sys.argv", [command])
        learning.add_return("trpo", "CartPole-v1", seed, 100.0)
    result = json.loads(learning.result_path("CartPole-v1").read_text())
    seeds = {session["command"].split("/")[-1]: session["seeds"] for session in result["sessions"]}
    assert seeds == {"first": [3], "second": [5, 7]}
    assert all("versions" in session for session in result["sessions"])


def test_option_experiment_of_other_options_is_not_mixed_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    options = importlib.import_module("options")
    monkeypatch.setattr(options, "FOLDER", tmp_path)
    options.keep("fisher_5", "Hopper-v5", {"seed": 1, "all": 1.0})
    options.keep("fisher_5", "Hopper-v5", {"seed": 0, "all": 2.0})
    assert [run["seed"] for run in options.read("fisher_5", "Hopper-v5")["runs"]] == [0, 1]
    monkeypatch.setitem(options.ARMS, "fisher_5", options.Arm({"gamma": 0.5}))
    with pytest.raises(ValueError, match="move it away"):
        options.keep("fisher_5", "Hopper-v5", {"seed": 2, "all": 1.0})


def test_recurrent_results_have_a_table_of_their_own(learning: Any) -> None:
    for seed in range(4):
        learning.add_return("trpo_lstm", "PendulumNoVel-v1", seed, -200.0)
    text = learning.table("trpo_lstm")
    assert "`sb3_contrib.RecurrentPPO`" in text
    assert "| PendulumNoVel-v1 | -200.0 | -200.0 | 0 to 3 | -208.1 |" in text
    assert "PendulumNoVel" not in learning.table("trpo")


def test_result_of_another_algorithm_is_not_mixed_with(
    learning: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning.add_return("trpo", "CartPole-v1", 0, 1.0)
    monkeypatch.setattr(learning, "shipped_hyperparameters", lambda algo, env: {})
    with pytest.raises(ValueError, match="holds what algo=trpo has reached"):
        learning.add_return("trpo_lstm", "CartPole-v1", 1, 1.0)


def test_result_of_other_hyperparameters_is_not_mixed_with(
    learning: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning.add_return("trpo", "CartPole-v1", 0, 1.0)
    monkeypatch.setattr(learning, "shipped_hyperparameters", lambda algo, env: {"gamma": 0.5})
    with pytest.raises(ValueError, match="hyperparameters="):
        learning.add_return("trpo", "CartPole-v1", 1, 1.0)


@pytest.mark.parametrize(
    "multiply",
    [
        lambda a, b, c: a @ b,
        lambda a, b, c: th.mm(a, b, out=c),
        lambda a, b, c: c.addmm_(a, b),
        lambda a, b, c: th.addmm(c[0], a, b, out=c),
        lambda a, b, c: th.nn.functional.linear(a, b.T, c[0]).mul_(2),
    ],
)
def test_operations_are_counted_however_a_product_is_written(
    multiply: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    speed = importlib.import_module("speed")
    matrices = th.ones(3, 4), th.ones(4, 5), th.zeros(3, 5)
    assert speed.count_operations(lambda: multiply(*matrices)) == 2 * 3 * 4 * 5


def test_option_experiments_are_the_ones_in_their_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    table = importlib.import_module("options").table()
    indented = "\n".join(f"    {line}" if line else "" for line in table.splitlines())
    assert len(table.splitlines()) > 20
    assert indented in (BENCHMARKS / "README.md").read_text()


def test_speed_results_are_the_ones_in_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    table = importlib.import_module("speed").table()
    assert len(table.splitlines()) > 20
    assert table in (BENCHMARKS.parent / "README.md").read_text()


@pytest.mark.slow
# When a model cannot be built, the Zoo leaves its environments' Monitor files open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
# tqdm says that its rich progress bar is new.
@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_changed_hyperparameters_are_trained_with(learning: Any) -> None:
    from training import final_return

    change = {"n_timesteps": 64.0, "batch_size": 1024, "policy_kwargs": "dict(net_arch=[8])"}
    value = final_return("trpo", "CartPole-v1", 0, 10, change)
    assert 8 <= value <= 500
    with pytest.raises(RuntimeError, match="no hyperparameter 'gama'"):
        final_return("trpo", "CartPole-v1", 0, 10, {"gama": 1})
