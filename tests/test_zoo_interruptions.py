"""Ctrl-C, SIGTERM and worse on ``sb3-trpo train``, and how its runs go on."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch as th
import yaml
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.logger import configure

from sb3_trpo import TRPO
from sb3_trpo.zoo.errors import UsageError
from sb3_trpo.zoo.progress import ProgressFile
from sb3_trpo.zoo.resume import shorten_logs
from sb3_trpo.zoo.stored_options import needs_trust, stored_options
from tests.cases import toy_model

REPOSITORY = Path(__file__).parents[1]
# Short episodes, as the final evaluation has twenty.
TRAIN = [
    *("train", "--env", "CartPole-v1", "--env-kwargs", "max_episode_steps:100", "--seed", "3"),
    *("-n", "8000", "--eval-freq", "2000", "--eval-episodes", "1", "--checkpoint-freq", "1000"),
    *("--hyperparams", "n_steps:256"),
]
OUTPUT = "output.txt"
RUN = Path("logs") / "trpo" / "CartPole-v1_1"


def start(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """Start a command in a group of processes of its own, as a terminal does."""
    with (folder / OUTPUT).open("w") as output:  # a pipe that nobody reads would stop it
        return subprocess.Popen(
            [sys.executable, "-um", "sb3_trpo", *words],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end(command: subprocess.Popen[bytes], folder: Path, number: int, pattern: str) -> str:
    """Send a signal to all processes of a command once there is a file; return what it printed."""
    await_file(command, folder, pattern)
    os.killpg(command.pid, number)
    command.wait(timeout=120)
    return (folder / OUTPUT).read_text()


def await_file(command: subprocess.Popen[bytes], folder: Path, pattern: str) -> None:
    """Wait until there is a file."""
    while not list(folder.glob(pattern)):
        assert command.poll() is None, (folder / OUTPUT).read_text()
        time.sleep(0.05)


def columns_of(folder: Path, file: str) -> pd.DataFrame:
    """Read a log without what depends on the clock, or on the evaluations' own episodes."""
    table = pd.read_csv(folder / RUN / file, skiprows=int("monitor" in file))
    names = [name for name in sorted(table) if not re.match(r"t$|time/(fps|time_e)|eval/", name)]
    return table[names]


# Pattern of the steps of the checkpoint that a signal follows.
INTERRUPTIONS = {
    signal.SIGINT: "1???",
    signal.SIGTERM: "[34]???",
    signal.SIGKILL: "[67]???",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environments", "signals"),
    [
        ("dummy", list(INTERRUPTIONS)),
        pytest.param("subproc", [signal.SIGINT, signal.SIGKILL], marks=pytest.mark.long),
    ],
)
def test_interrupted_run_goes_on_as_if_nothing_had_happened(
    environments: str, signals: list[signal.Signals], tmp_path: Path
) -> None:
    words = [*TRAIN, "--vec-env", environments]
    whole, folder = tmp_path / "whole", tmp_path / "interrupted"
    whole.mkdir()
    folder.mkdir()
    assert start(whole, *words).wait(timeout=300) == 0

    for number in signals:
        command = start(folder, *words)
        name = f"checkpoint_{INTERRUPTIONS[number]}_steps_*.zip"
        checkpoint = str(RUN / "checkpoints" / name)
        message = end(command, folder, number, checkpoint)
        if number == signal.SIGKILL:
            assert command.returncode == -number
        else:
            assert command.returncode == 128 + number, message
            assert "Traceback" not in message
            saved = r"after \d+ of 8000 steps; the model is saved in .*zip; resume"
            assert re.search(saved, message)
            assert f"resume with 'sb3-trpo train --resume {RUN}'" in message
            assert (folder / RUN / "learning_curve.png").is_file()
        words = ["train", "--resume", str(RUN)]

    command = start(folder, *words)
    status = command.wait(timeout=300)
    output = (folder / OUTPUT).read_text()
    assert status == 0, output
    assert re.search(r"Resuming from .*_steps_\w+\.zip: \d+ of 8000 steps left", output)
    assert "Final evaluation" in output
    models = [TRPO.load(each / RUN / "CartPole-v1.zip") for each in (whole, folder)]
    parameters = [model.policy.state_dict() for model in models]
    assert all(th.equal(value, parameters[1][name]) for name, value in parameters[0].items())
    for file in ("0.monitor.csv", "progress.csv"):
        pd.testing.assert_frame_equal(columns_of(whole, file), columns_of(folder, file))
    steps = [np.load(each / RUN / "evaluations.npz")["timesteps"] for each in (whole, folder)]
    assert steps[0].tolist() == steps[1].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("environments", ["dummy", "subproc"])
