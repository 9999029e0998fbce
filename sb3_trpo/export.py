"""Export trained policies to ONNX and check the file against the policy."""

import copy
import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import onnxscript  # noqa: F401 (torch's exporter needs it and would fail late)
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_trpo._atomic import write_atomically
from sb3_trpo.evaluation import takes_masks

# Largest difference of an action, relative to the largest action: sums in float32 are reordered.
TOLERANCE = 1e-4

Observations = np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]]


class DeterministicPolicy(nn.Module):
    """``model.predict(normalized observation, deterministic=True)`` as one module.

    :param model: a trained model
    :param normalization: normalisation of the model's observations, if any
    """

    low: th.Tensor
    high: th.Tensor

    def __init__(self, model: BaseAlgorithm, normalization: VecNormalize | None) -> None:
        super().__init__()
        self.policy = copy.copy(model.policy)
        # Tracing stores its tensors in the distribution.
        self.policy.action_dist = copy.copy(model.policy.action_dist)
        self.normalization = normalization if normalization and normalization.norm_obs else None
        if isinstance(model.action_space, spaces.Box):
            self.register_buffer("low", th.as_tensor(model.action_space.low, device=model.device))
            self.register_buffer("high", th.as_tensor(model.action_space.high, device=model.device))

    def forward(
        self,
        observation: th.Tensor | dict[str, th.Tensor],
        action_masks: th.Tensor | None = None,
    ) -> th.Tensor:
        """Return the most likely actions.

        :param observation: as the environment returns it, images with channels first
        :param action_masks: which actions are allowed; a maskable model's only
        :return: actions within the bounds of the action space
        """
        masks = {} if action_masks is None else {"action_masks": action_masks}
        actions = self.policy._predict(self.normalized(observation), deterministic=True, **masks)
        if not isinstance(self.policy.action_space, spaces.Box):
            return actions
        actions = actions.reshape(-1, *self.low.shape)
        if self.policy.squash_output:
            return self.low + 0.5 * (actions + 1) * (self.high - self.low)
        return th.clamp(actions, self.low, self.high)

    def normalized(
        self, observation: th.Tensor | dict[str, th.Tensor]
    ) -> th.Tensor | dict[str, th.Tensor]:
        """Normalise as ``VecNormalize`` does.

        :param observation: as the environment returns it
        :return: the observation that the policy was trained on
        """
        if self.normalization is None:
            return observation
        statistics: Any = self.normalization.obs_rms
        if not isinstance(observation, dict):
            return self._scaled(observation, statistics)
        keys = self.normalization.norm_obs_keys or ()
        return observation | {key: self._scaled(observation[key], statistics[key]) for key in keys}

    def _scaled(self, observation: th.Tensor, statistics: RunningMeanStd) -> th.Tensor:
        """Shift, scale and clip in double precision."""
        assert self.normalization is not None
        mean = th.as_tensor(statistics.mean, device=observation.device)
        variance = th.as_tensor(statistics.var, device=observation.device)
        scaled = (observation.double() - mean) / th.sqrt(variance + self.normalization.epsilon)
        limit = self.normalization.clip_obs
        return th.clamp(scaled, -limit, limit).float()


def export_onnx(
    model: BaseAlgorithm,
    path: str | Path,
    observations: Observations,
    normalization: VecNormalize | None = None,
    action_masks: np.ndarray[Any, Any] | None = None,
) -> float:
    """
    Check a model's deterministic policy, then write it as an ONNX file.

    Inputs are ``observation``, or the keys of a dict observation, and for a maskable model
    ``action_masks``; the output is ``action``. The first dimension of all is the batch.

    :param model: a trained model
    :param path: the file
    :param observations: a batch of at least 2, as the environment returns them, to check with
    :param normalization: normalisation of the model's observations, if any
    :param action_masks: of a maskable model, to check with, one row per observation; ``None`` for
        all actions
    :return: largest difference between the actions of onnxruntime and of ``predict``
    :raises ValueError: if the policy cannot be exported, or acts differently
    """
    if "lstm_states" in inspect.signature(model.policy._predict).parameters:
        raise ValueError("A recurrent policy cannot be exported: its actions depend on the past.")
    inputs, _ = model.policy.obs_to_tensor(observations)
    inputs = inputs if isinstance(inputs, dict) else {"observation": inputs}
    masks = _masks(model, len(next(iter(inputs.values()))), action_masks)
    _check_names(inputs, masks)
    content = _convert(DeterministicPolicy(model, normalization).eval(), inputs, masks)
    session = onnxruntime.InferenceSession(content)
    feed = {name: tensor.numpy(force=True) for name, tensor in {**inputs, **masks}.items()}
    actions = session.run(None, feed)[0]
    seen = observations if normalization is None else normalization.normalize_obs(observations)
    options = {name: mask.numpy(force=True) for name, mask in masks.items()}
    predict: Any = model.predict
    expected, _ = predict(seen, deterministic=True, **options)
    difference = float(np.abs(actions.reshape(expected.shape) - expected).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise ValueError(
            f"The exported policy's actions differ from those of predict by {difference}: the "
            "export misses something that the policy does."
        )
    write_atomically(Path(path), content)
    return difference


def _check_names(inputs: dict[str, th.Tensor], masks: dict[str, th.Tensor]) -> None:
    """Refuse keys of a dict observation that are also other inputs or outputs of the file."""
    taken = sorted(set(inputs) & {*masks, "action"})
    if taken:
        raise ValueError(
            f"A policy whose observation has the key '{taken[0]}' cannot be exported: the file "
            "has another input or output of that name. Rename the key in the environment and "
            "train again."
        )


def _masks(model: Any, n: int, masks: np.ndarray[Any, Any] | None) -> dict[str, th.Tensor]:
    """Return the masks of a maskable model as an argument; none for other models."""
    if not takes_masks(type(model)):
        return {}
    if masks is None:
        masks = np.ones((n, model.policy.action_net.out_features))
    return {"action_masks": th.as_tensor(masks, dtype=th.bool, device=model.device).reshape(n, -1)}


def _convert(
    policy: DeterministicPolicy, inputs: dict[str, th.Tensor], masks: dict[str, th.Tensor]
) -> bytes:
    """Trace the policy for batches of any size."""
    is_dict = isinstance(policy.policy.observation_space, spaces.Dict)

    def arguments(inputs: dict[str, Any], masks: dict[str, Any]) -> dict[str, Any]:
        return {**({"observation": inputs} if is_dict else inputs), **masks}

    batch = {0: th.export.Dim.DYNAMIC}
    with _traceable():
        program = th.onnx.export(
            policy,
            kwargs=arguments(inputs, masks),
            input_names=[*inputs, *masks],
            output_names=["action"],
            dynamic_shapes=arguments(dict.fromkeys(inputs, batch), dict.fromkeys(masks, batch)),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


@contextmanager
def _traceable() -> Iterator[None]:
    """Switch off torch's data-dependent checks of distributions, and the exporter's notes."""
    validate = th.distributions.Distribution._validate_args
    th.distributions.Distribution.set_default_validate_args(False)
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(disabled)
        th.distributions.Distribution.set_default_validate_args(validate)
