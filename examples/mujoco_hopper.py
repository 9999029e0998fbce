"""Train, evaluate and plot Hopper with normalised observations and rewards.

Needs MuJoCo: ``pip install 'gymnasium[mujoco]'``.
"""

import sys

import matplotlib.pyplot as plt
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.results_plotter import X_TIMESTEPS, ts2xy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo import TRPO, load_vec_normalize

TIMESTEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 300_000

env = VecNormalize(make_vec_env("Hopper-v5", n_envs=2, monitor_dir="hopper"))
model = TRPO("MlpPolicy", env, n_steps=1024, n_critic_updates=20, target_kl=0.03, verbose=1)
model.learn(TIMESTEPS)
model.save("hopper/model")
env.save("hopper/vecnormalize.pkl")  # the policy is of no use without its normalisation
env.close()

test_env = load_vec_normalize("hopper/vecnormalize.pkl", make_vec_env("Hopper-v5"))
test_env.training = test_env.norm_reward = False
mean, std = evaluate_policy(model, test_env, n_eval_episodes=20)
print(f"mean return {mean:.0f} +/- {std:.0f}")

steps, returns = ts2xy(load_results("hopper"), X_TIMESTEPS)
plt.plot(steps, returns, ".", markersize=2)
plt.xlabel("environment steps")
plt.ylabel("return per episode")
plt.savefig("hopper/returns.png")
