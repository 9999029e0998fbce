"""TRPO with invalid actions masked."""

from typing import Any, ClassVar, TypeVar, cast

import numpy as np
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from sb3_contrib.ppo_mask.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.rollout import PolicyForward, attribute
from sb3_trpo.trpo import TRPO

SelfMaskableTRPO = TypeVar("SelfMaskableTRPO", bound="MaskableTRPO")


class MaskableTRPO(TRPO):
    """
    TRPO with invalid actions masked, with the interface of ``sb3_contrib.MaskablePPO``.

    The environment says by its method ``action_masks`` which actions are allowed (see sb3-contrib's
    ``ActionMasker``). KL divergence, entropy and Fisher metric are those of the distribution over
    the allowed actions.

    The arguments are those of :class:`~sb3_trpo.TRPO`, except that there is no gSDE; the action
    space is Discrete, MultiDiscrete or MultiBinary.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    buffer_classes: ClassVar[tuple[type[RolloutBuffer], type[RolloutBuffer]]] = (
        MaskableRolloutBuffer,
        MaskableDictRolloutBuffer,
    )
    supported_action_spaces: ClassVar[tuple[type[spaces.Space[Any]], ...]] = (
        spaces.Discrete,
        spaces.MultiDiscrete,
        spaces.MultiBinary,
    )
    # The types of contrib's `predict` are its own.
    predict: Any = MaskablePPO.predict

    def _check_hyperparameters(self) -> None:
        """Refuse what cannot work."""
        super()._check_hyperparameters()
        if self.use_sde:
            raise ValueError("use_sde=True needs continuous actions, which cannot be masked.")

    def _policy_options(self) -> dict[str, Any]:
        """Return nothing: contrib's maskable policies know no gSDE."""
        return {}

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
        use_masking: bool = True,
    ) -> bool:
        """
        Collect a rollout, with masks at every step.

        :param env: training environment
        :param callback: called at every step, and at the start and the end of the rollout
        :param rollout_buffer: buffer to fill
        :param n_rollout_steps: steps per environment
        :param use_masking: whether to ask the environment for masks
        :return: whether the callback let the rollout come to its end
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
        forward = _MaskedForward(self.policy, env, rollout_buffer)
        with attribute(self.policy, "forward", forward):
            return super().collect_rollouts(*arguments)

    def learn(  # type: ignore[override] # as contrib's
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
        Train.

        :param total_timesteps: environment steps, rounded up to whole rollouts
        :param callback: called at every step
        :param log_interval: updates between two dumps of the log
        :param tb_log_name: name of the run in TensorBoard
        :param reset_num_timesteps: whether to count the steps from 0 again
        :param use_masking: whether to ask the environment for masks
        :param progress_bar: whether to show one (needs tqdm and rich)
        :return: the trained model
        """
        learn: Any = MaskablePPO.learn
        learn(
            self,
            total_timesteps,
            callback,
            log_interval,
            tb_log_name,
            reset_num_timesteps,
            use_masking,
            progress_bar,
        )
        return self


class _MaskedForward(PolicyForward):
    """
    A maskable policy's forward pass on the environment's masks, which the buffer keeps.

    :param policy: acts
    :param env: is asked for its masks at every step
    :param buffer: of the rollout
    """

    def __init__(self, policy: Any, env: VecEnv, buffer: Any) -> None:
        super().__init__(policy)
        self._act = policy.forward
        self._env, self._buffer = env, buffer
        self._step = -1

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Act once per step of the rollout; other calls are a callback's, with masks of its own."""
        buffer = self._buffer
        if self._step != buffer.pos:
            self._step = buffer.pos
            masks = get_action_masks(self._env).reshape(buffer.n_envs, buffer.mask_dims)
            check_masks(masks, buffer.action_space, buffer.pos)
            buffer.action_masks[buffer.pos] = masks
            options["action_masks"] = masks
        return self._act(*inputs, **options)


def check_masks(masks: np.ndarray, action_space: spaces.Space[Any], step: int) -> None:
    """
    Refuse masks that leave no action.

    :param masks: of all environments, shape ``(n_envs, logits)``
    :param action_space: the masks have a block of columns for each of its actions
    :param step: of the rollout
    :raises ValueError: naming the (step, env)
    """
    sizes = block_sizes(action_space)
    for dimension, block in enumerate(np.split(masks, np.cumsum(sizes)[:-1], axis=1)):
        for env in np.flatnonzero(~block.astype(bool).any(axis=1)):
            raise ValueError(
                f"The action mask of (step, env) = ({step}, {env}) allows no value of action "
                f"dimension {dimension}: {block[env]}. Every state needs an allowed action; end "
                f"the episode where there is none. Parameters and optimizer are unchanged."
            )


def block_sizes(action_space: spaces.Space[Any]) -> list[int]:
    """
    List the number of values of each action dimension.

    :param action_space: Discrete, MultiDiscrete or MultiBinary
    :return: one for Discrete; of two values each for MultiBinary
    """
    if isinstance(action_space, spaces.MultiDiscrete):
        return [int(size) for size in action_space.nvec]
    if isinstance(action_space, spaces.MultiBinary):
        return [2] * int(np.prod(action_space.shape))
    return [int(cast(spaces.Discrete, action_space).n)]
