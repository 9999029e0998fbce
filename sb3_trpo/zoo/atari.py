"""Preprocess Atari games in the same way under all of their names."""

from typing import Any

import gymnasium as gym
from stable_baselines3.common.atari_wrappers import AtariWrapper

FRAMES_PER_STEP = 4


class AtariFrames(AtariWrapper):
    """SB3's preprocessing with four frames per step, however many the environment itself skips.

    SB3 repeats actions on top of the environment. ``ALE/Pong-v5`` already skips four frames, so one
    step would take sixteen.

    :param env: an Atari environment, made from its registered name
    :raises ValueError: if the environment has no registered name
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        spec = env.unwrapped.spec
        if spec is None:
            raise ValueError(f"{env} does not say how many frames it skips: make it with gym.make")
        is_skipping = spec.kwargs.get("frameskip") != 1
        super().__init__(env, frame_skip=1 if is_skipping else FRAMES_PER_STEP)
