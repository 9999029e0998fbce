"""What happens between the environment and the policy while a rollout is collected."""

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn


class FiniteVecEnv(VecEnvWrapper):
    """
    Hands observations and rewards on, and stops at the first one that is not finite.

    Where observations are normalised the raw ones are looked at too: clipping would hide an
    infinity.

    :param venv: the training environment
    :param vec_normalize: the normalisation inside it, if any
    """

    def __init__(self, venv: VecEnv, vec_normalize: VecNormalize | None) -> None:
        super().__init__(venv)
        self._vec_normalize = vec_normalize
        self._step = 0

    def reset(self) -> VecEnvObs:
        """
        Reset all environments.

        :return: their first observations
        """
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """
        Wait for the step of all environments.

        :return: observations, rewards, dones and infos
        :raises ValueError: if an observation or a reward is not finite
        """
        observations, rewards, dones, infos = self.venv.step_wait()
        self._step += 1
        self.check_observations(observations)
        self._check("reward", rewards)
        if self._vec_normalize is not None:
            self._check("reward", self._vec_normalize.old_reward)
        for env in np.flatnonzero(dones):
            self._check_terminal(infos[env], int(env))
        return observations, rewards, dones, infos

    def check_observations(self, observations: VecEnvObs) -> None:
        """
        Refuse observations that are not finite.

        :param observations: of all environments
        :raises ValueError: naming the observation and its (step, env)
        """
        raw = None if self._vec_normalize is None else self._vec_normalize.old_obs
        for group in (observations, raw):
            for name, array in _named_arrays("observation", group):
                self._check(name, array)

    def _check(self, name: str, array: np.ndarray) -> None:
        """Raise if an array with one row per environment has a number that is not finite."""
        if not _all_finite(array):
            env = int(np.argwhere(~np.isfinite(array))[0][0])
            self._refuse(name, array[env], env)

    def _check_terminal(self, info: dict[str, Any], env: int) -> None:
        """Raise if an episode's last observation is not finite: the critic reads it at a limit."""
        last = info.get("terminal_observation")
        for name, array in _named_arrays("terminal observation", last):
            if not _all_finite(np.asarray(array)):
                self._refuse(name, array, env)

    def _refuse(self, name: str, value: np.ndarray, env: int) -> None:
        fault = np.asarray(value)[~np.isfinite(value)].flat[0]
        raise ValueError(
            f"The environment returned a {name} that is not finite: {fault} at (step, env) = "
            f"({self._step}, {env}) of this rollout, step 0 being the observation it starts from. "
            f"The policy has not seen it, and parameters and optimizer are unchanged. Correct the "
            f"environment, or clip what it returns."
        )


def _named_arrays(name: str, observations: Any) -> list[tuple[str, np.ndarray]]:
    """List the arrays of an observation with their names."""
    if observations is None:
        return []
    if isinstance(observations, dict):
        return [(f"{name} '{key}'", array) for key, array in observations.items()]
    return [(name, observations)]


def _all_finite(array: np.ndarray) -> bool:
    """Tell whether all numbers are finite; integers always are."""
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())
