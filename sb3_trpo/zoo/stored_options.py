"""What a run's folder says of its options, and what of it is taken without trust.

The folder may have been downloaded. Nothing of it may run code, import anything or write elsewhere,
unless the user's own command line allows it.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sb3_trpo.zoo.choice import add_gym_packages, packages_again
from sb3_trpo.zoo.errors import UsageError
from sb3_trpo.zoo.register import ALGORITHMS
from sb3_trpo.zoo.script import Parser
from sb3_trpo.zoo.settings import (
    MOST_ENVS,
    check_settings,
    find_code,
    read_arguments,
    settings_of,
)

# Options with one value that is a number, a name of ours, or replaced when the run is resumed.
VALUES = (
    *("--algo", "--env", "-n", "--n-timesteps", "--num-threads", "--log-interval", "--eval-freq"),
    *("--eval-episodes", "--n-eval-envs", "--save-freq", "--seed", "--vec-env", "--device"),
    *("--verbose", "--process-timeout", "--checkpoint-freq", "--run-number", "-f", "--log-folder"),
    *("-conf", "--conf-file"),
)
FLAGS = ("-P", "--progress", "-uuid", "--uuid", "--trust-checkpoint")
ABSENT: dict[str, Any] = {"gym_packages": [], "tensorboard_log": ""}
ASSIGNMENTS = (("--env-kwargs",), ("--eval-env-kwargs",), ("--hyperparams", "-params"))


def add_given_again(parser: Parser) -> None:
    """Add the options that are not taken from a run's folder: what is imported, where to write.

    :param parser: parser of a command line
    """
    add_gym_packages(parser)
    parser.add_argument("-tb", "--tensorboard-log", default="")


class Start(NamedTuple):
    """How a run was started."""

    settings: Path
    """folder of its settings"""
    env: str
    """name of the environment"""
    seed: int
    """its own, drawn or given"""
    words: list[str]
    """command line, without the trust that the run was given then"""


def read_start(run: Path, is_trusted: bool, given: Sequence[str] = ()) -> Start:
    """Read how a run was started, and refuse a folder whose run may do harm when it is resumed.

    :param run: the run's folder
    :param is_trusted: whether the user trusts it
    :param given: the command line that resumes it, which stands behind the stored one
    :return: what to start it with again
    :raises UsageError: if this is no run, or one that has to be trusted
    """
    settings = settings_of(run)
    check_settings(settings, is_trusted)
    arguments = read_arguments(settings)
    if not {"words", "env", "seed"} <= arguments.keys():
        raise UsageError(
            f"{run} is no folder of a run of 'sb3-trpo train', like logs/trpo/CartPole-v1_1"
        )
    if not (settings / "config.yml").is_file():
        raise UsageError(f"{settings / 'config.yml'}, the run's hyperparameters, is missing")
    if not is_trusted:
        check_links(run)
    words = stored_options(arguments["words"], is_trusted, given)
    return Start(settings, str(arguments["env"]), arguments["seed"], words)


def stored_options(words: Any, is_trusted: bool, given: Sequence[str] = ()) -> list[str]:
    """Take the options that a run was started with.

    :param words: from the run's folder
    :param is_trusted: whether the user trusts the run
    :param given: the user's command line, which stands after the stored one
    :return: the options, without the trust that the run was given then
    :raises UsageError: if they are damaged, one of them may run code, or has to be given again
    """
    if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
        raise UsageError(f"the run's options are damaged: {words!r:.80}")
    if not is_trusted:
        check_options(words, given)
    return [word for word in words if word != "--trust-checkpoint"]


def check_options(words: list[str], given: Sequence[str]) -> None:
    """Refuse options that may do harm, or that have to be given again.

    :param words: from the run's folder
    :param given: the user's command line
    :raises UsageError: naming the first one, and the remedy
    """
    parser = Parser("the run's options", "", add_help=False)
    add_given_again(parser)
    again = parser.parse_known_args(given)[0]
    for option in VALUES:
        parser.add_argument(option)
    for option in FLAGS:
        parser.add_argument(option, action="store_true")
    for names in ASSIGNMENTS:
        parser.add_argument(*names, nargs="+")
    known, unknown = parser.parse_known_args(words)
    refused = " ".join(unknown) or refused_in(known)
    if refused:
        raise UsageError(
            f"the run was started with {refused}, which may run code or start too many processes: "
            f"--trust-checkpoint allows it for a run of your own"
        )
    left = {name: vars(known)[name] for name, value in vars(again).items() if not value}
    if missing := repeated(argparse.Namespace(**{**ABSENT, **left})):
        raise UsageError(
            f"a run's folder does not choose what is imported and where logs go: repeat "
            f"{' '.join(missing)} beside --resume, or add --trust-checkpoint"
        )


def refused_in(known: argparse.Namespace) -> str | None:
    """Find an option that may run code, or start too many processes or threads.

    :param known: the run's options
    :return: the option; None if there is none
    """
    for option, count in (
        ("--n-eval-envs", known.n_eval_envs),
        ("--num-threads", known.num_threads),
    ):
        if count is not None and not (
            re.fullmatch(r"-?\d{1,4}", str(count)) and int(count) <= MOST_ENVS
        ):
            return f"{option} {count}"
    if known.algo not in (None, *ALGORITHMS):
        return f"--algo {known.algo}"  # whose own loader runs what a file holds
    assigned = known.env_kwargs, known.eval_env_kwargs, known.hyperparams
    texts = [yaml.safe_dump(each) for each in assigned if each]
    return next((code for code in map(find_code, texts) if code), None)


def check_links(run: Path) -> None:
    """Refuse a folder through which a resumed run would write elsewhere.

    :param run: the run's folder
    :raises UsageError: if there is a symbolic link in it
    """
    link = next((path for path in run.rglob("*") if path.is_symlink()), None)
    if link is not None:
        raise UsageError(
            f"{link} is a symbolic link, and the resumed run might write where it points: "
            f"--trust-checkpoint allows it for a run of your own"
        )


def repeated(args: argparse.Namespace) -> list[str]:
    """Write the options that are not taken from a run's folder when it is resumed.

    :param args: of the run
    :return: part of a command line
    """
    logs = ["--tensorboard-log", args.tensorboard_log] if args.tensorboard_log else []
    return [*packages_again(args.gym_packages), *logs]


def needs_trust(run: Path, given: Sequence[str]) -> bool:
    """Return whether a run is resumed only with ``--trust-checkpoint``.

    :param run: the run's folder
    :param given: the command line that would resume it
    """
    try:
        read_start(run, is_trusted=False, given=given)
    except UsageError:
        return True
    return False
