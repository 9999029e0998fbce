"""Action masks for the RL Zoo, which knows none: in evaluations and when a model is played."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import rl_zoo3.exp_manager
from rl_zoo3 import ALGOS
from rl_zoo3.callbacks import TrialEvalCallback
from stable_baselines3.common import evaluation
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.evaluation import MaskableEvalCallback, Masking, takes_masks
from sb3_trpo.zoo.script import replaced


class MaskableTrialEvalCallback(TrialEvalCallback, MaskableEvalCallback):
    """The RL Zoo's evaluation of a trial, with action masks."""


def player_of(model: BaseAlgorithm, env: VecEnv) -> Any:
    """Let a model ask for the masks that it needs.

    :param model: a trained model
    :param env: where it acts
    :return: what predicts as the model does, and needs no masks
    """
    return Masking(model, env) if takes_masks(type(model)) else model


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
    returns, _ = evaluation.evaluate_policy(
        player_of(model, env), env, episodes, deterministic, return_episode_rewards=True
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

    :param module: where the script finds ``create_test_env`` and ``ALGOS``
    :param algo: the algorithm's key in ``rl_zoo3.ALGOS``
    """
    if not takes_masks(ALGOS[algo]):
        yield
        return
    algorithm, create_test_env = ALGOS[algo], module.create_test_env
    made: list[VecEnv] = []

    def create_and_remember(*arguments: Any, **options: Any) -> VecEnv:
        made.append(create_test_env(*arguments, **options))
        return made[-1]

    def load(*arguments: Any, **options: Any) -> Any:
        return player_of(algorithm.load(*arguments, **options), made[-1])

    algorithms = {**ALGOS, algo: SimpleNamespace(load=load)}
    with (
        replaced(module, "create_test_env", create_and_remember),
        replaced(module, "ALGOS", algorithms),
    ):
        yield
