"""Processes of environments and of jobs: what they import, their random numbers, their end."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium.envs.classic_control import CartPoleEnv

from sb3_trpo.zoo.interruptions import SIGNALS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="forked from a server on Linux only"),
]

REPOSITORY = Path(__file__).parents[1]
SCRIPT = """\
import json
from stable_baselines3.common.vec_env import SubprocVecEnv
from sb3_trpo.zoo.jobs import run_jobs
from sb3_trpo.zoo.workers import worker_context
from tests.test_zoo_workers import Looking, look

if __name__ == "__main__":
    outcomes = dict(run_jobs(look, [["0"], ["1"]], jobs=1))
    envs = SubprocVecEnv([Looking, Looking], start_method=worker_context().get_start_method())
    found = {
        "here": look([]),
        "jobs": [outcomes[0].result(), outcomes[1].result()],
        "environments": envs.env_method("look"),
    }
    print(json.dumps(found))
"""
KILLED_SCRIPT = """\
from sb3_trpo.zoo.jobs import run_jobs
from tests.test_zoo_workers import work_on

if __name__ == "__main__":
    list(run_jobs(work_on, [["job.txt"]], jobs=1))
"""


def look(words: list[str]) -> dict[str, Any]:
    """Describe the process in which this is called."""
    return {
        "numbers": [random.random(), np.random.random(), float(th.rand(()))],
        "is from the server": "sb3_trpo.zoo.worker" in sys.modules,
        "zoo": sys.modules["rl_zoo3"].__file__,
        "variables": {name: os.environ[name] for name in os.environ if name[:3] in ("PYT", "SB3")},
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "in a fork": numbers_in_a_fork(),
    }


def numbers_in_a_fork() -> list[float]:
    """Seed NumPy and draw in a process that is forked from this one."""
    np.random.seed(3)
    numbers, written = os.pipe()
    process = os.fork()
    if process == 0:
        os.write(written, json.dumps(np.random.random(2).tolist()).encode())
        os._exit(0)
    os.waitpid(process, 0)
    drawn: list[float] = json.loads(os.read(numbers, 1000))
    return drawn


class Looking(CartPoleEnv):
    """Describes its process."""

    def look(self) -> dict[str, Any]:
        """Describe it."""
        return look([])


def work_on(words: list[str]) -> None:
    """Write the number of this process into a file, and go on for two minutes."""
    Path(words[0]).write_text(str(os.getpid()))
    time.sleep(120)


def start(script: str, folder: Path, **variables: str) -> subprocess.Popen[bytes]:
    """Start a script, which is in another folder than the one that it is started in."""
    path = folder / "scripts" / "script.py"
    path.parent.mkdir()
    path.write_text(script)
    return subprocess.Popen(
        [sys.executable, path],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | variables,
        stdout=subprocess.PIPE,
    )


def found_by(script: str, folder: Path, **variables: str) -> dict[str, Any]:
    """Run a script and read what it prints."""
    printed, _ = start(script, folder, **variables).communicate(timeout=120)
    answer: dict[str, Any] = json.loads(printed)
    return answer


def test_workers_are_as_if_they_had_been_started_alone(tmp_path: Path) -> None:
    for package in ("optuna", "rl_zoo3", "torch"):
        (tmp_path / f"{package}.py").write_text("raise ImportError('not the package')")
    found = found_by(SCRIPT, tmp_path)
    here, workers = found["here"], found["jobs"] + found["environments"]
    numbers = [process["numbers"] for process in (here, *workers)]
    for of_one_generator in zip(*numbers, strict=True):
        assert len(set(of_one_generator)) == len(numbers)
    for worker in workers:
        assert worker["is from the server"]
        for name in ("zoo", "variables", "in a fork"):
            assert worker[name] == here[name]
    assert [job["blocked"] for job in found["jobs"]] == [[signal.SIGINT]] * 2
    assert [env["blocked"] for env in found["environments"]] == [sorted(SIGNALS)] * 2


def test_without_room_for_the_servers_socket_workers_are_spawned(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    found = found_by(SCRIPT, tmp_path, TMPDIR=str(folder))
    assert not any(worker["is from the server"] for worker in found["jobs"])


def test_a_job_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    file = tmp_path / "job.txt"
    with start(KILLED_SCRIPT, tmp_path) as command:
        while not (file.exists() and file.read_text()):
            assert command.poll() is None
            time.sleep(0.05)
        command.kill()
    job = int(file.read_text())
    deadline = time.monotonic() + 20
    while is_running(job) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = is_running(job)
    if left:
        os.kill(job, signal.SIGKILL)
    assert not left


def is_running(process: int) -> bool:
    """Tell whether there is a process with this number."""
    return Path("/proc", str(process)).exists()
