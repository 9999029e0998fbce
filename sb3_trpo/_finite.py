"""
Refuse numbers that are not finite where a rollout would use them.

A reward, an observation that the policy's answer depends on, and what VecNormalize's statistics
take in have to be finite. A number that nobody reads may be anything.
"""

import math
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from sb3_trpo._environment import vector_layers

# The square of the largest single-precision number.
_LARGEST_SQUARED = float(np.finfo(np.float32).max) ** 2


def is_finite(array: np.ndarray) -> bool:
    """
    Return whether all numbers are finite in single precision.

    :param array: of any shape and type
    :return: ``False`` for numbers that single precision cannot hold, too
    """
    # A sum of squares reads every number in one call. If it overflows, check each entry.
    if array.dtype.kind in "biu":
        return True
    if array.dtype.kind == "f" and float(np.vdot(array, array)) < _LARGEST_SQUARED:
        return True
    return bool(np.isfinite(_single(array)).all())


def check_finite(
    name: str, array: np.ndarray, step: int, envs: Sequence[int] | None = None
) -> None:
    """
    Refuse numbers of an environment that are not finite.

    :param name: what the numbers are
    :param array: one row per environment
    :param step: of the rollout, 0 for the observation that it starts from
    :param envs: number of the environment in each row; ``None`` for all environments
    :raises ValueError: naming the value and its (step, env)
    """
    if is_finite(array):
        return
    place = np.argwhere(~np.isfinite(_single(array)))[0]
    env = _env_in(int(place[0]), envs)
    raise ValueError(
        f"The environment's {name} is not finite: {array[tuple(place)]} at (step, env) = "
        f"({step}, {env}) of this rollout, step 0 being the observation it starts from. "
        f"Statistics, parameters and optimizer are as before this step. Correct the environment, "
        f"or clip what it returns."
    )


def check_observations(
    observations: VecEnvObs,
    step: int,
    name: str = "observation",
    envs: Sequence[int] | None = None,
) -> None:
    """
    Refuse observations that are not finite.

    :param observations: of all environments: an array, or a dict or tuple of them
    :param step: of the rollout
    :param name: what to call them
    :param envs: number of the environment in each row; ``None`` for all environments
    :raises ValueError: naming the observation and its (step, env)
    """
    for key, array in _named_arrays(observations):
        numbers = array.cpu().numpy() if isinstance(array, th.Tensor) else np.asarray(array)
        check_finite(f"{name} '{key}'" if key else name, numbers, step, envs)


def _env_in(row: int, envs: Sequence[int] | None) -> int:
    return row if envs is None else envs[row]


class Reading:
    """
    A block in which the policy reads observations.

    Torch's distributions and SB3 refuse parameters that are not finite, in words that do not help.
    If the observations are at fault, the error names them.

    :param observations: what the policy reads
    :param step: of the rollout
    :param name: what to call the observations
    :param envs: number of the environment in each row; ``None`` for all environments
    """

    def __init__(
        self,
        observations: Any,
        step: int,
        name: str = "observation",
        envs: Sequence[int] | None = None,
    ) -> None:
        self._observations = observations
        self._place: tuple[int, str, Sequence[int] | None] = step, name, envs

    def __enter__(self) -> "Reading":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if isinstance(error, (ValueError, RuntimeError)):
            check_observations(self._observations, *self._place)

    def check(self, **answers: np.ndarray | th.Tensor) -> None:
        """
        Refuse answers of the policy that are not finite.

        :param answers: arrays with one row per environment, by their names
        :raises ValueError: naming the observation that caused them, or else the answer
        """
        arrays = [a if isinstance(a, np.ndarray) else a.cpu().numpy() for a in answers.values()]
        if all(map(is_finite, arrays)):
            return
        check_observations(self._observations, *self._place)
        step, _, envs = self._place
        names = (name.replace("_", "-") for name in answers)
        for name, array in zip(names, arrays, strict=True):
            rows = np.isfinite(_single(array)).reshape(len(array), -1).all(axis=1)
            if not rows.all():
                env = _env_in(int(rows.argmin()), envs)
                raise ValueError(
                    f"The policy's {name} is not finite at (step, env) = ({step}, {env}) of this "
                    f"rollout, although the observation is. Check the policy's weights and "
                    f"its features extractor."
                )


class NormalizationStatistics:
    """
    The statistics of all VecNormalize wrappers of an environment.

    As a context manager, which may be entered again and again, it puts them back if the block
    raises.

    :param env: the training environment
    """

    def __init__(self, env: VecEnv | None) -> None:
        self._normalizations = _normalizations(env)
        self._before: list[tuple[Any, dict[str, Any]]] = []

    def __enter__(self) -> "NormalizationStatistics":
        # An update makes new arrays and leaves the old ones alone.
        self._before = [(owner, dict(values)) for owner, values in self._values()]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is not None:
            for owner, values in self._before:
                vars(owner).update(values)
        self._before = []

    def check(self, step: int) -> None:
        """
        Refuse what a step has made not finite.

        :param step: of the rollout
        :raises ValueError: naming the observation or the reward, and its (step, env)
        """
        for normalization in self._normalizations:
            # A reset gives no reward. Clipping would hide one that is not finite.
            if step > 0 and (normalization.training or normalization.norm_reward):
                check_finite("reward", np.asarray(normalization.old_reward), step)
            for key, statistic in _statistics(normalization):
                if not math.isfinite(np.sum(statistic.mean) + np.sum(statistic.var)):
                    observations: Any = normalization.old_obs
                    check_observations({key: observations[key]} if key else observations, step)
                    raise ValueError(
                        f"The statistics of VecNormalize overflow at step {step} of this rollout. "
                        f"They are as before it. Clip what the environment returns."
                    )

    def _values(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """List what a step changes: the owner of the numbers, and the numbers by name."""
        for normalization in self._normalizations:
            yield normalization, {"returns": normalization.returns}
            for _, statistic in _statistics(normalization):
                yield statistic, vars(statistic)


def _normalizations(env: Any) -> list[VecNormalize]:
    """Find the VecNormalize wrappers around SB3's environments."""
    return [layer for layer in vector_layers(env)[0] if isinstance(layer, VecNormalize)]


def _statistics(normalization: VecNormalize) -> Iterator[tuple[str, RunningMeanStd]]:
    """List the statistics of observations, by the key of a dict observation, and of returns."""
    observations: Any = getattr(normalization, "obs_rms", {})
    by_key = observations if isinstance(observations, dict) else {"": observations}
    # A wrapper that is derived from SB3's may have none of its own.
    for key, statistic in [*by_key.items(), ("", normalization.ret_rms)]:
        if isinstance(statistic, RunningMeanStd):
            yield key, statistic


def running_statistics(env: VecEnv | None) -> list[RunningMeanStd]:
    """
    List the statistics of all VecNormalize wrappers.

    :param env: training environment
    :return: those of observations and returns, from the outermost wrapper in
    """
    return [
        statistic
        for normalization in _normalizations(env)
        for _, statistic in _statistics(normalization)
    ]


def _single(array: np.ndarray) -> np.ndarray:
    """Convert to the precision that policy and buffer have, in which large numbers are infinite."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def _named_arrays(observations: Any) -> list[tuple[str, Any]]:
    """List the arrays of an observation with their keys."""
    return list(observations.items()) if isinstance(observations, dict) else [("", observations)]
