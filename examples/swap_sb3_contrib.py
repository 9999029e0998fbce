"""Continue with a script, and with a model, that were written for ``sb3_contrib.TRPO``."""

import sys
from typing import Any

import sb3_contrib
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_trpo import TRPO  # was: from sb3_contrib import TRPO

TIMESTEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 30_000
HYPERPARAMETERS: dict[str, Any] = {"n_steps": 512, "gamma": 0.9, "target_kl": 0.02}

env = make_vec_env("Pendulum-v1", n_envs=2)

# The script: arguments, callbacks and logger keys stay. "mean" is what sb3-contrib's target_kl and
# cg_damping mean; with the default "sum" both would be multiplied by the action's dimensions.
model = TRPO("MlpPolicy", env, **HYPERPARAMETERS, kl_reduction="mean", verbose=1)
model.learn(TIMESTEPS)

# A model that sb3-contrib has trained: it continues with "mean", unless load is told otherwise.
sb3_contrib.TRPO("MlpPolicy", env, **HYPERPARAMETERS).learn(TIMESTEPS // 2).save("contrib")
model = TRPO.load("contrib", env, kl_reduction="mean", verbose=1)
model.learn(TIMESTEPS // 2, reset_num_timesteps=False)
print("mean return and spread:", evaluate_policy(model, env, n_eval_episodes=10))
