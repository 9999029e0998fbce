"""Write an environment, check it and train in it."""

import sys
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_checker import check_env

from sb3_trpo import TRPO

TIMESTEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 30_000


class Tracking(gym.Env[Any, Any]):
    """Follow a target that wanders in the plane; 100 steps per episode."""

    observation_space = gym.spaces.Box(-10.0, 10.0, (2,))
    action_space = gym.spaces.Box(-1.0, 1.0, (2,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Put the target somewhere near."""
        super().reset(seed=seed)
        self.steps, self.offset = 0, self.np_random.normal(size=2).astype(np.float32)
        return self.offset, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Move; the reward is minus the distance that is left."""
        wind = self.np_random.normal(scale=0.1, size=2).astype(np.float32)
        self.offset, self.steps = np.clip(self.offset - action + wind, -10, 10), self.steps + 1
        return self.offset, -float(np.linalg.norm(self.offset)), False, self.steps == 100, {}


check_env(Tracking())
radius: Any = {"target_kl": 0.05, "kl_reduction": "sum"}  # of the joint action
model = TRPO("MlpPolicy", Tracking(), gamma=0.9, **radius, verbose=1).learn(TIMESTEPS)
action, _ = model.predict(np.array([1.0, -0.5]), deterministic=True)
print("the way to the target at (1, -0.5):", action)
