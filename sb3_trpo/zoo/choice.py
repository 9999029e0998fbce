"""The options that choose a trained model, and where it is."""

import argparse
import importlib
import io
from contextlib import redirect_stdout
from pathlib import Path

import gymnasium as gym
import rl_zoo3.import_envs  # noqa: F401 (registers environments)
from huggingface_sb3 import EnvironmentName
from rl_zoo3 import ALGOS
from rl_zoo3.utils import get_model_path

import sb3_trpo.zoo.register  # noqa: F401 (imported for its effect)
from sb3_trpo.zoo.errors import UsageError, nearest, unknown_environment
from sb3_trpo.zoo.script import Parser

LOGS = "logs"  # where `train` writes
DEFAULT_ENV = "CartPole-v1"


def add_choice(parser: Parser) -> None:
    """Add the options that choose a model, named as in the RL Zoo's ``enjoy``.

    :param parser: parser of a command
    """
    add_environment(parser)
    parser.add_argument("--exp-id", type=int, default=0, help="number of the run; 0 for the latest")
    parser.add_argument("--load-best", action="store_true", help="the best model so far")
    parser.add_argument("--load-checkpoint", type=int, help="the model saved after so many steps")
    parser.add_argument("--load-last-checkpoint", action="store_true", help="the last checkpoint")


def add_environment(parser: Parser) -> None:
    """Add the options that say which environment and algorithm, and where the runs are.

    :param parser: parser of a command
    """
    parser.add_argument("--env", default=DEFAULT_ENV, help=f"environment ({DEFAULT_ENV})")
    parser.add_argument("--algo", default="trpo", help="algorithm (trpo)")
    parser.add_argument(
        "-f", "--folder", "--log-folder", default=LOGS, help=f"where the runs are ({LOGS})"
    )
    add_gym_packages(parser)


def add_gym_packages(parser: Parser) -> None:
    """Add the option that imports the user's environments.

    :param parser: parser of a command
    """
    parser.add_argument(
        "--gym-packages", nargs="+", default=[], help="packages that register environments"
    )


def check_environment(choice: argparse.Namespace) -> None:
    """Import the packages of the user's environments and look environment and algorithm up.

    :param choice: parsed options of :func:`add_environment`
    :raises UsageError: if one of them is not registered
    """
    check_algorithm(choice.algo)
    for package in choice.gym_packages:
        importlib.import_module(package)
    if choice.env not in gym.envs.registry:
        raise UsageError(unknown_environment(choice.env))


def check_algorithm(name: str) -> None:
    """Look an algorithm up.

    :param name: its key in ``rl_zoo3.ALGOS``
    :raises UsageError: if there is none
    """
    if name not in ALGOS:
        raise UsageError(
            f"unknown algorithm '{name}': {nearest(name, ALGOS)}; all are {', '.join(ALGOS)}"
        )


def choose_model(prog: str, words: list[str]) -> argparse.Namespace:
    """Read which model a script of the RL Zoo will play, and make sure that it is there.

    :param prog: the command
    :param words: its command line
    :return: parsed options of :func:`add_choice`
    :raises UsageError: if there is no such model
    """
    parser = Parser(prog, "", add_help=False)
    add_choice(parser)
    choice, _ = parser.parse_known_args(words)
    if not {"-h", "--help"} & set(words):
        with redirect_stdout(io.StringIO()):  # the script will say it again
            find_model(choice)
    return choice


def find_model(choice: argparse.Namespace) -> Path:
    """Find the chosen model's file.

    :param choice: parsed options of :func:`add_choice`
    :return: path of the zip file
    :raises UsageError: if there is none
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
        raise UsageError(
            f"{error}: train one with 'sb3-trpo train --algo {choice.algo} --env {choice.env}', "
            f"or choose another with -f and --exp-id"
        ) from error
    return Path(path)


def settings_folder(model: Path, env: str) -> Path:
    """Tell where a run keeps its hyperparameters and the statistics of its normalisation.

    :param model: a model's file in a run's folder
    :param env: name of the environment
    :return: path of the folder, which may be missing
    """
    return model.parent / str(EnvironmentName(env))
