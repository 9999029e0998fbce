"""TRPO for policies with an LSTM."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch as th
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo._read_buffer import is_sb3_buffer
from sb3_trpo._running_statistics import has_running_statistics, modules_in_training
from sb3_trpo.trpo import TRPO


class RecurrentTRPO(TRPO):
    """
    TRPO for policies with an LSTM, with the interface of ``sb3_contrib.RecurrentPPO``.

    Episodes, or the parts of them that are in a rollout, are evaluated as whole sequences; the
    Fisher products are exact through the LSTM. A sequence starts from the LSTM's state in the
    rollout, which is a constant. ``sub_sampling_factor`` and ``fisher_sub_sampling_factor`` take
    every k-th sequence; ``max_states_per_chunk`` and ``batch_size`` count the states of whole
    sequences.

    The arguments are those of :class:`~sb3_trpo.TRPO`; ``policy`` is a class, or one of
    ``MlpLstmPolicy``, ``CnnLstmPolicy``, ``MultiInputLstmPolicy``.

    :raises ValueError: if the policy has no LSTM, squashes its actions or has batch normalisation,
        or if the rollout buffer overrides ``get``, ``_get_samples`` or ``to_torch``
    """

    policy_aliases = RecurrentPPO.policy_aliases
    policy_family: ClassVar[Any] = RecurrentActorCriticPolicy
    other_families = ()
    needs_own_buffer = True
    buffer_classes: ClassVar[tuple[Any, Any]] = (RecurrentRolloutBuffer, RecurrentDictRolloutBuffer)

    def _build_buffer(self, **options: Any) -> None:
        """Build the rollout buffer, which has to know the LSTM, and the LSTM's first states."""
        policy: Any = self.policy
        if policy.squash_output:
            raise ValueError(
                "squash_output=True does not go with an LSTM: sb3-contrib's recurrent rollout "
                "does not scale squashed actions back to the action space. Leave it out."
            )
        if any(map(has_running_statistics, modules_in_training(policy))):
            raise ValueError(
                "Batch normalisation does not go with an LSTM: its running statistics would take "
                "in the padding of the sequences. Use nn.LayerNorm."
            )
        lstm = policy.lstm_actor
        shape = (lstm.num_layers, self.n_envs, lstm.hidden_size)
        hidden, cell = th.zeros(2, *shape, device=self.device)
        self._last_lstm_states = RNNStates((hidden, cell), (hidden, cell))
        super()._build_buffer(hidden_state_shape=(self.n_steps, *shape), **options)
        if not is_sb3_buffer(self.rollout_buffer):
            raise ValueError(
                f"{type(self.rollout_buffer).__name__} hands out samples in its own way, in which "
                f"the sequences of an LSTM cannot be found. Subclass sb3-contrib's "
                f"RecurrentRolloutBuffer without overriding get, _get_samples or to_torch."
            )

    def _act(self, env: VecEnv, forward: Any, obs_tensor: Any, **context: Any) -> Any:
        """Sample actions with the LSTM's states, which start anew with an episode."""
        starts = th.as_tensor(self._last_episode_starts, dtype=th.float32, device=self.device)
        forward = partial(forward, episode_starts=starts)
        states = self._last_lstm_states
        return super()._act(env, forward, obs_tensor, lstm_states=states, **context)

    def _values(
        self,
        obs_tensor: Any,
        lstm_states: Any,
        episode_starts: np.ndarray,
        envs: slice | Sequence[int],
    ) -> th.Tensor:
        """Predict values with the critic's states of these environments."""
        policy: Any = self.policy
        states = tuple(state[:, envs].contiguous() for state in lstm_states.vf)
        starts = th.as_tensor(episode_starts, dtype=th.float32, device=self.device)
        values: th.Tensor = policy.predict_values(obs_tensor, states, starts)
        return values
