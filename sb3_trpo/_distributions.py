"""
Action distributions as the update uses them: outputs, KL divergence and Fisher metric.

The only file that knows SB3's distribution classes. A family reads a distribution as the tensors z
(its *outputs*) that the network computes for every state, and gives the KL divergence and the
Fisher metric in closed form in z:

====================  ==========================  ===============================================
family                outputs z                   Fisher metric M
====================  ==========================  ===============================================
Gaussian              mean μ, log std             1/σ² on μ, 2 on log σ
Categorical           logits                      diag(p) - ppᵀ
MultiCategorical      logits of every block       the same, block by block
Bernoulli             logits                      p(1 - p)
Laplace               location μ, scale b         1/b² on both, beside torch's KL divergence
anything else         its torch parameters        the Hessian of the KL divergence, by autograd
====================  ==========================  ===============================================

SB3's gSDE is a Gaussian whose σ depends on the state. A tanh-squashed Gaussian has the KL
divergence and the metric of the Gaussian underneath, because the KL divergence does not change
under a bijection of the actions.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import (
    MaskableCategorical,
    MaskableDistribution,
    make_masked_proba_distribution,
)
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import distributions as td
from torch.nn import functional as F

from sb3_trpo._class_methods import ClassMethods

Outputs = tuple[th.Tensor, ...]
Metric = Callable[[Outputs], Outputs]


class Family(ABC):
    """
    A family of distributions, read through outputs z whose first dimension is the state.

    :cvar is_shift_invariant: whether a constant added to all columns of an output changes nothing
    """

    is_shift_invariant: ClassVar[bool] = False

    @abstractmethod
    def outputs(self, distribution: Any) -> Outputs:
        """
        Read z from a distribution.

        :param distribution: the torch distribution (for MultiDiscrete actions: the list of them) of
            n states
        :return: z, tensors of shape ``(n, ...)``, on the distribution's graph
        """

    @abstractmethod
    def kl(self, new: Outputs, old: Outputs) -> th.Tensor:
        """
        Compute KL(new ‖ old) of every state and action dimension.

        :param new: z of the distribution that the expectation is taken under
        :param old: z of the other one
        :return: shape ``(n, A)``, in nats; their sum over A is the KL divergence of the joint
            action, A being 1 where SB3 treats the action as a whole (Discrete, MultiDiscrete)
        """

    @abstractmethod
    def fisher_metric(self, z: Outputs) -> Metric:
        """
        Return the Fisher metric in z, the Hessian of KL(z' ‖ z) in z' at z.

        :param z: outputs, detached
        :return: tangent of z -> M · tangent, state by state
        """


class Gaussian(Family):
    """Independent normal distributions, z = (μ, log σ)."""

    def outputs(self, distribution: td.Normal) -> Outputs:
        """Read z = (μ, log σ)."""
        return distribution.loc, distribution.scale.log()

    def kl(self, new: Outputs, old: Outputs) -> th.Tensor:
        """Compute (exp(2d) - 1 - 2d + ((μ' - μ)/σ)²) / 2 with d = log σ' - log σ."""
        (new_mean, new_log_std), (old_mean, old_log_std) = new, old
        twice_change = 2 * (new_log_std - old_log_std)
        distance = (new_mean - old_mean) * th.exp(-old_log_std)
        # expm1 keeps the digits of a small change, where exp(2d) - 1 would lose them.
        return 0.5 * (th.expm1(twice_change) - twice_change + distance.square())

    def fisher_metric(self, z: Outputs) -> Metric:
        """Multiply by 1/σ² and 2."""
        precision = th.exp(-2 * z[1])
        return lambda tangent: (precision * tangent[0], 2 * tangent[1])


class MultiCategorical(Family):
    """Independent categorical distributions, z = their logits, block by block."""

    is_shift_invariant = True

    def outputs(self, distribution: list[td.Categorical]) -> Outputs:
        """Read the normalised logits of every block."""
        return tuple(block.logits for block in distribution)

    def kl(self, new: Outputs, old: Outputs) -> th.Tensor:
        """Compute Σ p' (log p' - log p), summed over the blocks."""
        blocks = [_kl_terms(p, q).sum(-1) for p, q in zip(new, old, strict=True)]
        return th.stack(blocks, dim=1).sum(dim=1, keepdim=True)

    def fisher_metric(self, z: Outputs) -> Metric:
        """Multiply by diag(p) - ppᵀ."""
        probs = [logits.softmax(-1) for logits in z]
        return lambda tangent: tuple(_centred(p, v) for p, v in zip(probs, tangent, strict=True))


class Categorical(MultiCategorical):
    """One categorical distribution: a single block."""

    # One distribution, where SB3 has a list of them for several blocks.
    def outputs(self, distribution: td.Categorical) -> Outputs:  # type: ignore[override]
        """Read the normalised logits."""
        return (distribution.logits,)


def _kl_terms(new: th.Tensor, old: th.Tensor) -> th.Tensor:
    """
    Compute p' (log p' - log p) - p' + p of every outcome, from log-probabilities.

    The sums of p' and p cancel. Every term is at least 0 and keeps the digits of a small change,
    where the terms p' (log p' - log p) would lose them to each other. An outcome that is impossible
    under both (log p = -inf) contributes 0.
    """
    change = (new - old).masked_fill(new == old, 0.0)  # -inf is equal to -inf
    rest = th.expm1(th.where(change > 0, -change, change))  # cannot overflow
    gain = (new.exp() * change).masked_fill(new == -math.inf, 0.0)
    terms = gain + th.where(change > 0, new.exp(), -old.exp()) * rest
    return terms.clamp(min=0)


def _centred(probs: th.Tensor, tangent: th.Tensor) -> th.Tensor:
    """Compute (diag(p) - ppᵀ) v as p (v - pᵀv), which keeps its row sums at zero."""
    return probs * (tangent - (probs * tangent).sum(-1, keepdim=True))


class Bernoulli(Family):
    """Independent binary distributions, z = their logits."""

    def outputs(self, distribution: td.Bernoulli) -> Outputs:
        """Read the logits."""
        return (distribution.logits,)

    def kl(self, new: Outputs, old: Outputs) -> th.Tensor:
        """Compute p' log(p'/p) + (1 - p') log((1 - p')/(1 - p))."""
        (p,), (q,) = new, old
        one = _kl_terms(F.logsigmoid(p), F.logsigmoid(q))
        return one + _kl_terms(F.logsigmoid(-p), F.logsigmoid(-q))

    def fisher_metric(self, z: Outputs) -> Metric:
        """Multiply by p(1 - p)."""
        variance = th.sigmoid(z[0]) * th.sigmoid(-z[0])
        return lambda tangent: (variance * tangent[0],)


def _without_kl(template: td.Distribution) -> ValueError:
    """Return the error for a family without a KL divergence."""
    return ValueError(
        f"TRPO needs the KL divergence of the action distribution, and torch has none for "
        f"{_family_name(template)}. Give it one with torch.distributions.register_kl, or use "
        f"another distribution in the policy."
    )


class Generic(Family):
    """
    Any torch distribution whose KL divergence torch knows, z = its parameters.

    :param template: a distribution of the family
    :raises ValueError: if torch has no KL divergence for it, or its parameters cannot be read
    """

    def __init__(self, template: td.Distribution) -> None:
        if _has_learned_transform(template):
            raise _without_kl(template)
        try:
            td.kl_divergence(template, template)
        except NotImplementedError:
            raise _without_kl(template) from None
        self.template = template
        self._base = _base(template)
        self._names = _parameter_names(self._base)
        if not self._names:
            raise _unreadable(template, "its `arg_constraints` name none")
        self._is_constructed = _is_what_its_constructor_makes(self._base, self._names)
        if not (self._is_constructed or vars(self._base).keys() >= {*self._names}):
            raise _unreadable(template, "its constructor does not take them, nor does it keep them")

    def outputs(self, distribution: td.Distribution) -> Outputs:
        """Read the parameters that the distribution is constructed from."""
        base = _base(distribution)
        return tuple(th.as_tensor(getattr(base, name)) for name in self._names)

    def kl(self, new: Outputs, old: Outputs) -> th.Tensor:
        """Use torch's formula."""
        divergence = td.kl_divergence(self._rebuild(new), self._rebuild(old))
        return divergence.reshape(divergence.shape[0], -1)

    def fisher_metric(self, z: Outputs) -> Metric:
        """Differentiate the KL divergence twice."""
        if type(self._base) is td.Laplace:
            return _laplace_metric(z)
        with th.enable_grad():
            leaves = tuple(value.detach().clone().requires_grad_() for value in z)
            divergence = self.kl(leaves, tuple(value.detach() for value in z)).sum()
            slopes = th.autograd.grad(divergence, leaves, create_graph=True)
        return lambda tangent: th.autograd.grad(slopes, leaves, tangent, retain_graph=True)

    def _rebuild(self, z: Outputs) -> td.Distribution:
        """Make a distribution of the family from its parameters."""
        pairs = list(zip(self._names, z, strict=True))
        kept = vars(self._base)
        others: dict[int, Any] = {
            id(old): value
            for name, value in pairs
            # torch may keep a view, in the shape that all parameters have together.
            for old in (kept.get(name), getattr(kept.get(name), "_base", None))
            if old is not None
        }
        if self._is_constructed:
            family: Any = type(self._base)
            others[id(self._base)] = family(**dict(pairs), validate_args=False)
        known = others.get(id(self.template))
        return known if known is not None else _copied(self.template, others)


