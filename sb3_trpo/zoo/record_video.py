"""``sb3-trpo record-video``: the RL Zoo's script for models that ``train`` saved."""

import argparse
import runpy
import sys

import moviepy  # noqa: F401 (gymnasium needs it to record)
import rl_zoo3.utils

from sb3_trpo.zoo.choice import LOGS, add_gym_packages, add_trust, choose_model
from sb3_trpo.zoo.masks import playing
from sb3_trpo.zoo.script import Assignments, Parser, asks_for_help, positive, replaced

PROG = "sb3-trpo record-video"
HELP = f"""\
Record a trained agent.

examples:
  sb3-trpo record-video --env CartPole-v1
  sb3-trpo record-video --env CartPole-v1 --load-best --n-timesteps 500 --output-folder videos

defaults that differ from the RL Zoo's, whose own options follow:
  --algo trpo, --folder {LOGS}; the video goes into the run's folder
"""


def record_video(words: list[str]) -> None:
    """Record a trained agent.

    :param words: command-line options of ``rl_zoo3.record_video``, ``--gym-packages`` and
        ``--trust-checkpoint``
    """
    if asks_for_help(words):
        print(HELP)
    choice = choose_model(PROG, ["--folder", LOGS, *words])
    ours = Parser(PROG, HELP, add_help=False)
    add_gym_packages(ours)  # the script lacks these options
    add_trust(ours)
    ours.add_argument("-n", "--n-timesteps", type=positive)  # it takes no 1e4
    own, words = ours.parse_known_args(words)
    if own.n_timesteps is not None:
        words += ["--n-timesteps", str(own.n_timesteps)]
    with (
        replaced(sys, "argv", [PROG, "--algo", "trpo", "--folder", LOGS, *words]),
        # The script is the body of a module; it has no function to call.
        replaced(argparse.ArgumentParser, "error", Parser.error),
        replaced(rl_zoo3.utils, "StoreDict", Assignments),
        playing(rl_zoo3.utils, choice.algo, choice.statistics, choice.trust_checkpoint),
    ):
        runpy.run_module("rl_zoo3.record_video", run_name="__main__")
