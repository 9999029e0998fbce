"""Read the results in a run's folder."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from huggingface_sb3 import EnvironmentName

from sb3_trpo._archive import check_entries
from sb3_trpo.zoo.errors import BROKEN, UsageError, one_line
from sb3_trpo.zoo.progress import PROGRESS, STEPS, read_progress
from sb3_trpo.zoo.settings import NUMBERED, env_of, read_arguments, settings_of

Array = npt.NDArray[np.float64]

EVALUATIONS_FILE = "evaluations.npz"  # written by SB3's EvalCallback
PROCESSES = "processes"  # how many trained, among the arguments that the Zoo saved
FINAL_FILE = "final_evaluation.npz"

# Points of a curve of training episodes, and the largest number of episodes that each averages.
POINTS, WINDOW = 20, 100


@dataclass(frozen=True)
class Run:
    """The returns of a run."""

    folder: Path
    """the run's folder, ``<logs>/<algorithm>/<environment>_<number>``"""
    steps: Array
    """environment steps at each point of the curve, shape (points,)"""
    returns: Array
    """mean return of each evaluation, or of the last training episodes, shape (points,)"""
    final: Array
    """returns of the final evaluation, or else of the last episodes there are, shape (episodes,)"""
    is_evaluated: bool = True
    """whether the curve is of evaluations; else it is of training episodes"""

    @property
    def algo(self) -> str:
        """Name of the algorithm."""
        return self.folder.resolve().parent.name

    @property
    def env(self) -> str:
        """Name of the environment, as it occurs in folder names."""
        return env_of(self.folder)

    @property
    def number(self) -> int:
        """Number of the run."""
        numbered = NUMBERED.fullmatch(self.folder.resolve().name)
        return int(numbered[2]) if numbered else 0

    @property
    def settings(self) -> str:
        """The hyperparameters as the RL Zoo writes them; equal for seeds of one experiment."""
        path = settings_of(self.folder) / "config.yml"
        return path.read_text() if path.is_file() else ""

    @property
    def arguments(self) -> dict[str, Any]:
        """The training script's arguments; empty if the Zoo did not save them."""
        return read_arguments(settings_of(self.folder))


def save_final_evaluation(folder: Path, returns: Array) -> None:
    """Keep the final evaluation with the run.

    :param folder: the run's folder
    :param returns: one per episode
    """
    np.savez(folder / FINAL_FILE, returns=returns)


def read_run(folder: Path) -> Run:
    """Read a run.

    :param folder: the run's folder
    :return: its evaluations; without evaluations, its training episodes
    :raises UsageError: if it has neither
    """
    if (folder / EVALUATIONS_FILE).is_file():
        steps, returns, last = read_evaluations(folder / EVALUATIONS_FILE)
    else:
        steps, returns, last = read_training(folder)
    if (folder / FINAL_FILE).is_file():
        last = read_arrays(folder / FINAL_FILE, {"returns": 1})["returns"]
    return Run(folder, steps, returns, last, (folder / EVALUATIONS_FILE).is_file())


def read_finished_run(folder: Path) -> Run:
    """Read a finished run.

    :param folder: the run's folder
    :return: the run
    :raises UsageError: if there is no final model in it
    """
    env = env_of(folder)
    if not (folder / f"{env}.zip").is_file():
        raise UsageError(
            f"{folder} holds no model '{env}.zip': it is not the folder of a finished run"
        )
    # Ours evaluates its model at the end, and keeps how it was started from the beginning.
    is_ours = "words" in read_arguments(settings_of(folder))
    if is_ours and not (folder / FINAL_FILE).is_file():
        raise UsageError(f"{folder} was interrupted: it is not the folder of a finished run")
    return read_run(folder)


def read_evaluations(path: Path) -> tuple[Array, Array, Array]:
    """Read the evaluations of a run.

    :param path: file written by SB3's ``EvalCallback``
    :return: steps, mean return of each evaluation, and the returns of the last evaluation
    """
    saved = read_arrays(path, {"timesteps": 1, "results": 2})
    results = saved["results"]
    return saved["timesteps"].astype(float), results.mean(axis=1), results[-1]


