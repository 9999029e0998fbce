"""``sb3-trpo plot``: the RL Zoo's training curves, and the pictures of each run redrawn."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from cycler import cycler
from huggingface_sb3 import EnvironmentName
from matplotlib import pyplot as plt

from sb3_trpo.zoo.choice import DEFAULT_ENV, LOGS, check_algorithm
from sb3_trpo.zoo.figure_style import COLORS, RETURN_LABEL, STEPS_LABEL, save_figure
from sb3_trpo.zoo.learning_curve import draw_learning_curve
from sb3_trpo.zoo.runs import find_runs, training_episodes
from sb3_trpo.zoo.script import Parser, asks_for_help, positive, replaced, run_script
from sb3_trpo.zoo.settings import env_of
from sb3_trpo.zoo.trust_region_figure import draw_trust_region

with mpl.rc_context():  # the import sets seaborn's style for the whole process
    import rl_zoo3.plots.plot_train  # noqa: F401 (the package's attribute is the function)
    from rl_zoo3.plots import plot_train

PROG = "sb3-trpo plot"
HELP = f"""\
Draw the training episodes of all runs of an environment in one figure, and redraw the pictures of
each run. Runs may still be training.

examples:
  sb3-trpo plot --env CartPole-v1
  sb3-trpo plot --env CartPole-v1 --y-axis length --x-axis time --output lengths.png

defaults that differ from the RL Zoo's, whose own options follow:
  --algo trpo, --env {DEFAULT_ENV}, --exp-folder {LOGS}
  --episode-window: 100, or half of the shortest run's episodes if that is less
  the figure is written to a file; no window is opened
"""

# The Zoo's labels, in the words of the other pictures.
NAMES = {
    "Timesteps": STEPS_LABEL,
    "Training Episodic Reward": RETURN_LABEL,
    "Training Episode Length": "steps per episode",
}


def plot(words: list[str]) -> None:
    """Draw the runs of an environment.

    :param words: command-line options of ``rl_zoo3 plot_train``, and ``--output``
    """
    parser = Parser(PROG, HELP, add_help=False)
    add_output(parser)
    parser.add_argument("-a", "--algo", default="trpo")
    parser.add_argument("-e", "--env", nargs="+", default=[DEFAULT_ENV])
    parser.add_argument("-f", "--exp-folder", type=Path, default=LOGS)
    parser.add_argument("-w", "--episode-window", type=positive)
    choice, rest = parser.parse_known_args(words)
    chosen = ["-a", choice.algo, "-f", str(choice.exp_folder), "-e"]
    chosen += map(EnvironmentName, choice.env)  # as folders are named
    window = choice.episode_window or 100
    if not asks_for_help(words):
        check_algorithm(choice.algo)
        runs = [run for env in choice.env for run in find_runs(choice.exp_folder, choice.algo, env)]
        window = choice.episode_window or episode_window(runs)
    style: Any = {"axes.grid": True, "grid.alpha": 0.3, "axes.prop_cycle": cycler(color=COLORS)}
    with mpl.rc_context(style), replaced(plt, "show", lambda: save(choice.output, window)):
        words = [*chosen, "-w", str(window), *rest]
        run_script(plot_train, PROG, HELP, words, add_output)
    print(f"Picture: {choice.output}")
    for run in runs:
        draw_run(run)


def add_output(parser: Parser) -> None:
    """Add the option for the figure's file.

    :param parser: parser of a command
    """
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("training.png"), help="the figure's file"
    )


def save(output: Path, window: int) -> None:
    """Write the RL Zoo's figure to a file and describe its curves in the title.

    :param output: the file
    :param window: number of episodes that each point averages
    """
    axes = plt.gca()
    axes.set_title(f"{axes.get_title()}, mean of {window} episodes", fontsize="medium")
    for axis in (axes.xaxis, axes.yaxis):
        text = axis.get_label_text()
        axis.set_label_text(NAMES.get(text, text), fontsize="medium")
    # Place the legend beside the panel, where it hides no curves.
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize="small")
    save_figure(plt.gcf(), output, dpi=150, bbox_inches="tight")


def episode_window(runs: list[Path]) -> int:
    """Choose a moving window that is shorter than every run.

    :param runs: folders of runs
    :return: number of episodes
    """
    shortest = min(len(training_episodes(run)) for run in runs)
    return max(1, min(100, shortest // 2))


def draw_run(run: Path) -> None:
    """Draw the pictures of a run.

    :param run: the run's folder
    """
    title = f"{run.parent.name.upper()} on {env_of(run)}, {run}"
    print(f"Picture: {draw_learning_curve(run, title)}")
    if draw_trust_region(run, title):
        print(f"Picture: {run / 'trust_region.png'}")
