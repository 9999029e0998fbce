"""Action masks for the RL Zoo, which has none: in evaluations and when a model is played."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import rl_zoo3.exp_manager
import rl_zoo3.utils
from rl_zoo3 import ALGOS
from rl_zoo3.callbacks import TrialEvalCallback
from stable_baselines3.common import evaluation
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.evaluation import MaskableEvalCallback, Masking, takes_masks
from sb3_trpo.zoo.builder import Builder, check_masks
from sb3_trpo.zoo.entry import saved_settings
from sb3_trpo.zoo.errors import making_errors, user_errors
from sb3_trpo.zoo.normalization import normalizing
from sb3_trpo.zoo.script import replaced


class MaskableTrialEvalCallback(TrialEvalCallback, MaskableEvalCallback):
    """The RL Zoo's evaluation of a trial, with action masks."""


def player_of(model: BaseAlgorithm, env: VecEnv) -> Any:
    """Return a model whose ``predict`` needs no masks.

    :param model: a trained model
    :param env: where the model acts
    :return: the model, or a wrapper that asks the environment for the masks
    """
    return Masking(model, env) if takes_masks(type(model)) else model


def evaluate_policy(
    model: BaseAlgorithm, env: VecEnv, episodes: int, deterministic: bool
) -> npt.NDArray[np.float64]:
    """Evaluate a model, with action masks if it takes them.

    :param model: a trained model
    :param env: evaluation environment
    :param episodes: number of episodes
    :param deterministic: whether to take the most likely action
    :return: returns of the episodes
    """
    returns, _ = evaluation.evaluate_policy(
        player_of(model, env), env, episodes, deterministic, return_episode_rewards=True
    )
    return np.array(returns)


@contextmanager
def masks_in_evaluations(algo: str) -> Iterator[None]:
    """Make the Zoo's manager evaluate with action masks if the algorithm takes them.

    :param algo: the algorithm's key in ``rl_zoo3.ALGOS``
    """
    with ExitStack() as stack:
        if takes_masks(ALGOS[algo]):
            manager = rl_zoo3.exp_manager
            stack.enter_context(replaced(manager, "EvalCallback", MaskableEvalCallback))
            stack.enter_context(replaced(manager, "TrialEvalCallback", MaskableTrialEvalCallback))
        yield


@contextmanager
def playing(module: Any, algo: str, statistics: Path, is_trusted: bool = False) -> Iterator[None]:
    """Let a script of the Zoo play any model, with action masks if the model needs them.

    The script makes an environment, loads a model and then calls ``predict`` with the observation
    only. A model loaded within this block asks the environment for its masks, and neither model nor
    statistics run code of their files unless these are trusted.

    :param module: where the script finds these functions of the Zoo, and ``ALGOS``
    :param algo: the algorithm's key in ``rl_zoo3.ALGOS``
    :param statistics: the file of the model's normalisation, which is not looked for without one
    :param is_trusted: whether files may run code
    """
    create_test_env = module.create_test_env
    made: list[VecEnv] = []

    def create_and_remember(*arguments: Any, **options: Any) -> VecEnv:
        # One of the two scripts forgets those of the configuration.
        of_run = (options.get("hyperparams") or {}).get("env_kwargs") or {}
        options["env_kwargs"] = {**of_run, **(options.get("env_kwargs") or {})}
        if options.get("stats_path") is not None:
            options["stats_path"] = stats_path
        with user_errors(*making_errors(options["env_kwargs"])):
            made.append(create_test_env(*arguments, **options))
        return made[-1]

    def load(*arguments: Any, **options: Any) -> Any:
        check_masks(algo, made[-1])
        return player_of(Builder(algo, is_trusted).load(*arguments, **options), made[-1])

    algorithms = {**ALGOS, algo: SimpleNamespace(load=load)}
    with (
        replaced(module, "create_test_env", create_and_remember),
        replaced(module, "ALGOS", algorithms),
        replaced(module, "get_saved_hyperparams", saved_settings),
        normalizing(is_trusted, statistics) as stats_path,
    ):
        yield
