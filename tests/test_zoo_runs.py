"""Runs and their pictures. The RL Zoo is imported inside the tests: it patches gymnasium."""

import ctypes
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from gymnasium.envs.classic_control import CartPoleEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_trpo import TRPO, load_vec_normalize
from sb3_trpo.zoo.commands import main
from sb3_trpo.zoo.errors import UsageError
from sb3_trpo.zoo.workers import worker_context
from tests.environments import BOX_ACTIONS, VECTOR, ToyEnv


@pytest.fixture
def few_resamplings(monkeypatch: pytest.MonkeyPatch) -> None:
    from sb3_trpo.zoo import aggregate

    monkeypatch.setattr(aggregate, "RESAMPLINGS", 100)


def write_evaluations(folder: Path, level: float, settings: str = "a: 1") -> Path:
    """Write what a run with three evaluations of two episodes leaves in its folder."""
    env = folder.name.rpartition("_")[0]
    (folder / env).mkdir(parents=True)
    (folder / f"{env}.zip").touch()
    (folder / env / "config.yml").write_text(settings)
    results = level + np.array([[0.0, 2.0], [1.0, 3.0], [2.0, 4.0]])
    np.savez(folder / "evaluations.npz", timesteps=np.array([10, 20, 30]), results=results)
    return folder


def train_with_progress(folder: Path, **options: Any) -> TRPO:
    from sb3_trpo.zoo.progress import ProgressFile

    model = TRPO("MlpPolicy", ToyEnv(VECTOR, BOX_ACTIONS), n_steps=32, batch_size=32, **options)
    return model.learn(96, callback=ProgressFile(folder))


def manager(folder: Path, **options: Any) -> Any:
    """Make the manager of a run without training."""
    from sb3_trpo.zoo.manager import RunManager

    args = SimpleNamespace(conf_file=None)
    return RunManager(args, "trpo", "CartPole-v1", str(folder), **options)


def test_runs_that_start_at_the_same_moment_have_folders_of_their_own(tmp_path: Path) -> None:
    managers = [manager(tmp_path) for _ in range(3)]
    assert len({each.save_path for each in managers}) == 1
    for each in managers:
        each.create_log_folder()
    names = [Path(each.save_path).name for each in managers]
    assert names == ["CartPole-v1_1", "CartPole-v1_2", "CartPole-v1_3"]
    assert all(Path(each.params_path).is_dir() for each in managers)


def test_a_run_keeps_its_folder_to_itself_until_its_end(tmp_path: Path) -> None:
    from sb3_trpo.zoo.lock import lock_run

    run = manager(tmp_path)
    run.create_log_folder()
    with pytest.raises(UsageError, match="another process is training"):
        lock_run(Path(run.save_path))
    run.unlock()
    lock_run(Path(run.save_path)).release()


@pytest.mark.parametrize("vec_env_type", ["dummy", "subproc"])
def test_run_that_cannot_start_leaves_nothing_and_touches_no_other(
    vec_env_type: str, tmp_path: Path
) -> None:
    others = set(multiprocessing.active_children())  # of other tests
    first = manager(tmp_path)
    second = manager(tmp_path, vec_env_type=vec_env_type)
    first.create_log_folder()
    second.n_timesteps = 10
    second.custom_hyperparams = {"no_such": 1}
    with pytest.raises(UsageError, match="no_such"):
        second.setup_experiment()
    assert [path.name for path in (tmp_path / "trpo").iterdir()] == ["CartPole-v1_1"]
    gc.collect()  # files that are open would raise a warning
    assert set(multiprocessing.active_children()) <= others


def test_progress_file_holds_every_update_the_last_one_included(tmp_path: Path) -> None:
    model = train_with_progress(tmp_path)
    log = pd.read_csv(tmp_path / "progress.csv")
    assert log["train/n_updates"].dropna().tolist() == [1, 2, 3]
    assert log["time/total_timesteps"].iloc[-1] == 96
    assert all(output.__class__.__name__ != "CSVOutputFormat" for output in outputs(model))


def outputs(model: TRPO) -> list[Any]:
    return model.logger.output_formats


def test_trust_region_is_drawn_from_the_progress_file(tmp_path: Path) -> None:
    from matplotlib.image import imread

    from sb3_trpo.zoo.trust_region_figure import draw_trust_region, read_updates

    train_with_progress(tmp_path)
    updates = read_updates(tmp_path / "progress.csv")
    assert len(updates) == 3
    assert (updates["kl_divergence_loss"] <= updates["target_kl"]).all()
    assert updates.index.tolist() == [32, 64, 96]  # each at its own step, not at the next dump
    assert draw_trust_region(tmp_path, "a title")
    assert imread(tmp_path / "trust_region.png").std() > 0.05


