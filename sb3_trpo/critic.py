"""The critic's fit: minibatch regression of the returns, with every actor parameter held."""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from sb3_trpo.actor import training_mode
from sb3_trpo.batch import Features, Minibatch, size_of
from sb3_trpo.mlp import Mlp, Tape, critic_mlp, flat_features, pairs_of, preprocessed
from sb3_trpo.sequences import Observations, select
from sb3_trpo.vectors import flatten, unflatten

# States that a fixed features extractor is run on at a time.
_STATES_PER_PASS = 512


@dataclass(frozen=True)
class CriticFit:
    """
    The result of a fit.

    :param loss: mean squared error over all minibatches; NaN where there were none
    :param diverged: whether a parameter or the optimizer's state stopped being finite, in which
        case the fit was undone
    """

    loss: float
    diverged: bool


@dataclass(frozen=True, eq=False)
class Critic:
    """
    A policy as the critic's fit sees it. Made for one update by :func:`read_critic`.

    :param policy: its ``optimizer`` holds all parameters
    :param parameters: what the fit may move
    :param modules: what is in training mode during the fit
    :param trunk: features extractor that the fit does not move; ``None`` if it does
    :param mlp: the network after a trunk that only flattens, if it is plain
    """

    policy: ActorCriticPolicy
    parameters: tuple[nn.Parameter, ...]
    modules: tuple[nn.Module, ...]
    trunk: nn.Module | None
    mlp: Mlp | None

    @th.no_grad()
    def features(self, observations: Observations) -> Observations:
        """
        Compute once what would be the same in every epoch.

        :param observations: any number of states
        :return: their features; the observations themselves where the fit moves the extractor
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

        :param features: of n states, or sequences of n states in total
        :return: shape ``(n,)``
        """
        if isinstance(features, tuple):
            inputs, states = features
            # A recurrent policy's takes the states of its LSTM, too.
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
) -> Critic:
    """
    Find out what in a policy is the critic's alone.

    Parameters of the actor are held. Modules that the actor runs through, or that the fit does not
    move, stay in evaluation mode.

    :param policy: in evaluation mode
    :param actor_parameters: what must not move
    :param actor_modules: modules that the actor runs through
    :return: the critic
    """
    held = {id(parameter) for parameter in actor_parameters}
    parameters = [p for p in policy.parameters() if p.requires_grad and id(p) not in held]
    trunk = _fixed_trunk(policy, held, actor_modules)
    still = actor_modules | frozenset([] if trunk is None else trunk.modules())
    modules = tuple(module for module in policy.modules() if module not in still)
    mlp = critic_mlp(policy)
    is_closed_form = mlp is not None and _is_plain_adam(policy.optimizer, mlp.parameters)
    is_whole = mlp is not None and set(map(id, mlp.parameters)) == set(map(id, parameters))
    return Critic(
        policy, tuple(parameters), modules, trunk, mlp if is_closed_form and is_whole else None
    )


def _fixed_trunk(
    policy: ActorCriticPolicy, held: set[int], actor_modules: frozenset[nn.Module]
) -> nn.Module | None:
    """Return the critic's features extractor if nothing that the fit does can change its output."""
    flow = (ActorCriticPolicy.predict_values, ActorCriticPolicy.extract_features)
    kind = type(policy)  # a compiled policy's own class has neither
    own = (getattr(kind, "predict_values", None), getattr(kind, "extract_features", None))
    if own != flow or "predict_values" in vars(policy):
        return None
    trunk = cast(nn.Module, policy.vf_features_extractor)
    parameters = list(trunk.parameters())
    is_actors = all(module in actor_modules for module in trunk.modules())
    is_frozen = bool(parameters) and not any(p.requires_grad for p in parameters)
    is_held = all(id(p) in held or not p.requires_grad for p in parameters)
    is_stateless = not parameters and type(trunk) in (FlattenExtractor, CombinedExtractor)
    is_fixed = is_held and (is_actors or is_frozen or is_stateless)
    return trunk if is_fixed else None


