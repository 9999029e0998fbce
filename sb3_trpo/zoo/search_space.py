"""The search space of ``optimize``. Every combination is valid, so no trial is wasted on an error.

No range depends on another parameter's value, as Optuna's multivariate sampler requires.
"""

from typing import Any

import optuna
from rl_zoo3.hyperparams_opt import convert_onpolicy_params

# Optuna stores the choices, so they are names.
EXPLORATION: dict[str, dict[str, Any]] = {
    "action_noise": {"use_sde": False},
    "gsde": {"use_sde": True, "sde_sample_freq": -1},
    "gsde_4_steps": {"use_sde": True, "sde_sample_freq": 4},
    "gsde_16_steps": {"use_sde": True, "sde_sample_freq": 16},
}


def sample(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Sample the hyperparameters of a trial.

    :param trial: trial of a study
    :param n_actions: dimensions of a continuous action; 0 for any other action
    :param n_envs: number of parallel environments
    :param additional_args: the RL Zoo's options for replay buffers, unused here
    :return: keyword arguments of the algorithm
    """
    least_steps, largest_batch = rollout_limits(n_envs)
    trial.suggest_int("n_steps_pow", least_steps, least_steps + 4)
    trial.suggest_int("batch_size_pow", 5, largest_batch)
    trial.suggest_float("one_minus_gamma", 1e-4, 0.1, log=True)
    trial.suggest_float("one_minus_gae_lambda", 1e-3, 0.2, log=True)
    trial.suggest_float("learning_rate", 1e-4, 5e-3, log=True)
    trial.suggest_int("n_critic_updates", 5, 30)
    trial.suggest_float("target_kl", 1e-3, 0.1, log=True)
    trial.suggest_categorical("target_kl_schedule", ["constant", "linear"])
    trial.suggest_float("cg_damping", 1e-3, 0.3, log=True)
    trial.suggest_int("cg_max_steps", 5, 25)
    trial.suggest_categorical("fisher_sub_sampling_factor", [1, 2, 4, 8])
    trial.suggest_categorical("net_arch", ["tiny", "small", "medium"])
    trial.suggest_categorical("activation_fn", ["tanh", "relu"])
    if n_actions > 0:
        trial.suggest_categorical("exploration", list(EXPLORATION))
    return convert(trial.params)


def rollout_limits(n_envs: int) -> tuple[int, int]:
    """Limit rollouts to about 256 to 4096 states, and batches to divisors of every such rollout.

    :param n_envs: number of parallel environments
    :return: fewest steps per environment and largest batch, as exponents of 2
    """
    least_steps = max(5, 8 - (n_envs.bit_length() - 1))
    powers_in_n_envs = (n_envs & -n_envs).bit_length() - 1
    return least_steps, min(8, least_steps + powers_in_n_envs)


def convert(params: dict[str, Any]) -> dict[str, Any]:
    """Convert a trial's parameters to hyperparameters.

    :param params: as a study stores them
    :return: keyword arguments of the algorithm
    """
    hyperparameters = convert_onpolicy_params(params)
    exploration = EXPLORATION[hyperparameters.pop("exploration", "action_noise")]
    if hyperparameters.pop("target_kl_schedule") == "linear":
        hyperparameters["target_kl"] = f"lin_{hyperparameters['target_kl']}"
    return hyperparameters | exploration
