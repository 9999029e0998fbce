"""``sb3-trpo train --resume``: a run that continues from its latest checkpoint.

The run's folder may have been downloaded. Of what it says, nothing may run code, import anything or
write outside of the folder, unless the user's own command line allows it.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rl_zoo3 import ALGOS
from stable_baselines3.common.callbacks import EvalCallback

from sb3_trpo import TRPO
from sb3_trpo._checkpoint_file import find_checkpoint
from sb3_trpo.checkpoint import finish_training, load_training
from sb3_trpo.zoo.checkpoints import checkpoint_folder, length_of, log_files, shorten
from sb3_trpo.zoo.choice import add_gym_packages
from sb3_trpo.zoo.errors import UsageError, user_errors
from sb3_trpo.zoo.manager import RunManager, repeated
from sb3_trpo.zoo.progress import PROGRESS, ProgressFile
from sb3_trpo.zoo.register import ALGORITHMS
from sb3_trpo.zoo.runs import EVALUATIONS_FILE, read_arrays
from sb3_trpo.zoo.script import Parser
from sb3_trpo.zoo.settings import MOST_ENVS, find_code

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
            re.fullmatch(r"-?\d{1,4}", count) and int(count) <= MOST_ENVS
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


class ResumedRun(RunManager):
    """
    The manager of a run that was interrupted: it continues in the run's folder.

    :param arguments: as for ``ExperimentManager``
    :param options: as for ``ExperimentManager``
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if not issubclass(ALGOS[self.algo], TRPO):
            raise UsageError(f"--resume continues runs of sb3_trpo, and not of '{self.algo}'")
        run = Path(self.args.resume)
        self.save_path, self.params_path = str(run), str(run / self.env_name)
        with user_errors(ValueError, OSError):
            self.found = find_checkpoint(checkpoint_folder(run))

    def create_log_folder(self) -> None:
        """Claim the run's folder, and remove from its logs what came after the checkpoint."""
        with user_errors(OSError):
            self.lock()
            shorten_logs(Path(self.save_path), self.found.checkpoint.state.get("extra"))
        self.monitor_kwargs["override_existing"] = False

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        """Leave the settings of the run as they are."""

    def create_callbacks(self) -> None:
        """Let the evaluations and the log continue those of the run."""
        super().create_callbacks()
        steps = int(self.found.checkpoint.state["num_timesteps"])
        for callback in self.callbacks:
            if isinstance(callback, EvalCallback):
                continue_evaluations(callback, Path(self.save_path) / EVALUATIONS_FILE, steps)
            if isinstance(callback, ProgressFile):
                callback.continue_file()

    def train(self, model: Any, *arguments: Any, **options: Any) -> Any:
        """Resume in place of a model that was just built, with its environments.

        :param model: gives the environments and the class
        :param arguments: of ``learn``, which the checkpoint has as well
        :param options: of ``learn``
        :return: the resumed model
        """
        # The checkpoint's own folder for logs may be any one.
        folder = {"tensorboard_log": self.tensorboard_log}
        given = {"trust_checkpoint": self.is_trusted, "verbose": self.verbose}
        given |= folder | self.process_options()
        with user_errors(ValueError):
            loaded = load_training(self.found, model.env, self.device, type(model), **given)
        return finish_training(loaded, self.found, options.get("callback"))


def has_checkpoint(run: Path) -> bool:
    """Return whether a run can be resumed.

    :param run: the run's folder
    """
    try:
        find_checkpoint(checkpoint_folder(run))
    except ValueError:
        return False
    return True


def shorten_logs(run: Path, sizes: Any) -> None:
    """Remove from a run's logs what came after a checkpoint.

    :param run: the run's folder
    :param sizes: length of each log by its name, as the checkpoint has them
    :raises UsageError: if one of them is no log of the run, or not that long; none is changed then
    """
    logs = log_files(run)
    if not isinstance(sizes, dict):
        raise UsageError(f"the checkpoint does not say how long the logs in {run} were")
    for name, size in sizes.items():
        is_log = name in logs and type(size) is int and size >= 0
        # A picture without its first updates is better than a run that is not resumed.
        if not is_log or not (name == PROGRESS or size <= length_of(logs[name])):
            raise UsageError(
                f"the checkpoint names a log {name!r:.80} of the length {size!r:.80}, and there is "
                f"no such log of that length in {run}"
            )
    for name, size in sizes.items():
        shorten(logs[name], size)


def continue_evaluations(callback: EvalCallback, path: Path, num_timesteps: int) -> None:
    """Give a callback the evaluations of its run up to a step.

    :param callback: that will add its own
    :param path: file that it writes; it may be missing
    :param num_timesteps: the step
    """
    if not path.is_file():
        return
    saved = read_arrays(path, {"timesteps": 1, "results": 2, "ep_lengths": 2}, {"successes": 2})
    count = int((saved["timesteps"] <= num_timesteps).sum())
    callback.evaluations_timesteps = saved["timesteps"][:count].tolist()
    callback.evaluations_results = saved["results"][:count].tolist()
    callback.evaluations_length = saved["ep_lengths"][:count].tolist()
    successes = saved.get("successes", np.empty((0, 0)))
    callback.evaluations_successes = successes[:count].tolist()
    means = np.mean(callback.evaluations_results, axis=1) if count else [-np.inf]
    callback.best_mean_reward = float(max(means))
