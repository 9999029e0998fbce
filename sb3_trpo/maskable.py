"""TRPO with invalid actions masked."""

from typing import Any, ClassVar, TypeVar, cast

import numpy as np
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo._hyperparameters import check_learn
from sb3_trpo.trpo import TRPO

SelfMaskableTRPO = TypeVar("SelfMaskableTRPO", bound="MaskableTRPO")


class MaskableTRPO(TRPO):
    """
    TRPO with invalid actions masked, with the interface of ``sb3_contrib.MaskablePPO``.

    The environment's method ``action_masks`` returns which actions are allowed (see sb3-contrib's
    ``ActionMasker``). KL divergence, entropy and Fisher metric are those of the distribution over
    the allowed actions.

    The arguments are those of :class:`~sb3_trpo.TRPO`. The defaults of ``target_kl`` and
    ``cg_damping`` are 0.01 and 0.1 for MultiBinary actions too. The action space is Discrete,
    MultiDiscrete or MultiBinary, and there is no gSDE.
    """

    policy_aliases = MaskablePPO.policy_aliases
    needs_own_buffer = True
    buffer_classes: ClassVar[tuple[Any, Any]] = (MaskableRolloutBuffer, MaskableDictRolloutBuffer)
    supported_action_spaces = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    averaged_action_spaces = ()  # masked bits are categorical, whose KL divergence is summed
    policy_family: ClassVar[Any] = MaskableActorCriticPolicy
    other_families = ()
    has_sde = False
    predict: Any = MaskablePPO.predict
    _use_masking = True

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
        with self._processes.together():
            check_learn(total_timesteps, log_interval)
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
        self._use_masking = use_masking
        return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)

    def _start_rollout(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer
    ) -> None:
        """Refuse an environment without masks, then start."""
        if self._use_masking and not is_masking_supported(env):
            raise ValueError(
                "The environment has no method action_masks. Wrap it in sb3-contrib's "
                "ActionMasker, or pass use_masking=False."
            )
        super()._start_rollout(env, callback, rollout_buffer)

    def _act(self, env: VecEnv, forward: Any, obs_tensor: Any, **context: Any) -> Any:
        """Sample among the allowed actions."""
        if self._use_masking:
            masks = get_action_masks(env).reshape(env.num_envs, -1)
            _check(masks, _mask_sizes(self.action_space), self.rollout_buffer.pos)
            context["action_masks"] = masks
        return super()._act(env, forward, obs_tensor, **context)


def _mask_sizes(space: spaces.Space[Any]) -> list[int]:
    """List the number of values of each action dimension."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return [int(size) for size in space.nvec.flatten()]
    return [2] * int(np.prod(cast(tuple[int, ...], space.shape)))


def _check(masks: np.ndarray, sizes: list[int], step: int) -> None:
    """Raise if a mask allows no value of some action dimension, a block of columns."""
    if masks.shape[1] != sum(sizes):
        raise ValueError(
            f"action_masks returned {masks.shape[1]} values per environment, and the action space "
            f"has {sum(sizes)}: {sizes}. Return one value for each."
        )
    for dimension, block in enumerate(np.split(masks, np.cumsum(sizes)[:-1], axis=1)):
        if not block.any(axis=1).all():
            env = int(block.any(axis=1).argmin())
            raise ValueError(
                f"The action mask of (step, env) = ({step}, {env}) allows no value of action "
                f"dimension {dimension}: {block[env]}. Let the environment allow at least one, or "
                f"end the episode before. Parameters and optimizer are unchanged."
            )
