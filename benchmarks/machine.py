"""What every result of a benchmark says about where it comes from."""

import contextlib
import datetime
import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch as th

PACKAGES = ("stable-baselines3", "sb3-contrib", "rl_zoo3", "torch", "gymnasium", "mujoco", "numpy")
ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"


def provenance() -> dict[str, object]:
    """
    Describe the machine, the versions, the commit and the command.

    :return: entries for a JSON file; paths in the repository do not say where it is
    """
    arguments = [Path(sys.argv[0]).name, *map(_from_root, sys.argv[1:])]
    return {
        "command": "python benchmarks/" + shlex.join(arguments),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "processor": _processor(),
        "python": platform.python_version(),
        "torch_threads": th.get_num_threads(),
        "versions": _versions(),
    }


def _commit() -> str:
    """
    Name the version of the code.

    :return: the commit's hash, and ``-dirty`` after it if files were changed since
    """
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    folder = Path(__file__).parent
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def read_result(path: Path) -> dict[str, Any]:
    """
    Read a result.

    :param path: of a JSON file
    :return: its content; empty if there is none yet
    """
    return json.loads(path.read_text()) if path.exists() else {}


def with_session(sessions: Sequence[Mapping[str, Any]], seed: int) -> list[dict[str, Any]]:
    """
    Note that this call has measured a seed.

    :param sessions: provenances of all calls that have added to a result, each with its ``seeds``
    :param seed: measured now; if it was before, it is no longer that call's
    :return: the same with this call
    """
    now = provenance()
    others = [{**s, "seeds": [other for other in s["seeds"] if other != seed]} for s in sessions]
    kept = [s for s in others if s["seeds"]]
    mine = next((s for s in kept if s == {**now, "seeds": s["seeds"]}), None)
    if mine is None:
        return [*kept, {**now, "seeds": [seed]}]
    mine["seeds"] = sorted([*mine["seeds"], seed])
    return kept


def _from_root(argument: str) -> str:
    """Write a path in the repository as seen from its folder; leave anything else."""
    path = Path(argument)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else argument


def _versions() -> dict[str, str]:
    """List the versions of the packages that are installed; MuJoCo is an extra."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _processor() -> str:
    """Name the processor's model, which platform.processor() leaves empty on Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