def _laplace_metric(z: Outputs) -> Metric:
    """
    Multiply by 1/b² and 1/b², z being (μ, b).

    The KL divergence has |μ' - μ|, to which autograd gives no second derivative at 0.
    """
    precision = z[1] ** -2
    return lambda tangent: tuple(precision * part for part in tangent)


def _base(distribution: Any) -> td.Distribution:
    """Return the distribution under Independent and TransformedDistribution."""
    while _is_wrapper(distribution):
        distribution = distribution.base_dist
    return cast(td.Distribution, distribution)


def _is_wrapper(distribution: Any) -> bool:
    """Return whether all parameters are another one's; those of Kumaraswamy are its own."""
    is_kind = isinstance(distribution, (td.Independent, td.TransformedDistribution))
    return is_kind and not distribution.arg_constraints


def _is_what_its_constructor_makes(base: td.Distribution, names: list[str]) -> bool:
    """Return whether a class makes the same distribution of the parameters that it names."""
    values = {name: getattr(base, name) for name in names}
    family: Any = type(base)
    try:
        again = family(**values, validate_args=False)
    except (TypeError, ValueError):  # a subclass has a constructor of its own
        return False
    pairs = [(getattr(again, name), value) for name, value in values.items()]
    return all(_are_close(*map(th.as_tensor, pair)) for pair in pairs)


