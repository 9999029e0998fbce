"""``sb3-trpo train`` in the processes that torchrun starts."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from sb3_trpo import TRPO
from sb3_trpo._checkpoint_file import find_checkpoint
from sb3_trpo.zoo import processes
from sb3_trpo.zoo.errors import UsageError
from sb3_trpo.zoo.settings import read_mapping, settings_of
from tests.parallel import PATIENCE, free_port

REPOSITORY = Path(__file__).parents[1]
OUTPUT = "output.txt"
ENV = "FaultyCartPole-v0"
RUN = Path("logs") / "trpo" / f"{ENV}_1"
TRAIN = [
    *("train", "--gym-packages", "tests.faulty", "--env", ENV, "--seed", "3", "--verbose", "1"),
    *("-n", "6000", "--checkpoint-freq", "1000", "--eval-freq", "2048", "--eval-episodes", "1"),
    *("--process-timeout", "20", "--hyperparams", "n_envs:1", "n_steps:512", "batch_size:256"),
]


def environment(**variables: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"} | variables


def torchrun(folder: Path, options: list[str], words: list[str], fault: str = "") -> Any:
    """Train in two processes of torchrun; return what they printed and their status."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *options]
    return subprocess.run(
        [sys.executable, *command, "-m", "sb3_trpo", *words],
        cwd=folder,
        env=environment(FAULT=fault),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=2 * PATIENCE,
    )


def start(folder: Path, words: list[str], fault: str = "") -> list[subprocess.Popen[bytes]]:
    """Start two processes as torchrun does, but without what it does when one ends."""
    shared = {
        **{"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
        **{"MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "some", "FAULT": fault},
    }
    with (folder / OUTPUT).open("w") as output:
        return [
            subprocess.Popen(
                [sys.executable, "-um", "sb3_trpo", *words],
                cwd=folder,
                env=environment(RANK=rank, LOCAL_RANK=rank, **shared),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            for rank in ("0", "1")
        ]


def statuses(commands: list[subprocess.Popen[bytes]], hanging: bool = False) -> list[int | None]:
    """Wait for processes; for the first one only if the other hangs, which is killed then."""
    for command in commands[:1] if hanging else commands:
        command.wait(PATIENCE)
    codes = [command.poll() for command in commands]
    for command in commands:
        command.kill()
        command.wait()
    return codes


@pytest.mark.slow
def test_processes_train_one_policy_and_the_first_one_reports(tmp_path: Path) -> None:
    result = torchrun(tmp_path, [], TRAIN)
    assert result.returncode == 0, result.stdout
    assert "destroy_process_group" not in result.stdout
    assert "Warning" not in result.stdout.replace("TqdmExperimentalWarning", "")
    assert result.stdout.count("2 processes train one policy") == 1
    assert result.stdout.count("Final evaluation") == 1
    assert "6,144/6,000" in result.stdout  # the progress bar counts both
    assert [path.name for path in (tmp_path / "logs" / "trpo").iterdir()] == [RUN.name]
    run = tmp_path / RUN
    log = pd.read_csv(run / "progress.csv")
    assert log["time/total_timesteps"].max() == 6144
    assert log["train/n_updates"].max() == 6
    assert np.load(run / "evaluations.npz")["timesteps"].tolist() == [2048, 4096, 6144]
    episodes = pd.read_csv(run / "0.monitor.csv", skiprows=1)
    assert [path.name for path in run.glob("*.monitor.csv")] == ["0.monitor.csv"]
    assert episodes["l"].sum() <= 3072  # those of the first process; the log has all
    own = episodes["l"][episodes["l"].cumsum() <= 512].mean()
    assert log["rollout/ep_len_mean"].iloc[0] != own, "both collect the same episodes"
    assert find_checkpoint(run / "checkpoints").checkpoint.state["num_timesteps"] == 6144
    model = TRPO.load(run / f"{ENV}.zip")
    assert (model.num_timesteps, model.seed, model.data_parallel) == (6144, 3, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM]
)
def test_a_signal_ends_all_processes_with_model_and_checkpoint(number: int, tmp_path: Path) -> None:
    commands = start(tmp_path, [*TRAIN, "-n", "1000000"])
    while not list(tmp_path.glob(f"{RUN}/checkpoints/*.zip")):
        assert commands[0].poll() is None, (tmp_path / OUTPUT).read_text()
        time.sleep(0.05)
    commands[0].send_signal(number)  # the other one learns of it
    codes = statuses(commands)
    output = (tmp_path / OUTPUT).read_text()
    assert codes == [128 + number] * 2, output
    assert "Traceback" not in output
    assert "destroy_process_group" not in output
    saved = re.findall(r"after (\d+) of 1000000 steps; the model is saved in", output)
    assert len(saved) == 1
    state = find_checkpoint(tmp_path / RUN / "checkpoints").checkpoint.state
    assert state["num_timesteps"] == int(saved[0])
    assert TRPO.load(tmp_path / RUN / f"{ENV}.zip").num_timesteps == int(saved[0])


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "expected", "message"),
    [  # test_parallel.py has them without the command
        ("rollout", [1, -9], "lost contact: process 1 has ended"),
        ("update", [1, -9], "lost contact: process 1 has ended"),
        ("save", [-9, 1], "lost contact: the process that held the group's store"),
        ("hang", [1, None], "lost contact: process 1 has ended, or did not answer"),
        ("exception", [1, 1], "LookupError: the simulator is gone"),
    ],
)
def test_a_fault_of_one_process_ends_all_with_one_message(
    fault: str, expected: list[int | None], message: str, tmp_path: Path
) -> None:
    codes = statuses(start(tmp_path, TRAIN, fault), fault == "hang")
    output = (tmp_path / OUTPUT).read_text()
    assert codes == expected, output
    assert output.count(message) == 1, output
    if fault == "exception":
        assert output.count("This happened in process 1 of 2") == 1
        assert output.count("Traceback") == 1
    else:
        assert "Traceback" not in output
    assert find_checkpoint(tmp_path / RUN / "checkpoints").checkpoint.state["num_timesteps"] > 0


