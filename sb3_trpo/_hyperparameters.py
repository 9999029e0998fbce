"""Allowed hyperparameter values."""

import math
import os
from collections.abc import Callable, Mapping, MutableSequence
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import LinearSchedule

KL_REDUCTIONS = ("sum", "mean")

# What a value has to be, by name: in words, and as a test.
Ranges = Mapping[str, tuple[str, Callable[[Any], bool]]]

# Largest number of single precision, in which the update computes. No NaN is below it.
_LARGEST: float = th.finfo(th.float32).max


def check_values(ranges: Ranges, values: Mapping[str, Any]) -> None:
    """
    Refuse a value that is out of its range.

    :param ranges: allowed values by name
    :param values: values by name
    :raises ValueError: naming the first one that is not allowed, its value and its range
    """
    for name, value in values.items():
        allowed, is_allowed = ranges[name]
        if not is_allowed(value):
            raise ValueError(f"{name} has to be {allowed}, but it is {value!r}.")


def check_ranges(model: object) -> None:
    """
    Refuse a model with a hyperparameter that is out of its range.

    :param model: has the hyperparameters as attributes
    :raises ValueError: naming the first one that is not allowed, its value and its range
    """
    # SB3 keeps some arguments under other names.
    check_values(RANGES, {name: getattr(model, name) for name in RANGES if hasattr(model, name)})


def check_learn(total_timesteps: Any, log_interval: Any) -> None:
    """
    Refuse arguments of ``learn`` that would end it later.

    :param total_timesteps: a number; as in SB3, one that is reached already trains nothing
    :param log_interval: updates between two dumps of the log, not 0; ``None`` for no log
    :raises ValueError: naming the one that is not allowed, its value and its range
    """
    values = {"total_timesteps": total_timesteps, "log_interval": log_interval}
    check_values(_LEARN_RANGES, values)


def plain_options(options: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """
    Copy keyword arguments into Python's own containers where SB3 reads them.

    A file with those of another package, such as OmegaConf's, would not load unless it is trusted.
    What is passed on to the user's classes stays as it is.

    :param options: ``policy_kwargs`` or ``rollout_buffer_kwargs``
    :return: the same as a dictionary
    """
    if options is None:
        return None
    plain = dict(options)
    for name in {"features_extractor_kwargs", "optimizer_kwargs"} & plain.keys():
        if isinstance(plain[name], Mapping):
            plain[name] = dict(plain[name])
    if "net_arch" in plain:
        plain["net_arch"] = _plain_sizes(plain["net_arch"])
    return plain


def _plain_sizes(value: Any) -> Any:
    """Copy the sizes of networks, in lists that may be in a dictionary."""
    if isinstance(value, Mapping):
        return {key: _plain_sizes(item) for key, item in value.items()}
    if isinstance(value, MutableSequence):
        return [_plain_sizes(item) for item in value]
    return value


def shared_settings(model: object) -> dict[str, Any]:
    """
    List the hyperparameters on which the processes of a data-parallel training have to agree.

    :param model: has the hyperparameters as attributes
    :return: numbers and words by name; of a schedule, the numbers at some moments
    """
    named = {name: getattr(model, name) for name in sorted(RANGES.keys() - _OF_A_PROCESS)}
    shown = {name: _comparable(name, value) for name, value in named.items()}
    return {name: value for name, value in shown.items() if isinstance(value, (int, float, str))}


def _comparable(name: str, value: Any) -> Any:
    """Read a schedule at some moments; a constant one is its number."""
    if name not in _SCHEDULES or not callable(value):
        return value
    numbers = [value_at(name, value, progress) for progress in _MOMENTS]
    if len(set(numbers)) == 1:
        return numbers[0]
    texts = (
        f"{number:.6g} at {progress:g}" for number, progress in zip(numbers, _MOMENTS, strict=True)
    )
    return f"{', '.join(texts)} of the remaining progress"


def parse_schedule(name: str, value: float | str | Schedule) -> float | Schedule:
    """
    Turn the RL Zoo's ``"lin_0.02"`` into SB3's schedule.

    It is SB3's class so that a saved model loads where this package is missing.

    :param name: name of the hyperparameter
    :param value: number, schedule, or string
    :return: number or schedule
    :raises ValueError: if a string is not of that form, or a start value is negative or not finite
    """
    value_at(name, value, 1.0)
    if isinstance(value, str):
        return LinearSchedule(_linear_start(name, value), 0.0, 1.0)
    return value if callable(value) else float(value)


def value_at(name: str, value: float | str | Schedule | None, progress: float) -> float:
    """
    Read a hyperparameter that may be a schedule.

    :param name: name of the hyperparameter
    :param value: number, schedule, or string
    :param progress: remaining progress, from 1 to 0
    :return: the current number, finite and at least 0
    :raises ValueError: if it is not
    """
    if value is None:
        raise ValueError(
            f"{name}=None stands for the default only at construction. Set a number or a schedule."
        )
    if isinstance(value, str):
        number = _linear_start(name, value) * progress
    else:
        number = _called(name, value, progress) if callable(value) else float(value)
    if not 0 <= number <= _LARGEST:
        raise ValueError(
            f"{name} has to be a number of at least 0 at any time, but it is {number} at a "
            f"remaining progress of {progress:.3g}."
        )
    return number


def _called(name: str, schedule: Schedule, progress: float) -> float:
    """Read a schedule."""
    try:
        return float(schedule(progress))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} has to be a function of the remaining progress that returns a number, but "
            f"{schedule!r} raised {type(error).__name__}: {error}"
        ) from error


