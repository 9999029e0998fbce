"""The critic's fit: minibatch regression of the returns, with every actor parameter held."""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.nn import functional as F

from sb3_trpo.actor import training_mode
from sb3_trpo.batch import Minibatch
from sb3_trpo.vectors import flatten


@dataclass(frozen=True)
class CriticFit:
    """
    The result of a fit.

    :param loss: mean squared error over all minibatches; NaN where there were none
    :param diverged: whether a parameter stopped being finite, in which case the fit was undone
    """

    loss: float
    diverged: bool


def fit_critic(
    policy: ActorCriticPolicy,
    minibatches: Iterable[Minibatch],
    actor_parameters: Iterable[nn.Parameter],
    actor_modules: frozenset[nn.Module],
) -> CriticFit:
    """
    Take one optimizer step on the mean squared error of every minibatch.

    Parameters of the actor get no gradient, so that ``policy.optimizer`` passes them over. Modules
    that the actor runs through stay in evaluation mode, all others are in training mode. If a
    parameter is not finite at the end, parameters and optimizer are put back as they were.

    :param policy: its ``optimizer`` holds all parameters
    :param minibatches: pairs of observations and returns
    :param actor_parameters: what must not move
    :param actor_modules: modules that the actor runs through
    :return: the loss
    """
    held = {id(parameter) for parameter in actor_parameters}
    parameters = [p for p in policy.parameters() if p.requires_grad and id(p) not in held]
    before = _Snapshot(parameters, policy.optimizer)
    policy.optimizer.zero_grad(set_to_none=True)
    with (
        training_mode([module for module in policy.modules() if module not in actor_modules]),
        th.enable_grad(),
    ):
        losses = [_step(policy, parameters, minibatch) for minibatch in minibatches]
    policy.optimizer.zero_grad(set_to_none=True)
    loss = float(th.stack(losses).mean()) if losses else math.nan
    diverged = bool(parameters) and not bool(flatten(parameters).isfinite().all())
    if diverged:
        before.restore()
    return CriticFit(loss, diverged)


def _step(
    policy: ActorCriticPolicy, parameters: Sequence[nn.Parameter], minibatch: Minibatch
) -> th.Tensor:
    """Descend on one minibatch and return its loss before the step."""
    observations, returns = minibatch
    losses: list[th.Tensor] = []

    def closure() -> float:
        loss = F.mse_loss(policy.predict_values(observations).flatten(), returns)
        slopes = (
            th.autograd.grad(loss, parameters, allow_unused=True)
            if loss.requires_grad and parameters
            else ()
        )
        for parameter, slope in zip(parameters, slopes, strict=False):
            parameter.grad = slope
        losses.append(loss.detach())
        return cast(float, loss)  # torch's annotation; a number would wait for the device

    # Optimizers such as LBFGS evaluate the loss several times in a step.
    policy.optimizer.step(closure)
    return losses[0]


class _Snapshot:
    """A copy of parameters and optimizer state that can be put back."""

    def __init__(self, parameters: Sequence[nn.Parameter], optimizer: th.optim.Optimizer) -> None:
        self._parameters = parameters
        self._values = [parameter.detach().clone() for parameter in parameters]
        self._optimizer = optimizer
        self._state: dict[str, Any] = copy.deepcopy(optimizer.state_dict())

    @th.no_grad()
    def restore(self) -> None:
        """Put everything back."""
        for parameter, value in zip(self._parameters, self._values, strict=True):
            parameter.copy_(value)
        self._optimizer.load_state_dict(self._state)
