"""Let policy and critic see the observation through a network of one's own."""

import sys

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_trpo import TRPO

TIMESTEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000


class Waves(BaseFeaturesExtractor):
    """Sines and cosines of learned directions, after a layer normalisation."""

    def __init__(self, observation_space: spaces.Box, features_dim: int = 64) -> None:
        super().__init__(observation_space, features_dim)
        size = observation_space.shape[0]
        self.directions = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, features_dim // 2))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """Compute the features, shape ``(n, features_dim)``."""
        phases = self.directions(observations)
        return th.cat([phases.sin(), phases.cos()], dim=1)


# Shared by policy and critic: its weights are the actor's, and the critic's fit holds them.
policy_kwargs = {"features_extractor_class": Waves, "net_arch": [64]}
model = TRPO("MlpPolicy", "Acrobot-v1", policy_kwargs=policy_kwargs, target_kl=0.02, verbose=1)
model.learn(TIMESTEPS)
