"""``sb3-trpo push`` and ``sb3-trpo download``: runs on the Hugging Face hub.

A repository is laid out as the RL Zoo's: either side reads what the other has pushed. The Zoo's
own push does not import beside the current client, and its download fails without a normalisation.
"""

import argparse
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import huggingface_hub
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.repocard import metadata_eval_result
from huggingface_sb3 import EnvironmentName, ModelName, ModelRepoId
from rl_zoo3.utils import get_latest_run_id

from sb3_trpo._archive import read_entries
from sb3_trpo.zoo.choice import (
    STATISTICS,
    add_choice,
    add_environment,
    check_environment,
    find_model,
    statistics_of,
)
from sb3_trpo.zoo.errors import UsageError, user_errors
from sb3_trpo.zoo.runs import EVALUATIONS_FILE, FINAL_FILE, Array, Run, read_arrays, read_run
from sb3_trpo.zoo.script import Parser

PUSH_HELP = """\
Upload a trained agent, with its hyperparameters, normalisation, results and a model card, to the
Hugging Face hub. Log in first with 'hf auth login'.

example:
  sb3-trpo push --env CartPole-v1 --organization my-name
"""
DOWNLOAD_HELP = """\
Download a trained agent from the Hugging Face hub into a new run, which the other commands take.

The commands of sb3-trpo run no code of what was downloaded, unless --trust-checkpoint says so.
Other programs do, the RL Zoo's own scripts among them.

example:
  sb3-trpo download --env CartPole-v1 --organization my-name
"""

# Names of the Zoo: in a repository -> in the folder of a run's settings.
SETTINGS = {"config.yml": "config.yml", "args.yml": "args.yml", "env_kwargs.yml": "env_kwargs.yml"}
NORMALIZATION = ("vec_normalize.pkl", STATISTICS)
METRICS = "train_eval_metrics.zip"

CARD = """\
---
{metadata}---

# {algo} on {env}

Trained with [sb3_trpo](https://github.com/sb3-trpo/sb3_trpo), Trust Region Policy Optimization for
[Stable-Baselines3](https://github.com/DLR-RM/stable-baselines3).
{score}

```bash
sb3-trpo download --algo {algo} --env {env} --organization {organization}
sb3-trpo enjoy --algo {algo} --env {env}
```

Hyperparameters:

```yaml
{settings}
```
"""


def push(words: list[str]) -> None:
    """Upload a model.

    :param words: command-line options
    :raises UsageError: if there is no such model, or the hub refuses it
    """
    parser = Parser("sb3-trpo push", PUSH_HELP)
    add_choice(parser)
    add_repository(parser)
    parser.add_argument("-m", "--commit-message", default="Add a trained agent")
    parser.add_argument("--private", action="store_true", help="for a new repository")
    choice = parser.parse_args(words)
    model = find_model(choice)
    run = read_run(model.parent)
    repository = repository_of(choice)
    with TemporaryDirectory() as folder, user_errors(OSError, ValueError):
        package(run, model, choice, Path(folder))
        api = HfApi()
        url = api.create_repo(repository, private=choice.private, exist_ok=True)
        message = choice.commit_message
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    print(f"Model: {url}")


def download(words: list[str]) -> None:
    """Download a model into a new run.

    :param words: command-line options
    :raises UsageError: if there is no such model, or its results cannot be unpacked
    """
    parser = Parser("sb3-trpo download", DOWNLOAD_HELP)
    add_environment(parser)
    add_repository(parser)
    choice = parser.parse_args(words)
    check_environment(choice)
    with user_errors(OSError, ValueError, EntryNotFoundError):
        files = fetch(choice)
        results = read_results(Path(files.pop(METRICS)))
        run = new_run(choice)
        try:
            write_run(run, files, results)
        except BaseException:
            shutil.rmtree(run)
            raise
    print(f"Run: {run}")


def write_run(run: Path, files: dict[str, str], results: dict[str, bytes]) -> None:
    """Write a run that was downloaded.

    :param run: its folder
    :param files: local copies by their places in it
    :param results: contents by their names
    """
    for name, path in files.items():
        (run / name).parent.mkdir(exist_ok=True)
        shutil.copy(path, run / name)
    for name, content in results.items():
        (run / name).write_bytes(content)


def add_repository(parser: Parser) -> None:
    """Add the options that name a repository, as the RL Zoo has them.

    :param parser: parser of a command
    """
    parser.add_argument("-orga", "--organization", required=True, help="user or organization")
    parser.add_argument("-name", "--repo-name", help="repository (<algorithm>-<environment>)")


def model_name(choice: argparse.Namespace) -> ModelName:
    """Name a model as the Zoo does.

    :param choice: parsed options of a command
    :return: algorithm and environment
    """
    return ModelName(choice.algo, EnvironmentName(choice.env))


def repository_of(choice: argparse.Namespace) -> str:
    """Name the repository of a model.

    :param choice: parsed options of a command
    :return: its name with its owner's
    """
    return str(ModelRepoId(choice.organization, choice.repo_name or model_name(choice)))


