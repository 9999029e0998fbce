"""Fit the critic: minibatch regression on the returns, while the actor's parameters are held."""

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from sb3_trpo._batch import Features, Minibatch, size_of
from sb3_trpo._mlp import Tape, flat_features, pairs_of, preprocessed
from sb3_trpo._plain import Mlp, read_plain
from sb3_trpo._processes import ALONE, Processes
from sb3_trpo._running_statistics import (
    Buffers,
    modules_in_training,
    training_mode,
    uses_the_minibatch,
)
from sb3_trpo._sequences import Observations, select
from sb3_trpo._vectors import unflatten

# Number of states that a fixed features extractor evaluates at a time.
_STATES_PER_PASS = 512

# A number would be made a tensor again for every step counter.
_ONE = th.ones(())

# Computes a minibatch's loss and writes its gradient into the parameters' ``grad``.
Loss = Callable[[Features, th.Tensor], th.Tensor]
# Computes the loss of the minibatch at hand, as above.
Evaluate = Callable[[], th.Tensor]


@dataclass(frozen=True)
class CriticFit:
    """
    The result of a fit.

    :param loss: mean of the minibatches' mean squared errors, each before its step; NaN if there
        were no minibatches
    :param diverged: whether a parameter, a running statistic or the optimizer's state became
        infinite or NaN, in which case the fit was undone
    """

    loss: float
    diverged: bool


@dataclass(frozen=True, eq=False)
class Critic:
    """
    The parts of a policy that the fit uses. :func:`read_critic` makes one for each update.

    :param policy: its ``optimizer`` takes the steps
    :param parameters: the parameters that the fit may move
    :param modules: the modules in training mode during the fit
    :param trunk: the critic's features extractor if its output is the same throughout the fit, else
        ``None``
    :param mlp: the value network if it is a plain one and its parameters are all that the fit
        moves, else ``None``; the fit then needs no autograd
    :param max_states_per_chunk: number of states of a minibatch that are evaluated at a time;
        ``None`` for all, as batch normalisation needs it
    :param least_states: the smallest minibatch: batch normalisation has no variance of a single
        state
    """

    policy: ActorCriticPolicy
    parameters: tuple[nn.Parameter, ...]
    modules: tuple[nn.Module, ...]
    trunk: nn.Module | None
    mlp: Mlp | None
    max_states_per_chunk: int | None = None
    least_states: int = 1

    @th.no_grad()
    def features(self, observations: Observations) -> Observations:
        """
        Compute once what is the same in every epoch.

        :param observations: any number of states
        :return: their features; the observations themselves if the fit moves the extractor
        """
        if self.mlp is not None:
            return flat_features(self.policy, observations)
        if self.trunk is None:
            return observations
        starts = range(0, size_of(observations), _STATES_PER_PASS)
        parts = [select(observations, slice(start, start + _STATES_PER_PASS)) for start in starts]
        return th.cat([self.trunk(preprocessed(self.policy, part)) for part in parts])

    def values(self, features: Features) -> th.Tensor:
        """
        Evaluate the critic.

        :param features: the features of n states, or sequences of n states in total
        :return: the values, shape ``(n,)``
        """
        if isinstance(features, tuple):
            inputs, states = features
            # A recurrent policy also takes the states of its LSTM.
            values: th.Tensor = self.policy.predict_values(*inputs)  # type: ignore[call-arg]
            return values.flatten()[states]
        if self.trunk is None:
            return self.policy.predict_values(features).flatten()
        latent = self.policy.mlp_extractor.forward_critic(cast(th.Tensor, features))
        return cast(th.Tensor, self.policy.value_net(latent)).flatten()


def read_critic(
    policy: ActorCriticPolicy,
    actor_parameters: Iterable[nn.Parameter],
    actor_modules: frozenset[nn.Module],
    max_states_per_chunk: int | None = None,
    processes: Processes = ALONE,
) -> Critic:
    """
    Find the parameters and modules that only the critic uses.

    The actor's parameters are held. Modules that the actor uses stay in evaluation mode, and so
    does a features extractor that the fit does not move.

    :param policy: a policy in evaluation mode
    :param actor_parameters: the parameters that must not move
    :param actor_modules: the modules that the actor uses
    :param max_states_per_chunk: number of states that fit into memory; ``None`` for any
    :param processes: that fit copies of this critic together
    :return: the critic
    """
    held = set(actor_parameters)
    parameters = tuple(p for p in policy.parameters() if p.requires_grad and p not in held)
    trunk = _fixed_trunk(policy, held, actor_modules)
    still = actor_modules | frozenset([] if trunk is None else trunk.modules())
    critics = [module for module in policy.modules() if module not in still]
    in_training = modules_in_training(policy)
    modules = tuple(module for module in critics if module in in_training)
    plain = read_plain(policy)
    mlp = None if plain is None else plain.critic
    is_whole = mlp is not None and set(mlp.parameters) == set(parameters)
    least_states = 1
    if any(uses_the_minibatch(module, module in in_training) for module in critics):
        max_states_per_chunk, least_states = None, 2
    # In one process, something may watch a module.
    mlp = mlp if processes.all(is_whole) else None
    return Critic(policy, parameters, modules, trunk, mlp, max_states_per_chunk, least_states)