def test_second_interruption_exits_at_once_and_quietly(environments: str, tmp_path: Path) -> None:
    words = ["--vec-env", environments, "--hyperparams", "n_steps:1000000"]
    command = start(tmp_path, *TRAIN, *words)
    # The first evaluation is in the middle of the only rollout.
    await_file(command, tmp_path, str(RUN / "evaluations.npz"))
    os.killpg(command.pid, signal.SIGINT)
    while "Once more exits at once" not in (tmp_path / OUTPUT).read_text():
        time.sleep(0.05)
    os.killpg(command.pid, signal.SIGINT)
    assert command.wait(timeout=20) == 130
    time.sleep(1)  # for what processes of environments would print
    output = (tmp_path / OUTPUT).read_text()
    assert "Traceback" not in output
    assert "Error" not in output
    assert not (tmp_path / RUN / "CartPole-v1.zip").exists()


OWNING_ENV = """
import subprocess

import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv


class Owning(CartPoleEnv):
    \"\"\"Talks to a process of its own, as bindings of simulators do.\"\"\"

    def __init__(self):
        super().__init__()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(["cat"], **pipes)

    def step(self, action):
        self.process.stdin.write(b"step\\n")
        self.process.stdin.flush()
        if not self.process.stdout.readline():
            raise RuntimeError("the simulator has ended")
        return super().step(action)

    def close(self):
        self.process.terminate()
        self.process.wait()


gym.register("Owning-v0", entry_point=Owning)
"""
OWNING = ["train", "--env", "Owning-v0", "--gym-packages", "owning_env", "--conf-file", "own.yml"]


@pytest.mark.slow
@pytest.mark.parametrize("is_interrupted", [False, True])
@pytest.mark.parametrize("environments", ["dummy", "subproc"])
def test_processes_that_environments_own_are_ended_and_end_no_training(
    environments: str, is_interrupted: bool, tmp_path: Path
) -> None:
    (tmp_path / "owning_env.py").write_text(OWNING_ENV)
    settings = {"policy": "MlpPolicy", "n_envs": 2, "n_steps": 4000, "n_timesteps": 10}
    (tmp_path / "own.yml").write_text(yaml.dump({"Owning-v0": settings}))
    steps = ["-n", "800000" if is_interrupted else "8000", "--eval-freq", "8000"]
    command = start(tmp_path, *OWNING, *steps, "--vec-env", environments)
    if is_interrupted:  # as a terminal does: all processes, simulators too
        await_file(command, tmp_path, "logs/trpo/Owning-v0_1/evaluations.npz")
        os.killpg(command.pid, signal.SIGINT)
    status = 130 if is_interrupted else 0
    assert command.wait(timeout=60) == status, (tmp_path / OUTPUT).read_text()
    assert (tmp_path / "logs/trpo/Owning-v0_1/Owning-v0.zip").is_file()


