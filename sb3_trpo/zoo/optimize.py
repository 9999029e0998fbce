"""``sb3-trpo optimize``: Optuna through the RL Zoo, in several processes on one storage."""

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from huggingface_sb3 import EnvironmentName
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER

from sb3_trpo.zoo.choice import add_environment, check_environment
from sb3_trpo.zoo.entry import entry_text
from sb3_trpo.zoo.jobs import run_jobs, threads_per_job
from sb3_trpo.zoo.learning_curve import EVALUATION, RETURN_LABEL, TRAINING
from sb3_trpo.zoo.manager import RunManager, run_manager
from sb3_trpo.zoo.script import Parser, positive

N_TRIALS = 100
PROG = "sb3-trpo optimize"
HELP = """\
Search for hyperparameters with Optuna, and print the best ones as a configuration for 'train'.

examples:
  sb3-trpo optimize --env Pendulum-v1 --n-trials 10 --jobs 2
  sb3-trpo optimize --env Pendulum-v1 --storage postgresql://host/optuna --study-name pendulum

The trials are kept in a study: another call with the same storage and name, from any machine that
reaches it, adds trials to it.
"""


class SearchManager(RunManager):
    """The manager of a search, which keeps the hyperparameters that are not searched for.

    :param arguments: as for ``ExperimentManager``
    :param options: as for ``ExperimentManager``
    """

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the configuration.

        :return: the hyperparameters, and a copy to save
        """
        hyperparameters, saved = super().read_hyperparameters()
        self.fixed = dict(saved)
        return hyperparameters, saved


def optimize(words: list[str]) -> None:
    """Search for hyperparameters.

    :param words: command-line options, those of ``rl_zoo3.train`` and ours
    """
    if {"-h", "--help"} & set(words):
        run_manager(SearchManager, PROG, HELP, words, add_search)
    parser = Parser(PROG, HELP, add_help=False)
    add_environment(parser)
    add_search(parser)
    for option in ("--storage", "--study-name"):
        parser.add_argument(option)
    parser.add_argument("--n-trials", type=positive, default=N_TRIALS)
    parser.add_argument("--seed", type=int, default=None)
    choice, rest = parser.parse_known_args(words)
    check_environment(choice)
    folder = Path(choice.folder) / choice.algo
    folder.mkdir(parents=True, exist_ok=True)
    choice.storage = choice.storage or str(folder / f"study_{EnvironmentName(choice.env)}.log")
    choice.study_name = choice.study_name or choice.env

    # Several processes that set up one database at the same time would collide.
    study = optuna.create_study(
        study_name=choice.study_name,
        storage=open_storage(choice.storage),
        direction="maximize",
        load_if_exists=True,
    )
    print(f"Study '{choice.study_name}' in {choice.storage}, {choice.n_trials} trials")
    fixed, *_ = run_jobs(search, worker_words(choice, rest), choice.jobs)
    report(study, fixed, choice, folder)


def add_search(parser: Parser) -> None:
    """Add the option for several processes.

    :param parser: parser of a command
    """
    parser.add_argument(
        "--jobs",
        type=positive,
        default=os.cpu_count() or 1,
        help="processes (processor cores)",
    )


def worker_words(choice: argparse.Namespace, rest: list[str]) -> list[list[str]]:
    """Share the trials out.

    :param choice: parsed options of ``optimize``
    :param rest: options for the Zoo
    :return: a command line of ``rl_zoo3.train`` per process
    """
    workers = min(choice.jobs, choice.n_trials)
    shared = ["--algo", choice.algo, "--env", choice.env, "--log-folder", choice.folder]
    shared += ["--storage", choice.storage, "--study-name", choice.study_name]
    shared += ["--num-threads", str(threads_per_job(workers)), "--no-optim-plots", "-optimize"]
    if choice.gym_packages:
        shared += ["--gym-packages", *choice.gym_packages]
    tasks = []
    for worker in range(workers):
        trials = len(range(worker, choice.n_trials, workers))
        # Samplers with the same seed would propose the same trials.
        seed = [] if choice.seed is None else ["--seed", str(choice.seed + worker)]
        tasks.append([*shared, "--n-trials", str(trials), *seed, *rest])
    return tasks


def search(words: list[str]) -> dict[str, Any]:
    """Run some trials.

    :param words: command-line options of ``rl_zoo3.train``
    :return: the hyperparameters that are not searched for
    """
    manager = run_manager(SearchManager, PROG, HELP, words, add_search)
    assert isinstance(manager, SearchManager)
    return manager.fixed


def open_storage(storage: str) -> str | BaseStorage:
    """Read the Zoo's notation: a file ending in ``.log`` is a journal.

    :param storage: path of a journal, or URL of a database
    :return: what Optuna takes
    """
    if not storage.endswith(".log"):
        return storage
    return JournalStorage(JournalFileBackend(storage))


def report(
    study: optuna.Study, fixed: dict[str, Any], choice: argparse.Namespace, folder: Path
) -> None:
    """Print the best trial as a configuration, write it to a file and draw the search.

    :param study: the study, with at least one finished trial
    :param fixed: the hyperparameters that were not searched for
    :param choice: parsed options of ``optimize``
    :param folder: where to write
    """
    best = fixed | HYPERPARAMS_CONVERTER[choice.algo](study.best_params)
    name = EnvironmentName(choice.env)
    path = folder / f"best_{name}.yml"
    path.write_text(entry_text(choice.env, best))
    print(f"Best of {len(study.trials)} trials: mean return {study.best_value:.1f}\n")
    print(path.read_text())
    print(f"Picture: {draw_search(study, folder / f'study_{name}.png')}")
    print(f"Train:   sb3-trpo train --algo {choice.algo} --env {choice.env} --conf-file {path}")


def draw_search(study: optuna.Study, path: Path) -> Path:
    """Draw what the trials reached.

    :param study: the study
    :param path: of the picture
    :return: the path
    """
    finished = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    numbers = [trial.number for trial in finished]
    values = np.array([trial.value for trial in finished], dtype=float)
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot(numbers, values, ".", color=TRAINING, label="trial")
    axes.step(numbers, np.maximum.accumulate(values), where="post", color=EVALUATION, label="best")
    axes.set_title(f"Search for hyperparameters: {study.study_name}", fontsize="medium")
    axes.set_xlabel("number of the trial")
    axes.set_ylabel(RETURN_LABEL)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path)
    return path