def _are_close(one: th.Tensor, other: th.Tensor) -> bool:
    """Return whether two parameters are equal; to rounding, as some are normalised again."""
    return one.shape == other.shape and th.allclose(one, other, rtol=1e-4, equal_nan=True)


def _copied(distribution: td.Distribution, others: Mapping[int, Any]) -> td.Distribution:
    """
    Copy a distribution, and those in it, with other parameters.

    :param distribution: any
    :param others: parameters and distributions, by the identities of those that they replace
    :return: the copy
    :raises ValueError: if it holds something else that the network has computed
    """
    new = copy.copy(distribution)
    for name, value in vars(distribution).items():
        if id(value) in others:
            vars(new)[name] = others[id(value)]
        elif isinstance(value, td.Distribution):
            vars(new)[name] = _copied(value, others)
        elif isinstance(getattr(type(distribution), name, None), td.utils.lazy_property):
            del vars(new)[name]  # computed from the parameters at its next use
        elif isinstance(value, th.Tensor) and value.requires_grad:
            raise _unreadable(distribution, f"its attribute {name} depends on them, too")
    return new


def _unreadable(template: td.Distribution, why: str) -> ValueError:
    """Return the error for a distribution that cannot be made of its parameters."""
    return ValueError(
        f"TRPO needs the parameters of the action distribution, and those of "
        f"{_family_name(template)} cannot be read: {why}. Give the class a constructor with the "
        f"names and the meaning of its `arg_constraints`."
    )


