"""Train with several seeds, some at a time, and sum the runs up."""

from collections.abc import Callable
from pathlib import Path

from sb3_trpo.zoo.compare import draw_comparison, group_runs, table
from sb3_trpo.zoo.errors import UsageError
from sb3_trpo.zoo.jobs import run_jobs, threads_per_job
from sb3_trpo.zoo.runs import Run, read_run
from sb3_trpo.zoo.script import Parser


def parse_seeds(text: str) -> list[int]:
    """Read a list of seeds.

    :param text: numbers and ranges with commas between them
    :return: the seeds
    :raises UsageError: if it is neither
    """
    seeds: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            seeds += range(int(first), int(last or first) + 1)
    except ValueError:
        seeds = []
    if not seeds:
        raise UsageError(f"--seeds {text}: seeds have to be like 0-4 or 3,7")
    return seeds


def train_seeds(
    train_one: Callable[[list[str]], Path], seeds: list[int], jobs: int, words: list[str]
) -> None:
    """Train one run per seed and compare them.

    :param train_one: trains one run, given command-line options, and returns its folder
    :param seeds: one per run
    :param jobs: largest number of runs at a time
    :param words: command-line options that all runs share
    :raises UsageError: if these contradict several seeds
    """
    check_shared(words)
    shared = ["--verbose", "0", "--num-threads", str(threads_per_job(jobs)), *words]
    tasks = [[*shared, "--seed", str(seed)] for seed in seeds]
    print(f"Training seeds {', '.join(map(str, seeds))}, at most {jobs} at a time")
    runs = []
    for seed, folder in zip(seeds, run_jobs(train_one, tasks, jobs), strict=True):
        run = read_run(folder)
        runs.append(run)
        score = f"{run.final.mean():.1f} +/- {run.final.std():.1f}"
        print(f"seed {seed}: mean return {score} over {run.final.size} episodes, {folder}")
    groups = group_runs(runs)
    print(table(groups))
    print(f"Picture: {draw_comparison(groups, picture_path(runs))}")


def check_shared(words: list[str]) -> None:
    """Refuse options that no comparison of seeds can be made with, before anything is trained.

    :param words: command-line options that all runs share
    :raises UsageError: if there is a seed among them, or evaluations are switched off
    """
    parser = Parser("sb3-trpo train", "", add_help=False)
    parser.add_argument("--seed")
    parser.add_argument("--eval-freq", type=int, default=1)
    shared, _ = parser.parse_known_args(words)
    if shared.seed is not None:
        raise UsageError("--seed and --seeds exclude each other: leave one of them out")
    if shared.eval_freq <= 0:
        raise UsageError(
            f"--seeds compares evaluations, and --eval-freq {shared.eval_freq} switches them off: "
            "leave one of them out"
        )


def picture_path(runs: list[Run]) -> Path:
    """Name the picture of several runs after their numbers, which no other runs have.

    :param runs: runs of one environment
    :return: path beside their folders
    """
    numbers = sorted(run.number for run in runs)
    return runs[0].folder.parent / f"runs_{numbers[0]}_to_{numbers[-1]}_{runs[0].env}.png"
