"""``sb3-trpo optimize``: Optuna through the RL Zoo, in several processes on one storage."""

import argparse
import shlex
from contextlib import suppress
from pathlib import Path

import numpy as np
import optuna
import yaml
from huggingface_sb3 import EnvironmentName
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER
from sqlalchemy.exc import SQLAlchemyError

from sb3_trpo.zoo.choice import add_environment, check_environment, packages_again
from sb3_trpo.zoo.cores import add_jobs, threads_per_job
from sb3_trpo.zoo.entry import entry_text
from sb3_trpo.zoo.errors import UsageError, one_line, user_errors
from sb3_trpo.zoo.figure_style import (
    EVALUATION,
    RETURN_LABEL,
    TRAINING,
    add_legend,
    new_figure,
    set_style,
)
from sb3_trpo.zoo.jobs import run_jobs
from sb3_trpo.zoo.manager import CONFIGURATION, NO_TRIALS, RunManager, run_manager
from sb3_trpo.zoo.processes import refuse_torchrun
from sb3_trpo.zoo.script import Parser, asks_for_help, positive

N_TRIALS = 100
PROG = "sb3-trpo optimize"
HELP = """\
Search for hyperparameters with Optuna and print the best ones as a configuration for 'train'.

examples:
  sb3-trpo optimize --env Pendulum-v1 --n-trials 10 --jobs 2
  sb3-trpo optimize --env Pendulum-v1 --storage postgresql://host/optuna --study-name pendulum

The trials are stored in a study. Another call with the same storage and name adds trials to it,
from any machine that can reach the storage.
"""


def optimize(words: list[str]) -> None:
    """Search for hyperparameters.

    :param words: command-line options, those of ``rl_zoo3.train`` and ours
    """
    if asks_for_help(words):
        run_manager(RunManager, PROG, HELP, words, add_search)
    refuse_torchrun("sb3-trpo optimize")
    choice, rest = parse(words)
    folder = Path(choice.folder) / choice.algo
    with user_errors(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    choice.storage = choice.storage or str(folder / f"study_{EnvironmentName(choice.env)}.log")
    study = open_study(choice)
    try:
        print(f"Study '{choice.study_name}' in {choice.storage}, {choice.n_trials} trials")
        tasks = worker_words(choice, rest, len(study.get_trials(deepcopy=False)))
        for _, done in run_jobs(search, tasks, choice.jobs):
            done.result()
    except KeyboardInterrupt as interruption:
        if finished_trials(study):
            report(study, choice, folder)
        raise type(interruption)(
            f"with {len(finished_trials(study))} finished trials in {choice.storage}; "
            "the same command adds trials to them"
        ) from None
    report(study, choice, folder)


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Read the command line.

    :param words: command-line options
    :return: our options, and those for the Zoo
    :raises UsageError: if the environment or the algorithm does not exist
    """
    parser = Parser(PROG, HELP, add_help=False)
    add_environment(parser)
    add_search(parser)
    for option in ("--storage", "--study-name"):
        parser.add_argument(option)
    parser.add_argument("--n-trials", type=positive, default=N_TRIALS)
    parser.add_argument("--seed", default=-1)
    choice, rest = parser.parse_known_args(words)
    check_environment(choice)
    choice.study_name = choice.study_name or choice.env
    return choice, rest


def add_search(parser: Parser) -> None:
    """Add the option for the number of processes.

    :param parser: parser of a command
    """
    add_jobs(parser, "processes")


def worker_words(choice: argparse.Namespace, rest: list[str], n_before: int = 0) -> list[list[str]]:
    """Divide the trials among the processes.

    :param choice: parsed options of ``optimize``
    :param rest: options for the Zoo
    :param n_before: trials that the study already has, which are at least as many as processes
        that proposed them
    :return: a command line of ``rl_zoo3.train`` per process
    """
    workers = min(choice.jobs, choice.n_trials)
    shared = ["--algo", choice.algo, "--env", choice.env, "--log-folder", choice.folder]
    shared += ["--storage", choice.storage, "--study-name", choice.study_name]
    shared += ["--num-threads", str(threads_per_job(workers)), "--no-optim-plots", "-optimize"]
    shared += packages_again(choice.gym_packages)
    tasks = []
    for worker in range(workers):
        trials = len(range(worker, choice.n_trials, workers))
        # Samplers with the same seed would propose the same trials.
        seed = -1 if choice.seed == -1 else (choice.seed + n_before + worker) % 2**32
        tasks.append([*shared, "--n-trials", str(trials), "--seed", str(seed), *rest])
    return tasks


def search(words: list[str]) -> None:
    """Run some trials.

    :param words: command-line options of ``rl_zoo3.train``
    """
    run_manager(RunManager, PROG, HELP, words, add_search)


def open_study(choice: argparse.Namespace) -> optuna.Study:
    """Create the study before its workers, which would collide if they created it together.

    :param choice: parsed options of ``optimize``
    :return: the study, with the trials that it already has
    :raises UsageError: if the storage cannot be opened
    """
    try:
        return optuna.create_study(
            study_name=choice.study_name,
            storage=open_storage(choice.storage),
            direction="maximize",
            load_if_exists=True,
        )
    except (SQLAlchemyError, OSError, ImportError, ValueError) as error:
        raise UsageError(
            f"--storage {choice.storage}: {one_line(error)}: it takes a file ending in .log, or a "
            "URL like sqlite:///study.db"
        ) from error


def open_storage(storage: str) -> str | BaseStorage:
    """Read the Zoo's notation: a file ending in ``.log`` is a journal.

    :param storage: path of a journal, or URL of a database
    :return: what Optuna takes
    :raises UsageError: if a crash has left half a line, to which Optuna would append the next one
    """
    if not storage.endswith(".log"):
        return storage
    with suppress(FileNotFoundError):
        last = Path(storage).read_bytes().rpartition(b"\n")[2]
        if last:
            raise UsageError(
                f"--storage {storage} ends within a line, as after a crash: remove what follows "
                f"its last line break, {last[:40]!r}"
            )
    return JournalStorage(JournalFileBackend(storage))


def finished_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return the trials that have a result.

    :param study: the study
    :return: its finished trials, in the order of their numbers
    """
    return study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])


