"""``sb3-trpo train``: the RL Zoo's training script with our class, defaults and report."""

import argparse
import os
from pathlib import Path

from sb3_trpo.zoo.choice import add_trust
from sb3_trpo.zoo.manager import RUN_NUMBER, UNSET_EVAL_FREQ, RunManager, run_manager
from sb3_trpo.zoo.script import Parser, asks_for_help, positive, verbosity
from sb3_trpo.zoo.seeds import parse_seeds, train_seeds

PROG = "sb3-trpo train"
HELP = """\
Train an agent with the RL Zoo's training script, then evaluate it and draw the run.

examples:
  sb3-trpo train --env CartPole-v1
  sb3-trpo train --env Pendulum-v1 --n-timesteps 50000 --seed 1 --hyperparams target_kl:0.02
  sb3-trpo train --env CartPole-v1 --seeds 0-4 --jobs 2

defaults that differ from the RL Zoo's, whose own options follow:
  --algo trpo, with the hyperparameters that come with sb3_trpo (--conf-file replaces them)
  --progress, unless --verbose 0
  --eval-freq: the length of the run / 20, and at least one rollout
"""


def train(words: list[str]) -> None:
    """Train as the RL Zoo does, once or for several seeds, and report.

    :param words: command-line options, those of ``rl_zoo3.train`` and ours
    """
    parser = Parser(PROG, HELP, add_help=False)
    add_options(parser)
    own, rest = parser.parse_known_args(words)
    if own.seeds is None or asks_for_help(words):
        train_one(words)
    else:
        train_seeds(train_one, parse_seeds(own.seeds), own.jobs, rest)


def add_options(parser: Parser) -> None:
    """Add the options that the RL Zoo's script lacks.

    :param parser: parser of a command
    """
    parser.add_argument("--seeds", help="seeds of several runs, like 0-4 or 3,7")
    parser.add_argument(
        "--jobs",
        type=positive,
        default=os.cpu_count() or 1,
        help="runs at a time (processor cores)",
    )
    add_trust(parser)
    # Set by --seeds, so that the runs' numbers follow their seeds.
    parser.add_argument(RUN_NUMBER, type=positive, help=argparse.SUPPRESS)


def train_one(words: list[str]) -> Path:
    """Train one agent.

    :param words: command-line options of ``rl_zoo3.train``
    :return: folder of the run
    """
    # The Zoo's parser takes the last value given, so defaults come before the user's options.
    defaults = ["--algo", "trpo", f"--eval-freq={UNSET_EVAL_FREQ}"]
    if verbosity(words) > 0:
        defaults.append("--progress")
    manager = run_manager(RunManager, PROG, HELP, [*defaults, *words], add_options)
    return Path(manager.save_path)
