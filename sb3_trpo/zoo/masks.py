"""Action masks for the RL Zoo, which knows none: in evaluations and when a model is played."""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import rl_zoo3.exp_manager
from rl_zoo3 import ALGOS
from rl_zoo3.callbacks import TrialEvalCallback
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked_policy
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy as evaluate_plain_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.zoo.script import replaced


class MaskableTrialEvalCallback(TrialEvalCallback, MaskableEvalCallback):
    """The RL Zoo's evaluation of a trial, with action masks."""


def takes_masks(algorithm: type[BaseAlgorithm]) -> bool:
    """Tell whether an algorithm's models need to be told which actions are allowed.

    :param algorithm: class of the algorithm
    :return: whether ``predict`` takes action masks
    """
    return "action_masks" in inspect.signature(algorithm.predict).parameters


def evaluate_policy(
    model: BaseAlgorithm, env: VecEnv, episodes: int, deterministic: bool
) -> npt.NDArray[np.float64]:
    """Evaluate a model, with action masks if it takes them.

    :param model: a trained model
    :param env: where to evaluate it
    :param episodes: how many episodes to play
    :param deterministic: whether to take the most likely action
    :return: returns of the episodes
    """
    evaluate = evaluate_masked_policy if takes_masks(type(model)) else evaluate_plain_policy
    returns, _ = evaluate(
        cast(Any, model), env, episodes, deterministic, return_episode_rewards=True
    )
    return np.array(returns)


@contextmanager
def masks_in_evaluations(algo: str) -> Iterator[None]:
    """Let the Zoo's manager evaluate with action masks, if the algorithm takes them.

    :param algo: the algorithm's key in ``rl_zoo3.ALGOS``
    """
    with ExitStack() as stack:
        if takes_masks(ALGOS[algo]):
            manager = rl_zoo3.exp_manager
            stack.enter_context(replaced(manager, "EvalCallback", MaskableEvalCallback))
            stack.enter_context(replaced(manager, "TrialEvalCallback", MaskableTrialEvalCallback))
        yield


@contextmanager
def masks_in_play(module: Any, algo: str) -> Iterator[None]:
    """Let a script of the Zoo play a model that needs action masks.

    The script makes an environment and loads a model, and then only calls ``predict`` with the
    observation. The model that it loads here asks that environment for the masks.

    :param module: where the script finds ``create_test_env``
    :param algo: the algorithm's key in ``rl_zoo3.ALGOS``
    """
    if not takes_masks(ALGOS[algo]):
        yield
        return
    algorithm: Any = ALGOS[algo]
    create_test_env = module.create_test_env
    made: list[VecEnv] = []

    def create_and_remember(*arguments: Any, **options: Any) -> VecEnv:
        made.append(create_test_env(*arguments, **options))
        return made[-1]

    class Player(algorithm):  # type: ignore[misc]
        def predict(self, *arguments: Any, **options: Any) -> Any:
            return super().predict(*arguments, **options, action_masks=get_action_masks(made[-1]))

    with replaced(module, "create_test_env", create_and_remember):
        ALGOS[algo] = Player
        try:
            yield
        finally:
            ALGOS[algo] = algorithm