def _has_learned_transform(distribution: Any) -> bool:
    """Return whether a transform depends on the network, which the KL of the base does not see."""
    transforms: list[Any] = []
    while _is_wrapper(distribution):
        transforms += getattr(distribution, "transforms", [])
        distribution = distribution.base_dist
    parts = [part for t in transforms for part in (t, *getattr(t, "parts", []))]
    values = [value for part in parts for value in vars(part).values()]
    return any(isinstance(value, th.Tensor) and value.requires_grad for value in values)


def _parameter_names(base: td.Distribution) -> list[str]:
    """List the constructor's arguments, of several parametrizations the primary one."""
    lazy = td.utils.lazy_property
    names = [
        name
        for name in base.arg_constraints
        if name in vars(base) or not isinstance(getattr(type(base), name, None), lazy)
    ]
    return [name for name in names if not (name == "probs" and "logits" in names)]


def _family_name(distribution: td.Distribution) -> str:
    """Name a distribution and what it wraps."""
    base = _base(distribution)
    wrapped = "" if base is distribution else f" of {type(base).__name__}"
    return type(distribution).__name__ + wrapped


# Exact types: a subclass may have a KL divergence of its own, which torch then knows.
_CLOSED_FORMS: dict[type, Family] = {
    td.Normal: Gaussian(),
    td.Categorical: Categorical(),
    MaskableCategorical: Categorical(),
    td.Bernoulli: Bernoulli(),
    list: MultiCategorical(),
}


def family_of(distribution: object) -> Family:
    """
    Find the family of a distribution.

    :param distribution: torch distribution, or the list of them that SB3 uses for MultiDiscrete
        actions
    :return: its family, in closed form where there is one
    :raises ValueError: if it is no distribution, or one whose KL divergence torch does not know
    """
    closed_form = _CLOSED_FORMS.get(type(distribution))
    blocks = distribution if isinstance(distribution, list) else []
    if closed_form is not None and all(isinstance(block, td.Categorical) for block in blocks):
        return closed_form
    if isinstance(distribution, td.Distribution):
        return Generic(distribution)
    raise ValueError(
        f"TRPO reads the action distribution's attribute `distribution`, which has to be a torch "
        f"distribution or a list of categorical ones; the policy's is "
        f"{[type(block).__name__ for block in blocks] or type(distribution).__name__}."
    )


@dataclass(frozen=True)
class Head:
    """
    How one of SB3's own distribution classes reads the last layer's output.

    :param family: the closed form
    :param sizes: of a MultiDiscrete action's blocks of logits; empty for other actions
    """

    family: Family
    sizes: tuple[int, ...] = ()


# Exact types only: a subclass may interpret the output differently.
_HEADS: dict[type, Family] = {
    DiagGaussianDistribution: _CLOSED_FORMS[td.Normal],
    CategoricalDistribution: _CLOSED_FORMS[td.Categorical],
    MultiCategoricalDistribution: _CLOSED_FORMS[list],
    BernoulliDistribution: _CLOSED_FORMS[td.Bernoulli],
}


# Methods of SB3's distributions that may be overridden on an instance, or replaced in the class.
_DISTRIBUTION_METHODS = frozenset(
    ["proba_distribution", "sample", "mode", "get_actions", "log_prob", "entropy"]
)
_AS_IMPORTED = ClassMethods(dict.fromkeys(_HEADS, _DISTRIBUTION_METHODS))


def head_of(policy: ActorCriticPolicy) -> Head | None:
    """
    Recognise a distribution that the last layer's output (and a Gaussian's log std) determines.

    :param policy: any policy; its ``action_dist`` is read
    :return: the head; ``None`` if the distribution is not exactly one of SB3's, or a gSDE
        distribution, or if the actions share a standard deviation
    """
    distribution = policy.action_dist
    family = _HEADS.get(type(distribution))
    if family is None or not _DISTRIBUTION_METHODS.isdisjoint(vars(distribution)):
        return None
    if not _AS_IMPORTED.are_untouched():
        return None
    if isinstance(distribution, DiagGaussianDistribution):
        return Head(family) if policy.log_std.shape == (distribution.action_dim,) else None
    if isinstance(distribution, MultiCategoricalDistribution):
        return Head(family, tuple(int(size) for size in distribution.action_dims))
    return Head(family)