def test_trust_region_is_drawn_where_no_step_was_tried(tmp_path: Path) -> None:
    from sb3_trpo.zoo.trust_region_figure import draw_trust_region

    train_with_progress(tmp_path, target_kl=0.0)
    assert draw_trust_region(tmp_path, "a title")


def test_update_that_was_asked_for_no_step_is_not_drawn_as_a_failed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A linear schedule ends at a bound of 0, which a red cross would make look like a fault."""
    from sb3_trpo.zoo import trust_region_figure

    drawn: list[int] = []
    monkeypatch.setattr(
        trust_region_figure, "draw_backtracks", lambda axes, updates: drawn.append(len(updates))
    )
    train_with_progress(tmp_path, target_kl="lin_0.02")
    updates = trust_region_figure.read_updates(tmp_path / "progress.csv")
    assert updates["target_kl"].iloc[-1] == 0
    assert trust_region_figure.draw_trust_region(tmp_path, "a title")
    assert drawn == [len(updates) - 1]


@pytest.mark.parametrize("text", [None, "", "time/total_timesteps,train/loss\n1,2\n"])
def test_run_without_a_trust_region_has_no_such_picture(tmp_path: Path, text: str | None) -> None:
    from sb3_trpo.zoo.trust_region_figure import draw_trust_region

    if text is not None:
        (tmp_path / "progress.csv").write_text(text)
    assert not draw_trust_region(tmp_path, "a title")
    assert not (tmp_path / "trust_region.png").exists()


def test_explained_variance_off_the_scale_is_marked_as_such() -> None:
    from matplotlib.figure import Figure

    from sb3_trpo.zoo.trust_region_figure import draw_explained_variance

    axes = Figure().subplots()
    draw_explained_variance(axes, pd.DataFrame({"explained_variance": [-40.0, 0.5]}))
    assert axes.get_ylim()[0] > -2
    assert axes.get_legend_handles_labels()[1] == ["below -1 (least: -40)"]


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [3]), ("0-4", [0, 1, 2, 3, 4]), ("0-1,7", [0, 1, 7])]
)
def test_seeds_are_numbers_and_ranges(text: str, seeds: list[int]) -> None:
    from sb3_trpo.zoo.seeds import parse_seeds

    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("name", "env", "number"),
    [
        ("CartPole-v1_3", "CartPole-v1", 3),
        ("A_B-v1_12", "A_B-v1", 12),
        ("Env_4_0d1b9e0a-3c9f-4f3e-9d2b-8a5e6f7c1b2d", "Env", 4),
        ("best", "", 0),
    ],
)
def test_name_of_a_folder_has_environment_and_number(
    name: str, env: str, number: int, tmp_path: Path
) -> None:
    from sb3_trpo.zoo.runs import Run

    run = Run(tmp_path / name, np.zeros(0), np.zeros(0), np.zeros(0))
    assert (run.env, run.number) == (env, number)


def test_damaged_log_of_a_run_is_named(tmp_path: Path) -> None:
    from sb3_trpo.zoo.live_progress import run_state
    from sb3_trpo.zoo.progress import read_progress

    (tmp_path / "progress.csv").write_text("a,b\n1,2\n1,2,3,4\n")
    with pytest.raises(UsageError, match=r"progress.csv is damaged: .*: remove it"):
        read_progress(tmp_path / "progress.csv")
    assert run_state(tmp_path) is None  # of a run that is writing at this moment


def test_final_evaluation_is_the_runs_own_if_there_is_one(tmp_path: Path) -> None:
    from sb3_trpo.zoo.runs import read_run, save_final_evaluation

    folder = write_evaluations(tmp_path / "trpo" / "Env-v1_3", level=0)
    run = read_run(folder)
    assert (run.algo, run.env, run.number) == ("trpo", "Env-v1", 3)
    assert run.returns.tolist() == [1, 2, 3]
    assert run.final.tolist() == [2, 4]
    save_final_evaluation(folder, np.array([7.0, 9.0]))
    assert read_run(folder).final.tolist() == [7, 9]


@pytest.mark.usefixtures("few_resamplings")
def test_seeds_of_one_experiment_are_one_group(tmp_path: Path) -> None:
    from sb3_trpo.zoo.compare import group_runs, labels, table
    from sb3_trpo.zoo.runs import read_run

    logs = tmp_path / "logs"
    folders = [
        write_evaluations(logs / "trpo" / "Env-v1_2", 0),
        write_evaluations(logs / "trpo" / "Env-v1_1", 10),
        write_evaluations(logs / "trpo" / "Env-v1_3", 20, settings="a: 2"),
        write_evaluations(logs / "ppo" / "Env-v1_1", 30),
        write_evaluations(logs / "trpo" / "Other-v1_1", 40),
    ]
    groups = group_runs([read_run(folder) for folder in folders])
    assert labels(groups) == [
        "logs/trpo 1, 2",
        "logs/trpo 3",
        "logs/ppo 1",
        "logs/trpo 1",
    ]
    text = table(groups, labels(groups))
    assert "8.0" in text  # the mean of 3 and 13
    assert text.count("one run") == 3


@pytest.mark.parametrize(
    ("numbers", "texts"),
    [([1], ["1"]), ([1, 2], ["1", "2"]), ([1, 2, 3, 7, 9, 10], ["1-3", "7", "9", "10"])],
)
def test_numbers_of_many_runs_are_written_as_ranges(numbers: list[int], texts: list[str]) -> None:
    from sb3_trpo.zoo.compare import ranges

    assert ranges(numbers) == texts


def test_figure_of_the_training_says_how_many_episodes_a_point_is_the_mean_of(
    tmp_path: Path,
) -> None:
    from matplotlib import pyplot as plt

    from sb3_trpo.zoo.plot import save

    axes = plt.figure().subplots()
    axes.plot([0, 1], [0, 1], label="a run")
    axes.set_title("Reward")
    save(tmp_path / "training.png", window=7)
    title, legend = axes.get_title(), axes.get_legend()
    assert legend is not None
    assert legend.get_window_extent().x0 >= axes.get_window_extent().x1  # beside the curves
    plt.close()
    assert title == "Reward, mean of 7 episodes"


@pytest.mark.usefixtures("few_resamplings")
def test_comparison_has_a_panel_per_environment(tmp_path: Path) -> None:
    from matplotlib.image import imread

    from sb3_trpo.zoo.compare import draw_comparison, group_runs
    from sb3_trpo.zoo.runs import read_run

    names = ["Env-v1_1", "Env-v1_2", "Other-v1_1"]
    runs = [read_run(write_evaluations(tmp_path / "trpo" / name, 1)) for name in names]
    pixels = imread(draw_comparison(group_runs(runs), tmp_path / "comparison.png", ["a", "b"]))
    assert pixels.shape[:2] == (750, 2100)
    assert pixels.std() > 0.05


@pytest.mark.usefixtures("few_resamplings")
def test_aggregate_is_the_interquartile_mean_within_its_interval(tmp_path: Path) -> None:
    from rliable.metrics import aggregate_iqm

    from sb3_trpo.zoo.aggregate import aggregate
    from sb3_trpo.zoo.runs import read_run

    levels = [0, 1, 2, 50]  # the outliers do not count
    runs = [
        read_run(write_evaluations(tmp_path / "trpo" / f"Env-v1_{level}", level))
        for level in levels
    ]
    whole = aggregate(runs)
    expected = [aggregate_iqm(np.array([[run.returns[i]] for run in runs])) for i in range(3)]
    np.testing.assert_allclose(whole.mean, expected)
    np.testing.assert_allclose(whole.mean, [2.5, 3.5, 4.5])
    assert (whole.low < whole.mean).all()
    assert (whole.mean < whole.high).all()
    np.testing.assert_array_equal(aggregate(runs).low, whole.low)


@pytest.mark.parametrize(
    ("n_envs", "limits"), [(1, (8, 8)), (2, (7, 8)), (6, (6, 7)), (16, (5, 8))]
)
def test_every_batch_divides_every_rollout(n_envs: int, limits: tuple[int, int]) -> None:
    from sb3_trpo.zoo.search_space import rollout_limits

    least_steps, largest_batch = rollout_limits(n_envs)
    assert (least_steps, min(largest_batch, 8)) == limits
    assert (2**least_steps * n_envs) % 2**largest_batch == 0
    assert 2**least_steps * n_envs >= 192


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("n_actions", [0, 3])
def test_every_sampled_combination_builds_without_a_warning(n_envs: int, n_actions: int) -> None:
    import optuna

    from sb3_trpo.zoo.search_space import EXPLORATION, sample

    env = DummyVecEnv([ToyEnv if n_actions else discrete_env] * n_envs)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    searched: set[str] = set()
    for _ in range(12):
        trial = study.ask()
        hyperparameters = sample(trial, n_actions, n_envs, {})
        searched |= set(hyperparameters)
        model = TRPO("MlpPolicy", env, kl_reduction="sum", **hyperparameters)
        assert model.use_sde <= bool(n_actions)
    wanted = "cg_damping target_kl cg_max_steps n_critic_updates fisher_sub_sampling_factor"
    assert set(wanted.split()) | {"use_sde", "policy_kwargs"} <= searched
    assert set(EXPLORATION) == {"action_noise", "gsde", "gsde_4_steps", "gsde_16_steps"}


def discrete_env() -> ToyEnv:
    from tests.environments import DISCRETE_ACTIONS

    return ToyEnv(VECTOR, DISCRETE_ACTIONS)


def test_entry_says_the_same_after_the_zoo_has_read_it() -> None:
    from torch import nn

    from sb3_trpo.zoo.entry import entry_text

    policy_kwargs = {"net_arch": {"pi": [64], "vf": [64]}, "activation_fn": nn.ReLU}
    values = {"gamma": 0.9, "target_kl": "lin_0.02", "normalize": True}
    text = entry_text("Env-v1", values | {"policy_kwargs": policy_kwargs})
    entry = yaml.safe_load(text)["Env-v1"]
    assert eval(entry.pop("policy_kwargs"), {"nn": nn}) == policy_kwargs
    assert entry == values


def test_workers_share_the_trials_and_sample_different_ones() -> None:
    from sb3_trpo.zoo.optimize import worker_words

    choice = SimpleNamespace(
        jobs=4, n_trials=10, algo="trpo", env="Env-v1", folder="logs", storage="s.log",
        study_name="study", gym_packages=[], seed=5,
    )  # fmt: skip
    tasks = worker_words(choice, ["--n-timesteps", "100"])  # type: ignore[arg-type]
    trials = [int(words[words.index("--n-trials") + 1]) for words in tasks]
    assert (sorted(trials), sum(trials)) == ([2, 2, 3, 3], 10)
    assert all(words[-2:] == ["--n-timesteps", "100"] for words in tasks)


@pytest.mark.parametrize(
    ("seed", "expected"),
    [(5, [5, 6, 7]), (2**32 - 2, [2**32 - 2, 2**32 - 1, 0]), (-1, [-1, -1, -1])],
)
def test_workers_have_seeds_of_their_own(seed: int, expected: list[int]) -> None:
    from sb3_trpo.zoo.optimize import worker_words

    choice = SimpleNamespace(
        jobs=3, n_trials=10, algo="trpo", env="Env-v1", folder="logs", storage="s.log",
        study_name="study", gym_packages=[], seed=seed,
    )  # fmt: skip
    tasks = worker_words(choice, [])  # type: ignore[arg-type]
    assert [int(words[words.index("--seed") + 1]) for words in tasks] == expected
    if seed >= 0:  # another call adds other trials
        more = worker_words(choice, [], n_before=3)  # type: ignore[arg-type]
        seeds = {words[words.index("--seed") + 1] for words in (*tasks, *more)}
        assert len(seeds) == 6


def masked_env() -> Any:
    from sb3_contrib.common.envs import InvalidActionEnvDiscrete

    # One action is allowed, and it is the right one.
    return InvalidActionEnvDiscrete(dim=30, n_invalid_actions=29, ep_length=20)


@pytest.mark.parametrize("kind", ["ppo_mask", "trpo_mask", "trpo_mask_lstm"])
def test_masks_are_passed_in_evaluations_and_in_play(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import rl_zoo3.exp_manager
    from rl_zoo3 import ALGOS
    from sb3_contrib import MaskablePPO
    from stable_baselines3.common.monitor import Monitor

    import sb3_trpo.zoo.register  # noqa: F401 (imported for its effect)
    from sb3_trpo.evaluation import MaskableEvalCallback
    from sb3_trpo.zoo.masks import evaluate_policy, masks_in_evaluations, playing

    monkeypatch.setitem(ALGOS, "ppo_mask", MaskablePPO)
    algorithm: Any = ALGOS[kind]
    env = DummyVecEnv([lambda: Monitor(masked_env())])
    policy = "MlpLstmPolicy" if kind.endswith("lstm") else "MlpPolicy"
    model = algorithm(policy, env, n_steps=32, batch_size=32)
    assert evaluate_policy(model, env, 3, True).tolist() == [20, 20, 20]

    with masks_in_evaluations(kind):
        assert issubclass(vars(rl_zoo3.exp_manager)["EvalCallback"], MaskableEvalCallback)
        assert issubclass(vars(rl_zoo3.exp_manager)["TrialEvalCallback"], MaskableEvalCallback)
    with masks_in_evaluations("trpo"):
        assert vars(rl_zoo3.exp_manager)["EvalCallback"] is not MaskableEvalCallback

    model.save(tmp_path / "model")
    script = SimpleNamespace(
        get_saved_hyperparams=None, create_test_env=lambda **_: env, ALGOS=ALGOS
    )
    with playing(script, kind, tmp_path):
        playground = script.create_test_env()
        player: Any = script.ALGOS[kind].load(tmp_path / "model", device="cpu")
        observation, state, start = playground.reset(), None, np.ones(1, dtype=bool)
        for _ in range(5):
            action, state = player.predict(
                observation, state=state, episode_start=start, deterministic=True
            )
            observation, reward, start, _ = playground.step(action)
            assert reward == 1
    assert (state is None) == (policy == "MlpPolicy")
    assert script.ALGOS is ALGOS
    assert ALGOS[kind] is algorithm


@pytest.mark.parametrize("given", [{}, {"kl_reduction": "sum"}])
def test_zoos_hyperparameters_mean_what_they_mean_in_contrib(given: dict[str, Any]) -> None:
    import warnings

    from sb3_trpo.zoo import register

    options = {"n_steps": 32, "batch_size": 32} | given
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = register.TRPO("MlpPolicy", ToyEnv(VECTOR, BOX_ACTIONS), **options)
    assert model.kl_reduction == given.get("kl_reduction", "mean")
    assert bool(caught) is not bool(given)
    assert all("kl_reduction='mean'" in str(warning.message) for warning in caught)


def test_zoos_numbers_over_a_loaded_model_change_their_meaning(tmp_path: Path) -> None:
    from sb3_trpo.zoo import register

    TRPO("MlpPolicy", ToyEnv(VECTOR, BOX_ACTIONS), n_steps=32, batch_size=32).learn(32).save(
        tmp_path / "model"
    )
    assert register.TRPO.load(tmp_path / "model").kl_reduction == "sum"
    with pytest.warns(UserWarning, match="kl_reduction='mean'"):
        continued = register.TRPO.load(tmp_path / "model", target_kl=0.02)
    assert continued.kl_reduction == "mean"
    told = register.TRPO.load(tmp_path / "model", target_kl=0.02, kl_reduction="sum")
    assert told.kl_reduction == "sum"


def answer(words: list[str]) -> int:
    if words == ["bad"]:
        raise ValueError("a fault")
    if words == ["mistake"]:
        raise UsageError("a mistake")
    return int(words[0])


@pytest.mark.slow
def test_jobs_give_their_results_with_their_tasks_and_keep_tracebacks() -> None:
    from sb3_trpo.zoo.jobs import run_jobs

    tasks = [["bad"], ["3"], ["mistake"], ["1"]]
    results = dict(run_jobs(answer, tasks, jobs=2))
    with pytest.raises(ValueError, match="a fault") as caught:
        results[0].result()
    assert "in answer" in str(caught.value.__cause__)
    with pytest.raises(UsageError, match="a mistake"):
        results[2].result()
    assert (results[1].result(), results[3].result()) == (3, 1)


class OwnError(Exception):
    """Cannot be made again from its message, as pickle tries."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} {code}")


