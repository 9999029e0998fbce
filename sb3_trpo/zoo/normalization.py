"""How the statistics of a normalisation are saved and loaded."""

from pathlib import Path
from typing import Any

from rl_zoo3.callbacks import SaveVecNormalizeCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_trpo import load_vec_normalize
from sb3_trpo.zoo.choice import own_statistics
from sb3_trpo.zoo.errors import BROKEN, user_errors


class BestStatistics(SaveVecNormalizeCallback):
    """Saves statistics with every new best model: beside it, and where the RL Zoo reads them."""

    def _on_step(self) -> bool:
        """Save both, if there are any."""
        normalization = self.model.get_vec_normalize_env()
        if normalization is not None:
            best_model = Path(self.save_path).with_name("best_model.zip")
            normalization.save(str(own_statistics(best_model)))
        return super()._on_step()


class Normalization:
    """What the RL Zoo uses of ``VecNormalize``: its constructor and ``load``.

    :param is_trusted: whether files of statistics may run code
    :param statistics: the file that ``load`` reads in place of the one that the Zoo names
    """

    def __init__(self, is_trusted: bool, statistics: Path | None = None) -> None:
        self._is_trusted = is_trusted
        self._statistics = statistics

    def __call__(self, env: VecEnv, **options: Any) -> VecNormalize:
        """Normalise an environment.

        :param env: the environment
        :param options: arguments of ``VecNormalize``
        :return: the environment, normalised
        """
        return VecNormalize(env, **options)

    def load(self, path: str, env: VecEnv) -> VecNormalize:
        """Normalise an environment with saved statistics.

        :param path: the file of the statistics
        :param env: the environment
        :return: the environment, normalised
        :raises UsageError: if the file is broken or does not belong to the environment
        """
        with user_errors(*BROKEN, ValueError, OSError):
            return load_vec_normalize(self._statistics or path, env, self._is_trusted)
