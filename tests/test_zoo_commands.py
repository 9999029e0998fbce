"""What each command promises, without training. The RL Zoo is imported inside the tests."""

import gc
import math
import os
import re
import signal
import weakref
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch as th
import yaml
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_trpo import TRPO, load_vec_normalize
from sb3_trpo.zoo.commands import main
from sb3_trpo.zoo.errors import UsageError
from sb3_trpo.zoo.script import Parser


def normalized_cartpole() -> VecNormalize:
    env = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    statistics: Any = env.obs_rms
    statistics.mean = np.full(4, 100.0)
    return env


@pytest.fixture
def normalized_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a run of CartPole whose observations were far from 0, and return its folder."""
    env = normalized_cartpole()
    run = tmp_path / "logs" / "trpo" / "CartPole-v1_1"
    (run / "CartPole-v1").mkdir(parents=True)
    env.save(str(run / "CartPole-v1" / "vecnormalize.pkl"))
    TRPO("MlpPolicy", env, n_steps=32, batch_size=32).save(run / "CartPole-v1")
    settings = {"gamma": 0.5, "normalize": "dict(norm_reward=False)", "policy": "MlpPolicy"}
    (run / "CartPole-v1" / "config.yml").write_text(yaml.dump(settings))
    (run / "best_model.zip").touch()
    for steps in (5, 10):
        (run / f"rl_model_{steps}_steps.zip").touch()
    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture
def manager(tmp_path: Path) -> Callable[..., Any]:
    """Make the manager of a run without training."""

    def make(algo: str = "trpo", env: str = "CartPole-v1", **options: Any) -> Any:
        from sb3_trpo.zoo.manager import RunManager

        args = SimpleNamespace(conf_file=options.get("config"))
        return RunManager(args, algo, env, str(tmp_path), verbose=0, **options)

    return make


# Which model is chosen.


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ([], "CartPole-v1.zip"),
        (["--load-best"], "best_model.zip"),
        (["--load-checkpoint", "5"], "rl_model_5_steps.zip"),
        (["--load-last-checkpoint"], "rl_model_10_steps.zip"),
    ],
)
def test_every_option_chooses_its_model(
    options: list[str], name: str, normalized_run: Path
) -> None:
    from sb3_trpo.zoo.choice import add_choice, find_model
    from sb3_trpo.zoo.script import Parser

    parser = Parser("a command", "")
    add_choice(parser)
    assert find_model(parser.parse_args(options)).resolve() == normalized_run / name


OWN_STATISTICS = {
    "--load-best": "best_model_vecnormalize.pkl",
    "--load-checkpoint=5": "rl_model_vecnormalize_5_steps.pkl",
    "--load-last-checkpoint": "rl_model_vecnormalize_10_steps.pkl",
}


@pytest.fixture
def own_statistics(normalized_run: Path) -> Path:
    """Give every model of a run statistics of its own, with the position of its option as mean."""
    for position, name in enumerate(OWN_STATISTICS.values()):
        env = normalized_cartpole()
        vars(env.obs_rms)["mean"] = np.full(4, float(position))
        env.save(str(normalized_run / name))
    for path in normalized_run.glob("*.zip"):
        path.write_bytes((normalized_run / "CartPole-v1.zip").read_bytes())
    return normalized_run


@pytest.mark.parametrize("is_finished", [True, False])
@pytest.mark.parametrize(
    ("options", "mean"),
    [([], 100.0), *(([option], float(place)) for place, option in enumerate(OWN_STATISTICS))],
)
@pytest.mark.parametrize("command", ["enjoy", "export", "continue"])
def test_model_acts_with_the_statistics_of_its_own_step(
    command: str,
    options: list[str],
    mean: float,
    is_finished: bool,
    own_statistics: Path,
    monkeypatch: pytest.MonkeyPatch,
    manager: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    from sb3_trpo.zoo import continuing, export, normalization

    statistics_of_the_end = own_statistics / "CartPole-v1" / "vecnormalize.pkl"
    if not is_finished:
        statistics_of_the_end.unlink()

    loaded: list[VecNormalize] = []

    def load(*arguments: Any) -> VecNormalize:
        loaded.append(load_vec_normalize(*arguments))
        return loaded[-1]

    def train(words: list[str]) -> None:
        run = manager(trained_agent=words[words.index("-i") + 1])
        run.normalize, run.normalize_kwargs = True, {}
        for eval_env in (False, True):
            env = DummyVecEnv([lambda: gym.make("CartPole-v1")])
            assert run._maybe_normalize(env, eval_env) is loaded[-1]
            assert loaded[-1].training == loaded[-1].norm_reward == (not eval_env)

    monkeypatch.setattr(normalization, "load_vec_normalize", load)
    monkeypatch.setattr(continuing, "train", train)
    monkeypatch.setattr(export, "export_onnx", lambda *_: 0.0)
    more = ["--no-render", "-n", "5"] if command == "enjoy" else []
    status = main([command, "--env", "CartPole-v1", *options, *more])
    if not (options or is_finished):
        assert status == 2
        assert str(statistics_of_the_end.relative_to(Path.cwd())) in capsys.readouterr().err
        return
    assert status == 0
    assert {float(vars(env.obs_rms)["mean"][0]) for env in loaded} == {mean}


def test_older_runs_have_statistics_of_their_end_only(normalized_run: Path) -> None:
    from sb3_trpo.zoo.choice import statistics_of

    for path in normalized_run.glob("*.zip"):
        found = statistics_of(path, "CartPole-v1")
        assert found == normalized_run / "CartPole-v1" / "vecnormalize.pkl"


@pytest.mark.parametrize(
    ("left", "hint"),
    [
        (["best_model.zip", "rl_model_5_steps.zip"], "--load-last-checkpoint"),
        (["best_model.zip"], "--load-best"),
        ([], "sb3-trpo train --algo trpo --env CartPole-v1"),
    ],
)
def test_missing_model_is_told_with_what_the_run_has_instead(
    left: list[str], hint: str, normalized_run: Path
) -> None:
    from sb3_trpo.zoo.choice import choose_model

    for path in normalized_run.glob("*.zip"):
        if path.name not in left:
            path.unlink()
    with pytest.raises(UsageError, match=hint):
        choose_model("a command", [])


@pytest.mark.parametrize(
    "words", [["--load-best"], ["--load-checkpoint", "7"], ["--load-last-checkpoint"]]
)
def test_a_finished_run_is_not_said_to_be_unfinished(
    words: list[str], normalized_run: Path
) -> None:
    from sb3_trpo.zoo.choice import choose_model

    for path in normalized_run.glob("*.zip"):
        if path.name != "CartPole-v1.zip":
            path.unlink()
    with pytest.raises(UsageError, match="without this option the run's final model is taken"):
        choose_model("a command", words)


def test_agent_plays_in_one_environment_at_least(
    normalized_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["enjoy", "--env", "CartPole-v1", "--no-render", "--n-envs", "0"]) == 2
    assert "--n-envs: it has to be an integer of at least 1" in capsys.readouterr().err


def test_package_of_the_user_is_found_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from sb3_trpo.zoo.choice import import_package

    elsewhere = [path for path in sys.path if path not in ("", os.getcwd())]
    monkeypatch.setattr(sys, "path", elsewhere)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_package_here.py").write_text("import no_such_module")
    with pytest.raises(UsageError, match="--gym-packages my_other_package: there is no module"):
        import_package("my_other_package")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        import_package("my_package_here")


# continue


@pytest.mark.parametrize("packages", [[], ["tests.environments"]])
def test_continue_trains_the_chosen_model_with_the_settings_of_its_run(
    packages: list[str], normalized_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sb3_trpo.zoo import continuing

    seen: list[Any] = []

    def train(words: list[str]) -> None:
        config = Path(words[words.index("--conf-file") + 1])
        seen.extend([words, yaml.safe_load(config.read_text())])

    monkeypatch.setattr(continuing, "train", train)
    options = ["--gym-packages", *packages] if packages else []
    continuing.continue_training(["--load-best", "-n", "64", *options])
    words, config = seen
    assert Path(words[words.index("-i") + 1]).resolve() == normalized_run / "best_model.zip"
    assert config["CartPole-v1"] == yaml.safe_load(
        (normalized_run / "CartPole-v1" / "config.yml").read_text()
    )
    assert words[-2:] == ["-n", "64"]
    assert [word for word in words if word in ("--gym-packages", *packages)] == options


def test_continue_takes_the_arguments_of_the_runs_environment(tmp_path: Path) -> None:
    from sb3_trpo.zoo.continuing import env_options

    assert env_options(tmp_path) == []
    (tmp_path / "args.yml").write_text(yaml.dump({"env_kwargs": {"g": 2.0, "name": "a b"}}))
    assert env_options(tmp_path) == ["--env-kwargs", "g:2.0", "name:'a b'"]


def test_export_makes_the_environment_with_the_arguments_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sb3_trpo.zoo import export

    seen: list[Any] = []
    monkeypatch.setattr(export, "saved_settings", lambda *_, **__: ({}, None))
    monkeypatch.setattr(export, "create_test_env", lambda *_, **options: seen.append(options))
    (tmp_path / "args.yml").write_text(yaml.dump({"env_kwargs": {"g": 2.0}}))
    export.make_env("Pendulum-v1", tmp_path, "a folder")
    assert seen[0]["env_kwargs"] == {"g": 2.0}


def test_continue_needs_the_statistics_that_the_model_was_trained_with(
    normalized_run: Path, manager: Callable[..., Any]
) -> None:
    model = str(normalized_run / "CartPole-v1.zip")
    statistics = normalized_run / "CartPole-v1" / "vecnormalize.pkl"
    statistics.unlink()
    run = manager(trained_agent=model)
    run.normalize, run.normalize_kwargs = True, {}
    with pytest.raises(UsageError, match=rf"{re.escape(str(statistics))}.*normalize:False"):
        run._maybe_normalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]), eval_env=False)
    run.normalize = False
    env = DummyVecEnv([lambda: gym.make("CartPole-v1")])
    assert run._maybe_normalize(env, eval_env=False) is env


def test_continue_starts_a_new_run() -> None:
    from sb3_trpo.zoo.continuing import continue_training

    with pytest.raises(UsageError, match="'sb3-trpo train --resume logs/x' finishes one that was"):
        continue_training(["--env", "CartPole-v1", "--resume", "logs/x"])


# export


def test_export_checks_the_policy_with_its_normalisation_on_what_the_environment_returns(
    normalized_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sb3_trpo.zoo import export

    seen: list[Any] = []

    def export_onnx(*arguments: Any) -> float:
        seen.append(arguments)
        return 0.0

    monkeypatch.setattr(export, "export_onnx", export_onnx)
    export.export([])
    export.export([])
    (_, path, observations, normalization, masks), (_, _, again, _, _) = seen
    assert path.resolve() == normalized_run / "CartPole-v1.onnx"
    assert normalization.obs_rms.mean.tolist() == [100] * 4
    assert np.abs(observations).max() < 5  # normalised, they would be far below
    assert len(observations) == 200
    assert masks is None
    np.testing.assert_array_equal(observations, again)


# train


def test_every_seed_is_trained_once_in_folders_in_their_order(
    normalized_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sb3_trpo.zoo import seeds

    seen: list[list[str]] = []

    def run_jobs(
        job: Any, tasks: list[list[str]], jobs: int, meanwhile: Any
    ) -> list[tuple[int, Path]]:
        seen.extend(tasks)
        return []

    monkeypatch.setattr(seeds, "run_jobs", run_jobs)
    seeds.train_seeds(lambda words: Path(), [3, 5, 4], 2, ["-n", "64"])
    assert [words[words.index("--seed") + 1] for words in seen] == ["3", "5", "4"]
    assert [words[words.index("--run-number") + 1] for words in seen] == ["2", "3", "4"]
    assert all(words[words.index("-n") + 1] == "64" for words in seen)


def test_every_seed_is_trained_with_all_other_options(monkeypatch: pytest.MonkeyPatch) -> None:
    from sb3_trpo.zoo import train

    seen: list[Any] = []
    monkeypatch.setattr(train, "train_seeds", lambda *arguments: seen.extend(arguments))
    others = ["--checkpoint-freq", "100", "--trust-checkpoint", "--process-timeout", "9", "-n", "9"]
    train.train(["--seeds", "0-1", *others, "--jobs", "2"])
    assert seen == [train.train_one, [0, 1], 2, others]


def test_few_seeds_share_all_threads(normalized_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sb3_trpo.zoo import cores, seeds

    seen: list[list[str]] = []
    monkeypatch.setattr(th, "get_num_threads", lambda: 8)
    monkeypatch.setattr(cores, "available_cores", lambda: 8)

    def run_jobs(job: Any, tasks: list[list[str]], *_: Any) -> list[tuple[int, Path]]:
        seen.extend(tasks)
        return []

    monkeypatch.setattr(seeds, "run_jobs", run_jobs)
    seeds.train_seeds(lambda words: Path(), [0, 1], 8, [])
    assert [words[words.index("--num-threads") + 1] for words in seen] == ["4", "4"]


@pytest.mark.parametrize(("jobs", "threads"), [(1, 8), (2, 4), (3, 2), (16, 1)])
def test_processes_share_the_threads_of_torch(
    jobs: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sb3_trpo.zoo import cores

    monkeypatch.setattr(cores, "available_cores", lambda: 16)
    monkeypatch.setattr(th, "get_num_threads", lambda: 8)
    assert cores.threads_per_job(jobs) == threads
    monkeypatch.setattr(cores, "available_cores", lambda: 8)
    monkeypatch.setattr(th, "get_num_threads", lambda: 64)
    assert cores.threads_per_job(jobs) == threads


def test_as_many_jobs_as_cores_that_were_allotted_to_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sb3_trpo.zoo import cores
    from sb3_trpo.zoo.optimize import add_search
    from sb3_trpo.zoo.train import add_seeds

    monkeypatch.setattr(cores, "quota", lambda folder: math.inf)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 7, 9}, raising=False)
    for add in (add_seeds, add_search):
        parser = Parser("some", "")
        add(parser)
        assert parser.parse_args([]).jobs == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores.available_cores() == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores.available_cores() == 1


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({}, 8),
    ],
)
def test_no_more_cores_than_a_container_has_processor_time(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sb3_trpo.zoo import cores as module

    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(module, "CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert module.available_cores() == cores


def test_run_has_the_number_that_it_is_given_unless_it_is_taken(tmp_path: Path) -> None:
    from sb3_trpo.zoo.manager import RunManager

    args = SimpleNamespace(conf_file=None, run_number=5)
    for number in (5, 6):
        run = RunManager(args, "trpo", "CartPole-v1", str(tmp_path), verbose=0)
        run.create_log_folder()
        assert Path(run.save_path) == tmp_path / "trpo" / f"CartPole-v1_{number}"


@pytest.mark.parametrize(("algo", "has_masks"), [("trpo", False), ("trpo_mask", True)])
def test_periodic_evaluations_have_masks_where_the_algorithm_takes_them(
    algo: str, has_masks: bool, manager: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rl_zoo3 import exp_manager

    from sb3_trpo.evaluation import MaskableEvalCallback

    used: list[type[Any]] = []
    monkeypatch.setattr(
        exp_manager.ExperimentManager,
        "create_callbacks",
        lambda self: used.append(vars(exp_manager)["EvalCallback"]),
    )
    manager(algo, eval_freq=10).create_callbacks()
    assert issubclass(used[0], MaskableEvalCallback) is has_masks


@pytest.mark.parametrize("deterministic", [True, False])
def test_final_evaluation_is_on_new_episodes_with_the_statistics_of_training(
    deterministic: bool, manager: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sb3_trpo.zoo import manager as module

    run = manager(seed=7)
    run.normalize, run.deterministic_eval = True, deterministic
    training_env = normalized_cartpole()
    seen: list[Any] = []

    def evaluate_policy(model: Any, env: Any, *options: Any) -> Any:
        env.reset()
        seen.extend([env, env.get_original_obs(), options])
        return np.zeros(20)

    monkeypatch.setattr(module, "evaluate_policy", evaluate_policy)
    run.evaluate(SimpleNamespace(get_env=lambda: training_env))
    env, first, options = seen
    assert options == (20, deterministic)
    assert (env.norm_reward, env.training) == (False, False)
    assert env.obs_rms.mean.tolist() == [100] * 4
    periodic = run.create_envs(1, eval_env=True)
    periodic.reset()
    assert (periodic.get_original_obs() != first).any()


def test_interrupted_run_is_saved_and_says_how_far_it_came(
    manager: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rl_zoo3.exp_manager import ExperimentManager

    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    saved: list[Any] = []
    monkeypatch.setattr(
        ExperimentManager, "save_trained_model", lambda self, model: model.save("anywhere")
    )
    run = manager(n_timesteps=1000)
    run.create_log_folder()
    env = SimpleNamespace(close=lambda: None)
    model: Any = SimpleNamespace(learn=interrupt, env=env, policy=None, num_timesteps=320)
    model.save, model.get_vec_normalize_env = saved.append, None
    run.learn(model)
    with pytest.raises(KeyboardInterrupt, match=r"after 320 of 1000 steps; the model is saved in"):
        run.save_trained_model(model)
    assert saved == [f"{run.params_path}.zip"]
    assert (Path(run.save_path) / "learning_curve.png").is_file()


def test_environments_are_not_kept(manager: Callable[..., Any]) -> None:
    run = manager()  # a search makes two in every trial
    env = run.create_envs(1)
    kept = weakref.ref(env)
    env.close()
    del env
    gc.collect()
    assert kept() is None


def test_environment_whose_wrapping_fails_is_closed(
    manager: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rl_zoo3.exp_manager import ExperimentManager

    made: list[Any] = []

    def fail(_: Any, env: Any, __: bool) -> None:
        made.append(env)
        monkeypatch.setattr(env, "close", lambda: made.append("closed"))
        raise UsageError("a mistake")

    monkeypatch.setattr(ExperimentManager, "_maybe_normalize", fail)
    with pytest.raises(UsageError, match="a mistake"):
        manager(n_timesteps=10).setup_experiment()
    assert made[1:] == ["closed"]


def test_error_is_told_that_ended_the_processes_of_environments(
    manager: Callable[..., Any],
) -> None:
    def end(*arguments: Any, **options: Any) -> None:
        raise EOFError("a process has ended")

    def close() -> None:
        raise BrokenPipeError

    model: Any = SimpleNamespace(learn=end, env=SimpleNamespace(close=close), policy=None)
    with pytest.raises(EOFError, match="a process has ended"):
        manager(n_timesteps=1000).learn(model)


def test_interruption_of_the_final_evaluation_says_where_the_model_is(
    manager: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sb3_trpo.zoo import manager as module

    workers: list[Any] = []

    def interrupt(_: Any, env: Any, *__: Any) -> None:
        workers.extend(env.unwrapped.processes)
        raise KeyboardInterrupt

    run = manager(n_timesteps=64, vec_env_type="subproc")
    run.create_log_folder()
    monkeypatch.setattr(module, "evaluate_policy", interrupt)
    env = gym.make("CartPole-v1")
    model = TRPO("MlpPolicy", env, n_steps=32, batch_size=32, device="cpu").learn(64)
    with pytest.raises(
        KeyboardInterrupt, match=r"after 64 of 64 steps; the model is saved in \S+$"
    ):
        run.save_trained_model(model)
    for worker in workers:  # or they would print that their pipes are broken
        worker.join(timeout=10)
        assert worker.exitcode == -signal.SIGKILL
    assert Path(f"{run.params_path}.zip").is_file()
    assert (Path(run.save_path) / "learning_curve.png").is_file()


@pytest.mark.parametrize("given", [None, {"g": 4.0}])
def test_environments_arguments_in_a_configuration_are_those_of_the_evaluations(
    given: dict[str, Any] | None, manager: Callable[..., Any], tmp_path: Path
) -> None:
    config = tmp_path / "config.yml"
    settings = {"policy": "MlpPolicy", "n_timesteps": 10, "env_kwargs": {"g": 3.0}}
    config.write_text(yaml.dump({"Pendulum-v1": settings}))
    run = manager(env="Pendulum-v1", config=str(config), eval_env_kwargs=given)
    run._preprocess_hyperparams(run.read_hyperparameters()[0])
    envs = [run.create_envs(1, eval_env=is_evaluation) for is_evaluation in (False, True)]
    gravities = [env.envs[0].unwrapped.g for env in envs]
    for env in envs:
        env.close()
    assert gravities == [3.0, 4.0 if given else 3.0]


def test_model_of_an_environment_with_a_dot_has_its_name(
    manager: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gym.registry, "Dot0.5-v1", gym.spec("CartPole-v1"))
    run = manager(env="Dot0.5-v1", n_timesteps=10)
    run.create_log_folder()
    model = TRPO("MlpPolicy", gym.make("CartPole-v1"), n_steps=32, batch_size=32, device="cpu")
    monkeypatch.setattr(run, "evaluate", lambda _: np.zeros(1))
    run.save_trained_model(model)
    assert Path(f"{run.save_path}/Dot0.5-v1.zip").is_file()


def test_plot_names_environments_as_their_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    from sb3_trpo.zoo import plot

    called: list[list[str]] = []
    monkeypatch.setattr(plot, "find_runs", lambda *_: [])
    monkeypatch.setattr(
        plot, "run_script", lambda script, prog, text, words, add: called.append(words)
    )
    plot.plot(["--env", "ALE/Pong-v5", "CartPole-v1", "-w", "5"])
    (words,) = called
    start = words.index("-e")
    assert words[start + 1 : start + 3] == ["ALE-Pong-v5", "CartPole-v1"]


def test_checkpoints_of_other_algorithms_are_refused(manager: Callable[..., Any]) -> None:
    run = manager("ppo", n_timesteps=10)
    run.args.checkpoint_freq = 5
    with pytest.raises(UsageError, match=r"--checkpoint-freq.*'ppo'.*--save-freq"):
        run.create_callbacks()


def test_interrupted_seeds_keep_the_comparison_of_the_finished_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sb3_trpo.zoo import seeds

    def run_jobs(job: Any, tasks: Any, jobs: int, meanwhile: Any) -> Any:
        yield 2, ended(Path("third"))
        yield 0, ended(Path("first"))
        raise KeyboardInterrupt

    run = SimpleNamespace(final=np.zeros(3), folder="a folder")
    compared: list[Any] = []
    monkeypatch.setattr(seeds, "run_jobs", run_jobs)
    monkeypatch.setattr(seeds, "read_run", lambda folder: run)
    monkeypatch.setattr(seeds, "summarize", compared.append)
    with pytest.raises(KeyboardInterrupt, match="after 2 of 3 runs"):
        seeds.train_seeds(lambda words: Path(), [4, 5, 6], 2, [])
    assert [sorted(runs) for runs in compared] == [[0, 2]]


def ended(outcome: Path | Exception) -> "Future[Path]":
    future: Future[Path] = Future()
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
    return future


def test_seed_that_fails_does_not_end_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sb3_trpo.zoo import live_progress, seeds

    def run_jobs(job: Any, tasks: Any, jobs: int, meanwhile: Any) -> Any:
        yield 1, ended(RuntimeError("the simulator\nhas crashed"))
        meanwhile()
        yield 0, ended(Path("first"))
        yield 2, ended(UsageError("another one"))

    run = SimpleNamespace(final=np.zeros(3), folder="a folder")
    compared: list[Any] = []
    shown: list[Any] = []
    monkeypatch.setattr(seeds, "run_jobs", run_jobs)
    monkeypatch.setattr(seeds, "read_run", lambda folder: run)
    monkeypatch.setattr(seeds, "summarize", lambda runs: compared.extend(runs))
    monkeypatch.setattr(
        live_progress.LiveProgress, "show", lambda self, finished: shown.extend(finished)
    )
    with pytest.raises(RuntimeError, match="simulator"):
        seeds.train_seeds(lambda words: Path(), [4, 5, 6], 2, [])
    said = capsys.readouterr().out
    assert "1 of 3 runs: seed 5, failed, RuntimeError: the simulator has crashed\n" in said
    assert "2 of 3 runs: seed 4, mean return 0.0" in said
    assert "3 of 3 runs: seed 6, failed, UsageError: another one\n" in said
    assert compared == [0]
    assert shown == ["seed 5"]


def test_mistake_in_the_options_of_all_seeds_ends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from sb3_trpo.zoo import seeds

    outcomes = [(0, ended(UsageError("no such option"))), (1, ended(Path("second")))]
    read: list[Path] = []
    monkeypatch.setattr(seeds, "run_jobs", lambda *_: iter(outcomes))
    monkeypatch.setattr(seeds, "read_run", read.append)
    with pytest.raises(UsageError, match="no such option"):
        seeds.train_seeds(lambda words: Path(), [4, 5], 1, [])
    assert not read


# optimize


def study_with_trials(values: list[float]) -> Any:
    import optuna

    from sb3_trpo.zoo.entry import entry_text
    from sb3_trpo.zoo.manager import CONFIGURATION
    from sb3_trpo.zoo.search_space import sample

    study = optuna.create_study(direction="maximize", study_name="a study")
    for number, value in enumerate(values):
        trial = study.ask()
        given = {"cg_max_steps": -1, "n_envs": number}
        trial.set_user_attr(CONFIGURATION, entry_text("Pendulum-v1", given))
        sample(trial, 1, 1, {})
        study.tell(trial, value)
    return study


def search_options(**changes: Any) -> Namespace:
    options = {"env": "Pendulum-v1", "algo": "trpo", "study_name": "a study", "storage": None}
    return Namespace(gym_packages=[], **options | changes)


def test_configuration_of_a_search_has_the_environments_arguments(
    manager: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import optuna
    from rl_zoo3.exp_manager import ExperimentManager

    from sb3_trpo.zoo.manager import CONFIGURATION

    monkeypatch.setattr(ExperimentManager, "objective", lambda self, trial: 0.0)
    run = manager("trpo", env_kwargs={"max_episode_steps": 9}, n_timesteps=64)
    run.given = {"n_steps": 32}
    trial = optuna.create_study().ask()
    run.objective(trial)
    entry = yaml.safe_load(trial.user_attrs[CONFIGURATION])["CartPole-v1"]
    assert entry == {"n_steps": 32, "env_kwargs": {"max_episode_steps": 9}}


def test_best_configuration_is_the_best_trials_over_what_was_not_searched(tmp_path: Path) -> None:
    from sb3_trpo.zoo.optimize import report
    from sb3_trpo.zoo.search_space import convert

    study = study_with_trials([-3.0, -1.0, -2.0])
    report(study, search_options(), tmp_path)
    (path,) = tmp_path.glob("*.yml")
    best = yaml.safe_load(path.read_text())["Pendulum-v1"]
    assert best["n_envs"] == 1
    assert best["cg_max_steps"] == convert(study.trials[1].params)["cg_max_steps"] > 0


def test_studies_of_one_environment_have_files_of_their_own(tmp_path: Path) -> None:
    from sb3_trpo.zoo.optimize import report

    for name in ("Pendulum-v1", "with/slash", "other"):
        report(study_with_trials([1.0]), search_options(study_name=name), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best_Pendulum-v1.yml",
        "best_Pendulum-v1_other.yml",
        "best_Pendulum-v1_with-slash.yml",
        "study_Pendulum-v1.png",
        "study_Pendulum-v1_other.png",
        "study_Pendulum-v1_with-slash.png",
    ]


def test_half_a_line_in_a_journal_is_told(tmp_path: Path) -> None:
    from sb3_trpo.zoo.optimize import open_study

    path = tmp_path / "study.log"
    choice = search_options(storage=str(path))
    open_study(choice)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":0,"wor')
    with pytest.raises(UsageError, match=r"ends within a line.*op_code"):
        open_study(choice)
    path.write_bytes(whole)
    open_study(choice)


def test_search_without_a_finished_trial_is_told(tmp_path: Path) -> None:
    from sb3_trpo.zoo.optimize import report

    with pytest.raises(UsageError, match="no trial finished"):
        report(study_with_trials([]), search_options(), tmp_path)


def test_search_maximises_the_return(tmp_path: Path) -> None:
    from sb3_trpo.zoo.optimize import open_study

    study = open_study(search_options(storage=str(tmp_path / "study.log")))
    assert study.direction.name == "MAXIMIZE"


def test_line_in_the_figure_of_a_search_is_the_best_return_so_far() -> None:
    from matplotlib.figure import Figure

    from sb3_trpo.zoo.optimize import draw_trials, finished_trials

    axes = Figure().subplots()
    draw_trials(axes, finished_trials(study_with_trials([2.0, 1.0, 5.0, 3.0])))
    dots, line = axes.get_lines()
    assert np.array(dots.get_ydata()).tolist() == [2, 1, 5, 3]
    assert np.array(line.get_ydata()).tolist() == [2, 2, 5, 5]


@pytest.mark.parametrize(("schedule", "expected"), [("constant", 0.01), ("linear", "lin_0.01")])
def test_schedule_of_a_trial_is_in_its_hyperparameters(schedule: str, expected: Any) -> None:
    import optuna

    from sb3_trpo.zoo.search_space import convert, sample

    trial = optuna.create_study().ask()
    sample(trial, 0, 1, {})
    params = trial.params | {"target_kl": 0.01, "target_kl_schedule": schedule}
    assert convert(params)["target_kl"] == expected


# compare, plot and the pictures


def test_interval_is_the_same_every_time_and_leaves_the_global_generator_alone() -> None:
    from sb3_trpo.zoo.aggregate import estimate

    scores = np.random.default_rng(0).normal(size=(9, 2))
    np.random.seed(1)
    first = estimate(scores)
    after = np.random.random()
    np.random.seed(1)
    assert np.random.random() == after
    np.testing.assert_array_equal(first, estimate(scores))


def test_row_of_a_table_orders_worst_interval_and_best() -> None:
    from sb3_trpo.zoo.compare import row
    from sb3_trpo.zoo.runs import Run

    none = np.zeros(0)
    finals = np.random.default_rng(0).normal(100, 30, size=8)
    folder = Path("logs/trpo/Env-v1_1")
    cells = row([Run(folder, none, none, np.array([final])) for final in finals], "a name")
    low, high = map(float, re.findall(r"[\d.]+", str(cells["95% confidence"])))
    mean = float(cells["final return, interquartile mean"])
    worst, best = float(cells["worst run"]), float(cells["best run"])
    assert worst < low < mean < high < best
    assert (worst, best) == (round(finals.min(), 1), round(finals.max(), 1))


@pytest.mark.parametrize(("episodes", "window"), [([300, 400], 100), ([30, 41], 15), ([1, 9], 1)])
def test_window_leaves_something_of_every_run_to_draw(
    episodes: list[int], window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sb3_trpo.zoo import plot

    monkeypatch.setattr(plot, "training_episodes", lambda run: range(episodes[int(run.name)]))
    assert plot.episode_window([Path(str(i)) for i in range(len(episodes))]) == window


def test_evaluations_are_drawn_as_their_mean_and_range(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    from sb3_trpo.zoo.learning_curve import draw_evaluations

    results = np.array([[0.0, 1.0, 5.0], [2.0, 3.0, 10.0]])
    np.savez(tmp_path / "evaluations.npz", timesteps=[10, 20], results=results)
    axes = Figure().subplots()
    draw_evaluations(axes, tmp_path / "evaluations.npz")
    (line,) = axes.get_lines()
    assert np.array(line.get_ydata()).tolist() == [2, 5]
    (band,) = axes.collections
    corners = {tuple(corner) for corner in np.asarray(band.get_paths()[0].vertices).tolist()}
    assert {(10, 0), (10, 5), (20, 2), (20, 10)} <= corners


def test_panel_of_the_kl_shows_the_steps_below_their_bound() -> None:
    from matplotlib.figure import Figure

    from sb3_trpo.zoo.trust_region_figure import draw_kl

    axes = Figure().subplots()
    draw_kl(
        axes, pd.DataFrame({"target_kl": [0.2, 0.1], "kl_divergence_loss": [0.15, 0.05]}), "a unit"
    )
    assert axes.get_ylabel() == "KL divergence\n(a unit)"
    drawn = {line.get_label(): np.array(line.get_ydata()).tolist() for line in axes.get_lines()}
    assert drawn == {"bound (target_kl)": [0.2, 0.1], "step taken": [0.15, 0.05]}


@pytest.mark.parametrize(
    ("algo", "settings", "unit"),
    [
        ("trpo", {"kl_reduction": "mean"}, "nats per action dimension"),
        ("trpo", {"kl_reduction": "sum"}, "nats per state"),
        ("trpo", {}, "nats per action dimension"),
        ("trpo_lstm", {}, "nats per state"),
        ("trpo_lstm", {"kl_reduction": "mean"}, "nats per action dimension"),
    ],
)
def test_unit_of_the_kl_is_that_of_its_reduction(
    algo: str, settings: dict[str, Any], unit: str, tmp_path: Path
) -> None:
    from sb3_trpo.zoo.trust_region_figure import kl_unit

    run = tmp_path / algo / "Env-v1_3"
    (run / "Env-v1").mkdir(parents=True)
    (run / "Env-v1" / "config.yml").write_text(yaml.dump(OrderedDict(settings)))
    assert kl_unit(run) == unit


def test_panels_of_the_trust_region_name_only_what_occurs() -> None:
    from matplotlib.figure import Figure

    from sb3_trpo.zoo.trust_region_figure import draw_backtracks, draw_improvement, draw_residual

    def drawn(draw: Any, **columns: list[float]) -> dict[Any, list[float]]:
        axes = Figure().subplots()
        draw(axes, pd.DataFrame(columns))
        return {line.get_label(): np.array(line.get_ydata()).tolist() for line in axes.get_lines()}

    taken = drawn(draw_backtracks, backtracks=[0, 2], kl_divergence_loss=[0.1, 0.1])
    assert taken == {"step taken": [0, 2]}
    failed = drawn(draw_backtracks, backtracks=[0, 10], kl_divergence_loss=[0.1, 0])
    assert failed == {"step taken": [0], "no step taken, policy unchanged": [10]}
    gains = {"expected_improvement": [2.0, 0, 4], "actual_improvement": [1.0, 0, 4]}
    assert drawn(draw_improvement, **gains) == {"step taken": [0.5, 1], "as predicted": [1, 1]}
    residuals = drawn(draw_residual, cg_residual=[0.01, 0.2])
    assert residuals == {"residual left": [0.01, 0.2], "small enough below 0.1": [0.1, 0.1]}


# Atari and masks


@pytest.mark.parametrize(
    ("kwargs", "frames"), [({}, 1), ({"frameskip": 4}, 1), ({"frameskip": 1}, 4)]
)
def test_frames_are_skipped_once(
    kwargs: dict[str, Any], frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stable_baselines3.common.atari_wrappers import AtariWrapper

    from sb3_trpo.zoo.atari import AtariFrames

    seen: list[int] = []
    monkeypatch.setattr(
        AtariWrapper, "__init__", lambda self, env, frame_skip: seen.append(frame_skip)
    )
    env: Any = SimpleNamespace(unwrapped=SimpleNamespace(spec=SimpleNamespace(kwargs=kwargs)))
    AtariFrames(env)
    assert seen == [frames]


def test_model_in_play_asks_the_environment_that_was_made_last() -> None:
    from rl_zoo3 import ALGOS
    from sb3_contrib.common.envs import InvalidActionEnvDiscrete

    import sb3_trpo.zoo.register  # noqa: F401 (imported for its effect)
    from sb3_trpo.zoo import masks

    envs = [
        DummyVecEnv([lambda: InvalidActionEnvDiscrete(dim=6, n_invalid_actions=5)]) for _ in "ab"
    ]
    script = SimpleNamespace(
        get_saved_hyperparams=None, create_test_env=lambda which, **_: envs[which], ALGOS=ALGOS
    )

    class Answer(SimpleNamespace):
        pass

    with pytest.MonkeyPatch.context() as patch:
        builder = SimpleNamespace(load=lambda path: ALGOS["trpo_mask"])
        patch.setattr(masks, "Builder", lambda algo, is_trusted: builder)
        patch.setattr(masks, "player_of", lambda model, env: Answer(env=env))
        with masks.playing(script, "trpo_mask", Path()):
            script.create_test_env(0)
            script.create_test_env(1)
            player: Any = script.ALGOS["trpo_mask"].load("a path")
    assert player.env is envs[1]


def test_played_environment_has_the_arguments_of_its_configuration() -> None:
    from rl_zoo3 import ALGOS

    import sb3_trpo.zoo.register  # noqa: F401 (imported for its effect)
    from sb3_trpo.zoo import masks

    script = SimpleNamespace(
        get_saved_hyperparams=None, create_test_env=lambda **options: options, ALGOS=ALGOS
    )
    settings = {"env_kwargs": {"gravity": 5.0, "render_mode": None}}
    with masks.playing(script, "trpo", Path()):
        options = script.create_test_env(
            hyperparams=settings, env_kwargs={"render_mode": "rgb_array"}
        )
        assert options["env_kwargs"] == {"gravity": 5.0, "render_mode": "rgb_array"}
        assert script.create_test_env()["env_kwargs"] == {}
