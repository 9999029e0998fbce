"""Runs: what their folders say."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from huggingface_sb3 import EnvironmentName

from sb3_trpo.zoo.errors import UsageError

Array = npt.NDArray[np.float64]

EVALUATIONS_FILE = "evaluations.npz"  # written by SB3's EvalCallback
FINAL_FILE = "final_evaluation.npz"


@dataclass(frozen=True)
class Run:
    """A run's evaluations."""

    folder: Path
    """the run's folder, ``<logs>/<algorithm>/<environment>_<number>``"""
    steps: Array
    """environment steps at each evaluation, shape (evaluations,)"""
    returns: Array
    """mean return of each evaluation, shape (evaluations,)"""
    final: Array
    """returns of the final evaluation's episodes, else of the last one's, shape (episodes,)"""

    @property
    def algo(self) -> str:
        """Name of the algorithm."""
        return self.folder.resolve().parent.name

    @property
    def env(self) -> str:
        """Name of the environment, as folders are named."""
        return self.folder.resolve().name.rpartition("_")[0]

    @property
    def number(self) -> int:
        """Number of the run."""
        number = self.folder.resolve().name.rpartition("_")[2]
        return int(number) if number.isdigit() else 0

    @property
    def settings(self) -> str:
        """The hyperparameters as the RL Zoo has written them; equal for seeds of one experiment."""
        path = self.folder / self.env / "config.yml"
        return path.read_text() if path.is_file() else ""


def save_final_evaluation(folder: Path, returns: Array) -> None:
    """Keep the final evaluation with the run.

    :param folder: the run's folder
    :param returns: one per episode
    """
    np.savez(folder / FINAL_FILE, returns=returns)


def read_run(folder: Path) -> Run:
    """Read a run.

    :param folder: the run's folder
    :return: its evaluations
    :raises UsageError: if there are none
    """
    path = folder / EVALUATIONS_FILE
    if not path.is_file():
        raise UsageError(
            f"{folder} holds no {EVALUATIONS_FILE}: name the folder of a run that was evaluated "
            "while it trained, like logs/trpo/CartPole-v1_1"
        )
    with np.load(path) as saved:
        steps, results = saved["timesteps"].astype(float), saved["results"]
    final = results[-1]
    if (folder / FINAL_FILE).is_file():
        with np.load(folder / FINAL_FILE) as saved:
            final = saved["returns"]
    return Run(folder, steps, results.mean(axis=1), final)


def find_runs(folder: Path, algo: str, env: str) -> list[Path]:
    """Find all runs of an algorithm on an environment.

    :param folder: where the runs are
    :param algo: the algorithm's key in ``rl_zoo3.ALGOS``
    :param env: name of the environment
    :return: folders of the runs
    :raises UsageError: if there is none
    """
    found = [
        path for path in (folder / algo).glob(f"{EnvironmentName(env)}_[0-9]*") if path.is_dir()
    ]
    if not found:
        raise UsageError(
            f"there is no run of {algo} on {env} in {folder}: train one with 'sb3-trpo train "
            f"--algo {algo} --env {env}', or name the folder of your runs"
        )
    return sorted(found)
