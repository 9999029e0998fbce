"""Build and load models, raising what they refuse as errors of the user."""

import inspect
from collections.abc import Mapping
from typing import Any

from rl_zoo3 import ALGOS
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_trpo import TRPO
from sb3_trpo._saved_model import fitting, read_model
from sb3_trpo.evaluation import takes_masks
from sb3_trpo.zoo.errors import BROKEN, REFUSED, UsageError, user_errors


class Builder:
    """What the RL Zoo uses of an algorithm: its constructor and ``load``.

    :param algo: the algorithm's key in ``rl_zoo3.ALGOS``
    :param is_trusted: whether the files of models may run code
    :param options: further arguments of the constructor and of ``load``
    """

    def __init__(
        self, algo: str, is_trusted: bool = False, options: Mapping[str, Any] | None = None
    ) -> None:
        self._algo = algo
        self._is_trusted = is_trusted
        self._options = dict(options or {})
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
            return self._algorithm(env=env, **hyperparameters, **self._options)

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
            options = {**options, **self._options}
            return load_model(self._algorithm, path, env, self._is_trusted, options)


def load_model(
    algorithm: type[BaseAlgorithm], path: Any, env: Any, is_trusted: bool, options: dict[str, Any]
) -> BaseAlgorithm:
    """Load a model of any algorithm as safely as one of ours.

    :param algorithm: the algorithm's class
    :param path: the model's file
    :param env: environment of the model; may be missing
    :param is_trusted: whether the file may run code
    :param options: arguments of the algorithm's ``load``
    :return: the model
    :raises ValueError: if the file is not trusted, and damaged or of an off-policy algorithm
    """
    if is_trusted:
        trust: dict[str, Any] = {"trust_checkpoint": True} if issubclass(algorithm, TRPO) else {}
        return algorithm.load(path, env=env, **trust, **options)
    if not issubclass(algorithm, OnPolicyAlgorithm):
        raise ValueError(
            f"a file of {algorithm.__name__} may run any code: add --trust-checkpoint if you made "
            f"it yourself"
        )
    if issubclass(algorithm, TRPO):
        loaded: BaseAlgorithm = algorithm.load(path, env=env, **options)
        taken = vars(loaded)
    else:
        model = read_model(path, algorithm, options.pop("custom_objects", None), options, False)
        taken = model.objects or {}
        with fitting(path, model, env, options):
            loaded = algorithm.load(model.file, env=env, custom_objects=model.objects, **options)
        vars(loaded).pop("_needs_learning_rate", None)  # which only ours know
    if env is not None:  # to train on
        check_functions(path, algorithm, taken, options)
    return loaded


def check_functions(
    path: Any,
    algorithm: type[BaseAlgorithm],
    taken: Mapping[str, Any],
    options: Mapping[str, Any],
) -> None:
    """Refuse to train on without the schedules that are functions in a file that is not trusted.

    :param path: the model's file
    :param algorithm: the algorithm's class
    :param taken: attributes that were taken from the file
    :param options: arguments of the algorithm's ``load``
    :raises ValueError: naming the first one, and the remedy
    """
    clipping = {"clip_range", "clip_range_vf"} & inspect.signature(algorithm).parameters.keys()
    rate = {"learning_rate"} if taken.get("_needs_learning_rate") else set()
    missing = sorted((clipping - taken.keys() | rate) - options.keys())
    if missing:
        raise ValueError(
            f"the {missing[0]} in {path} is a function, which is not taken from a file that is not "
            f"trusted: give a number or 'lin_...' with --hyperparams {missing[0]}:... or, if you "
            f"made the file yourself, --trust-checkpoint"
        )


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
