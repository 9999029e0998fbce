"""``sb3-trpo train``: the RL Zoo's training script with our class, defaults and report."""

import argparse
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from sb3_trpo.zoo.choice import add_environment, add_trust
from sb3_trpo.zoo.cores import add_jobs
from sb3_trpo.zoo.entry import write_entry
from sb3_trpo.zoo.errors import UsageError
from sb3_trpo.zoo.manager import LAUNCH, RUN_NUMBER, UNSET_EVAL_FREQ, RunManager, run_manager
from sb3_trpo.zoo.other_process import in_other_process
from sb3_trpo.zoo.processes import (
    add_timeout,
    is_restart,
    joined_processes,
    launch_name,
    refuse_torchrun,
    words_of_process,
)
from sb3_trpo.zoo.resume import ResumedRun, has_checkpoint
from sb3_trpo.zoo.script import Parser, asks_for_help, positive, verbosity
from sb3_trpo.zoo.seeds import parse_seeds, train_seeds
from sb3_trpo.zoo.settings import read_arguments, settings_of
from sb3_trpo.zoo.stored_options import add_given_again, read_start

PROG = "sb3-trpo train"
RESUME = "--resume"
HELP = """\
Train an agent with the RL Zoo's training script, then evaluate it and draw the run.

examples:
  sb3-trpo train --env CartPole-v1
  sb3-trpo train --env Pendulum-v1 --n-timesteps 50000 --seed 1 --hyperparams target_kl:0.02
  sb3-trpo train --env CartPole-v1 --seeds 0-4 --jobs 2
  sb3-trpo train --env Hopper-v5 --checkpoint-freq 100000
  sb3-trpo train --resume logs/trpo/Hopper-v5_1
  torchrun --nproc-per-node 4 -m sb3_trpo train --env Hopper-v5

Under torchrun all processes train one policy, each with environments of its own; --n-timesteps,
--eval-freq, --checkpoint-freq and batch_size count all of them.

Ctrl-C ends the training after the current update, saves the model and a checkpoint, and draws
the run. --resume continues a run from its latest checkpoint, as if it had not been interrupted.

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
    own, _ = parser.parse_known_args(words)
    if asks_for_help(words):
        train_one(words)
    elif own.resume is not None:
        resume(own, words)
    elif own.seeds is None:
        train_one(words)
    else:
        refuse_torchrun("--seeds")
        several = Parser(PROG, HELP, add_help=False)
        add_seeds(several)
        _, shared = several.parse_known_args(words)
        train_seeds(train_one, parse_seeds(own.seeds), own.jobs, shared)


def add_options(parser: Parser) -> None:
    """Add the options that the RL Zoo's script lacks.

    :param parser: parser of a command
    """
    add_seeds(parser)
    parser.add_argument(
        "--checkpoint-freq", type=positive, help="steps between two checkpoints (none)"
    )
    parser.add_argument(RESUME, type=Path, help="folder of a run that was interrupted")
    add_trust(parser)
    add_timeout(parser)
    # Set by --seeds, so that the runs' numbers follow their seeds.
    parser.add_argument(RUN_NUMBER, type=positive, help=argparse.SUPPRESS)


def add_seeds(parser: Parser) -> None:
    """Add the options of several runs, which a single one does not know.

    :param parser: parser of a command
    """
    parser.add_argument("--seeds", help="seeds of several runs, like 0-4 or 3,7")
    add_jobs(parser, "runs at a time")


def train_one(words: list[str], kind: type[RunManager] = RunManager) -> Path:
    """Train one agent, together with the other processes that torchrun has started.

    :param words: command-line options of ``rl_zoo3.train``
    :param kind: the run's manager
    :return: folder of the run
    """
    with joined_processes(words) as processes:
        words = words_of_process(words, processes)
        if kind is not ResumedRun:
            resuming = processes.of_first(options_after_restart(words))
            kind, words = (ResumedRun if resuming else kind), [*words, *resuming]
        if processes.size > 1 and verbosity(words) > 0:
            print(f"{processes.size} processes train one policy; steps count all of them")
        return _train(words, kind if processes.rank == 0 else in_other_process(kind))


def _train(words: list[str], kind: type[RunManager]) -> Path:
    """Train in this process."""
    # The Zoo's parser takes the last value given, so defaults come before the user's options.
    defaults = ["--algo", "trpo", f"--eval-freq={UNSET_EVAL_FREQ}"]
    if verbosity(words) > 0:
        defaults.append("--progress")
    manager = run_manager(kind, PROG, HELP, [*defaults, *words], add_options)
    return Path(manager.save_path)


def options_after_restart(words: list[str]) -> list[str]:
    """Find the run that torchrun has started before one of its processes failed.

    :param words: command-line options of the training
    :return: options that resume it; none if this is no restart, or there is no checkpoint
    """
    if not is_restart():
        return []
    parser = Parser(PROG, "", add_help=False)
    add_environment(parser)
    choice, _ = parser.parse_known_args(words)
    for run in _newest_first(Path(choice.folder) / choice.algo):
        try:
            arguments = read_arguments(settings_of(run))
        except UsageError:  # of another training
            continue
        if arguments.get(LAUNCH) == launch_name() and has_checkpoint(run):
            return [RESUME, str(run), "--seed", str(arguments["seed"])]
    return []


def _newest_first(folder: Path) -> list[Path]:
    """List what is in a folder; another training may remove its own meanwhile."""
    times: dict[Path, float] = {}
    for path in folder.glob("*"):
        with suppress(OSError):
            times[path] = path.stat().st_mtime
    return sorted(times, key=lambda path: times[path], reverse=True)


def resume(own: argparse.Namespace, words: list[str]) -> None:
    """Continue a run that was interrupted, with the options that it was started with.

    :param own: parsed options of :func:`add_options`
    :param words: the command line
    :raises UsageError: if there is no such run, or the command line has options of a new one
    """
    parser = Parser(PROG, HELP, add_help=False)
    parser.add_argument(RESUME)
    add_trust(parser)
    add_given_again(parser)
    parser.add_argument("--verbose")
    parser.add_argument("--device")
    add_timeout(parser)
    given, others = parser.parse_known_args(words)
    if others:
        raise UsageError(f"--resume takes all options from the run: leave out {' '.join(others)}")
    start = read_start(own.resume, own.trust_checkpoint, words)
    with TemporaryDirectory() as scratch:
        config = write_entry(start.settings, start.env, Path(scratch))
        fixed = ["--conf-file", str(config), "--seed", str(start.seed)]
        # The run's own 0 may be what kept the runs of --seeds from printing over each other.
        if verbosity(start.words) == 0 and given.verbose is None:
            fixed += ["--verbose", "1"]
        train_one([*start.words, *words, *fixed], ResumedRun)
