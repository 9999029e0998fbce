"""The options that choose a trained model, and how to find it."""

import argparse
import importlib
import io
import os
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path

import gymnasium as gym
import rl_zoo3.import_envs  # noqa: F401 (registers environments)
from huggingface_sb3 import EnvironmentName
from rl_zoo3 import ALGOS
from rl_zoo3.utils import get_latest_run_id, get_model_path

import sb3_trpo.zoo.register  # noqa: F401 (imported for its effect)
from sb3_trpo.zoo.errors import UsageError, nearest, unknown_environment
from sb3_trpo.zoo.script import Parser, asks_for_help
from sb3_trpo.zoo.settings import check_settings

LOGS = "logs"  # where `train` writes
DEFAULT_ENV = "CartPole-v1"
STATISTICS = "vecnormalize.pkl"  # of the normalisation at a run's end


def add_choice(parser: Parser) -> None:
    """Add the options that choose a model, named as in the RL Zoo's ``enjoy``.

    :param parser: parser of a command
    """
    add_environment(parser)
    parser.add_argument("--exp-id", type=int, default=0, help="number of the run; 0 for the latest")
    parser.add_argument("--load-best", action="store_true", help="the best model so far")
    parser.add_argument("--load-checkpoint", type=int, help="the checkpoint at this step")
    parser.add_argument("--load-last-checkpoint", action="store_true", help="the last checkpoint")
    add_trust(parser)


def add_trust(parser: Parser) -> None:
    """Add the option for files that the user made.

    :param parser: parser of a command
    """
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="let the files of the model run any code; for a model that you trained yourself",
    )


def add_environment(parser: Parser) -> None:
    """Add the options for the environment, the algorithm and the folder of the runs.

    :param parser: parser of a command
    """
    parser.add_argument("--env", default=DEFAULT_ENV, help=f"environment ({DEFAULT_ENV})")
    parser.add_argument("--algo", default="trpo", help="algorithm (trpo)")
    parser.add_argument(
        "-f", "--folder", "--log-folder", default=LOGS, help=f"where the runs are ({LOGS})"
    )
    add_gym_packages(parser)


def add_gym_packages(parser: Parser) -> None:
    """Add the option that imports the user's packages.

    :param parser: parser of a command
    """
    parser.add_argument(
        "--gym-packages", nargs="+", default=[], help="packages that register environments"
    )


def packages_again(packages: list[str]) -> list[str]:
    """Repeat the option that imports the user's packages.

    :param packages: its value
    :return: part of a command line
    """
    return ["--gym-packages", *packages] if packages else []


def check_environment(choice: argparse.Namespace) -> None:
    """Import the user's packages, then look up the environment and the algorithm.

    :param choice: parsed options of :func:`add_environment`
    :raises UsageError: if a package cannot be found, or if the environment or the algorithm is not
        registered
    """
    check_algorithm(choice.algo)
    for package in choice.gym_packages:
        import_package(package)
    if choice.env not in gym.envs.registry:
        raise UsageError(unknown_environment(choice.env))


def import_package(name: str) -> None:
    """Import a package of the user, which may lie in the current folder.

    :param name: dotted name of the package
    :raises UsageError: if the package cannot be found
    """
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # something that the package itself imports is missing
        raise UsageError(
            f"--gym-packages {name}: there is no module '{error.name}' in {os.getcwd()} or among "
            "the installed packages"
        ) from error


def check_algorithm(name: str) -> None:
    """Look up an algorithm.

    :param name: the algorithm's key in ``rl_zoo3.ALGOS``
    :raises UsageError: if there is none
    """
    if name not in ALGOS:
        raise UsageError(
            f"unknown algorithm '{name}': {nearest(name, ALGOS)}; all are {', '.join(ALGOS)}"
        )


