"""Preprocessing of Atari games, the same for all of their names."""

from typing import Any

import gymnasium as gym
from stable_baselines3.common.atari_wrappers import AtariWrapper

FRAMES_PER_STEP = 4


class AtariFrames(AtariWrapper):
    """SB3's preprocessing with four frames per step, whatever the environment itself skips.

    SB3 repeats actions on top of the environment: one step of ``ALE/Pong-v5``, which skips four
    frames already, would take sixteen.

    :param env: an Atari environment, made by its registered name
    :raises ValueError: if it has none
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        spec = env.unwrapped.spec
        if spec is None:
            raise ValueError(f"{env} does not say how many frames it skips: make it with gym.make")
        is_skipping = spec.kwargs.get("frameskip") != 1
        super().__init__(env, frame_skip=1 if is_skipping else FRAMES_PER_STEP)
