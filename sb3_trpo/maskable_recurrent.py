"""TRPO for policies with an LSTM, with invalid actions masked."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

import torch as th
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer
from sb3_contrib.common.maskable.distributions import (
    MaskableDistribution,
    make_masked_proba_distribution,
)
from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticCnnPolicy,
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import Distribution, MultiCategoricalDistribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule

from sb3_trpo.maskable import MaskableTRPO, block_sizes
from sb3_trpo.recurrent import RecurrentTRPO
from sb3_trpo.rollout import attribute


def _masked(method: Callable[..., Any]) -> Callable[..., Any]:
    """Give a method of a recurrent policy the argument ``action_masks``."""

    @wraps(method)
    def call(self: Any, *arguments: Any, action_masks: Any = None, **options: Any) -> Any:
        if action_masks is None:  # none at all, or called by another method that has set them
            return method(self, *arguments, **options)
        with attribute(self, "action_masks", action_masks):
            return method(self, *arguments, **options)

    return call


class _Masks(RecurrentActorCriticPolicy):
    """
    What makes a recurrent policy of sb3-contrib maskable.

    ``forward``, ``get_distribution``, ``evaluate_actions`` and ``predict`` are sb3-contrib's with
    one more argument, ``action_masks``, which is in force as long as the call lasts.
    """

    action_masks: Any = None
    forward = _masked(RecurrentActorCriticPolicy.forward)
    get_distribution = _masked(RecurrentActorCriticPolicy.get_distribution)
    evaluate_actions = _masked(RecurrentActorCriticPolicy.evaluate_actions)
    predict = _masked(RecurrentActorCriticPolicy.predict)

    def _build(self, lr_schedule: Schedule) -> None:
        """Build the networks with as many logits as there are columns in a mask."""
        sizes = block_sizes(self.action_space)
        self.action_dist: Any = MultiCategoricalDistribution(sizes)
        super()._build(lr_schedule)
        self.action_dist = make_masked_proba_distribution(self.action_space)

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
        """Make the distribution over the allowed actions."""
        logits = self.action_net(latent_pi)
        distribution: MaskableDistribution = self.action_dist.proba_distribution(logits)
        distribution.apply_masking(self.action_masks)
        return distribution


class MaskableMlpLstmPolicy(_Masks):
    """sb3-contrib's ``MlpLstmPolicy`` with action masks."""


class MaskableCnnLstmPolicy(_Masks, RecurrentActorCriticCnnPolicy):
    """sb3-contrib's ``CnnLstmPolicy`` with action masks."""


class MaskableMultiInputLstmPolicy(_Masks, RecurrentMultiInputActorCriticPolicy):
    """sb3-contrib's ``MultiInputLstmPolicy`` with action masks."""


class MaskableRecurrentRolloutBuffer(RecurrentRolloutBuffer, MaskableRolloutBuffer):  # type: ignore[misc]
    """sb3-contrib's recurrent buffer with the ``action_masks`` of its maskable one."""


class MaskableRecurrentDictRolloutBuffer(  # type: ignore[misc]
    RecurrentDictRolloutBuffer, MaskableDictRolloutBuffer
):
    """The same for dict observations."""


class MaskableRecurrentTRPO(MaskableTRPO, RecurrentTRPO):
    """
    TRPO for policies with an LSTM, with invalid actions masked.

    The interface is that of both :class:`~sb3_trpo.MaskableTRPO` and
    :class:`~sb3_trpo.RecurrentTRPO`: ``predict`` takes and returns the LSTM's states and takes
    ``action_masks``. Evaluate it with :func:`sb3_trpo.evaluation.evaluate_policy`, which keeps the
    states (sb3-contrib's maskable evaluation drops them).

    ``policy`` is a class, or one of ``MlpLstmPolicy``, ``CnnLstmPolicy``,
    ``MultiInputLstmPolicy``.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpLstmPolicy": MaskableMlpLstmPolicy,
        "CnnLstmPolicy": MaskableCnnLstmPolicy,
        "MultiInputLstmPolicy": MaskableMultiInputLstmPolicy,
    }
    buffer_classes: ClassVar[tuple[type[RolloutBuffer], type[RolloutBuffer]]] = (
        MaskableRecurrentRolloutBuffer,
        MaskableRecurrentDictRolloutBuffer,
    )
