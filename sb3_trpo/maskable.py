"""TRPO with invalid actions masked."""

from functools import partial
from typing import Any, ClassVar, TypeVar

import numpy as np
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.trpo import TRPO

SelfMaskableTRPO = TypeVar("SelfMaskableTRPO", bound="MaskableTRPO")


class MaskableTRPO(TRPO):
    """
    TRPO with invalid actions masked, with the interface of ``sb3_contrib.MaskablePPO``.

    The environment says by its method ``action_masks`` which actions are allowed (see sb3-contrib's
    ``ActionMasker``). KL divergence, entropy and Fisher metric are those of the distribution over
    the allowed actions.

    The arguments are those of :class:`~sb3_trpo.TRPO`, but a ``target_kl`` and ``cg_damping`` that
    are not set are 0.01 and 0.1 for MultiBinary actions too; the action space is Discrete,
    MultiDiscrete or MultiBinary, and there is no gSDE.
    """

    policy_aliases = MaskablePPO.policy_aliases
    buffer_classes: ClassVar[tuple[Any, Any]] = (MaskableRolloutBuffer, MaskableDictRolloutBuffer)
    supported_action_spaces = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    averaged_action_spaces = ()  # masked bits are categorical, whose KL divergence is summed
    predict: Any = MaskablePPO.predict

    def learn(  # type: ignore[override] # the order is that of MaskablePPO
        self: SelfMaskableTRPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "MaskableTRPO",
        reset_num_timesteps: bool = True,
        use_masking: bool = True,
        progress_bar: bool = False,
    ) -> SelfMaskableTRPO:
        """
        Train as :meth:`TRPO.learn` does.

        :param use_masking: whether to ask the environment for masks
        :return: the trained model
        """
        learn: Any = MaskablePPO.learn
        model: SelfMaskableTRPO = learn(
            *(self, total_timesteps, callback, log_interval, tb_log_name),
            *(reset_num_timesteps, use_masking, progress_bar),
        )
        return model

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: Any,
        n_rollout_steps: int,
        use_masking: bool = True,
    ) -> bool:
        """
        Collect a rollout as :meth:`TRPO.collect_rollouts` does, with masks at every step.

        :param use_masking: whether to ask the environment for masks
        :raises ValueError: if the environment has no masks, or one that allows no action
        """
        arguments = (env, callback, rollout_buffer, n_rollout_steps)
        if not use_masking:
            return super().collect_rollouts(*arguments)
        if not is_masking_supported(env):
            raise ValueError(
                "The environment has no method action_masks. Wrap it in sb3-contrib's "
                "ActionMasker, or pass use_masking=False."
            )
        masking = _Masking(self, env, rollout_buffer)
        handle = self.policy.register_forward_pre_hook(masking, with_kwargs=True)
        try:
            return super().collect_rollouts(*arguments)
        finally:
            handle.remove()


class _Masking:
    """
    Hands an environment's masks to the policy and to the buffer, before each step of a rollout.

    Calls of the policy between a step and the buffer's record of it are a callback's, with masks of
    its own. Copies and pickles of the policy, which may have no environment, get no masks from it.

    :param model: collects the rollout
    :param env: training environment
    :param buffer: rollout buffer
    """

    def __init__(self, model: TRPO, env: VecEnv, buffer: Any) -> None:
        self._model, self._env, self._buffer = model, env, buffer
        self._start = model.num_timesteps

    def __call__(self, policy: Any, inputs: Any, options: dict[str, Any]) -> Any:
        """Add the masks to what the policy's forward pass is called with."""
        buffer = self._buffer
        stepped = self._model.num_timesteps != self._start + buffer.pos * buffer.n_envs
        if buffer.full or stepped or "action_masks" in options:
            return None
        masks = get_action_masks(self._env).reshape(buffer.n_envs, buffer.mask_dims)
        _check(masks, getattr(policy.action_dist, "action_dims", [buffer.mask_dims]), buffer.pos)
        buffer.action_masks[buffer.pos] = masks
        return inputs, {**options, "action_masks": masks}

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Give a copy of the policy a hook that does nothing."""
        return _leave_alone

    def __reduce__(self) -> tuple[Any, ...]:
        """Give an unpickled policy a hook that does nothing."""
        return partial, (_leave_alone,)


def _leave_alone(policy: Any, inputs: Any, options: dict[str, Any]) -> None:
    """Change nothing about a call."""


def _check(masks: np.ndarray, sizes: list[int], step: int) -> None:
    """Refuse masks of which one leaves an action dimension, a block of columns, without a value."""
    for dimension, block in enumerate(np.split(masks, np.cumsum(sizes)[:-1], axis=1)):
        if not block.any(axis=1).all():
            env = int(block.any(axis=1).argmin())
            raise ValueError(
                f"The action mask of (step, env) = ({step}, {env}) allows no value of action "
                f"dimension {dimension}: {block[env]}. Let the environment allow at least one, or "
                f"end the episode before. Parameters and optimizer are unchanged."
            )
