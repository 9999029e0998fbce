"""``sb3-trpo continue``: continue training a model with the settings of its run."""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from sb3_trpo.zoo.choice import (
    add_choice,
    check_model,
    find_model,
    packages_again,
    settings_folder,
)
from sb3_trpo.zoo.entry import write_entry
from sb3_trpo.zoo.errors import UsageError
from sb3_trpo.zoo.script import Parser
from sb3_trpo.zoo.settings import check_settings, read_arguments
from sb3_trpo.zoo.train import RESUME, train

HELP = """\
Continue training a model, in a new run, with the hyperparameters, normalisation
and environment's arguments of its run.

examples:
  sb3-trpo continue --env CartPole-v1 --n-timesteps 20000
  sb3-trpo continue --env CartPole-v1 --exp-id 2 --load-best --hyperparams target_kl:0.005
  sb3-trpo continue --env CartPole-v1 -i logs/trpo/CartPole-v1_1/CartPole-v1.zip

Other options are those of 'sb3-trpo train'. --hyperparams changes some of the run's
hyperparameters, --conf-file replaces all of them; both override those saved in the model.
"""


def continue_training(words: list[str]) -> None:
    """Continue training a model.

    :param words: options that choose a model, and command-line options of ``rl_zoo3.train``
    """
    parser = Parser("sb3-trpo continue", HELP)
    add_choice(parser)
    parser.add_argument("-i", "--trained-agent", type=Path, help="a model's zip file")
    parser.add_argument("--conf-file", "-conf", help="hyperparameters in place of the run's")
    parser.add_argument(RESUME, help=argparse.SUPPRESS)
    choice, rest = parser.parse_known_args(words)
    if choice.resume is not None:
        raise UsageError(
            f"'sb3-trpo continue' starts a new run: 'sb3-trpo train --resume {choice.resume}' "
            "finishes one that was interrupted"
        )
    model = choice.trained_agent or find_model(choice)
    check_settings(settings_folder(model, choice.env), choice.trust_checkpoint)
    with TemporaryDirectory() as scratch:
        config = choice.conf_file or write_settings(model, choice.env, Path(scratch))
        chosen = ["--algo", choice.algo, "--env", choice.env, "--log-folder", choice.folder]
        packages = packages_again(choice.gym_packages)
        trust = ["--trust-checkpoint"] if choice.trust_checkpoint else []
        same = [*chosen, *packages, *trust, *env_options(settings_folder(model, choice.env))]
        train([*same, "-i", str(model), "--conf-file", str(config), *rest])


def env_options(settings: Path) -> list[str]:
    """Repeat the arguments of a run's environment, which are not among its hyperparameters.

    :param settings: the run's folder of hyperparameters
    :return: part of a command line; what the user gives behind it replaces it
    """
    env_kwargs = read_arguments(settings).get("env_kwargs") or {}
    words = [f"{name}:{value!r}" for name, value in env_kwargs.items()]
    return ["--env-kwargs", *words] if words else []


def write_settings(model: Path, env: str, folder: Path) -> Path:
    """Write the hyperparameters of a model's run as a configuration file.

    :param model: a model's file in a run's folder
    :param env: name of the environment
    :param folder: where to write
    :return: path of the file
    :raises UsageError: if the run's hyperparameters are not beside the model
    """
    check_model(model)
    settings = settings_folder(model, env)
    if not (settings / "config.yml").is_file():
        raise UsageError(
            f"there are no hyperparameters in {settings / 'config.yml'}: choose a model in "
            "the folder of its run, or give --conf-file"
        )
    return write_entry(settings, env, folder)
