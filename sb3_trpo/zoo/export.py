"""``sb3-trpo export``: write a trained policy as an ONNX file."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rl_zoo3 import create_test_env
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_trpo.evaluation import takes_masks
from sb3_trpo.export import Observations, export_onnx
from sb3_trpo.zoo.builder import Builder
from sb3_trpo.zoo.choice import add_choice, find_model, settings_folder, statistics_of
from sb3_trpo.zoo.entry import saved_settings
from sb3_trpo.zoo.errors import UsageError, user_errors
from sb3_trpo.zoo.normalization import normalizing
from sb3_trpo.zoo.script import Parser
from sb3_trpo.zoo.settings import read_arguments

CHECKED_STEPS = 200

HELP = """\
Write a trained agent's deterministic policy as an ONNX file, including the normalisation of its
observations. Before the file is written, its actions are compared with those of predict.

examples:
  sb3-trpo export --env CartPole-v1
  sb3-trpo export --env CartPole-v1 --load-best --output cartpole.onnx
"""


def export(words: list[str]) -> None:
    """Export a model.

    :param words: command-line options
    """
    parser = Parser("sb3-trpo export", HELP)
    add_choice(parser)
    parser.add_argument("-o", "--output", type=Path, help="the file (beside the model)")
    choice = parser.parse_args(words)
    path = find_model(choice)
    output = choice.output or path.with_suffix(".onnx")
    is_trusted: bool = choice.trust_checkpoint
    model = Builder(choice.algo, is_trusted).load(path, device="cpu")
    with normalizing(is_trusted, statistics_of(path, choice.env)) as stats_path:
        env = make_env(choice.env, settings_folder(path, choice.env), stats_path)
    observations, masks = play(model, env)
    env.close()
    with user_errors(ValueError, OSError):
        difference = export_onnx(model, output, observations, unwrap_vec_normalize(env), masks)
    print(f"Largest difference to predict over {CHECKED_STEPS} observations: {difference:.1g}")
    print(f"Policy: {output}")


def make_env(name: str, settings: Path, stats_path: str) -> VecEnv:
    """Make the environment that a run was trained on.

    :param name: of the environment
    :param settings: the run's folder of hyperparameters
    :param stats_path: as for the Zoo's ``create_test_env``
    :return: one environment with the run's wrappers and normalisation
    :raises UsageError: if the policy was trained on stacks of normalised observations
    """
    hyperparameters, found = saved_settings(str(settings), test_mode=True)
    if hyperparameters.get("frame_stack") and hyperparameters.get("normalize"):
        raise UsageError(
            f"{name} was trained on stacks of normalised frames, which this command cannot export: "
            "call sb3_trpo.export.export_onnx with normalised observations"
        )
    of_settings = hyperparameters.pop("env_kwargs", None)
    env_kwargs = read_arguments(settings).get("env_kwargs") or of_settings
    return create_test_env(
        name,
        stats_path=stats_path if found else None,
        should_render=False,
        hyperparams=hyperparameters,
        env_kwargs=env_kwargs,
    )


def play(model: Any, env: VecEnv) -> tuple[Observations, npt.NDArray[np.bool_] | None]:
    """Let a model act at random and collect the observations.

    :param model: a trained model
    :param env: one environment
    :return: observations before normalisation; action masks, or None if the model takes none
    """
    normalization = unwrap_vec_normalize(env)
    seen: list[Any] = []
    masks: list[npt.NDArray[np.bool_]] = []
    observation = env.reset()
    set_random_seed(0)
    for _ in range(CHECKED_STEPS):
        seen.append(raw(observation, normalization))
        options = {}
        if takes_masks(type(model)):
            masks.append(get_action_masks(env))
            options["action_masks"] = masks[-1]
        observation = env.step(model.predict(observation, **options)[0])[0]
    together = np.concatenate(masks) if masks else None
    if isinstance(seen[0], dict):
        return {key: np.concatenate([each[key] for each in seen]) for key in seen[0]}, together
    return np.concatenate(seen), together


def raw(observation: Any, normalization: VecNormalize | None) -> Any:
    """Return an observation before its normalisation.

    :param observation: the environment's latest observation
    :param normalization: the environment's normalisation, if any
    :return: the original observation
    """
    return observation if normalization is None else normalization.get_original_obs()
