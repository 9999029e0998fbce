"""Evaluation with masks, by SB3's own functions: they keep the states of an LSTM."""

from typing import Any

from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common import callbacks, evaluation
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv


class Masking:
    """
    A model that asks an environment for the masks of each prediction.

    :param model: maskable; all but its ``predict`` is passed on
    :param env: that its actions go to
    """

    def __init__(self, model: Any, env: GymEnv) -> None:
        self._model, self._env = model, env

    def __getattr__(self, name: str) -> Any:
        """Pass on."""
        return getattr(self._model, name)

    def predict(self, *arguments: Any, **options: Any) -> Any:
        """
        Predict with masks.

        :param arguments: of the model's ``predict``
        :param options: of the model's ``predict``
        :return: actions and states
        """
        return self._model.predict(*arguments, action_masks=get_action_masks(self._env), **options)


def evaluate_policy(model: BaseAlgorithm, env: GymEnv, *arguments: Any, **options: Any) -> Any:
    """
    Evaluate a maskable model, recurrent or not, as SB3's function of the same name.

    :param model: maskable
    :param env: has masks
    :param arguments: further ones of ``stable_baselines3.common.evaluation.evaluate_policy``
    :param options: of the same
    :return: what it returns
    """
    masking: Any = Masking(model, env)
    return evaluation.evaluate_policy(masking, env, *arguments, **options)


class MaskableEvalCallback(callbacks.EvalCallback):
    """SB3's ``EvalCallback`` for maskable models, recurrent or not."""

    def init_callback(self, model: Any) -> None:
        """
        Take the model.

        :param model: maskable
        """
        super().init_callback(Masking(model, self.eval_env))  # type: ignore[arg-type]
