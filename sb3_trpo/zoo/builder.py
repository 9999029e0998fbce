"""Build and load models, raising what they refuse as errors of the user."""

from typing import Any

from rl_zoo3 import ALGOS
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_trpo.evaluation import takes_masks
from sb3_trpo.zoo.errors import BROKEN, REFUSED, UsageError, user_errors


class Builder:
    """What the RL Zoo uses of an algorithm: its constructor and ``load``.

    :param algo: the algorithm's key in ``rl_zoo3.ALGOS``
    """

    def __init__(self, algo: str) -> None:
        self._algo = algo
        self._algorithm = ALGOS[algo]

    def __call__(self, env: Any, **hyperparameters: Any) -> BaseAlgorithm:
        """Build a model.

        :param env: training environment
        :param hyperparameters: arguments of the constructor
        :return: the model
        :raises UsageError: if the algorithm refuses a hyperparameter or the environment
        """
        check_masks(self._algo, env)
        with user_errors(*REFUSED):
            return self._algorithm(env=env, **hyperparameters)

    def load(self, path: Any, env: Any = None, **options: Any) -> Any:
        """Load a model.

        :param path: the model's file
        :param env: environment of the model
        :param options: arguments of the algorithm's ``load``
        :return: the model
        :raises UsageError: if the file is broken or the algorithm refuses a hyperparameter
        """
        if env is not None:
            check_masks(self._algo, env)
        with user_errors(*REFUSED, *BROKEN, OSError):
            return self._algorithm.load(path, env=env, **options)


def check_masks(algo: str, env: Any) -> None:
    """Refuse an environment without the masks that an algorithm needs.

    :param algo: the algorithm's key in ``rl_zoo3.ALGOS``
    :param env: where the algorithm's model will act
    :raises UsageError: if the environment has no masks
    """
    if takes_masks(ALGOS[algo]) and not is_masking_supported(env):
        raise UsageError(
            f"--algo {algo} needs an environment with a method action_masks: wrap yours in "
            "sb3_contrib.common.wrappers.ActionMasker, or choose an algorithm without masks"
        )
