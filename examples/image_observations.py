"""Train Pong from its screen. Needs ``pip install ale-py opencv-python-headless``."""

import sys

import ale_py
import gymnasium as gym
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack

from sb3_trpo import TRPO

TIMESTEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000_000

gym.register_envs(ale_py)
env = VecFrameStack(make_atari_env("PongNoFrameskip-v4", n_envs=8), n_stack=4)
model = TRPO(
    "CnnPolicy",
    env,
    n_steps=128,
    cg_max_steps=10,
    target_kl=0.02,
    n_critic_updates=4,
    fisher_sub_sampling_factor=4,  # convolutions make Fisher products slow
    policy_kwargs={"share_features_extractor": False},  # the critic gets convolutions of its own
    verbose=1,
)
model.learn(TIMESTEPS)
model.save("trpo_pong")
