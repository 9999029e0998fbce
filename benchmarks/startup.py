"""
Start a training whose environments have processes of their own, and add up time and memory.

    python benchmarks/startup.py
    python benchmarks/startup.py --processes 2 --repeats 1 --output /tmp/startup.json

Both commands train ``CartPole-v1`` for one rollout: the RL Zoo's with ``sb3_contrib.TRPO``, and
``sb3-trpo train``, which also evaluates the model and draws two pictures. They alternate. Memory is
the largest proportional set size of all processes of a command, in which what several of them
share counts once. Linux only.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import RESULTS, provenance

COMMANDS = {"rl_zoo3": ["rl_zoo3.train"], "sb3_trpo": ["sb3_trpo", "train"]}
SECONDS_BETWEEN_LOOKS = 0.1


def main() -> None:
    """Run both commands in turn, and write the medians."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--processes", type=int, default=8, help="environments (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="of each command (%(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS / "startup.json")
    arguments = parser.parse_args()
    found = [
        {name: start(command, arguments.processes) for name, command in COMMANDS.items()}
        for _ in range(arguments.repeats)
    ]
    medians = {
        name: [statistics.median(each[name][which] for each in found) for which in range(2)]
        for name in COMMANDS
    }
    ratios = [zoos / ours for zoos, ours in zip(*medians.values(), strict=True)]
    result = {
        "processes": arguments.processes,
        "repeats": arguments.repeats,
        "megabytes": {name: round(memory / 1e3) for name, (_, memory) in medians.items()},
        "time_ratio": round(ratios[0], 2),
        "memory_ratio": round(ratios[1], 2),
        **provenance(),
    }
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def start(command: list[str], processes: int) -> tuple[float, float]:
    """
    Train for one rollout.

    :param command: module and its first words
    :param processes: number of environments
    :return: seconds, and the largest memory in kB
    """
    words = ["--algo", "trpo", "--env", "CartPole-v1", "--vec-env", "subproc", "-n", "1"]
    sizes = ["--hyperparams", f"n_envs:{processes}", "n_steps:8", "batch_size:8"]
    largest, begun = 0, time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [sys.executable, "-m", *command, *words, *sizes, "--eval-freq", "-1", "-f", folder],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        ) as training,
    ):
        while training.poll() is None:
            largest = max(largest, memory_of_session(training.pid))
            time.sleep(SECONDS_BETWEEN_LOOKS)
    if training.returncode:
        raise SystemExit(f"{command[0]} ended with status {training.returncode}")
    return time.perf_counter() - begun, largest


def memory_of_session(leader: int) -> int:
    """
    Add up the proportional set sizes of a session's processes.

    :param leader: identity of its first process
    :return: kB
    """
    total = 0
    for path in Path("/proc").glob("[0-9]*/smaps_rollup"):
        with contextlib.suppress(OSError):  # it may end meanwhile, or be somebody else's
            if os.getsid(int(path.parent.name)) == leader:
                lines = path.read_text().splitlines()
                total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


if __name__ == "__main__":
    main()