def _linear_start(name: str, text: str) -> float:
    """Read the number in ``lin_<number>``."""
    kind, _, number = text.partition("_")
    try:
        if kind == "lin":
            return float(number)
    except ValueError:
        pass
    raise ValueError(f"{name}={text!r} is no schedule: a string has to be like 'lin_0.02'.")


def is_integer(least: int, most: float = math.inf) -> Callable[[Any], bool]:
    """
    Return a test for an integer in a range.

    :param least: smallest
    :param most: largest
    :return: the test, which NumPy's integers pass and truth values fail
    """
    return lambda value: (
        isinstance(value, (int, np.integer))
        and not isinstance(value, bool)
        and least <= int(value) <= most
    )


def is_number(is_allowed: Callable[[float], bool] = lambda _: True) -> Callable[[Any], bool]:
    """
    Return a test for a finite number of single precision.

    :param is_allowed: further test of the number
    :return: the test, which NumPy's numbers pass and truth values fail
    """

    def check(value: Any) -> bool:
        is_finite = _is_real(value) and bool(abs(float(value)) <= _LARGEST)
        return is_finite and is_allowed(float(value))

    return check


def _is_total_timesteps(value: Any) -> bool:
    """Return whether a value can be the steps of a training; as in SB3 also 1e6 and infinity."""
    return _is_real(value) and bool(0 <= value < 2**63 or value == math.inf)


def _is_real(value: Any) -> bool:
    is_number = isinstance(value, (int, float, np.integer, np.floating))
    return is_number and not isinstance(value, bool)


def _as_number(value: Any) -> float:
    """Convert whatever SB3 can compute with; NaN for anything else."""
    try:
        return math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        return math.nan


# Steps of a training, in files that say how far it should go.
TOTAL_TIMESTEPS = ("a number of at least 0", _is_total_timesteps)

_is_no_less_than_0 = is_number(lambda number: number >= 0)


def _is_number_or_schedule(value: Any) -> bool:
    """Return whether a value is a number of at least 0, a schedule, a string or None."""
    is_schedule = callable(value) and not isinstance(value, type)
    return value is None or isinstance(value, str) or is_schedule or _is_no_less_than_0(value)


def _is_flag(value: Any) -> bool:
    """Return whether a value is True or False; SB3's own flags may also be 0 or 1."""
    return isinstance(value, (bool, np.bool_)) or (isinstance(value, int) and value in (0, 1))


def _is_buffer_class(value: Any) -> bool:
    """Return whether a value is a class with a rollout buffer's methods, or None."""
    methods = "add", "reset", "get", "compute_returns_and_advantage"
    return value is None or (isinstance(value, type) and all(hasattr(value, m) for m in methods))


def _is_options(value: Any) -> bool:
    """Return whether a value is keyword arguments, or None."""
    return value is None or (isinstance(value, Mapping) and all(isinstance(k, str) for k in value))