@pytest.mark.slow
def test_torchrun_resumes_from_the_checkpoint_after_a_process_was_killed(tmp_path: Path) -> None:
    # No seed is given: that of the run is drawn once.
    words = [word for word in TRAIN if word not in ("--seed", "3")]
    result = torchrun(tmp_path, ["--max-restarts=1"], words, "rollout")
    assert result.returncode == 0, result.stdout
    resumed = re.findall(r"Resuming from .*: (\d+) of 6000 steps left", result.stdout)
    assert len(resumed) == 1
    assert int(resumed[0]) < 6000
    assert result.stdout.count("Final evaluation") == 1
    assert [path.name for path in (tmp_path / "logs" / "trpo").iterdir()] == [RUN.name]
    run = tmp_path / RUN
    model = TRPO.load(run / f"{ENV}.zip")
    assert model.num_timesteps == 6144
    assert model.seed == read_mapping(settings_of(run) / "args.yml")["seed"]
    steps = pd.read_csv(run / "progress.csv")["time/total_timesteps"]
    assert sorted(set(steps)) == [1024 * rollout for rollout in range(1, 7)]


@pytest.fixture
def under_torchrun(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Make the first of two processes of torchrun."""
    variables = {"TORCHELASTIC_RUN_ID": "some", "RANK": "0", "WORLD_SIZE": "2"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_what_several_processes_cannot_do_is_refused_once(
    under_torchrun: pytest.MonkeyPatch,
) -> None:
    from sb3_trpo.zoo.optimize import optimize
    from sb3_trpo.zoo.train import train

    with pytest.raises(UsageError, match="--seeds does not run under torchrun"):
        train(["--seeds", "0-3"])
    with pytest.raises(UsageError, match="sb3-trpo optimize does not run under torchrun"):
        optimize(["--env", "CartPole-v1"])
    for words, message in (
        (["--algo", "ppo"], "--algo ppo does not train in several processes: choose one of trpo"),
        (["-optimize"], "-optimize does not run under torchrun"),
    ):
        with pytest.raises(UsageError, match=message):
            processes._check(processes._parse(words))
    under_torchrun.setenv("RANK", "1")
    under_torchrun.setattr(processes, "SECONDS_BEFORE_SILENT_EXIT", 0)
    with pytest.raises(SystemExit, match="2"):
        train(["--seeds", "0-3"])


def test_a_restart_resumes_the_run_of_the_same_torchrun(
    under_torchrun: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from sb3_trpo.zoo import train

    words = ["-f", str(tmp_path), "--env", "CartPole-v1"]
    for number, launch in enumerate(("some", "other", "some"), 1):
        settings = tmp_path / "trpo" / f"CartPole-v1_{number}" / "CartPole-v1"
        settings.mkdir(parents=True)
        arguments = {"launch": launch, "seed": number}
        (settings / "args.yml").write_text(yaml.safe_dump(arguments))
    whole = {"CartPole-v1_1", "CartPole-v1_2"}  # the third has no checkpoint yet
    under_torchrun.setattr(train, "has_checkpoint", lambda run: run.name in whole)
    assert train.options_after_restart(words) == []
    under_torchrun.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    run = str(tmp_path / "trpo" / "CartPole-v1_1")
    assert train.options_after_restart(words) == ["--resume", run, "--seed", "1"]
    under_torchrun.setenv("TORCHELASTIC_RUN_ID", "a third")
    assert train.options_after_restart(words) == []


def test_the_curve_of_training_episodes_counts_all_processes(tmp_path: Path) -> None:
    from sb3_trpo.zoo.runs import training_episodes

    (tmp_path / "run_1" / "run").mkdir(parents=True)
    (tmp_path / "run_1" / "0.monitor.csv").write_text("#{}\nr,l,t\n1,10,0\n2,20,0\n")
    assert training_episodes(tmp_path / "run_1")["step"].tolist() == [10, 30]
    (tmp_path / "run_1" / "run" / "args.yml").write_text("processes: 3\n")
    assert training_episodes(tmp_path / "run_1")["step"].tolist() == [30, 90]


@pytest.mark.parametrize("value", ["-1", "0", "three", "[3]", "1.5", "true", ""])
def test_a_damaged_number_of_processes_is_named(value: str, tmp_path: Path) -> None:
    from sb3_trpo.zoo.runs import training_episodes

    (tmp_path / "run_1" / "run").mkdir(parents=True)
    (tmp_path / "run_1" / "run" / "args.yml").write_text(f"processes: {value}\n")
    with pytest.raises(UsageError, match=r"args.yml: processes: .* is not a number of processes"):
        training_episodes(tmp_path / "run_1")
