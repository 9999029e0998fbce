"""Processes of environments and of jobs: what they find imported, and whose random numbers."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch as th

SCRIPT = """\
import json
from sb3_trpo.zoo.jobs import run_jobs
from tests.test_zoo_workers import look

if __name__ == "__main__":
    results = dict(run_jobs(look, [["0"], ["1"]], jobs=1))
    print(json.dumps([results[0].result(), results[1].result()]))
"""


def look(words: list[str]) -> tuple[bool, list[float]]:
    """Tell whether the RL Zoo is imported, and the next random numbers of all generators."""
    numbers = [random.random(), np.random.random(), float(th.rand(()))]
    return "rl_zoo3" in sys.modules, numbers


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forked from a server on Linux only")
def test_workers_share_what_is_imported_and_no_random_numbers(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    paths = {"PYTHONPATH": str(Path(__file__).parents[1])}
    answer = subprocess.run([sys.executable, script], env=paths, capture_output=True, check=True)
    (one_has, one), (other_has, other) = json.loads(answer.stdout)
    assert one_has
    assert other_has
    assert all(mine != yours for mine, yours in zip(one, other, strict=True))
