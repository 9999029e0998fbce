"""``sb3-trpo enjoy``: the RL Zoo's script for models that ``train`` saved."""

import rl_zoo3.enjoy

from sb3_trpo.zoo.choice import LOGS, add_trust, choose_model
from sb3_trpo.zoo.masks import playing
from sb3_trpo.zoo.script import run_script

HELP = f"""\
Watch a trained agent; with --no-render, only print its returns.

examples:
  sb3-trpo enjoy --env CartPole-v1
  sb3-trpo enjoy --env CartPole-v1 --exp-id 3 --n-timesteps 5000 --no-render

defaults that differ from the RL Zoo's, whose own options follow:
  --algo trpo, --folder {LOGS}
"""


def enjoy(words: list[str]) -> None:
    """Let a trained agent play.

    :param words: command-line options of ``rl_zoo3.enjoy``
    """
    words = ["--algo", "trpo", "--folder", LOGS, *words]
    choice = choose_model("sb3-trpo enjoy", words)
    with playing(rl_zoo3.enjoy, choice.algo, choice.statistics, choice.trust_checkpoint):
        run_script(rl_zoo3.enjoy.enjoy, "sb3-trpo enjoy", HELP, words, add_trust)