def _fixed_trunk(
    policy: ActorCriticPolicy, held: set[nn.Parameter], actor_modules: frozenset[nn.Module]
) -> nn.Module | None:
    """Return the critic's features extractor if nothing in the fit can change its output."""
    flow = (ActorCriticPolicy.predict_values, ActorCriticPolicy.extract_features)
    kind = type(policy)  # the class of a compiled policy has neither method
    own = (getattr(kind, "predict_values", None), getattr(kind, "extract_features", None))
    if own != flow or "predict_values" in vars(policy):
        return None
    trunk = cast(nn.Module, policy.vf_features_extractor)
    parameters = list(trunk.parameters())
    is_held = all(p in held or not p.requires_grad for p in parameters)
    # That no parameter moves is not enough: in training mode, running statistics and dropout also
    # change the output. The actor's modules, and those of a frozen extractor, are not in it.
    is_actors = all(module in actor_modules for module in trunk.modules())
    is_frozen = bool(parameters) and not any(p.requires_grad for p in parameters)
    is_stateless = not parameters and type(trunk) in (FlattenExtractor, CombinedExtractor)
    return trunk if is_held and (is_actors or is_frozen or is_stateless) else None


def fit_critic(
    critic: Critic, minibatches: Iterable[Minibatch], processes: Processes = ALONE
) -> CriticFit:
    """
    Take one optimizer step on the mean squared error of every minibatch.

    The fit is undone if a minibatch raises, or if a number is not finite at the end: parameters,
    running statistics and the optimizer's state are then as they were before.

    :param critic: the part of the policy to fit
    :param minibatches: pairs of features (see :meth:`Critic.features`) and returns
    :param processes: that fit copies of this critic together: each passes as many minibatches, its
        shares of those that the steps are taken on
    :return: the loss, and whether the fit was undone
    """
    optimizer = critic.policy.optimizer
    buffers = Buffers(critic.policy, critic.modules)
    loss = _loss_by_autograd(critic) if critic.mlp is None else _loss_in_closed_form(critic.mlp)
    if processes.size > 1:
        loss = _loss_of_all(loss, critic, processes)
    least = critic.least_states if processes.size == 1 else 1
    # An optimizer moves whatever has a gradient. From now on only the critic's parameters get one.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
    with training_mode(critic.modules):  # in which weights that are merged elsewhere are apart
        state = _State(critic.parameters, buffers, optimizer)
        try:
            with _fused(optimizer):
                descend = _descent_of(optimizer)
                usable = (minibatch for minibatch in minibatches if len(minibatch[1]) >= least)
                losses = [descend(partial(loss, *minibatch)) for minibatch in usable]
        except BaseException:
            state.restore()
            raise
        finally:
            for parameter in critic.parameters:
                parameter.grad = None
        buffers.average(processes)
        diverged = not processes.all(state.is_finite())
        if diverged:
            state.restore()
    # Averaged at the end, so that an accelerator is waited for only once.
    return CriticFit(float(th.stack(losses).mean()) if losses else math.nan, diverged)


def _descent_of(optimizer: th.optim.Optimizer) -> Callable[[Evaluate], th.Tensor]:
    """Return a function that takes a step on one minibatch and returns its loss before the step."""
    if _needs_closure(optimizer):
        return partial(_descend_by_closure, optimizer)
    return partial(_descend, _step_of(optimizer))


