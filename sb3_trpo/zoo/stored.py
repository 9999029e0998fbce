"""Options that a run was started with, which its folder keeps and ``--resume`` takes again."""

from typing import Any

import yaml

from sb3_trpo.zoo.errors import UsageError
from sb3_trpo.zoo.register import ALGORITHMS
from sb3_trpo.zoo.script import Parser
from sb3_trpo.zoo.settings import find_code

# Options with one value that is a number, a name of ours, or a folder for logs. A file that is
# given here is replaced by the run's own settings.
VALUES = (
    *("--algo", "--env", "-n", "--n-timesteps", "--num-threads", "--log-interval", "--eval-freq"),
    *("--eval-episodes", "--n-eval-envs", "--save-freq", "--seed", "--vec-env", "--device"),
    *("--verbose", "--process-timeout", "--checkpoint-freq", "--run-number", "-f", "--log-folder"),
    *("-tb", "--tensorboard-log", "-conf", "--conf-file"),
)
FLAGS = ("-P", "--progress", "-uuid", "--uuid", "--trust-checkpoint")
ASSIGNMENTS = (("--env-kwargs",), ("--eval-env-kwargs",), ("--hyperparams", "-params"))


def stored_options(words: Any, is_trusted: bool) -> list[str]:
    """Take the options that a run was started with.

    A run's folder may have been downloaded: it does not say whether it is trusted, and options that
    import or evaluate something are taken only if it is.

    :param words: from the run's folder
    :param is_trusted: whether the user trusts the run
    :return: the options, without the trust that the run was given then
    :raises UsageError: if they are damaged, or one of them may run code
    """
    if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
        raise UsageError(f"the run's options are damaged: {words!r:.80}")
    code = None if is_trusted else _code_in(words)
    if code:
        raise UsageError(
            f"the run was started with {code}, which may run code: --trust-checkpoint allows it "
            f"for a run of your own"
        )
    return [word for word in words if word != "--trust-checkpoint"]


def _code_in(words: list[str]) -> str | None:
    """Find an option that may run code."""
    parser = Parser("the run's options", "", add_help=False)
    for option in VALUES:
        parser.add_argument(option)
    for option in FLAGS:
        parser.add_argument(option, action="store_true")
    for names in ASSIGNMENTS:
        parser.add_argument(*names, nargs="+")
    known, unknown = parser.parse_known_args(words)
    if unknown:
        return " ".join(unknown)
    if known.algo not in (None, *ALGORITHMS):
        return f"--algo {known.algo}"  # whose own loader runs what a file holds
    assigned = known.env_kwargs, known.eval_env_kwargs, known.hyperparams
    texts = [yaml.safe_dump(each) for each in assigned if each]
    return next((code for code in map(find_code, texts) if code), None)
