"""Export a saved policy to ONNX and run it without torch. Needs the extra ``onnx``.

``python examples/load_and_export.py [timesteps]`` trains a model first, as quick_start.py does.
"""

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import onnxruntime

from sb3_trpo import TRPO
from sb3_trpo.export import export_onnx

TIMESTEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000

TRPO("MlpPolicy", "CartPole-v1", target_kl=0.02, seed=0).learn(TIMESTEPS).save("trpo_cartpole")

model = TRPO.load("trpo_cartpole", device="cpu")
samples = np.array([model.observation_space.sample() for _ in range(100)])
difference = export_onnx(model, Path("trpo_cartpole.onnx"), samples)  # compares with predict
print(f"trpo_cartpole.onnx, largest difference of an action to predict: {difference:.2g}")

policy = onnxruntime.InferenceSession("trpo_cartpole.onnx")
env = gym.make("CartPole-v1")
observation, _ = env.reset(seed=0)
total, over = 0.0, False
while not over:
    inputs = {policy.get_inputs()[0].name: observation[None]}
    (actions,) = policy.run(None, inputs)
    observation, reward, terminated, truncated, _ = env.step(actions[0])
    total, over = total + float(reward), terminated or truncated
print(f"return of an episode in onnxruntime: {total:.0f}")
