"""Train CartPole, evaluate, save and load: ``python examples/quick_start.py [timesteps]``."""

import sys

import gymnasium as gym
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_trpo import TRPO

TIMESTEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000

model = TRPO("MlpPolicy", "CartPole-v1", target_kl=0.02, verbose=1)
model.learn(TIMESTEPS)
model.save("trpo_cartpole")

model = TRPO.load("trpo_cartpole")
mean, std = evaluate_policy(model, Monitor(gym.make("CartPole-v1")), n_eval_episodes=20)
print(f"mean return {mean:.1f} +/- {std:.1f}; saved as trpo_cartpole.zip")
