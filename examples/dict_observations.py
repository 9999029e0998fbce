"""Train on observations that are a dictionary of an image and a vector."""

import sys

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_trpo import TRPO

TIMESTEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000

# A grid to be crossed; every cell shows itself as a picture and a vector.
env = make_vec_env(SimpleMultiObsEnv, env_kwargs={"random_start": False})
print(env.observation_space)  # Dict('img': Box(0, 255, (64, 64, 1)), 'vec': Box(...))

model = TRPO("MultiInputPolicy", env, n_steps=256, target_kl=0.05, verbose=1)
model.learn(TIMESTEPS)
mean, std = evaluate_policy(model, env, n_eval_episodes=10)
print(f"mean return {mean:.2f} +/- {std:.2f}")