def fail(words: list[str]) -> None:
    raise OwnError(7, "the sensor has failed with")


@pytest.mark.slow
def test_jobs_tell_errors_that_cannot_be_pickled() -> None:
    from sb3_trpo.zoo.jobs import JobError, run_jobs

    ((_, failed),) = run_jobs(fail, [[]], jobs=1)
    with pytest.raises(JobError, match=r"^OwnError: the sensor has failed with 7$") as caught:
        failed.result()
    assert "in fail" in str(caught.value.__cause__)


@pytest.mark.slow
def test_jobs_that_ended_by_themselves_end_no_process_of_the_caller() -> None:
    from sb3_trpo.zoo.jobs import run_jobs

    own = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    own.start()
    assert [future.result() for _, future in run_jobs(answer, [["3"], ["1"]], jobs=2)]
    own.join(timeout=1)
    assert own.is_alive()
    own.kill()
    own.join()


def speak(words: list[str]) -> None:
    print("said")


@pytest.mark.parametrize("verbose", [1, 2])
def test_jobs_are_heard_where_that_was_asked_for(
    verbose: int, capsys: pytest.CaptureFixture[str]
) -> None:
    from sb3_trpo.zoo.jobs import _quietly

    _quietly(speak, ["--verbose", str(verbose)])
    assert ("said" in capsys.readouterr().out) == (verbose == 2)