@pytest.fixture
def handlers() -> Any:
    """Leave the handlers of signals as they were."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield before
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, None), (signal.SIGTERM, 143)])
def test_training_ends_after_the_update_in_which_a_signal_arrives(
    number: int, status: int | None, handlers: Any
) -> None:
    from sb3_trpo.zoo.interruptions import Interruptions

    saved: list[int] = []
    model = TRPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, device="cpu")
    interruptions = Interruptions(lambda: saved.append(model.num_timesteps))

    def send(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["self"].num_timesteps == 40:
            os.kill(os.getpid(), number)
        return True

    with interruptions, pytest.raises(KeyboardInterrupt) as raised:
        model.learn(1000, [interruptions, ConvertCallback(send)])
    assert saved == [64]
    assert model._n_updates == 2
    assert getattr(raised.value, "status", None) == status


def test_signals_are_handled_in_the_main_thread_only(handlers: Any) -> None:
    import threading

    from sb3_trpo.zoo.interruptions import Interruptions

    def enter() -> None:
        with Interruptions(lambda: None):
            assert signal.getsignal(signal.SIGINT) is handlers[signal.SIGINT]

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()


def test_signals_are_blocked_while_environments_are_started(handlers: Any) -> None:
    from sb3_trpo.zoo.interruptions import SIGNALS, left_to_this_process

    with left_to_this_process():
        assert set(SIGNALS) <= signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert not set(SIGNALS) & signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_evaluations_after_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    from sb3_trpo.zoo.resume import continue_evaluations

    path = tmp_path / "evaluations.npz"
    results = [[1.0, 3.0], [9.0, 9.0], [5.0, 6.0]]
    np.savez(path, timesteps=[10, 20, 30], results=results, ep_lengths=[[1, 1]] * 3)
    callback: Any = SimpleNamespace()
    continue_evaluations(callback, path, 20)
    assert callback.evaluations_timesteps == [10, 20]
    assert callback.evaluations_results == results[:2]
    assert callback.best_mean_reward == 9
    callback = SimpleNamespace(best_mean_reward=-np.inf)
    continue_evaluations(callback, path, 5)
    assert callback.evaluations_results == []
    assert callback.best_mean_reward == -np.inf
    untouched: Any = SimpleNamespace()
    continue_evaluations(untouched, tmp_path / "missing.npz", 5)
    path.write_bytes(path.read_bytes()[:-40])  # what a kill leaves
    with pytest.warns(UserWarning, match=r"start anew.*evaluations\.npz"):
        continue_evaluations(untouched, path, 20)
    assert vars(untouched) == {}


@pytest.mark.parametrize("own", [{}, {"info_keywords": ("is_success",)}])
def test_resumed_run_adds_to_the_log_of_its_episodes(own: dict[str, Any], tmp_path: Path) -> None:
    from sb3_trpo.zoo.resume import _continuing_logs

    log = tmp_path / "0.monitor.csv"
    log.write_text('#{"t_start": 0.0}\nr,l,t\n1,1,1\n')
    before = log.read_text()
    env = _continuing_logs("CartPole-v1", monitor_dir=str(tmp_path), monitor_kwargs=own)
    env.close()
    assert log.read_text() == before


@pytest.mark.parametrize(
    ("words", "needs"),
    [([], False), (["-i", "model.zip"], True), (["--track"], True), (["--algo", "ppo"], True)],
)
def test_line_that_resumes_a_run_has_the_trust_that_it_needs(
    words: list[str], needs: bool, tmp_path: Path
) -> None:
    settings = tmp_path / "CartPole-v1_1" / "CartPole-v1"
    settings.mkdir(parents=True)
    arguments = {"words": ["--env", "CartPole-v1", *words], "env": "CartPole-v1", "seed": 0}
    (settings / "args.yml").write_text(yaml.dump(arguments))
    (settings / "config.yml").write_text("n_timesteps: 9\n")
    given = ["train", "--resume", str(settings.parent)]
    assert needs_trust(settings.parent, given) == needs
    (settings.parent / "link").symlink_to(tmp_path)
    assert needs_trust(settings.parent, given)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no folder of a run"),
        (["-n", "5"], "--resume takes all options from the run: leave out -n 5"),
    ],
)
def test_run_that_cannot_be_resumed_is_named(
    words: list[str], message: str, tmp_path: Path
) -> None:
    from sb3_trpo.zoo.train import train

    with pytest.raises(UsageError, match=message):
        train(["--resume", str(tmp_path / "CartPole-v1_1"), *words])


@pytest.mark.parametrize("count", range(5))
def test_run_without_checkpoints_is_told_how_to_go_on(count: int, tmp_path: Path) -> None:
    from sb3_trpo.zoo.resume import ResumedRun

    run = tmp_path / "trpo" / "CartPole-v1_1"
    run.mkdir(parents=True)
    steps = (f"rl_model_{steps}_steps.zip" for steps in (500, 1000))
    left = ["best_model.zip", *steps, "CartPole-v1.zip"][:count]
    for place, name in enumerate(left):
        (run / name).touch()
        os.utime(run / name, (place, place))
    given = {"gym_packages": ["mine"], "tensorboard_log": "", "trust_checkpoint": True}
    args = SimpleNamespace(conf_file=None, resume=run, **given)
    options = (
        f"-f {tmp_path} -i {run / left[-1]} --gym-packages mine --trust-checkpoint'" if left else ""
    )
    remedy = options or "train it anew"
    with pytest.raises(UsageError, match=f"no checkpoint, .*{re.escape(remedy)}"):
        ResumedRun(args, "trpo", "CartPole-v1", str(tmp_path), verbose=0)


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    from sb3_trpo.zoo.resume import ResumedRun

    folder = tmp_path / "CartPole-v1_1" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "checkpoint_64_steps_c2ebe7e3.zip").write_bytes(b"half of a fi")
    args = SimpleNamespace(conf_file=None, resume=folder.parent)
    with pytest.raises(UsageError, match=r"no checkpoint to resume from in .*c2ebe7e3\.zip: "):
        ResumedRun(args, "trpo", "CartPole-v1", str(tmp_path), verbose=0)


def test_checkpoint_that_a_process_writes_as_it_ends_is_found(tmp_path: Path) -> None:
    # Mistake: the checkpoint is chosen before the run is locked.
    from sb3_trpo.zoo.checkpoints import RunCheckpoint
    from sb3_trpo.zoo.resume import ResumedRun

    run = tmp_path / "CartPole-v1_1"
    toy_model().learn(64, RunCheckpoint(run, 64))
    args = SimpleNamespace(conf_file=None, resume=run)
    resumed = ResumedRun(args, "trpo", "CartPole-v1", str(tmp_path), verbose=0)
    toy_model().learn(128, RunCheckpoint(run, 128))
    resumed.create_log_folder()
    resumed.unlock()
    assert resumed.found.checkpoint.state["num_timesteps"] == 128


STARTED = ["--env", "CartPole-v1", "-n", "1e4", "--hyperparams", "target_kl:lin_0.02"]


def test_options_that_a_run_was_started_with_are_taken_again() -> None:
    assert stored_options(STARTED, is_trusted=False) == STARTED
    assert stored_options([*STARTED, "--trust-checkpoint"], is_trusted=False) == STARTED
    for option in (["--gym-packages", "own_package"], ["-tb", "own_folder"]):
        words = [*STARTED, *option]
        assert stored_options(words, is_trusted=True) == words
        assert stored_options(words, is_trusted=False, given=option) == words
        with pytest.raises(UsageError, match=r"repeat --[a-z-]+ own_\w+ beside --resume"):
            stored_options(words, is_trusted=False)


def test_arguments_of_environments_may_be_tuples() -> None:
    words = [*STARTED, "--env-kwargs", "shape:(3, 4)", "name:-x", "--progress"]
    assert stored_options(words, is_trusted=False) == words


@pytest.mark.parametrize(
    "options",
    [
        ["--gym-packages", "pdb"],
        ["--gym-packages=pdb"],
        ["--tensorboard-log", "/etc"],
        ["--trust-check"],
        ["-i", "model.zip"],
        ["--track"],
        ["--algo", "ppo"],
        ["--hyperparams", "policy_kwargs:__import__('os').system('true')"],
        ["-params", "policy_kwargs:__import__('os').system('true')"],
        ["--hyperparams", "gamma:0.9", "env_wrapper:pydoc.pipepager"],
        ["--hyper", "gamma:0.9"],
        ["-P", "left", "over"],
        ["--", "--gym-packages", "pdb"],
        [1],
        "words",
        None,
    ],
)
def test_stored_options_that_may_run_code_need_trust(options: Any) -> None:
    words = [*STARTED, *options] if isinstance(options, list) else options
    with pytest.raises(UsageError, match=r"trust-checkpoint|damaged"):
        stored_options(words, is_trusted=False)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("{victim}", 0),
        ("../victim.txt", 0),
        ("victim.txt", 0),
        ("link.monitor.csv", 0),
        ("0.monitor.csv", -1),
        ("0.monitor.csv", 1000),
        ("0.monitor.csv", "0"),
        ("1.monitor.csv", 0),
        (0, 0),
    ],
)
def test_a_checkpoint_shortens_only_its_runs_logs(name: Any, size: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    paths = [tmp_path / "victim.txt", run / "victim.txt", run / "0.monitor.csv"]
    for path in paths:
        path.write_text("content")
    (run / "link.monitor.csv").symlink_to(paths[0])
    (run / "5.monitor.csv").write_text("content")
    with pytest.raises(UsageError, match="log"):
        # The first is a log, and is not shortened either.
        shorten_logs(run, {"5.monitor.csv": 3, str(paths[0]) if name == "{victim}" else name: size})
    paths.append(run / "5.monitor.csv")
    assert [path.read_text() for path in paths] == ["content"] * 4
    shorten_logs(run, {"0.monitor.csv": 3})
    assert paths[2].read_text() == "con"
    with pytest.raises(UsageError, match="log"):
        shorten_logs(run, [3])


def test_log_is_cut_at_a_row_after_a_column_was_added(tmp_path: Path) -> None:
    from sb3_trpo.zoo.checkpoints import RunCheckpoint

    model = TRPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8)
    log = ProgressFile(tmp_path)
    log.init_callback(model)
    model.set_logger(configure(format_strings=[]))
    log.on_training_start({}, {})
    entries: list[dict[str, Any]] = [{"steps": 1}, {"steps": 2}, {"steps": 3, "eval/return": 0.5}]
    for entry in entries[:2]:
        dump(model, entry)
    noted = RunCheckpoint(tmp_path, 1)._extra()
    dump(model, entries[2])
    model.logger.close()
    shorten_logs(tmp_path, noted)

    model.set_logger(configure(format_strings=[]))
    log = ProgressFile(tmp_path)
    log.init_callback(model)
    log.continue_file()
    log.on_training_start({}, {})
    rows = pd.read_csv(tmp_path / "progress.csv")  # on the disk, whatever happens from now on
    assert rows["steps"].tolist() == [1, 2]
    dump(model, entries[2])
    dump(model, {"steps": 4, "train/more": 2})
    model.logger.close()
    rows = pd.read_csv(tmp_path / "progress.csv")
    assert rows["steps"].tolist() == [1, 2, 3, 4]
    assert rows["eval/return"].dropna().tolist() == [0.5]
    assert rows["train/more"].dropna().tolist() == [2]


def dump(model: TRPO, entry: dict[str, Any]) -> None:
    """Write an entry of the log."""
    for name, value in entry.items():
        model.logger.record(name, value)
    model.logger.dump()


def test_run_with_a_shorter_log_of_its_progress_is_resumed(tmp_path: Path) -> None:
    (tmp_path / "progress.csv").write_text("steps\n1\n")
    shorten_logs(tmp_path, {"progress.csv": 100})
    assert (tmp_path / "progress.csv").read_text() == "steps\n1\n"
    shorten_logs(tmp_path, {"progress.csv": 1})
    assert (tmp_path / "progress.csv").read_text() == "steps\n"
