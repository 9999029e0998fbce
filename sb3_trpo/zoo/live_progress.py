"""Show how far the runs in other processes have come."""

import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

import pandas as pd

from sb3_trpo.zoo.errors import UsageError
from sb3_trpo.zoo.progress import PROGRESS, STEPS, read_progress

MEAN_RETURN = "rollout/ep_rew_mean"
SECONDS_BETWEEN_LINES = 60  # where the output is a file, on which lines stay


class LiveProgress:
    """One line about all runs: rewritten in place on a terminal, now and then elsewhere.

    :param runs: folders by the runs' names; they may not exist yet
    :param output: where to write
    """

    def __init__(self, runs: dict[str, Path], output: TextIO | None = None) -> None:
        self.runs = runs
        self.output = output or sys.stdout
        self._shown = time.monotonic()

    def show(self, finished: Iterable[str] = ()) -> None:
        """Write the line, if anything is known and it is time.

        :param finished: names of runs to leave out
        """
        names = self.runs.keys() - set(finished)
        states = [(name, run_state(self.runs[name])) for name in self.runs if name in names]
        line = "; ".join(f"{name}: {state}" for name, state in states if state)
        if not line:
            return
        if self.output.isatty():
            line = line[: shutil.get_terminal_size().columns - 1]  # a second one would stay there
            print(f"\r\x1b[K{line}\r", end="", file=self.output, flush=True)
        elif time.monotonic() - self._shown >= SECONDS_BETWEEN_LINES:
            self._shown = time.monotonic()
            print(line, file=self.output, flush=True)

    def clear(self) -> None:
        """Remove the line from a terminal."""
        if self.output.isatty():
            print("\r\x1b[K", end="", file=self.output, flush=True)


def run_state(run: Path) -> str | None:
    """Describe how far a run has come.

    :param run: the run's folder
    :return: its steps and the mean return of its last training episodes; None before it logs
    """
    try:
        log = read_progress(run / PROGRESS)
        if log.empty:
            return None
        steps = f"{log[STEPS].max():.0f} steps"
    except (UsageError, KeyError, ValueError):  # a line is being written
        return None
    returns = log.get(MEAN_RETURN, pd.Series(dtype=float)).dropna()
    return f"{steps}, mean return {returns.iloc[-1]:.1f}" if len(returns) else steps