def choose_model(prog: str, words: list[str]) -> argparse.Namespace:
    """Read which model a script of the RL Zoo will play, and check that the model exists.

    :param prog: the command
    :param words: command line of the script
    :return: parsed options of :func:`add_choice`, and the path of the model's ``statistics``, None
        if the command line asks for help
    :raises UsageError: if there is no such model
    """
    parser = Parser(prog, "", add_help=False)
    add_choice(parser)
    parser.set_defaults(statistics=None)
    choice, _ = parser.parse_known_args(words)
    if not asks_for_help(words):
        with redirect_stdout(io.StringIO()):  # the script will print the same
            choice.statistics = statistics_of(find_model(choice), choice.env)
    return choice


def find_model(choice: argparse.Namespace) -> Path:
    """Find the chosen model's file.

    :param choice: parsed options of :func:`add_choice`
    :return: path of the zip file
    :raises UsageError: if there is none, or its run's settings hold code and are not trusted
    """
    check_environment(choice)
    try:
        _, path, _ = get_model_path(
            choice.exp_id,
            choice.folder,
            choice.algo,
            EnvironmentName(choice.env),
            choice.load_best,
            choice.load_checkpoint,
            choice.load_last_checkpoint,
        )
    except (AssertionError, ValueError) as error:
        raise UsageError(f"{error}: {remedy(choice)}") from error
    check_settings(settings_folder(Path(path), choice.env), choice.trust_checkpoint)
    return Path(path)


def remedy(choice: argparse.Namespace) -> str:
    """Say what to do about a missing model.

    :param choice: parsed options of :func:`add_choice`
    :return: a clause of a sentence
    """
    name = EnvironmentName(choice.env)
    runs = Path(choice.folder) / choice.algo
    run = runs / f"{name}_{choice.exp_id or get_latest_run_id(str(runs), name)}"
    is_special = choice.load_best or choice.load_checkpoint or choice.load_last_checkpoint
    if is_special and (run / f"{name}.zip").is_file():
        return "without this option the run's final model is taken"
    if any(run.glob("rl_model_*_steps.zip")) and not choice.load_last_checkpoint:
        return "the run did not finish; --load-last-checkpoint takes its last checkpoint"
    if (run / "best_model.zip").is_file() and not choice.load_best:
        return "the run did not finish; --load-best takes its best model so far"
    return (
        f"train one with 'sb3-trpo train --algo {choice.algo} --env {choice.env}', "
        "or choose another with -f and --exp-id"
    )


def check_model(path: Path) -> None:
    """Check that a model's file exists.

    :param path: of the file
    :raises UsageError: if it does not exist or is no zip file
    """
    if not path.is_file() or path.suffix != ".zip":
        raise UsageError(f"there is no model '{path}': -i takes the zip file of a model")


def settings_folder(model: Path, env: str) -> Path:
    """Return the folder of a run's hyperparameters and normalisation statistics.

    :param model: a model's file in the run's folder
    :param env: name of the environment
    :return: path of the folder, which may not exist
    """
    return model.parent / str(EnvironmentName(env))


def statistics_of(model: Path, env: str) -> Path:
    """Return the file of the normalisation's statistics with which a model acts.

    :param model: a model's file in a run's folder
    :param env: name of the environment
    :return: path of the model's own statistics or, of the final model and in runs that have no
        others, those of the run's end; it may not exist
    """
    own = own_statistics(model)
    return own if own.is_file() else settings_folder(model, env) / STATISTICS


def own_statistics(model: Path) -> Path:
    """Name the file of the statistics that are saved with the best model or with a checkpoint.

    :param model: the model's file
    :return: path beside it, for a checkpoint that of SB3's ``CheckpointCallback``
    """
    checkpoint = re.fullmatch(r"rl_model_(\d+_steps)", model.stem)
    name = f"rl_model_vecnormalize_{checkpoint[1]}" if checkpoint else f"{model.stem}_vecnormalize"
    return model.with_name(f"{name}.pkl")
