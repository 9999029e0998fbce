"""Train with several seeds, some at a time, and compare the runs."""

from collections.abc import Callable, Collection
from functools import partial
from itertools import chain
from pathlib import Path

from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import get_latest_run_id

from sb3_trpo.zoo.choice import add_environment
from sb3_trpo.zoo.compare import draw_comparison, group_runs, labels, notes, table
from sb3_trpo.zoo.cores import threads_per_job
from sb3_trpo.zoo.errors import UsageError, one_line
from sb3_trpo.zoo.jobs import run_jobs
from sb3_trpo.zoo.live_progress import LiveProgress
from sb3_trpo.zoo.manager import RUN_NUMBER
from sb3_trpo.zoo.runs import Run, read_run
from sb3_trpo.zoo.script import Parser


def parse_seeds(text: str) -> list[int]:
    """Parse a list of seeds.

    :param text: numbers and ranges, separated by commas
    :return: the seeds
    :raises UsageError: if it is anything else, or names a seed twice
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
    twice = [seed for seed in seeds if seeds.count(seed) > 1]
    if twice:
        raise UsageError(f"--seeds {text}: {twice[0]} occurs twice, and its runs would be equal")
    return seeds


def train_seeds(
    train_one: Callable[[list[str]], Path], seeds: list[int], jobs: int, words: list[str]
) -> None:
    """Train one run per seed and compare the runs. A run that fails does not end the others.

    :param train_one: trains one run, given command-line options, and returns its folder
    :param seeds: one per run
    :param jobs: largest number of runs at a time
    :param words: command-line options that all runs share
    :raises UsageError: if these contradict several seeds, or are refused before a run has finished
    :raises KeyboardInterrupt: after an interruption, once the finished runs are compared
    :raises Exception: of the first run that failed, once the others are compared
    """
    check_shared(words)
    threads = threads_per_job(min(jobs, len(seeds)))
    shared = ["--verbose", "0", "--num-threads", str(threads), *words]
    folders = run_folders(words, len(seeds))
    tasks = [
        [*shared, "--seed", str(seed), RUN_NUMBER, folder.name.rpartition("_")[2]]
        for seed, folder in zip(seeds, folders, strict=True)
    ]
    names = [f"seed {seed}" for seed in seeds]
    live = LiveProgress(dict(zip(names, folders, strict=True)))
    runs: dict[int, Run] = {}
    failures: dict[int, Exception] = {}
    try:
        print(f"Training seeds {', '.join(map(str, seeds))}, at most {jobs} at a time")
        watch = partial(show_unfinished, live, names, runs, failures)
        for position, training in run_jobs(train_one, tasks, jobs, watch):
            live.clear()
            try:
                runs[position] = read_run(training.result())
                result = describe(runs[position])
            except Exception as error:  # whatever it was, the other runs are independent of it
                if isinstance(error, UsageError) and not runs:
                    raise  # a mistake in the options, which all runs share
                failures[position] = error
                result = f"failed, {type(error).__name__}: {one_line(error)}"
            progress = f"{len(runs) + len(failures)} of {len(seeds)} runs"
            print(f"{progress}: {names[position]}, {result}", flush=True)
    except KeyboardInterrupt as interruption:
        live.clear()
        summarize(runs)
        raise type(interruption)(f"after {len(runs)} of {len(seeds)} runs") from None
    summarize(runs)
    if failures:
        raise next(iter(failures.values()))


def show_unfinished(live: LiveProgress, names: list[str], *ended: Collection[int]) -> None:
    """Show how far the runs have come that have not ended.

    :param live: shows runs by their names
    :param names: of all runs
    :param ended: positions among the names of the runs that have
    """
    live.show(finished=[names[position] for position in chain(*ended)])


def run_folders(words: list[str], count: int) -> list[Path]:
    """Choose the folders of new runs, numbered in the order of their seeds.

    :param words: command-line options that all runs share
    :param count: number of runs
    :return: their folders, numbered from the one after the latest run
    """
    parser = Parser("sb3-trpo train", "", add_help=False)
    add_environment(parser)
    choice, _ = parser.parse_known_args(words)
    place, env = Path(choice.folder) / choice.algo, EnvironmentName(choice.env)
    first = get_latest_run_id(str(place), env) + 1
    return [place / f"{env}_{number}" for number in range(first, first + count)]


def describe(run: Run) -> str:
    """Describe the result of a run.

    :param run: a finished run
    :return: its return and where it is
    """
    score = f"{run.final.mean():.1f} +/- {run.final.std():.1f}"
    return f"mean return {score} over {run.final.size} episodes, {run.folder}"


def summarize(runs: dict[int, Run]) -> None:
    """Print a table of the runs and draw them.

    :param runs: finished runs by the positions of their seeds
    """
    if not runs:
        return
    in_order = [runs[position] for position in sorted(runs)]
    groups = group_runs(in_order)
    names = labels(groups)
    print("\n".join([table(groups, names), *notes(groups, names)]))
    print(f"Picture: {draw_comparison(groups, picture_path(in_order), names)}")


def check_shared(words: list[str]) -> None:
    """Refuse shared options under which seeds cannot be compared.

    :param words: command-line options that all runs share
    :raises UsageError: if they set a seed
    """
    parser = Parser("sb3-trpo train", "", add_help=False)
    parser.add_argument("--seed")
    shared, _ = parser.parse_known_args(words)
    if shared.seed is not None:
        raise UsageError("--seed and --seeds exclude each other: leave one of them out")


def picture_path(runs: list[Run]) -> Path:
    """Name the picture of several runs after their numbers, which are unique.

    :param runs: runs of one environment
    :return: path beside their folders
    """
    numbers = sorted(run.number for run in runs)
    return runs[0].folder.parent / f"runs_{numbers[0]}_to_{numbers[-1]}_{runs[0].env}.png"
