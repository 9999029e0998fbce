"""The look at every number that an environment returns, before the policy sees it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_trpo.own_attribute import OwnMethod, own_attribute

# The square of the largest single-precision number.
_LARGEST_SQUARED = float(np.finfo(np.float32).max) ** 2


class _CheckedStep(OwnMethod):
    """
    The step of a vectorized environment, and a look at what it returned.

    :param env: the environment
    :param name: of the method that returns what it stepped to
    """

    def __init__(self, env: VecEnv, name: str) -> None:
        super().__init__(env, name)
        self._method = getattr(env, name)
        self._step = 0

    def __call__(self, *actions: np.ndarray) -> VecEnvStepReturn:
        """Step, and raise if an observation or a reward is not finite."""
        answer: VecEnvStepReturn = self._method(*actions)
        if not self.is_current:
            return answer
        observations, rewards, dones, infos = answer
        self._step += 1
        check_observations(observations, self._step)
        _check("reward", np.asarray(rewards), self._step)
        for env in np.flatnonzero(dones) if np.count_nonzero(dones) else ():
            # At a time limit the critic reads an episode's last observation.
            last = infos[env].get("terminal_observation")
            for name, array in _named_arrays("terminal observation", last):
                _check(name, np.asarray(array)[None], self._step, int(env))
        return answer


@contextmanager
def refusing_non_finite(env: VecEnv) -> Iterator[None]:
    """
    Stop an environment at the first step that returns a number that is not finite.

    The innermost environment is looked at, before a normalisation's statistics take the number in
    or its clipping hides it, and the outermost one, whose wrappers may have faults of their own.

    :param env: the training environment
    :return: context manager
    """
    # SB3 calls the outermost one's `step`, wrappers call the `step_wait` of what is inside.
    points = (
        [(env, "step")] if env.unwrapped is env else [(env, "step"), (env.unwrapped, "step_wait")]
    )
    with ExitStack() as stack:
        for point, name in points:
            stack.enter_context(own_attribute(point, name, _CheckedStep(point, name)))
        yield


def check_observations(observations: VecEnvObs | None, step: int = 0) -> None:
    """
    Refuse observations that are not finite.

    :param observations: of all environments; ``None`` passes
    :param step: of the rollout, 0 for the observation that it starts from
    :raises ValueError: naming the observation and its (step, env)
    """
    for name, array in _named_arrays("observation", observations):
        _check(name, array, step)


def _check(name: str, array: np.ndarray, step: int, first_env: int = 0) -> None:
    """Raise if an array with one row per environment has a number that is not finite."""
    # A sum of squares sees every number in one call; where it overflows, a closer look is due.
    if array.dtype.kind != "f" or float(np.vdot(array, array)) < _LARGEST_SQUARED:
        return
    if np.isfinite(_single(array)).all():
        return
    place = np.argwhere(~np.isfinite(_single(array)))[0]
    raise ValueError(
        f"The environment's {name} is not finite: {array[tuple(place)]} at (step, env) = "
        f"({step}, {first_env + int(place[0])}) of this rollout, step 0 being the observation it "
        f"starts from. The policy has not seen it, and parameters and optimizer are unchanged. "
        f"Correct the environment, or clip what it returns."
    )


def _single(array: np.ndarray) -> np.ndarray:
    """Convert to the precision that policy and buffer have, in which large numbers are infinite."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def _named_arrays(name: str, observations: Any) -> list[tuple[str, np.ndarray]]:
    """List the arrays of an observation with their names."""
    if observations is None:
        return []
    if isinstance(observations, dict):
        return [(f"{name} '{key}'", array) for key, array in observations.items()]
    return [(name, observations)]