def _is_device(value: Any) -> bool:
    """Return whether torch knows a device of this name."""
    try:
        return value == "auto" or bool(th.device(value))
    except (RuntimeError, TypeError, ValueError):
        return False


_LEARN_RANGES: Ranges = {
    "total_timesteps": ("a number", lambda value: not math.isnan(_as_number(value))),
    "log_interval": (
        "None or a number other than 0",
        lambda value: value is None or abs(_as_number(value)) > 0,
    ),
}

# Hyperparameters that may be schedules, and when those of two processes are compared.
_SCHEDULES = {"learning_rate", "target_kl", "cg_damping"}
_MOMENTS = (1.0, 0.7, 0.5, 0.3, 0.0)

# Hyperparameters that may differ among the processes of a data-parallel training.
_OF_A_PROCESS = {
    *("device", "verbose", "tensorboard_log", "policy_kwargs", "rollout_buffer_kwargs"),
    *("stats_window_size", "max_states_per_chunk"),
}

RANGES: Ranges = {
    "learning_rate": (
        "a number of at least 0, a schedule, or a string like 'lin_0.001'",
        lambda value: value is not None and _is_number_or_schedule(value),
    ),
    "policy_kwargs": ("None or a dict of keyword arguments", _is_options),
    "rollout_buffer_class": ("None or a class like SB3's RolloutBuffer", _is_buffer_class),
    "rollout_buffer_kwargs": ("None or a dict of keyword arguments", _is_options),
    "use_sde": ("True or False", _is_flag),
    "sde_sample_freq": ("an integer of at least -1", is_integer(-1)),
    "normalize_advantage": ("True or False", _is_flag),
    "stats_window_size": ("an integer from 1 to 2**63 - 1", is_integer(1, 2**63 - 1)),
    "tensorboard_log": (
        "None or a path",
        lambda value: value is None or isinstance(value, (str, os.PathLike)),
    ),
    "verbose": ("0, 1, 2 or more", lambda value: _is_flag(value) or is_integer(0)(value)),
    "seed": (
        "None or an integer from 0 to 2**32 - 1",
        lambda value: value is None or (is_integer(0)(value) and value < 2**32),
    ),
    "device": ("'auto' or a device of torch, like 'cpu' or 'cuda:0'", _is_device),
    "n_steps": ("an integer of at least 1", is_integer(1)),
    "batch_size": ("an integer of at least 1", is_integer(1)),
    "gamma": ("a number from 0 to 1", is_number(lambda number: 0 <= number <= 1)),
    "gae_lambda": ("a number from 0 to 1", is_number(lambda number: 0 <= number <= 1)),
    "cg_max_steps": ("an integer of at least 1", is_integer(1)),
    "cg_damping": (
        "None, a number of at least 0, a schedule, or a string like 'lin_0.1'",
        _is_number_or_schedule,
    ),
    "cg_residual_tol": ("a number from 0 to below 1", is_number(lambda number: 0 <= number < 1)),
    "data_parallel": ("True or False", _is_flag),
    "damped_step_size": ("True or False", lambda value: isinstance(value, (bool, np.bool_))),
    "line_search_shrinking_factor": (
        "a number between 0 and 1",
        is_number(lambda number: 0 < number < 1),
    ),
    "line_search_max_iter": ("an integer of at least 0", is_integer(0)),
    "line_search_accept_ratio": (
        "a number from 0 to below 1",
        is_number(lambda number: 0 <= number < 1),
    ),
    "n_critic_updates": ("an integer of at least 0", is_integer(0)),
    "target_kl": (
        "None, a number of at least 0, a schedule, or a string like 'lin_0.02'",
        _is_number_or_schedule,
    ),
    "sub_sampling_factor": ("an integer of at least 1", is_integer(1)),
    "fisher_sub_sampling_factor": ("an integer of at least 1", is_integer(1)),
    "ent_coef": ("a finite number", is_number()),
    "kl_reduction": (
        f"one of {KL_REDUCTIONS}",
        lambda value: isinstance(value, str) and value in KL_REDUCTIONS,
    ),
    "max_states_per_chunk": (
        "None or an integer of at least 1",
        lambda value: value is None or is_integer(1)(value),
    ),
}