def step_on(words: list[str]) -> None:
    """Write the numbers of this process and of its environments', and step these."""
    env = SubprocVecEnv([CartPoleEnv] * 2, start_method=worker_context().get_start_method())
    env.reset()
    numbers = [os.getpid(), *(process.pid for process in env.processes)]
    Path(words[0]).write_text(" ".join(map(str, numbers)) + "\n")
    while True:
        env.step(np.zeros(2, int))


def be_stuck(words: list[str]) -> None:
    """Write the number of this process, and stay in a call that SIGTERM does not end."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    Path(words[0]).write_text(f"{os.getpid()}\n")
    ctypes.PyDLL(None).sleep(1000)


SEVERAL = """
import sys
from sb3_trpo.zoo.jobs import run_jobs
from tests.test_zoo_runs import {job}

if __name__ == "__main__":
    try:
        list(run_jobs({job}, [[sys.argv[1]]], jobs=1))
    except KeyboardInterrupt as error:
        sys.exit(error.status)
"""


@pytest.mark.slow
@pytest.mark.parametrize("job", ["step_on", "be_stuck"])
def test_processes_end_quietly_with_the_one_that_is_terminated(job: str, tmp_path: Path) -> None:
    script, started = tmp_path / "several.py", tmp_path / "started"
    script.write_text(SEVERAL.format(job=job))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with (
        (tmp_path / "errors").open("wb") as errors,
        subprocess.Popen(
            [sys.executable, str(script), str(started)], env=environment, stderr=errors
        ) as parent,
    ):
        while not (started.is_file() and "\n" in started.read_text()):
            assert parent.poll() is None
            time.sleep(0.05)
        parent.terminate()
        assert parent.wait(60) == 128 + signal.SIGTERM
    time.sleep(1)  # for what the processes of environments would print
    assert not (tmp_path / "errors").read_text()
    assert all(map(has_ended, map(int, started.read_text().split())))


def has_ended(number: int) -> bool:
    """Return whether a process has ended; its parent may not have asked for its status yet."""
    try:
        os.kill(number, 0)
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True


def test_interrupted_run_is_no_finished_one(tmp_path: Path) -> None:
    from sb3_trpo.zoo.runs import read_finished_run

    run = write_episodes(tmp_path / "trpo" / "Env-v1_1", [1.0], length=10)
    (run / "Env-v1" / "args.yml").write_text(yaml.dump({"words": [], "seed": 0}))
    with pytest.raises(UsageError, match="interrupted"):
        read_finished_run(run)
    np.savez(run / "final_evaluation.npz", returns=[1.0])
    assert read_finished_run(run).final.tolist() == [1.0]


def write_episodes(folder: Path, returns: list[float], length: int, seed: int = 0) -> Path:
    """Write what a finished run of one environment without evaluations leaves in its folder."""
    env = folder.name.rpartition("_")[0]
    (folder / env).mkdir(parents=True)
    (folder / f"{env}.zip").touch()
    (folder / env / "config.yml").write_text("a: 1")
    (folder / env / "args.yml").write_text(yaml.dump(OrderedDict(seed=seed, trained_agent="")))
    rows = "".join(f"{value},{length},0\n" for value in returns)
    (folder / "0.monitor.csv").write_text(f'#{{"t_start": 0.0}}\nr,l,t\n{rows}')
    return folder


def test_run_without_evaluations_is_read_from_its_training_episodes(tmp_path: Path) -> None:
    from sb3_trpo.zoo.runs import POINTS, WINDOW, read_run

    returns = [float(value**2 % 97) for value in range(240)]
    run = read_run(write_episodes(tmp_path / "trpo" / "Env-v1_1", returns, length=10))
    assert not run.is_evaluated
    assert run.steps.tolist() == [2400 / POINTS * (point + 1) for point in range(POINTS)]
    ended = [returns[: int(step) // 10] for step in run.steps]
    np.testing.assert_allclose(run.returns, [np.mean(each[-WINDOW:]) for each in ended])
    assert run.final.tolist() == returns[-WINDOW:]


def test_curve_of_training_episodes_starts_when_the_first_one_ends(tmp_path: Path) -> None:
    from sb3_trpo.zoo.runs import read_run

    run = read_run(write_episodes(tmp_path / "trpo" / "Env-v1_1", [1.0, 3.0], length=50))
    assert np.isnan(run.returns).tolist() == [True] * 9 + [False] * 11
    assert run.returns[[9, 18, 19]].tolist() == [1, 1, 2]


def test_seeds_without_evaluations_are_one_group_whenever_their_episodes_end(
    tmp_path: Path,
) -> None:
    from sb3_trpo.zoo.compare import group_runs
    from sb3_trpo.zoo.runs import read_run

    folders = [
        write_episodes(tmp_path / "trpo" / f"Env-v1_{n}", [1.0] * 5, length=n) for n in (7, 8)
    ]
    for folder in folders:
        (folder / "progress.csv").write_text("time/total_timesteps\n20\n48\n")
    assert len(group_runs([read_run(folder) for folder in folders])) == 1


@pytest.mark.usefixtures("few_resamplings")
def test_comparison_says_that_a_curve_is_of_training_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sb3_trpo.zoo.compare import compare

    monkeypatch.chdir(tmp_path)
    evaluated = write_evaluations(tmp_path / "trpo" / "Env-v1_1", 0)
    compare([str(evaluated)])
    assert "training episodes" not in capsys.readouterr().out
    trained = write_episodes(tmp_path / "ppo" / "Env-v1_1", [1.0] * 9, length=10)
    compare([str(evaluated), str(trained)])
    out = capsys.readouterr().out
    assert f"{tmp_path.name}/ppo 1: without evaluations, so the curve is of training" in out
    assert f"{tmp_path.name}/trpo 1: without" not in out


def test_names_of_runs_in_folders_of_the_same_name_are_distinct(tmp_path: Path) -> None:
    from sb3_trpo.zoo.compare import group_runs, labels
    from sb3_trpo.zoo.runs import read_run

    places = [tmp_path / place / "logs" / "trpo" / "Env-v1_1" for place in ("a", "b")]
    groups = group_runs([read_run(write_evaluations(place, 0)) for place in places])
    assert labels(groups) == ["a/logs/trpo 1", "b/logs/trpo 1"]


@pytest.mark.parametrize(("environments", "inches"), [(1, (7, 5)), (3, (21, 5)), (5, (21, 10))])
def test_panels_of_a_comparison_are_wrapped(
    environments: int, inches: tuple[int, int], tmp_path: Path
) -> None:
    from matplotlib.image import imread

    from sb3_trpo.zoo.compare import draw_comparison, group_runs, labels
    from sb3_trpo.zoo.runs import read_run

    names = [f"Env{number}-v1_1" for number in range(environments)]
    groups = group_runs([read_run(write_evaluations(tmp_path / name, 1)) for name in names])
    pixels = imread(draw_comparison(groups, tmp_path / "comparison.png", labels(groups)))
    assert pixels.shape[:2] == (inches[1] * 150, inches[0] * 150)


def test_runs_in_other_processes_are_shown_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from io import StringIO

    from sb3_trpo.zoo.live_progress import LiveProgress

    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    terminal, file = Terminal(), StringIO()
    runs = {name: tmp_path / name for name in ("seed 0", "seed 1", "seed 2")}
    for output in (terminal, file):
        LiveProgress(runs, output).show()
        assert output.getvalue() == ""  # no run has logged anything
    for name, text in [("seed 0", "100,\n200,7.25\n"), ("seed 1", "50,\n")]:
        runs[name].mkdir()
        (runs[name] / "progress.csv").write_text(
            f"time/total_timesteps,rollout/ep_rew_mean\n{text}"
        )
    for output in (terminal, file):
        LiveProgress(runs, output).show()
    assert "seed 0: 200 steps, mean return 7.2; seed 1: 50 steps\r" in terminal.getvalue()
    assert file.getvalue() == ""  # lines stay there, so they are a minute apart
    LiveProgress(runs, terminal).show(finished=["seed 0"])
    assert terminal.getvalue().endswith("\x1b[Kseed 1: 50 steps\r")
    monkeypatch.setenv("COLUMNS", "11")
    LiveProgress(runs, terminal).show()
    assert terminal.getvalue().endswith("\x1b[Kseed 0: 20\r")


def test_panel_names_what_its_curves_are(tmp_path: Path) -> None:
    from sb3_trpo.zoo.compare import curve
    from sb3_trpo.zoo.runs import read_run

    evaluated = read_run(write_evaluations(tmp_path / "trpo" / "Env-v1_1", 0))
    trained = read_run(write_episodes(tmp_path / "ppo" / "Env-v1_1", [1.0], length=10))
    assert curve([[evaluated]]) == "mean return of each evaluation"
    assert curve([[trained]]) == "mean of the last 100 training episodes"
    both = "mean of the last 100 training episodes or mean return of each evaluation"
    assert curve([[evaluated], [trained]]) == both
    assert "(interquartile mean, 95% confidence as a band" in curve([[evaluated, evaluated]])


@pytest.mark.usefixtures("few_resamplings")
def test_comparison_names_the_folders_that_are_no_finished_runs_and_repeated_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sb3_trpo.zoo.compare import compare

    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "trpo"
    for number, seed in enumerate([5, 6, 5], start=1):
        write_episodes(runs / f"Env-v1_{number}", [float(number)] * 9, length=10, seed=seed)
    (runs / "Env-v1_4").mkdir()
    folders = [f"trpo/Env-v1_{number}" for number in (1, 1, 2, 3, 4)]
    compare([*folders, "--labels", "a name"])
    out = capsys.readouterr().out
    assert "Skipped: trpo/Env-v1_4 holds no model" in out
    assert "Skipped: trpo/Env-v1_3 repeats seed 5 of trpo/Env-v1_1" in out
    assert out.count("Skipped") == 2
    assert "a name: without evaluations" in out
    assert "1.5" in out  # the mean of 1 and 2, each counted once
    assert "An interval over 2 or 3 runs is too narrow" in out


@pytest.mark.parametrize(
    "argument", [{"env_kwargs": {"g": 5}}, {"eval_env_kwargs": {"g": 5}}, {"processes": 2}]
)
def test_runs_with_other_arguments_are_no_seeds_of_one_experiment(
    argument: dict[str, Any], tmp_path: Path
) -> None:
    from sb3_trpo.zoo.compare import distinct, group_runs
    from sb3_trpo.zoo.runs import read_run

    runs = []
    for number, others in enumerate([{}, {"env_kwargs": None, "processes": 1}, argument]):
        folder = tmp_path / "trpo" / f"Env-v1_{number}"
        write_evaluations(folder, level=0)
        (folder / "Env-v1").mkdir(exist_ok=True)
        arguments = OrderedDict(seed=number, **others)
        (folder / "Env-v1" / "args.yml").write_text(yaml.dump(arguments))
        runs.append(read_run(folder))
    assert [len(group) for group in group_runs(distinct(runs))] == [2, 1]


def test_continued_run_is_no_seed_of_the_run_that_it_continues(tmp_path: Path) -> None:
    from sb3_trpo.zoo.compare import group_runs
    from sb3_trpo.zoo.runs import read_run

    folders = [
        write_episodes(tmp_path / "trpo" / f"Env-v1_{n}", [1.0] * 9, length=10) for n in (1, 2)
    ]
    arguments = OrderedDict(seed=1, trained_agent=f"{folders[0]}/Env-v1.zip")
    (folders[1] / "Env-v1" / "args.yml").write_text(yaml.dump(arguments))
    assert len(group_runs([read_run(folder) for folder in folders])) == 2


@pytest.mark.usefixtures("few_resamplings")
def test_labels_are_one_per_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sb3_trpo.zoo.compare import compare

    monkeypatch.chdir(tmp_path)
    write_evaluations(tmp_path / "trpo" / "Env-v1_1", 0)
    with pytest.raises(UsageError, match=f"a name for each of: {tmp_path.name}/trpo 1"):
        compare(["trpo/Env-v1_1", "--labels", "one", "two"])


def test_best_model_and_checkpoints_keep_the_statistics_of_their_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sb3_trpo.zoo.choice import statistics_of

    monkeypatch.chdir(tmp_path)
    small = ["n_envs:1", "n_steps:64", "batch_size:64", "normalize:True", "n_critic_updates:1"]
    freq = ["-n", "256", "--save-freq", "128", "--eval-freq", "64", "--eval-episodes", "1"]
    options = ["--env", "Pendulum-v1", *freq, "--hyperparams", *small, "--verbose", "0"]
    assert main(["train", *options]) == 0
    run = tmp_path / "logs" / "trpo" / "Pendulum-v1_1"

    def steps(model: str) -> int:
        """Count the observations that the statistics are of, the first of all included."""
        path = statistics_of(run / model, "Pendulum-v1")
        env = load_vec_normalize(path, make_vec_env("Pendulum-v1"))
        count: float = vars(env.obs_rms)["count"]
        return round(count) - 1

    with np.load(run / "evaluations.npz") as evaluations:
        best = evaluations["timesteps"][evaluations["results"].mean(axis=1).argmax()]
    counts = {name: steps(f"{name}.zip") for name in ("rl_model_128_steps", "best_model")}
    assert counts == {"rl_model_128_steps": 128, "best_model": best}
    assert steps("Pendulum-v1.zip") == 256