def package(run: Run, model: Path, choice: argparse.Namespace, folder: Path) -> None:
    """Lay out a repository.

    :param run: the run of the model
    :param model: the model's file
    :param choice: parsed options of ``push``
    :param folder: where to write
    """
    settings = run.folder / run.env
    shutil.copy(model, folder / model_name(choice).filename)
    sources = {name: settings / source for name, source in SETTINGS.items()}
    sources[NORMALIZATION[0]] = statistics_of(model, choice.env)
    for name, source in sources.items():
        if source.is_file():
            shutil.copy(source, folder / name)
    env_kwargs = run.arguments.get("env_kwargs") or {}
    (folder / "env_kwargs.yml").write_text(yaml.safe_dump(env_kwargs))
    with ZipFile(folder / METRICS, "w") as archive:
        results = [run.folder / name for name in (EVALUATIONS_FILE, FINAL_FILE)]
        for path in [*results, *sorted(run.folder.glob("*.csv"))]:
            if path.is_file():
                archive.write(path, path.name)
    (folder / "README.md").write_text(card(run, choice, returns_of(run, model)))


def returns_of(run: Run, model: Path) -> Array | None:
    """Find the returns of a model, which may be another one than the run's last.

    :param run: the run of the model
    :param model: the model's file
    :return: one per episode; None for a model that was not evaluated
    """
    if model.name == f"{run.env}.zip":
        return run.final
    if model.name != "best_model.zip" or not run.is_evaluated:
        return None
    results = read_arrays(run.folder / EVALUATIONS_FILE, {"results": 2})["results"]
    best: Array = results[results.mean(axis=1).argmax()]
    return best


def card(run: Run, choice: argparse.Namespace, returns: Array | None) -> str:
    """Write a model card.

    :param run: the run of the model
    :param choice: parsed options of ``push``
    :param returns: of the model, one per episode; None if they are not known
    :return: Markdown with the metadata that the hub reads
    """
    repository = f" --repo-name {choice.repo_name}" if choice.repo_name else ""
    tags = [choice.env, "deep-reinforcement-learning", "reinforcement-learning"]
    metadata = {"library_name": "stable-baselines3", "tags": [*tags, "stable-baselines3"]}
    score = "A checkpoint of the training, which was not evaluated."
    if returns is not None:
        mean = f"{returns.mean():.2f} +/- {returns.std():.2f}"
        score = f"Mean return {mean} over {returns.size} episodes."
        metadata |= result_of(choice, mean)
    return CARD.format(
        metadata=yaml.safe_dump(metadata, sort_keys=False),
        algo=choice.algo,
        env=choice.env,
        organization=f"{choice.organization}{repository}",
        score=score,
        settings=run.settings.strip(),
    )


def result_of(choice: argparse.Namespace, score: str) -> dict[str, Any]:
    """Write a result as the hub reads it.

    :param choice: parsed options of ``push``
    :param score: mean and spread
    :return: metadata
    """
    return metadata_eval_result(
        model_pretty_name=choice.algo,
        task_pretty_name="reinforcement-learning",
        task_id="reinforcement-learning",
        metrics_pretty_name="mean_reward",
        metrics_id="mean_reward",
        metrics_value=score,
        dataset_pretty_name=choice.env,
        dataset_id=choice.env,
    )


def fetch(choice: argparse.Namespace) -> dict[str, str]:
    """Download the files of a repository, all of them before a run is made.

    :param choice: parsed options of ``download``
    :return: local copies by their places in a run's folder
    """
    env = EnvironmentName(choice.env)
    get: Callable[[str], str] = partial(huggingface_hub.hf_hub_download, repository_of(choice))
    files = {f"{env}.zip": get(model_name(choice).filename), METRICS: get(METRICS)}
    files |= {f"{env}/{place}": get(name) for name, place in SETTINGS.items()}
    name, place = NORMALIZATION
    try:
        files[f"{env}/{place}"] = get(name)
    except LocalEntryNotFoundError:  # the connection was lost: whether there is one is unknown
        raise
    except EntryNotFoundError:
        print("The agent was trained without normalisation")
    return files


def new_run(choice: argparse.Namespace) -> Path:
    """Make the folder of the next run.

    :param choice: parsed options of ``download``
    :return: the folder
    """
    place, env = Path(choice.folder) / choice.algo, EnvironmentName(choice.env)
    run: Path = place / f"{env}_{get_latest_run_id(str(place), env) + 1}"
    run.mkdir(parents=True)
    return run


def read_results(path: Path) -> dict[str, bytes]:
    """Read the results of a run, within the limits of a model's file.

    :param path: a zip file
    :return: contents by their names
    :raises UsageError: if it is damaged or much larger than it seems, or has folders
    """
    try:
        results = read_entries(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{METRICS} cannot be unpacked: {error}") from error
    folder = next((name for name in results if not name or Path(name).name != name), None)
    if folder is not None:
        raise UsageError(f"{METRICS} has a folder in it, which no run has: {folder!r:.80}")
    return results