def _needs_closure(optimizer: th.optim.Optimizer) -> bool:
    """Return whether an optimizer evaluates the loss itself, several times in a step."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    is_required = closure is not None and closure.default is inspect.Parameter.empty
    return is_required or isinstance(optimizer, th.optim.LBFGS)


def _descend(step: Callable[[], Any], evaluate: Evaluate) -> th.Tensor:
    """Take a step along the gradient, as SB3 does."""
    loss = evaluate()
    step()
    return loss


def _descend_by_closure(optimizer: th.optim.Optimizer, evaluate: Evaluate) -> th.Tensor:
    """Take a step of an optimizer that needs the loss at several points."""
    losses: list[th.Tensor] = []

    def closure() -> float:
        losses.append(evaluate())
        return cast(float, losses[-1])  # torch's annotation; a number would wait for the device

    optimizer.step(closure)
    return losses[0]


def _loss_by_autograd(critic: Critic) -> Loss:
    """Return the loss of any critic."""

    @th.enable_grad()
    def loss(features: Features, returns: th.Tensor) -> th.Tensor:
        error = F.mse_loss(critic.values(features), returns)
        if error.requires_grad and critic.parameters:
            for parameter in critic.parameters:
                parameter.grad = None
            # Without its inputs named, the actor's parameters would have a gradient, too.
            th.autograd.backward(error, inputs=critic.parameters)
        return error.detach()

    return loss if critic.max_states_per_chunk is None else _in_chunks(loss, critic)


def _in_chunks(loss: Loss, critic: Critic) -> Loss:
    """Return the loss that evaluates no more states at a time than fit; sequences are not cut."""
    most = cast(int, critic.max_states_per_chunk)

    def mean(features: Features, returns: th.Tensor) -> th.Tensor:
        n = len(returns)
        if n <= most or isinstance(features, tuple):
            return loss(features, returns)
        total, gradients = returns.new_zeros(()), _Gradients(critic.parameters)
        for start in range(0, n, most):
            part = slice(start, start + most)
            share = len(returns[part]) / n
            total += share * loss(select(features, part), returns[part])
            gradients.add(share)
        gradients.write()
        return total

    return mean


class _Gradients:
    """
    A weighted sum of the parameters' gradients.

    :param parameters: whose ``grad`` is read and written
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._sums: dict[nn.Parameter, th.Tensor] = {}

    def add(self, weight: float) -> None:
        """Add the present gradients, multiplied by a weight."""
        for parameter in self._parameters:
            if parameter.grad is not None:
                share = weight * parameter.grad
                known = self._sums.get(parameter)
                self._sums[parameter] = share if known is None else known.add_(share)

    def write(self) -> None:
        """Make the sums the parameters' gradients."""
        for parameter, gradient in self._sums.items():
            parameter.grad = gradient


def _loss_in_closed_form(mlp: Mlp) -> Loss:
    """Return the loss of a plain network, whose gradient takes less time than by autograd."""
    parameters = mlp.parameters
    weights = mlp.weights
    gradients = [th.empty_like(parameter) for parameter in parameters]
    tapes: dict[int, Tape] = {}

    @th.no_grad()
    def loss(features: Features, returns: th.Tensor) -> th.Tensor:
        size = len(returns)
        tape = tapes.get(size) or tapes.setdefault(size, Tape(mlp, weights, size))
        # L = Σ (V - R)² / n, dL/dV = 2 (V - R) / n, dL/dθ = Jᵀ dL/dV
        values = tape.forward(cast(th.Tensor, features))
        error = values.squeeze(1).sub_(returns)
        mean_squared_error = th.dot(error, error) / size
        tape.cotangent(values.mul_(2 / size), pairs_of(gradients))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return mean_squared_error

    return loss


def _loss_of_all(loss: Loss, critic: Critic, processes: Processes) -> Loss:
    """Return the loss whose states, and those of its gradient, are shared among processes."""
    parameters = critic.parameters
    # Some parts may run for the states of one process only. In closed form, all run for all.
    flagged = () if critic.mlp is not None else parameters
    messages: list[tuple[th.Tensor, tuple[th.Tensor, ...]]] = []

    def mean(features: Features, returns: th.Tensor) -> th.Tensor:
        own = loss(features, returns).reshape(1)
        if not messages:
            messages.append(_message_of(own, parameters, len(flagged)))
        message, slopes = messages[0]
        gradients = [
            own.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in parameters
        ]
        flags = own.new_tensor([float(parameter.grad is not None) for parameter in flagged])
        th.cat([own, *gradients, flags, own.new_ones(1)], out=message).mul_(len(returns))
        processes.average(message)
        ran = message[-1 - len(flagged) : -1].tolist() if flagged else [1.0] * len(parameters)
        for parameter, slope, share in zip(parameters, slopes, ran, strict=True):
            parameter.grad = slope if share > 0 else None
        return message[0].clone()

    return mean