def read_arrays(
    path: Path, needed: Mapping[str, int], others: Mapping[str, int] | None = None
) -> dict[str, Array]:
    """Read arrays of numbers, all of one length, of a run that may have been downloaded.

    :param path: file that NumPy wrote
    :param needed: names of arrays, and how many dimensions they have
    :param others: those that may be missing
    :return: the arrays by their names
    :raises UsageError: if the file is damaged
    """
    dimensions = {**needed, **(others or {})}
    try:
        content = path.read_bytes()
        check_entries(content)  # NumPy inflates without limits
        with np.load(BytesIO(content)) as saved:
            arrays = {name: saved[name] for name in dimensions if name in needed or name in saved}
        check_arrays(arrays, dimensions)
    except (*BROKEN, ValueError, LookupError, OSError, MemoryError, zlib.error) as error:
        raise UsageError(f"{path} is damaged: {one_line(error)}: choose another run") from error
    return arrays


def check_arrays(arrays: Mapping[str, Any], dimensions: Mapping[str, int]) -> None:
    """Check that arrays are numbers of the same points.

    :param arrays: by name
    :param dimensions: of each
    :raises ValueError: if one is not
    """
    for name, array in arrays.items():
        is_numeric = np.issubdtype(array.dtype, np.number) or array.dtype == bool
        if not is_numeric or array.ndim != dimensions[name] or array.size == 0:
            raise ValueError(f"{name} holds no numbers in {dimensions[name]} dimensions")
    if len({len(array) for name, array in arrays.items() if name != "successes"}) > 1:
        raise ValueError(f"{', '.join(arrays)} are of different lengths")


def read_training(folder: Path) -> tuple[Array, Array, Array]:
    """Read the training episodes of a run at evenly spaced steps.

    :param folder: the run's folder
    :return: steps, mean return of the last episodes by then (NaN before the first episode ends),
        and the returns of the last episodes of all
    :raises UsageError: if there are none
    """
    episodes = training_episodes(folder)
    if episodes.empty:
        raise UsageError(
            f"{folder} holds neither {EVALUATIONS_FILE} nor training episodes: choose the folder "
            "of a run, like logs/trpo/CartPole-v1_1"
        )
    means = episodes["return"].rolling(WINDOW, min_periods=1).mean().to_numpy()
    steps = np.linspace(0, run_length(folder, episodes), POINTS + 1)[1:]
    ended = np.searchsorted(episodes["step"], steps, side="right")
    returns = np.where(ended > 0, means[ended - 1], np.nan)
    return steps, returns, episodes["return"].to_numpy()[-WINDOW:]


def run_length(folder: Path, episodes: pd.DataFrame) -> float:
    """Return how long a run was, which is the same for all seeds of an experiment.

    :param folder: the run's folder
    :param episodes: its training episodes
    :return: environment steps that were logged last; without a log, the end of the last episode
    """
    log = read_progress(folder / PROGRESS)
    return float(episodes["step"].iloc[-1] if log.empty else log[STEPS].max())


def training_episodes(folder: Path) -> pd.DataFrame:
    """Read the episodes that the Monitor wrappers have logged.

    The environments of a run step together, so an episode of one environment ends at the sum of
    its episodes' lengths times the number of environments. Of several processes, only the first
    logs its episodes.

    :param folder: the run's folder
    :return: columns ``step`` (environment steps of all environments) and ``return``, in order;
        empty if there are no episodes
    :raises UsageError: if the run does not say how many processes trained it
    """
    files = sorted(folder.glob("*.monitor.csv"))
    logs = [pd.read_csv(file, skiprows=1, usecols=["r", "l"], dtype=float) for file in files]
    count = len(files) * _processes_of(folder)
    frames = [pd.DataFrame({"step": count * log["l"].cumsum(), "return": log["r"]}) for log in logs]
    none = pd.DataFrame({"step": [], "return": []}, dtype=float)
    episodes = pd.concat([none, *frames])
    return episodes.sort_values("step", kind="stable", ignore_index=True)


def _processes_of(folder: Path) -> int:
    """Read how many processes have trained a run; those of the RL Zoo do not say it."""
    settings = settings_of(folder)
    number = read_arguments(settings).get(PROCESSES, 1)
    if type(number) is not int or number < 1:
        raise UsageError(
            f"{settings / 'args.yml'}: {PROCESSES}: {number!r} is not a number of processes: write "
            "how many trained the run, or remove the entry if it was one"
        )
    return number


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
