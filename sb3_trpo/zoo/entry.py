"""Write hyperparameters as an entry of a configuration file in the RL Zoo's format."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rl_zoo3.utils import get_saved_hyperparams
from torch import nn

from sb3_trpo.zoo.errors import CONFIGURATION_ERRORS, UsageError, explain


def entry_text(env: str, hyperparameters: Mapping[str, Any]) -> str:
    """Write hyperparameters so that ``train --conf-file`` reads them.

    :param env: name of the environment
    :param hyperparameters: as the Zoo saves them or as a study finds them
    :return: YAML
    """
    plain = {name: plain_value(value) for name, value in hyperparameters.items()}
    return yaml.safe_dump({env: plain})


def saved_settings(folder: str, *arguments: Any, **options: Any) -> tuple[dict[str, Any], Any]:
    """Read the hyperparameters of a run as the RL Zoo does.

    :param folder: of the run's settings
    :param arguments: of the Zoo's function
    :param options: of the Zoo's function
    :return: what the Zoo's function returns
    :raises UsageError: if it cannot read them
    """
    try:
        found: tuple[dict[str, Any], Any] = get_saved_hyperparams(folder, *arguments, **options)
    except CONFIGURATION_ERRORS as error:
        raise UsageError(
            f"the settings in {folder}/config.yml cannot be read: {explain(error)}"
        ) from error
    return found


def write_entry(settings: Path, env: str, folder: Path) -> Path:
    """Write the hyperparameters of a run as a configuration file.

    :param settings: folder of the run's settings
    :param env: name of the environment
    :param folder: where to write
    :return: path of the file
    """
    hyperparameters, _ = saved_settings(str(settings))
    hyperparameters.pop("normalize_kwargs", None)  # the Zoo's reading of `normalize`
    path = folder / "run.yml"
    path.write_text(entry_text(env, hyperparameters))
    return path


def plain_value(value: Any) -> Any:
    """Replace a value that YAML cannot hold by a Python expression, which the Zoo evaluates.

    :param value: of a hyperparameter
    :return: the value itself, or the expression
    """
    try:
        yaml.safe_dump(value)
    except yaml.representer.RepresenterError:
        return expression(value)
    return value


def expression(value: Any) -> str:
    """Write a value as a Python expression with the names that the Zoo's ``eval`` knows.

    :param value: made of dictionaries, plain values and classes of ``torch``
    :return: the expression
    """
    if isinstance(value, Mapping):
        # Keys stay text: as names of arguments they could be any code.
        return f"{{{', '.join(f'{key!r}: {expression(item)}' for key, item in value.items())}}}"
    if isinstance(value, type):
        short = getattr(nn, value.__name__, None) is value
        return f"nn.{value.__name__}" if short else f"{value.__module__}.{value.__name__}"
    return repr(value)