def _message_of(
    loss: th.Tensor, parameters: Sequence[nn.Parameter], n_flags: int
) -> tuple[th.Tensor, tuple[th.Tensor, ...]]:
    """Make room for a loss, its gradient, flags and the number of states; and views of it."""
    size = sum(parameter.numel() for parameter in parameters)
    message = loss.new_empty(1 + size + n_flags + 1)
    return message, unflatten(message[1 : 1 + size], parameters)


@contextmanager
def _fused(optimizer: th.optim.Optimizer) -> Iterator[None]:
    """
    Use Adam's fused kernel within the block, on the CPU only.

    Nothing changes if the user has switched an implementation on. On an accelerator nothing changes
    either: the fused kernel there needs the step counters on the device.
    """
    choices = ("fused", "foreach", "capturable", "differentiable")
    groups = [
        group
        for group in optimizer.param_groups
        if type(optimizer) in (th.optim.Adam, th.optim.AdamW)
        and not any(group[choice] for choice in choices)
        and group["fused"] is None
        and all(p.is_cpu and p.is_floating_point() for p in group["params"])
    ]
    for group in groups:
        group["fused"] = True
    try:
        yield
    finally:
        for group in groups:
            group["fused"] = None


def _step_of(optimizer: th.optim.Optimizer) -> Callable[[], Any]:
    """
    Return the optimizer's ``step``, or the kernel of a plain Adam.

    What surrounds the kernel in ``Adam.step`` takes longer than the kernel. Adam is plain if its
    kernel is fused and nothing wraps or watches its steps.
    """
    if type(optimizer) is not th.optim.Adam:
        return optimizer.step
    hooks = (
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        _global_optimizer_pre_hooks,
        _global_optimizer_post_hooks,
    )
    is_plain = (
        len(optimizer.param_groups) == 1
        and optimizer.param_groups[0].get("fused")
        and not optimizer.param_groups[0]["amsgrad"]
        and not optimizer.param_groups[0].get("decoupled_weight_decay")
        and "step" not in vars(optimizer)
        and not any(hooks)
    )
    return partial(_step_of_adam, optimizer) if is_plain else optimizer.step


@th.no_grad()
def _step_of_adam(optimizer: th.optim.Adam) -> None:
    """Do what ``Adam.step`` does with one group."""
    (group,) = optimizer.param_groups
    moved = [parameter for parameter in group["params"] if parameter.grad is not None]
    states = [optimizer.state.get(parameter, {}) for parameter in moved]
    if not states or not all(states):
        optimizer.step()  # the first step creates the state
        return
    steps = [state["step"] for state in states]
    th._foreach_add_(steps, _ONE)
    th._fused_adam_(
        moved,
        [parameter.grad for parameter in moved],
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        steps,
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=group["maximize"],
    )


class _State:
    """
    The tensors and the optimizer's state that a fit changes, with a copy to return to.

    :param parameters: that the fit moves
    :param buffers: running statistics
    :param optimizer: the optimizer that takes the steps
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        buffers: Buffers,
        optimizer: th.optim.Optimizer,
    ) -> None:
        self._parameters, self._buffers = parameters, buffers
        self._values = [parameter.detach().clone() for parameter in parameters]
        self._statistics = [buffer.clone() for buffer in buffers.current()]
        self._optimizer = optimizer
        self._optimizer_state = _copied(optimizer.state_dict())

    def is_finite(self) -> bool:
        """Return whether all numbers are finite; an infinite moment would stop Adam for good."""
        moments = [
            value
            for parameter, entry in getattr(self._optimizer, "state", {}).items()
            if th.is_tensor(parameter) and isinstance(entry, dict)  # and not of an own kind
            for value in entry.values()
            if th.is_tensor(value) and value.dim() > 0
        ]
        tensors = [*self._parameters, *self._buffers.moved(), *moments]
        return all(bool(tensor.isfinite().all()) for tensor in tensors)

    @th.no_grad()
    def restore(self) -> None:
        """Put everything back."""
        for parameter, value in zip(self._parameters, self._values, strict=True):
            parameter.copy_(value)
        self._buffers.restore(self._statistics)
        self._optimizer.load_state_dict(self._optimizer_state)


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """Copy an optimizer's state; a deep copy of the tensors takes longer than ten steps."""
    if state.keys() != {"state", "param_groups"}:  # of an optimizer that is not torch's
        return copy.deepcopy(state)
    return {"state": _cloned(state["state"]), "param_groups": copy.deepcopy(state["param_groups"])}


def _cloned(value: Any) -> Any:
    """Copy a tensor, or tensors in dictionaries, and others deeply."""
    if isinstance(value, dict):
        return {name: _cloned(each) for name, each in value.items()}
    return value.clone() if th.is_tensor(value) else copy.deepcopy(value)