def report(study: optuna.Study, choice: argparse.Namespace, folder: Path) -> None:
    """Print the best trial as a configuration, write it to a file and draw the search.

    :param study: the study
    :param choice: parsed options of ``optimize``
    :param folder: where to write
    :raises UsageError: if no trial finished
    """
    if not finished_trials(study):
        raise UsageError(NO_TRIALS)
    best = study.best_trial
    configuration = yaml.safe_load(best.user_attrs[CONFIGURATION])[choice.env]
    best_values = configuration | HYPERPARAMS_CONVERTER[choice.algo](best.params)
    name = file_name(choice)
    path = folder / f"best_{name}.yml"
    path.write_text(entry_text(choice.env, best_values))
    print(f"Best of {len(study.trials)} trials: mean return {best.value:.1f}\n")
    print(path.read_text())
    print(f"Picture: {draw_search(study, folder / f'study_{name}.png')}")
    words = ["train", "--algo", choice.algo, "--env", choice.env, "--conf-file", str(path)]
    line = ["sb3-trpo", *words, *packages_again(choice.gym_packages)]
    print(f"Train:   {shlex.join(line)}")


def file_name(choice: argparse.Namespace) -> str:
    """Name a study's files, so that no two studies of an environment share them.

    :param choice: parsed options of ``optimize``
    :return: the environment, and the study's name unless it is the default
    """
    names = [choice.env] if choice.study_name == choice.env else [choice.env, choice.study_name]
    return "_".join(names).replace("/", "-")


def draw_search(study: optuna.Study, path: Path) -> Path:
    """Draw the return of every trial and the best so far.

    :param study: the study
    :param path: of the picture
    :return: the path
    """
    figure = new_figure()
    axes = figure.subplots()
    set_style(axes)
    draw_trials(axes, finished_trials(study))
    figure.suptitle(f"Search for hyperparameters: {study.study_name}", fontsize="medium")
    axes.set_xlabel("number of the trial")
    axes.set_ylabel(RETURN_LABEL)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_legend(axes)
    figure.savefig(path)
    return path


def draw_trials(axes: Axes, trials: list[optuna.trial.FrozenTrial]) -> None:
    """Draw a dot per trial and the best return so far as a line.

    :param axes: where to draw
    :param trials: finished trials in the order of their numbers
    """
    numbers = [trial.number for trial in trials]
    values = np.array([trial.value for trial in trials], dtype=float)
    axes.plot(numbers, values, ".", color=TRAINING, label="trial")
    best = np.maximum.accumulate(values)
    axes.step(numbers, best, where="post", color=EVALUATION, label="best so far")