def maskable_distribution(action_space: spaces.Space[Any]) -> MaskableDistribution:
    """
    Make contrib's distribution whose actions can be masked.

    :param action_space: Discrete, MultiDiscrete or MultiBinary
    :return: the distribution, without parameters yet
    """
    return make_masked_proba_distribution(action_space)


class ActionDistribution:
    """
    The action distribution of a policy at n states.

    :param distribution: what ``policy.get_distribution`` returned
    :raises ValueError: if its family has no known KL divergence
    """

    def __init__(self, distribution: Distribution) -> None:
        # SB3's policies keep one object and overwrite its content at the next call.
        self._distribution = copy.copy(distribution)
        # sb3-contrib's maskable distributions for several actions name it `distributions`.
        torch_distribution = getattr(
            distribution, "distribution", getattr(distribution, "distributions", None)
        )
        self.family = family_of(torch_distribution)
        self.outputs = self.family.outputs(torch_distribution)

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """
        Compute log π(a|s) of the joint actions.

        :param actions: as the rollout buffer has them, one per state
        :return: shape ``(n,)``
        """
        return self._distribution.log_prob(actions).reshape(len(actions))

    def entropy(self) -> th.Tensor | None:
        """
        Compute the entropy of the joint action.

        :return: shape ``(n,)``, in nats; ``None`` where there is no closed form. One number for all
            states is that of each
        """
        try:
            entropy = self._distribution.entropy()
        except NotImplementedError:
            return None
        if entropy is None:
            return None
        n_states, device = len(self.outputs[0]), self.outputs[0].device
        entropy = th.as_tensor(entropy, device=device)
        if entropy.numel() == 1:
            return entropy.reshape(1).expand(n_states)
        return entropy.reshape(n_states, -1).sum(dim=1)


class _Lazy:
    """Becomes the distribution that its class derives from when anything of it is read."""

    def __getattribute__(self, name: str) -> Any:
        arguments = object.__getattribute__(self, "__dict__").pop("_arguments")
        kind: Any = type(self).__mro__[2]
        object.__setattr__(self, "__class__", kind)
        kind.__init__(self, **arguments())
        return getattr(self, name)


class _Normal(_Lazy, td.Normal):
    pass


class _Categorical(_Lazy, td.Categorical):
    pass


class _Bernoulli(_Lazy, td.Bernoulli):
    pass


_LAZY: dict[type[td.Distribution], type[Any]] = {
    td.Normal: _Normal,
    td.Categorical: _Categorical,
    td.Bernoulli: _Bernoulli,
}


def _later(kind: type[td.Distribution], arguments: Callable[[], dict[str, th.Tensor]]) -> Any:
    """Make an object that is a distribution from the first look at it on."""
    lazy = object.__new__(_LAZY[kind])
    object.__setattr__(lazy, "_arguments", arguments)
    return lazy


def held_after(head: Head, output: th.Tensor, log_stds: Sequence[float]) -> Any:
    """
    Make what SB3's distribution holds after a forward pass.

    It costs next to nothing until something reads it: a policy has a new one at every step, and
    hardly any program looks at it.

    :param head: how the distribution reads the actor's output
    :param output: of the actor, which must not change
    :param log_stds: of a Gaussian
    :return: one of torch's distributions, or a list of them
    """

    def of_logits(kind: type[td.Distribution], logits: th.Tensor) -> Any:
        return _later(kind, lambda: {"logits": logits})

    if isinstance(head.family, Gaussian):
        return _later(
            td.Normal, lambda: {"loc": output, "scale": output.new_tensor(log_stds).exp()}
        )
    if isinstance(head.family, Bernoulli):
        return of_logits(td.Bernoulli, output)
    if isinstance(head.family, Categorical):
        return of_logits(td.Categorical, output)
    return [of_logits(td.Categorical, block) for block in th.split(output, [*head.sizes], 1)]
