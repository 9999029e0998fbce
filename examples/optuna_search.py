"""Search hyperparameters with Optuna: ``python examples/optuna_search.py [timesteps] [trials]``."""

import sys

import numpy as np
import optuna
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_trpo import TRPO

TIMESTEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 30_000
TRIALS = int(sys.argv[2]) if len(sys.argv) > 2 else 20


def objective(trial: optuna.Trial) -> float:
    """Train with the trial's hyperparameters; the mean return is to be maximised."""
    model = TRPO(
        "MlpPolicy",
        make_vec_env("Pendulum-v1", n_envs=2),
        n_steps=512,
        target_kl=trial.suggest_float("target_kl", 0.003, 0.1, log=True),
        cg_damping=trial.suggest_float("cg_damping", 1e-3, 0.3, log=True),
        gamma=1 - trial.suggest_float("1 - gamma", 0.01, 0.2, log=True),
        gae_lambda=trial.suggest_float("gae_lambda", 0.8, 0.99),
        n_critic_updates=trial.suggest_categorical("n_critic_updates", [5, 10, 20]),
    )
    model.learn(TIMESTEPS)
    returns, _ = evaluate_policy(model, make_vec_env("Pendulum-v1"), return_episode_rewards=True)
    return float(np.mean(returns))


study = optuna.create_study(direction="maximize")
study.optimize(objective, n_trials=TRIALS)
print(f"mean return {study.best_value:.1f} with {study.best_params}")