def _is_plain_adam(optimizer: th.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> bool:
    """
    Tell whether a step of an optimizer is that of Adam on these parameters and nothing else.

    Not if it has variations that its fused form would not share, does not hold all parameters, or
    is wrapped or watched, as by torch's learning rate schedulers.
    """
    if type(optimizer) is not th.optim.Adam or len(optimizer.param_groups) != 1:
        return False
    hooks = (
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        _global_optimizer_pre_hooks,
        _global_optimizer_post_hooks,
    )
    group = optimizer.param_groups[0]
    held = set(map(id, group["params"]))
    variations = ("weight_decay", "amsgrad", "maximize", "differentiable", "decoupled_weight_decay")
    is_number = isinstance(group["lr"], float)
    # Adam counts the steps of every parameter; one that was frozen for a while has fewer.
    steps = {float(optimizer.state.get(p, {}).get("step", 0)) for p in parameters}
    return (
        is_number
        and len(steps) == 1
        and held.issuperset(map(id, parameters))
        and "step" not in vars(optimizer)
        and not any(hooks)
        and not any(group.get(name) for name in variations)
    )


def fit_critic(critic: Critic, minibatches: Iterable[Minibatch]) -> CriticFit:
    """
    Take one optimizer step on the mean squared error of every minibatch.

    If a number is not finite at the end, parameters, running statistics and optimizer are as they
    were before.

    :param critic: the part of the policy to fit
    :param minibatches: pairs of features (see :meth:`Critic.features`) and returns
    :return: the loss
    """
    if critic.mlp is not None:
        return _fit_in_closed_form(critic, critic.mlp, minibatches)
    return _fit_by_autograd(critic, minibatches)


def _fit_by_autograd(critic: Critic, minibatches: Iterable[Minibatch]) -> CriticFit:
    """Fit any critic with any optimizer."""
    optimizer = critic.policy.optimizer
    buffers = [b for module in critic.modules for b in module.buffers(recurse=False)]
    before = _Snapshot([*critic.parameters, *buffers], optimizer)
    least = 2 if any(isinstance(module, _NormBase) for module in critic.modules) else 1
    optimizer.zero_grad(set_to_none=True)
    try:
        with training_mode(critic.modules), _fused(optimizer), th.enable_grad():
            # Batch normalisation has no variance of a single state.
            usable = (minibatch for minibatch in minibatches if len(minibatch[1]) >= least)
            losses = [_step(critic, optimizer, minibatch) for minibatch in usable]
    except BaseException:
        before.restore()
        raise
    finally:
        optimizer.zero_grad(set_to_none=True)
    state = [value for entry in optimizer.state.values() for value in entry.values()]
    numbers = [*critic.parameters, *buffers, *filter(th.is_tensor, state)]
    diverged = not all(map(_is_finite, numbers))
    if diverged:
        before.restore()
    return CriticFit(_mean(losses), diverged)


@contextmanager
def _fused(optimizer: th.optim.Optimizer) -> Iterator[None]:
    """
    Let Adam take its fused kernel for the duration of a block, where that is on the CPU.

    Where the user has chosen, and on an accelerator, whose fused kernel needs counters of its own,
    nothing changes.
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


def _step(critic: Critic, optimizer: th.optim.Optimizer, minibatch: Minibatch) -> th.Tensor:
    """Descend on one minibatch and return its loss before the step."""
    features, returns = minibatch
    losses: list[th.Tensor] = []

    def closure() -> float:
        loss = F.mse_loss(critic.values(features), returns)
        if loss.requires_grad and critic.parameters:
            slopes = th.autograd.grad(loss, critic.parameters, allow_unused=True)
            for parameter, slope in zip(critic.parameters, slopes, strict=True):
                parameter.grad = slope
        losses.append(loss.detach())
        return cast(float, loss)  # torch's annotation; a number would wait for the device

    # Optimizers such as LBFGS evaluate the loss several times in a step.
    optimizer.step(closure)
    return losses[0]


class _Snapshot:
    """A copy of tensors and optimizer state that can be put back."""

    def __init__(self, tensors: Sequence[th.Tensor], optimizer: th.optim.Optimizer) -> None:
        self._tensors = tensors
        self._values = [tensor.detach().clone() for tensor in tensors]
        self._optimizer = optimizer
        self._state: dict[str, Any] = copy.deepcopy(optimizer.state_dict())

    @th.no_grad()
    def restore(self) -> None:
        """Put everything back."""
        for tensor, value in zip(self._tensors, self._values, strict=True):
            tensor.copy_(value)
        self._optimizer.load_state_dict(self._state)


@th.no_grad()
def _fit_in_closed_form(critic: Critic, mlp: Mlp, minibatches: Iterable[Minibatch]) -> CriticFit:
    """Fit a plain network with Adam on flat copies, which are written back if they are finite."""
    state = _AdamState(mlp.parameters, cast(th.optim.Adam, critic.policy.optimizer))
    gradient = th.empty_like(state.values)
    weights = pairs_of(unflatten(state.values, mlp.parameters))
    gradients = pairs_of(unflatten(gradient, mlp.parameters))
    tapes: dict[int, Tape] = {}
    losses: list[th.Tensor] = []
    for features, returns in minibatches:
        size = len(returns)
        tape = tapes.get(size) or tapes.setdefault(size, Tape(mlp, weights, size))
        values = tape.forward(cast(th.Tensor, features))
        error = values.squeeze(1).sub_(returns)
        losses.append(th.dot(error, error) / size)
        tape.cotangent(values.mul_(2 / size), gradients)
        state.descend(gradient)
    diverged = not state.is_finite()
    if not diverged:
        state.write()
    return CriticFit(_mean(losses), diverged)


class _AdamState:
    """
    Parameters and Adam's state for them as flat vectors.

    One fused call then moves all of them. The optimizer's own ``fused`` option is not touched: it
    would be saved with the model.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], optimizer: th.optim.Adam) -> None:
        self._parameters = parameters
        self._state = optimizer.state
        self._group = optimizer.param_groups[0]
        self.values = flatten([parameter.detach() for parameter in parameters])
        self._exp_avg = flatten([self._entry(p, "exp_avg", th.zeros_like(p)) for p in parameters])
        self._exp_avg_sq = flatten(
            [self._entry(p, "exp_avg_sq", th.zeros_like(p)) for p in parameters]
        )
        # Adam counts on the CPU, its fused form where the parameters are.
        self._counter = self._entry(parameters[0], "step", th.zeros(()))
        self._steps = self._counter.detach().to(self.values.device, th.float32, copy=True)

    def _entry(self, parameter: nn.Parameter, name: str, default: th.Tensor) -> th.Tensor:
        """Read an entry of the optimizer's state, which is empty before the first step."""
        return cast(th.Tensor, self._state.get(parameter, {}).get(name, default))

    def descend(self, gradient: th.Tensor) -> None:
        """Take one step."""
        beta1, beta2 = self._group["betas"]
        self._steps += 1
        # What `torch.optim.adam.adam(fused=True)` comes down to for a single tensor. Its way there
        # takes longer than the arithmetic.
        th._fused_adam_(
            [self.values],
            [gradient],
            [self._exp_avg],
            [self._exp_avg_sq],
            [],
            [self._steps],
            lr=self._group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=0.0,
            eps=self._group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def is_finite(self) -> bool:
        """Tell whether nothing has overflowed; an infinite average would stop Adam for good."""
        return _is_finite(self.values) and _is_finite(self._exp_avg_sq)

    def write(self) -> None:
        """Write parameters and state back to where they came from."""
        parameters = self._parameters
        if float(self._steps) == 0:
            return
        values, averages, squares = (
            unflatten(vector, parameters)
            for vector in (self.values, self._exp_avg, self._exp_avg_sq)
        )
        for i, parameter in enumerate(parameters):
            parameter.copy_(values[i])
            self._state[parameter].update(
                step=self._steps.to(self._counter.device, copy=True),
                exp_avg=averages[i].clone(),
                exp_avg_sq=squares[i].clone(),
            )


def _is_finite(tensor: th.Tensor) -> bool:
    """Tell whether all numbers are finite."""
    return bool(tensor.isfinite().all())


def _mean(losses: Sequence[th.Tensor]) -> float:
    """Average, waiting for the device once."""
    return float(th.stack(list(losses)).mean()) if losses else math.nan
