"""Step environments in processes of their own; it pays for slow ones.

``python examples/parallel_environments.py [timesteps] [processes]``
"""

import sys

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_trpo import TRPO

TIMESTEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
N_ENVS = int(sys.argv[2]) if len(sys.argv) > 2 else 4


def main() -> None:
    """Train; new processes import this file, so the work is in a function."""
    env = make_vec_env("Acrobot-v1", N_ENVS, vec_env_cls=SubprocVecEnv)
    # A rollout has n_steps of every environment: 512 · 4 = 2048 states per update.
    model = TRPO("MlpPolicy", env, n_steps=2048 // N_ENVS, verbose=1)
    model.learn(TIMESTEPS)
    env.close()


if __name__ == "__main__":
    main()
