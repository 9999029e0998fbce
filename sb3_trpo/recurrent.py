"""TRPO for policies with an LSTM."""

from typing import Any, ClassVar

import torch as th
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from torch.nn.modules.batchnorm import _NormBase

from sb3_trpo.read_buffer import is_sb3_buffer
from sb3_trpo.trpo import TRPO


class RecurrentTRPO(TRPO):
    """
    TRPO for policies with an LSTM, with the interface of ``sb3_contrib.RecurrentPPO``.

    Episodes, or the parts of them that are in a rollout, are evaluated as whole sequences; the
    Fisher products are exact through the LSTM. A sequence starts from the LSTM's state in the
    rollout, which is a constant. ``sub_sampling_factor`` and ``fisher_sub_sampling_factor`` take
    every k-th sequence; ``max_states_per_chunk`` and ``batch_size`` are in whole sequences.

    The arguments are those of :class:`~sb3_trpo.TRPO`; ``policy`` is a class, or one of
    ``MlpLstmPolicy``, ``CnnLstmPolicy``, ``MultiInputLstmPolicy``.

    :raises ValueError: if the policy has no LSTM, squashes its actions or has batch normalisation,
        or if the rollout buffer has a ``get`` of its own
    """

    policy_aliases = RecurrentPPO.policy_aliases
    buffer_classes: ClassVar[tuple[Any, Any]] = (RecurrentRolloutBuffer, RecurrentDictRolloutBuffer)
    _collect: Any = RecurrentPPO.collect_rollouts

    def _build_buffer(self, **options: Any) -> None:
        """Build the rollout buffer, which has to know the LSTM, and the LSTM's first states."""
        policy: Any = self.policy
        if not isinstance(policy, RecurrentActorCriticPolicy):
            raise ValueError(
                f"The policy {type(policy).__name__} has no LSTM. Use TRPO, or a subclass of "
                f"sb3-contrib's RecurrentActorCriticPolicy."
            )
        if policy.squash_output:
            raise ValueError(
                "squash_output=True does not go with an LSTM: sb3-contrib's recurrent rollout "
                "does not scale squashed actions back to the action space. Leave it out."
            )
        if any(isinstance(m, _NormBase) and m.track_running_stats for m in policy.modules()):
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
                f"RecurrentRolloutBuffer without overriding get."
            )

    def _excluded_save_params(self) -> list[str]:
        """List what is not saved."""
        return [*super()._excluded_save_params(), "_last_lstm_states"]
