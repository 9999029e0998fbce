"""The scripts that measure. Those of returns import the RL Zoo, hence inside the tests."""

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch as th

from sb3_trpo import TRPO

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
    assert "| CartPole-v1 | 300.0 | 200.0 | 3, 5 |  |  |  |" in learning.table("trpo")


def test_a_baseline_has_results_of_its_own(learning: Any) -> None:
    learning.add_return("trpo", "CartPole-v1", 5, 500.0)
    learning.add_return("contrib", "CartPole-v1", 5, 100.0)
    row = "| CartPole-v1 | 500.0 | 500.0 | 5 | 100.0 | 100.0 | 5 |"
    assert row in learning.table("trpo")
    assert learning.read_returns("trpo", "CartPole-v1") == {5: 500}
    assert learning.read_returns("contrib", "CartPole-v1") == {5: 100}
    result = json.loads(learning.result_path("contrib", "CartPole-v1").read_text())
    assert "kl_reduction" not in result["hyperparameters"], "not what ours ships"


def test_every_seed_is_with_the_call_that_measured_it_last(
    learning: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command, seed in (("first", 5), ("first", 3), ("second", 5), ("second", 7)):
        monkeypatch.setattr("sys.argv", [command])
        learning.add_return("trpo", "CartPole-v1", seed, 100.0)
    result = json.loads(learning.result_path("trpo", "CartPole-v1").read_text())
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
    learning.add_return("ppo_lstm", "PendulumNoVel-v1", 0, -300.0)
    text = learning.table("trpo_lstm")
    assert "`sb3_contrib.RecurrentPPO`" in text
    assert "| PendulumNoVel-v1 | -200.0 | -200.0 | 0 to 3 | -300.0 | -300.0 | 0 |" in text
    assert "PendulumNoVel" not in learning.table("trpo")


def test_result_of_another_algorithm_is_not_mixed_with(
    learning: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning.add_return("trpo", "CartPole-v1", 0, 1.0)
    monkeypatch.setattr(learning, "default_hyperparameters", lambda algo, env: {})
    with pytest.raises(ValueError, match="holds what algo=trpo has reached"):
        learning.add_return("trpo_lstm", "CartPole-v1", 1, 1.0)


def test_result_of_other_hyperparameters_is_not_mixed_with(
    learning: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning.add_return("trpo", "CartPole-v1", 0, 1.0)
    monkeypatch.setattr(learning, "default_hyperparameters", lambda algo, env: {"gamma": 0.5})
    with pytest.raises(ValueError, match="hyperparameters="):
        learning.add_return("trpo", "CartPole-v1", 1, 1.0)


PLAN: dict[str, Any] = {
    "factors": {
        "narrow": {"policy_kwargs": {"log_std_init": -0.7}},
        "wide": {"policy_kwargs": {"net_arch": {"pi": [64, 64], "vf": [256, 256]}}},
        "radius": {"target_kl": "lin_0.02", "HalfCheetah-v5": {"target_kl": "lin_0.06"}},
    },
    "settings": {"zoo": [], "both": ["narrow", "wide"], "radius": ["radius"]},
    "queue": [
        {"labels": ["zoo", "both"], "envs": ["Hopper-v5"], "seeds": [100], "steps": 300000},
        {"labels": ["contrib"], "envs": ["Hopper-v5"], "seeds": [0, 1]},
    ],
}


@pytest.fixture
def locomotion(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script with a function in place of training, which makes up a result."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("locomotion")
    monkeypatch.setattr(module, "measure", lambda case, plan: made_up(*case))
    return module


def made_up(label: str, env: str, seed: int, steps: int = 1000000, mean: float = 9.0) -> Any:
    """A run's result that learns linearly and ends at ``mean``."""
    locomotion = importlib.import_module("locomotion")
    curve_steps = list(range(25000, steps + 1, 25000))
    case = locomotion.Case(label, env, seed, steps)
    return {
        **{**case._asdict(), "hyperparameters": locomotion.hyperparameters_of(case, PLAN)},
        **{"mean": mean, "seconds": 1},
        **{"curve_steps": curve_steps, "curve": [mean * step / steps for step in curve_steps]},
    }


def test_queue_goes_on_after_a_failed_run_and_skips_what_is_done(
    locomotion: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = tmp_path / "queue.yml"
    queue.write_text(json.dumps(PLAN))  # JSON is YAML
    done: list[tuple[str, int]] = []

    def measure(case: Any, plan: Any) -> Any:
        done.append((case.label, case.seed))
        if case.label == "both":
            raise RuntimeError("no such hyperparameter")
        return made_up(*case)

    monkeypatch.setattr(locomotion, "measure", measure)
    locomotion.work_through(queue, tmp_path)
    assert done == [("zoo", 100), ("both", 100), ("contrib", 0), ("contrib", 1)]
    assert "no such hyperparameter" in (tmp_path / "errors.log").read_text()
    locomotion.work_through(queue, tmp_path)
    assert done[4:] == [("both", 100)]


def test_run_that_stopped_early_is_done_again_to_go_further(
    locomotion: Any, tmp_path: Path
) -> None:
    short = locomotion.Case("zoo", "Hopper-v5", 100, 300000)
    locomotion.write(made_up(*short), tmp_path)
    assert locomotion.is_done(short, PLAN, tmp_path)
    assert not locomotion.is_done(short._replace(steps=600000), PLAN, tmp_path)
    assert not locomotion.is_done(short._replace(seed=101), PLAN, tmp_path)
    assert locomotion.read_all(tmp_path) == [made_up(*short)]


def test_run_of_other_hyperparameters_is_not_taken_for_a_settings(
    locomotion: Any, tmp_path: Path
) -> None:
    case = locomotion.Case("radius", "Hopper-v5", 100)
    locomotion.write(made_up(*case), tmp_path)
    other = {**PLAN, "factors": PLAN["factors"] | {"radius": {"target_kl": "lin_0.05"}}}
    with pytest.raises(ValueError, match="move it away"):
        locomotion.is_done(case, other, tmp_path)


def test_factors_change_the_zoos_hyperparameters(locomotion: Any) -> None:
    zoo = locomotion.hyperparameters_of(locomotion.Case("zoo", "Hopper-v5", 0), PLAN)
    assert {"target_kl": 0.01, "kl_reduction": "mean", "gae_lambda": 0.95}.items() <= zoo.items()
    both = locomotion.hyperparameters_of(locomotion.Case("both", "Hopper-v5", 0), PLAN)
    arguments = {"log_std_init": -0.7, "net_arch": {"pi": [64, 64], "vf": [256, 256]}}
    assert both == zoo | {"policy_kwargs": arguments, "n_timesteps": 1000000}
    radii = {
        env: locomotion.hyperparameters_of(locomotion.Case("radius", env, 0), PLAN)["target_kl"]
        for env in ("Hopper-v5", "HalfCheetah-v5")
    }
    assert radii == {"Hopper-v5": "lin_0.02", "HalfCheetah-v5": "lin_0.06"}


def test_shipped_runs_take_what_the_package_has(locomotion: Any) -> None:
    found = locomotion.hyperparameters_of(locomotion.Case("shipped", "Hopper-v5", 0), PLAN)
    ours = locomotion.default_hyperparameters("trpo", "Hopper-v5")
    assert found == ours | {"n_timesteps": 1000000}


@pytest.mark.parametrize(
    ("label", "env", "expected"),
    [
        ("contrib", "HalfCheetah-v5", {"target_kl": 0.04, "cg_max_steps": 25}),
        ("ppo", "Swimmer-v5", {"gamma": 0.9999, "batch_size": 256}),
        ("ppo", "Humanoid-v5", {"gamma": 0.95, "n_timesteps": 1000000}),
    ],
)
def test_baselines_take_the_zoos_values_of_v4(
    locomotion: Any, label: str, env: str, expected: dict[str, Any]
) -> None:
    found = locomotion.hyperparameters_of(locomotion.Case(label, env, 0), PLAN)
    assert expected.items() <= found.items()
    assert "kl_reduction" not in found


def test_every_run_of_the_queue_can_be_configured(locomotion: Any) -> None:
    plan = locomotion.read_plan(locomotion.QUEUE)
    for case in locomotion.cases(plan):
        assert locomotion.hyperparameters_of(case, plan)["n_timesteps"] == 1000000


def test_each_factor_of_the_design_is_balanced_against_every_other(locomotion: Any) -> None:
    plan = locomotion.read_plan(locomotion.QUEUE)
    settings = [plan["settings"][label] for label in plan["design"]]
    factors = sorted({factor for setting in settings for factor in setting} - {"shrinking"})
    assert len(factors) == 7
    levels = th.tensor([[1 if f in setting else -1 for f in factors] for setting in settings])
    assert th.equal(levels.T @ levels, 8 * th.eye(7, dtype=levels.dtype))


def test_run_stops_early_without_shortening_its_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    stop = importlib.import_module("stopping").StopAt(96)
    model = TRPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32)
    model.learn(320, callback=stop)
    assert model.num_timesteps == 96
    assert model._current_progress_remaining == pytest.approx(1 - 64 / 320)


def test_settings_are_compared_at_the_same_number_of_steps(locomotion: Any) -> None:
    halving = importlib.import_module("halving")
    results = [
        made_up("zoo", "Hopper-v5", 100, 1000000, 1000.0),
        made_up("both", "Hopper-v5", 100, 200000, 400.0),
        made_up("both", "Hopper-v5", 101, 200000, 200.0),
        made_up("radius", "Hopper-v5", 100, 100000, 999.0),  # has not gone so far
        made_up("both", "Hopper-v5", 0, 1000000, 999.0),  # a seed for the report
    ]
    found = halving.outcomes(results, 200000)
    assert found["zoo"]["Hopper-v5"] == pytest.approx((112.5, 200.0, 1))
    assert found["both"]["Hopper-v5"] == pytest.approx((168.75, 300.0, 2))
    points = halving.scores(found)
    assert points["both"]["Hopper-v5"] == 1
    assert points["zoo"]["Hopper-v5"] == pytest.approx(2 / 3)
    assert set(points) == {"zoo", "both"}
    assert "| both | 1.00 | 300 (169) |" in halving.returns_table(found)
    design = {label: PLAN["settings"][label] for label in ("zoo", "both")}
    assert "| narrow | +0.33 | +0.33 |" in halving.effects_table(found, design)
    assert "no environment yet" in halving.effects_table(found, PLAN["settings"])


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script of the table and the figures."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("report")


def test_report_has_the_interval_and_the_baselines(report: Any) -> None:
    results = [made_up("shipped", "Hopper-v5", seed, mean=3000.0 + seed) for seed in range(4)]
    results += [made_up("contrib", "Hopper-v5", 0, mean=2000.0)]
    results += [made_up("shipped", "Hopper-v5", 100), made_up("ppo", "Hopper-v5", 1, 300000)]
    results += [made_up("ppo", "Ant-v5", 2, mean=500.0), made_up("zoo", "Walker2d-v5", 0)]
    text = report.table(report.reported_runs(results))
    ant, hopper = text.splitlines()[2:]
    assert ant.startswith("| Ant-v5 |  |  |  |  |  | 500, 2 |")
    assert hopper.startswith("| Hopper-v5 | 3002 | 3000 | 0 to 3 | 3002 [300")
    assert hopper.endswith("] | 2000, 0 |  | 3372 L, Hopper-v3, sb3-contrib |")


@pytest.mark.parametrize(
    "envs", [(), ("Hopper-v5",), ("Ant-v5", "Hopper-v5", "Swimmer-v5", "Humanoid-v5")]
)
def test_curves_are_drawn_with_whatever_runs_there_are(
    report: Any, tmp_path: Path, envs: tuple[str, ...]
) -> None:
    runs = report.reported_runs(
        [
            made_up(label, env, seed)
            for env in envs
            for label in ("shipped", "ppo")
            for seed in (0, 1)
        ]
    )
    report.draw_curves(runs, tmp_path / "curves.svg")
    text = (tmp_path / "curves.svg").read_text()
    assert all(f"<!-- {env} -->" in text for env in envs)
    # one legend, whichever panel an algorithm is in
    assert text.count("<!-- PPO -->") == bool(envs)
    report.draw_seeds(runs, tmp_path / "seeds.svg")
    text = (tmp_path / "seeds.svg").read_text()
    assert all(f"<!-- {env}, PPO -->" in text for env in envs)
    assert "sb3_contrib" not in text  # no panel for what was not run


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


def test_a_recorded_command_does_not_say_where_the_repository_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    machine = importlib.import_module("machine")
    output = BENCHMARKS.resolve() / "results" / "some.json"
    monkeypatch.setattr("sys.argv", [str(BENCHMARKS / "some.py"), "--output", str(output), "a/b"])
    command = "python benchmarks/some.py --output benchmarks/results/some.json a/b"
    assert machine.provenance()["command"] == command


@pytest.mark.parametrize(
    "path", sorted(BENCHMARKS.glob("results/**/*.json*")), ids=lambda p: p.name
)
def test_no_result_names_a_path_of_the_machine(path: Path) -> None:
    commands = re.findall(r'"command": "([^"]*)"', path.read_text())
    assert not [command for command in commands if " /" in command]


def test_every_case_of_the_gpu_section_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    speed = importlib.import_module("speed")
    for kinds, name, policy, (_, *spaces_), options in speed.ON_GPU:
        tiny = {**options, "n_steps": 4, "batch_size": 8, "n_critic_updates": 1}
        entry = speed.time_on("cpu", kinds, name, policy, (2, *spaces_), tiny, repeats=1)
        assert set(entry["milliseconds"]) == set(kinds)
        assert "ms" in speed.row(entry)


def test_option_experiments_are_the_ones_in_their_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    table = importlib.import_module("options").table()
    indented = "\n".join(f"    {line}" if line else "" for line in table.splitlines())
    assert len(table.splitlines()) > 20
    assert indented in (BENCHMARKS / "README.md").read_text()


def test_speed_results_are_the_ones_in_the_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    table = importlib.import_module("speed").table()
    assert len(table.splitlines()) > 20
    assert table in (BENCHMARKS.parent / "docs" / "pages" / "benchmarks.md").read_text()


def test_start_of_processes_is_the_one_in_the_documentation() -> None:
    result = json.loads((BENCHMARKS / "results" / "startup.json").read_text())
    sentence = f"{result['time_ratio']} times the time, {result['memory_ratio']} times the memory"
    assert sentence in (BENCHMARKS.parent / "docs" / "pages" / "benchmarks.md").read_text()


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


@pytest.mark.slow
@pytest.mark.long
def test_a_process_holds_nothing_more_after_many_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    result = importlib.import_module("soak").soak(0.5)
    first, last = result["first"], result["last"]
    assert result["counts"]["updates"] > 25
    assert sum(result["counts"].values()) > result["counts"]["updates"]
    assert (first["threads"], first["files"]) == (last["threads"], last["files"])
    assert last["memory_mb"] <= 1.05 * first["memory_mb"]  # the warm-up is longer than that
