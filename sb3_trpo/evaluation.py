"""Evaluate maskable models with SB3's own functions, which keep the states of an LSTM."""

import inspect
from typing import Any

from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common import callbacks, evaluation
from stable_baselines3.common.base_class import BaseAlgorithm


def takes_masks(algorithm: type[BaseAlgorithm]) -> bool:
    """Return whether an algorithm's models take action masks.

    :param algorithm: class of the algorithm
    :return: whether ``predict`` has the argument ``action_masks``
    """
    return "action_masks" in inspect.signature(algorithm.predict).parameters


class Masking:
    """
    A maskable model whose ``predict`` asks an environment for the masks.

    All other attributes are read from the model and written to it.

    :param model: the model
    :param env: the environment in which the model acts
    :raises ValueError: if the environment has no masks
    """

    def __init__(self, model: Any, env: Any) -> None:
        if not is_masking_supported(env):
            raise ValueError(
                "The environment has no method action_masks. Wrap it in "
                "sb3_contrib.common.wrappers.ActionMasker, or pass use_masking=False."
            )
        vars(self).update(_model=model, _env=env)

    def __getattr__(self, name: str) -> Any:
        if name == "_model":  # while a copy is being made
            raise AttributeError(name)
        return getattr(self._model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._model, name, value)

    def predict(self, *arguments: Any, **options: Any) -> Any:
        """Predict as the model does, with the environment's masks."""
        return self._model.predict(*arguments, action_masks=get_action_masks(self._env), **options)


def evaluate_policy(
    model: Any, env: Any, *arguments: Any, use_masking: bool = True, **options: Any
) -> Any:
    """
    Evaluate a maskable model, recurrent or not, as SB3's function of this name does.

    :param model: to be evaluated
    :param env: environment with the method ``action_masks``
    :param arguments: of SB3's function
    :param use_masking: whether the model is given the masks
    :param options: of SB3's function
    :return: as SB3's function
    """
    masking: Any = Masking(model, env) if use_masking else model
    return evaluation.evaluate_policy(masking, env, *arguments, **options)


class MaskableEvalCallback(callbacks.EvalCallback):
    """
    SB3's ``EvalCallback`` for maskable models, recurrent or not.

    :param arguments: of SB3's class
    :param use_masking: whether the model is given the masks
    :param options: of SB3's class
    """

    def __init__(self, *arguments: Any, use_masking: bool = True, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.use_masking = use_masking

    def init_callback(self, model: Any) -> None:
        """Wrap the model for the evaluations only; inner callbacks get the model itself."""
        super().init_callback(model)
        self.model: Any = Masking(model, self.eval_env) if self.use_masking else model
