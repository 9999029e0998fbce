"""How the statistics of a normalisation are saved and loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import rl_zoo3.utils
from rl_zoo3.callbacks import SaveVecNormalizeCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_trpo import load_vec_normalize
from sb3_trpo.zoo.choice import STATISTICS, own_statistics
from sb3_trpo.zoo.errors import BROKEN, user_errors
from sb3_trpo.zoo.script import replaced


class BestStatistics(SaveVecNormalizeCallback):
    """Saves statistics with every new best model: beside it, and where the RL Zoo reads them."""

    def _on_step(self) -> bool:
        """Save both, if there are any."""
        normalization = self.model.get_vec_normalize_env()
        if normalization is not None:
            best_model = Path(self.save_path).with_name("best_model.zip")
            normalization.save(str(own_statistics(best_model)))
        return super()._on_step()


@contextmanager
def normalizing(is_trusted: bool, statistics: Path) -> Iterator[str]:
    """Let the RL Zoo's ``create_test_env`` normalise with the statistics of a model.

    :param is_trusted: whether files of statistics may run code
    :param statistics: the file
    :return: what the Zoo takes as ``stats_path``: a folder in which it sees that there are any
    """
    normalization = Normalization(is_trusted, statistics)
    with (
        TemporaryDirectory() as folder,
        replaced(rl_zoo3.utils, "VecNormalize", normalization),
    ):
        (Path(folder) / STATISTICS).touch()
        yield folder


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
