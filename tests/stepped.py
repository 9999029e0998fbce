"""
The slow, obvious twin of every evaluation: one state at a time, nothing padded or in a batch.

It walks through the arrays of a rollout buffer as the rollout did and calls the policy, with or
without LSTM and masks, once per state.
"""

from typing import Any

import torch as th

from tests import reference
from tests.cases import move_off_the_start


def collected(model: Any, float64: bool = True) -> Any:
    """
    Fill a model's buffer from the middle of episodes on, with weights off their start.

    :param model: not trained yet
    :param float64: whether its policy computes in float64 from then on
    :return: the model
    """
    move_off_the_start(model.policy)
    _, callback = model._setup_learn(1)
    for _ in range(2):
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    model.policy.set_training_mode(False)
    if float64:
        reference.run_in_float64(model.policy)
    return model


def states_of(model: Any) -> list[tuple[int, int]]:
    """List (step, env) of a model's rollout, one environment after the other."""
    return [(step, env) for env in range(model.n_envs) for step in range(model.n_steps)]


def per_state(model: Any, name: str) -> th.Tensor:
    """Read an array of the rollout buffer in the order of :func:`states_of`, in float64."""
    array = th.as_tensor(getattr(model.rollout_buffer, name)).double()
    return th.stack([array[place] for place in states_of(model)])


def _observation(model: Any, step: int, env: int) -> Any:
    """Take one observation out of the buffer."""
    observations = model.rollout_buffer.observations
    if isinstance(observations, dict):
        return {key: th.as_tensor(value[step, env])[None] for key, value in observations.items()}
    return th.as_tensor(observations[step, env])[None]


def distributions(model: Any) -> list[list[Any]]:
    """
    Evaluate the current policy at every state, in the order of :func:`states_of`.

    :param model: with a rollout whose buffer was not read by ``get``
    :return: for every state the torch distributions of its action
    """
    buffer = model.rollout_buffer
    dtype = next(model.policy.parameters()).dtype
    is_recurrent = hasattr(buffer, "hidden_states_pi")
    found = []
    memory: Any = None
    for step, env in states_of(model):
        if step == 0 and is_recurrent:
            arrays = buffer.hidden_states_pi, buffer.cell_states_pi
            memory = tuple(th.as_tensor(a[0, :, env : env + 1]).to(dtype) for a in arrays)
        start = th.as_tensor(buffer.episode_starts[step, env : env + 1])
        options = {}
        if hasattr(buffer, "action_masks"):
            options["action_masks"] = th.as_tensor(buffer.action_masks[step, env])[None]
        observation = _observation(model, step, env)
        if is_recurrent:
            answer = model.policy.get_distribution(observation, memory, start, **options)
            distribution, memory = answer
        else:
            distribution = model.policy.get_distribution(observation, **options)
        inner = getattr(distribution, "distributions", None) or distribution.distribution
        found.append(inner if isinstance(inner, list) else [inner])
    return found


def mean_kl(model: Any, old: list[list[Any]]) -> th.Tensor:
    """Compute D(θ) at the policy's current parameters."""
    total = th.zeros((), dtype=th.float64)
    for new_blocks, old_blocks in zip(distributions(model), old, strict=True):
        for new, before in zip(new_blocks, old_blocks, strict=True):
            total = total + th.distributions.kl_divergence(new, before).sum()
    return total / len(old)


def surrogate(model: Any) -> th.Tensor:
    """Compute L with normalised advantages."""
    advantages = per_state(model, "advantages").flatten()
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    actions, old_log_prob = per_state(model, "actions"), per_state(model, "log_probs").flatten()
    log_probs = []
    for blocks, action in zip(distributions(model), actions, strict=True):
        if len(blocks) > 1:
            pairs = zip(blocks, action.flatten(), strict=True)
            log_probs.append(sum(block.log_prob(part[None]).sum() for block, part in pairs))
        else:
            log_probs.append(blocks[0].log_prob(action).sum())
    return (th.exp(th.stack(log_probs) - old_log_prob) * advantages).mean()
