"""Export a saved policy to ONNX. Needs the extra ``onnx``."""

import sys

import numpy as np
import onnxruntime
import torch as th
from torch import nn

from sb3_trpo import TRPO

MODEL = sys.argv[1] if len(sys.argv) > 1 else "trpo_cartpole.zip"  # from quick_start.py


class DeterministicPolicy(nn.Module):
    """The most likely action for an observation."""

    def __init__(self, model: TRPO) -> None:
        super().__init__()
        self.policy = model.policy

    def forward(self, observation: th.Tensor) -> th.Tensor:
        """Choose, shape ``(n, ...)`` for ``(n, ...)``."""
        return self.policy.get_distribution(observation).mode()


model = TRPO.load(MODEL, device="cpu")
observation = model.observation_space.sample()
inputs = th.as_tensor(observation[None])
onnx_file = MODEL.removesuffix(".zip") + ".onnx"
th.distributions.Distribution.set_default_validate_args(False)  # checks cannot be exported
th.onnx.export(DeterministicPolicy(model).eval(), (inputs,), onnx_file, dynamo=True, verbose=False)

session = onnxruntime.InferenceSession(onnx_file)
(actions,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
expected, _ = model.predict(observation, deterministic=True)
np.testing.assert_allclose(actions[0], expected, rtol=1e-4, atol=1e-5)
print(f"{onnx_file} gives the model's action: {expected}")
