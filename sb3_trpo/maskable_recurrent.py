"""TRPO for policies with an LSTM, with invalid actions masked."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

import torch as th
from sb3_contrib.common.maskable import buffers as maskable
from sb3_contrib.common.recurrent import buffers as recurrent
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticCnnPolicy,
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from stable_baselines3.common.type_aliases import Schedule

from sb3_trpo._distributions import maskable_distribution
from sb3_trpo.maskable import MaskableTRPO
from sb3_trpo.recurrent import RecurrentTRPO


def _masked(method: Callable[..., Any]) -> Callable[..., Any]:
    """Give a method of a recurrent policy the argument ``action_masks``, in force during a call."""

    @wraps(method)
    def call(self: Any, *arguments: Any, action_masks: Any = None, **options: Any) -> Any:
        before = self.action_masks
        # A method that calls another one passes no masks on.
        self.action_masks = before if action_masks is None else action_masks
        try:
            return method(self, *arguments, **options)
        finally:
            self.action_masks = before

    return call


class MaskableMlpLstmPolicy(RecurrentActorCriticPolicy):
    """
    contrib's ``MlpLstmPolicy`` with action masks.

    ``forward``, ``get_distribution``, ``evaluate_actions`` and ``predict`` are contrib's with one
    more argument by name, ``action_masks``.
    """

    action_masks: Any = None
    forward = _masked(RecurrentActorCriticPolicy.forward)
    get_distribution = _masked(RecurrentActorCriticPolicy.get_distribution)
    evaluate_actions = _masked(RecurrentActorCriticPolicy.evaluate_actions)
    predict = _masked(RecurrentActorCriticPolicy.predict)

    def _build(self, lr_schedule: Schedule) -> None:
        """Build the networks, the last one with a logit for each column of a mask."""
        super()._build(lr_schedule)
        self.action_dist: Any = maskable_distribution(self.action_space)
        self.action_net = self.action_dist.proba_distribution_net(self.mlp_extractor.latent_dim_pi)
        if self.ortho_init:
            self.init_weights(self.action_net, gain=0.01)

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
        """Make the distribution over the allowed actions."""
        distribution = self.action_dist.proba_distribution(self.action_net(latent_pi))
        distribution.apply_masking(self.action_masks)
        return distribution


class MaskableCnnLstmPolicy(MaskableMlpLstmPolicy, RecurrentActorCriticCnnPolicy):
    """contrib's ``CnnLstmPolicy`` with action masks."""


class MaskableMultiInputLstmPolicy(MaskableMlpLstmPolicy, RecurrentMultiInputActorCriticPolicy):
    """contrib's ``MultiInputLstmPolicy`` with action masks."""


# The ignores below: contrib's two annotate `add` and `get` differently. Each `add` passes on what
# it does not know, and `get` is not called: the update reads the arrays.
class MaskableRecurrentRolloutBuffer(  # type: ignore[misc]
    recurrent.RecurrentRolloutBuffer, maskable.MaskableRolloutBuffer
):
    """contrib's recurrent buffer with the ``action_masks`` of its maskable one."""


class MaskableRecurrentDictRolloutBuffer(  # type: ignore[misc]
    recurrent.RecurrentDictRolloutBuffer, maskable.MaskableDictRolloutBuffer
):
    """The same for dict observations."""


class MaskableRecurrentTRPO(MaskableTRPO, RecurrentTRPO):
    """
    TRPO for policies with an LSTM, with invalid actions masked.

    The interface is that of :class:`~sb3_trpo.MaskableTRPO` and :class:`~sb3_trpo.RecurrentTRPO`
    together. Evaluate with :mod:`sb3_trpo.evaluation`, which keeps the LSTM's states.
    """

    policy_aliases: ClassVar[dict[str, Any]] = {
        "MlpLstmPolicy": MaskableMlpLstmPolicy,
        "CnnLstmPolicy": MaskableCnnLstmPolicy,
        "MultiInputLstmPolicy": MaskableMultiInputLstmPolicy,
    }
    policy_family = MaskableMlpLstmPolicy
    buffer_classes = (MaskableRecurrentRolloutBuffer, MaskableRecurrentDictRolloutBuffer)
