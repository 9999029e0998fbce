"""Closed forms against torch's own divergences and their Hessians."""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
import torch as th
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    SquashedDiagGaussianDistribution,
    StateDependentNoiseDistribution,
)
from torch import distributions as td
from torch.nn.functional import softplus

from sb3_trpo._distributions import ActionDistribution, Family, Generic, Outputs, family_of
from tests import reference

N = 4
BLOCKS = [2, 3]

# Of one evaluation in float64: a few dozen roundings of 1e-16, cancellation by numbers up to 1e2.
RTOL, ATOL = 1e-11, 1e-12

Builder = Callable[[th.Tensor], Any]


def gaussian(raw: th.Tensor) -> td.Normal:
    return td.Normal(raw[:, :2], raw[:, 2:4].exp())


def categorical(raw: th.Tensor) -> td.Categorical:
    return td.Categorical(logits=raw)


def multi_categorical(raw: th.Tensor) -> list[td.Categorical]:
    return [td.Categorical(logits=block) for block in th.split(raw, BLOCKS, dim=1)]


def bernoulli(raw: th.Tensor) -> td.Bernoulli:
    return td.Bernoulli(logits=raw)


def beta(raw: th.Tensor) -> td.Beta:
    return td.Beta(softplus(raw[:, :2]) + 0.5, softplus(raw[:, 2:4]) + 0.5)


def independent(raw: th.Tensor) -> td.Distribution:
    return td.Independent(gaussian(raw), 1)


def one_hot(raw: th.Tensor) -> td.OneHotCategorical:
    return td.OneHotCategorical(logits=raw)


def squashed(raw: th.Tensor) -> td.TransformedDistribution:
    return td.TransformedDistribution(gaussian(raw), [td.TanhTransform(cache_size=1)])


def log_normal(raw: th.Tensor) -> td.LogNormal:
    return td.LogNormal(raw[:, :2], raw[:, 2:4].exp())


def independent_beta(raw: th.Tensor) -> td.Distribution:
    return td.Independent(beta(raw), 1)


def multivariate(raw: th.Tensor) -> td.MultivariateNormal:
    factor = th.diag_embed(raw[:, 2:4].exp()) + th.tril(raw[:, :1, None].expand(-1, 2, 2), -1)
    return td.MultivariateNormal(raw[:, :2], scale_tril=factor)


def gamma(raw: th.Tensor) -> td.Gamma:
    return td.Gamma(raw[:, :2].exp(), raw[:, 2:4].exp())


CLOSED_FORMS: tuple[Builder, ...] = (gaussian, categorical, multi_categorical, bernoulli)
GENERIC: tuple[Builder, ...] = (
    beta,
    independent,
    independent_beta,
    one_hot,
    squashed,
    log_normal,
    multivariate,
    gamma,
)


def raw_numbers() -> th.Tensor:
    return th.randn(N, sum(BLOCKS), dtype=th.float64)


def read(builder: Builder, raw: th.Tensor) -> tuple[Family, Outputs]:
    distribution = builder(raw)
    family = family_of(distribution)
    return family, family.outputs(distribution)


def as_list(distribution: Any) -> list[td.Distribution]:
    return distribution if isinstance(distribution, list) else [distribution]


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        ([0.0, -math.inf], [0.0, -math.inf], 0.0),
        ([0.0, -math.inf], [0.0, 0.0], math.log(2)),
        ([0.0, 0.0], [0.0, -math.inf], math.inf),
        ([0.0, math.log(3), -math.inf], [0.0, 0.0, -math.inf], math.log(2) - 0.5623351446),
    ],
)
def test_kl_of_impossible_outcomes(new: list[float], old: list[float], expected: float) -> None:
    family = family_of(td.Categorical(logits=th.zeros(1, 2)))
    z = [td.Categorical(logits=th.tensor([logits])).logits for logits in (new, old)]
    assert float(family.kl((z[0],), (z[1],))) == pytest.approx(expected)
    metric = family.fisher_metric((z[1],))
    (product,) = metric((th.arange(len(old)).float().unsqueeze(0),))
    assert bool(product.isfinite().all())
    assert bool((product[z[1] == -math.inf] == 0).all())


@pytest.mark.parametrize("builder", CLOSED_FORMS)
def test_known_families_have_closed_forms(builder: Builder) -> None:
    family, _ = read(builder, raw_numbers())
    assert not isinstance(family, Generic)


@pytest.mark.parametrize("builder", [*CLOSED_FORMS, *GENERIC])
@pytest.mark.parametrize("change", [1e-3, 1.0])
def test_kl_equals_torchs(change: float, builder: Builder) -> None:
    old = raw_numbers()
    new = old + change * raw_numbers()
    family, new_outputs = read(builder, new)
    _, old_outputs = read(builder, old)
    expected = reference.kl_per_state(as_list(builder(new)), as_list(builder(old)))
    th.testing.assert_close(
        family.kl(new_outputs, old_outputs).sum(1), expected, rtol=RTOL, atol=ATOL
    )


@pytest.mark.parametrize(
    ("builder", "dimensions"),
    [
        (gaussian, 2),
        (categorical, 1),
        (multi_categorical, 1),
        (bernoulli, 5),
        (beta, 2),
        (independent, 1),
    ],
)
def test_kl_has_one_column_per_dimension_that_contrib_averages_over(
    builder: Builder, dimensions: int
) -> None:
    family, outputs = read(builder, raw_numbers())
    assert family.kl(outputs, outputs).shape == (N, dimensions)


def metric_matrix(family: Family, z: Outputs) -> th.Tensor:
    """Write the metric as a matrix over all outputs of all states."""
    metric = family.fisher_metric(z)
    sizes = [value.numel() for value in z]
    columns = []
    for unit in th.eye(sum(sizes), dtype=z[0].dtype):
        tangent = tuple(
            part.reshape(value.shape) for part, value in zip(unit.split(sizes), z, strict=True)
        )
        columns.append(reference.flat(metric(tangent)))
    return th.stack(columns, dim=1)


# How a torch distribution is made from z.
FROM_OUTPUTS: dict[Builder, Callable[[Sequence[th.Tensor]], list[td.Distribution]]] = {
    gaussian: lambda z: [td.Normal(z[0], z[1].exp())],
    categorical: lambda z: [td.Categorical(logits=z[0])],
    multi_categorical: lambda z: [td.Categorical(logits=block) for block in z],
    bernoulli: lambda z: [td.Bernoulli(logits=z[0])],
    beta: lambda z: [td.Beta(z[0], z[1])],
    independent_beta: lambda z: [td.Independent(td.Beta(z[0], z[1]), 1)],
    independent: lambda z: [td.Independent(td.Normal(z[0], z[1]), 1)],
    squashed: lambda z: [td.Normal(z[0], z[1])],
    log_normal: lambda z: [td.Normal(z[0], z[1])],
    multivariate: lambda z: [td.MultivariateNormal(z[0], scale_tril=z[1])],
    gamma: lambda z: [td.Gamma(z[0], z[1])],
}


@pytest.mark.parametrize("builder", FROM_OUTPUTS)
def test_fisher_metric_equals_the_hessian_of_torchs_kl(builder: Builder) -> None:
    family, outputs = read(builder, raw_numbers())
    z = tuple(value.detach() for value in outputs)
    leaves = [value.clone().requires_grad_() for value in z]
    make = FROM_OUTPUTS[builder]
    divergence = reference.kl_per_state(make(leaves), make(z)).sum()
    expected = reference.dense_hessian(divergence, leaves)
    th.testing.assert_close(metric_matrix(family, z), expected, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("builder", [*CLOSED_FORMS, *GENERIC])
def test_fisher_metric_is_positive_semi_definite(builder: Builder) -> None:
    family, outputs = read(builder, raw_numbers())
    eigenvalues = th.linalg.eigvalsh(metric_matrix(family, tuple(z.detach() for z in outputs)))
    assert eigenvalues.min() > -1e-10


@pytest.mark.parametrize("builder", CLOSED_FORMS)
def test_kl_of_a_distribution_to_itself_is_exactly_zero(builder: Builder) -> None:
    family, outputs = read(builder, raw_numbers().float())
    assert not family.kl(outputs, outputs).any()


@pytest.mark.parametrize("builder", CLOSED_FORMS)
@pytest.mark.parametrize("change", [1e-2, 1e-3, 1e-4])
def test_kl_of_a_tiny_change_keeps_its_digits_in_float32(change: float, builder: Builder) -> None:
    """A sum of terms that cancel would be noise of 1e-7, which is more than the whole KL."""
    old = 3 * raw_numbers().float()
    new = old + change * raw_numbers().float()
    family, new_outputs = read(builder, new)
    _, old_outputs = read(builder, old)
    _, exact_new = read(builder, new.double())
    _, exact_old = read(builder, old.double())
    single = family.kl(new_outputs, old_outputs)
    exact = family.kl(exact_new, exact_old)
    # Outputs of size 10 are rounded by 1e-6: a share 1e-6 / change of the change, and twice that of
    # its square.
    share = 4e-6 / change
    assert (single >= 0).all()
    th.testing.assert_close(single.double().sum(), exact.sum(), rtol=share, atol=0)


@pytest.mark.parametrize("builder", CLOSED_FORMS)
def test_kl_is_never_negative_in_float32(builder: Builder) -> None:
    """Not even by a rounding, which shows in about one of 1e5 small changes."""
    for _ in range(100):
        old = th.randn(4096, sum(BLOCKS))
        new = old + 10.0 ** th.empty(4096, 1).uniform_(-8, 0) * th.randn(4096, sum(BLOCKS))
        family, new_outputs = read(builder, new)
        _, old_outputs = read(builder, old)
        assert (family.kl(new_outputs, old_outputs) >= 0).all()


def extreme_logits() -> th.Tensor:
    return th.tensor(
        [[50.0, -50.0, 50.0, -50.0, 0.0], [-50.0, 50.0, -50.0, 0.0, 50.0], [-50.0] * 5]
    )


def saturating(builder: Builder, logits: th.Tensor) -> list[td.Distribution]:
    """Make it in float64; torch's Bernoulli has an infinite KL where p rounds to 1."""
    if builder is not bernoulli:
        return as_list(builder(logits.double()))
    bits = th.stack([logits, th.zeros_like(logits)], dim=-1).double()
    return [td.Categorical(logits=bits)]


@pytest.mark.parametrize("builder", [categorical, multi_categorical, bernoulli])
@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_logits_of_fifty_give_finite_kl_and_metric(builder: Builder, dtype: th.dtype) -> None:
    logits = extreme_logits().to(dtype)
    family, old = read(builder, logits)
    _, new = read(builder, -logits)
    for p, q in [(new, old), (old, new), (old, old)]:
        kl = family.kl(p, q)
        assert kl.isfinite().all()
        assert (kl >= 0).all()
    expected = reference.kl_per_state(saturating(builder, -logits), saturating(builder, logits))
    actual = family.kl(new, old).sum(1).double()
    th.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    product = family.fisher_metric(old)(tuple(th.ones_like(z) for z in old))
    assert all(part.isfinite().all() for part in product)


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_log_std_of_minus_twenty_gives_finite_kl_and_metric(dtype: th.dtype) -> None:
    family = family_of(td.Normal(0.0, 1.0))
    old = (th.zeros(2, 1, dtype=dtype), th.full((2, 1), -20.0, dtype=dtype))
    new = (th.full((2, 1), 1e-10, dtype=dtype), old[1] + 0.01)
    expected = td.kl_divergence(
        td.Normal(new[0].double(), new[1].double().exp()),
        td.Normal(old[0].double(), old[1].double().exp()),
    )
    th.testing.assert_close(family.kl(new, old).double(), expected, rtol=1e-4, atol=0)
    mean, log_std = family.fisher_metric(old)((th.ones(2, 1), th.ones(2, 1)))
    assert mean.isfinite().all()
    assert float(mean[0]) == pytest.approx(math.exp(40), rel=1e-4)
    assert log_std.tolist() == [[2.0], [2.0]]


def test_log_std_is_read_back_where_the_standard_deviation_is_tiny() -> None:
    log_std = th.full((3, 1), -20.0)
    _, (_, read_back) = read(gaussian, th.cat([th.zeros(3, 2), log_std, log_std], dim=1))
    th.testing.assert_close(read_back, log_std.expand(3, 2), rtol=1e-6, atol=0)


# Generic families


@pytest.mark.parametrize("builder", GENERIC)
def test_other_families_are_read_from_the_graph_of_their_parameters(builder: Builder) -> None:
    raw = raw_numbers().requires_grad_()
    family, outputs = read(builder, raw)
    assert isinstance(family, Generic)
    assert any(z.requires_grad for z in outputs)
    assert all(len(z) == N for z in outputs)


@pytest.mark.parametrize(
    "template",
    [
        td.Bernoulli(probs=th.full((N, 2), 0.3)),
        td.Bernoulli(logits=th.rand(N, 2)),
        td.Categorical(probs=th.full((N, 2), 0.5)),
        td.Geometric(probs=th.full((N, 2), 0.3)),
    ],
)
def test_probabilities_and_logits_are_two_names_of_one_parameter(template: td.Distribution) -> None:
    wrapped = td.Independent(template, 0)
    family = family_of(wrapped)
    (outputs,) = family.outputs(wrapped)
    assert len(outputs) == N
    assert float(family.kl((outputs,), (outputs,)).abs().max()) < 1e-6


def test_family_without_a_known_kl_is_refused_by_name() -> None:
    mixture = td.MixtureSameFamily(
        td.Categorical(logits=th.zeros(N, 2)), td.Normal(th.zeros(N, 2), th.ones(N, 2))
    )
    with pytest.raises(ValueError, match=r"none for MixtureSameFamily.*register_kl"):
        family_of(mixture)


def test_error_names_what_is_wrapped() -> None:
    with pytest.raises(ValueError, match="none for Independent of StudentT"):
        family_of(td.Independent(td.StudentT(th.ones(N, 2)), 1))


@pytest.mark.parametrize("thing", [None, 3, "Normal", th.zeros(3)])
def test_what_is_no_distribution_is_refused_by_its_type(thing: object) -> None:
    with pytest.raises(ValueError, match=f"is {type(thing).__name__}"):
        family_of(thing)


def laplace(raw: th.Tensor) -> td.Distribution:
    """A family whose KL divergence has a kink where autograd needs its second derivative."""
    return td.Laplace(raw[:, :2], raw[:, 2:4].exp())


def joint_laplace(raw: th.Tensor) -> td.Distribution:
    """The same as one distribution of several actions."""
    return td.Independent(laplace(raw), 1)


@pytest.mark.parametrize("builder", [gaussian, bernoulli, laplace, joint_laplace])
def test_half_the_metrics_square_of_a_small_change_is_its_kl(builder: Builder) -> None:
    family, old = read(builder, raw_numbers())
    tangent = tuple(th.randn_like(z) for z in old)
    new = tuple(z + 1e-5 * v for z, v in zip(old, tangent, strict=True))
    kl = family.kl(new, old).sum()
    product = family.fisher_metric(old)(tangent)
    square = sum((v * m).sum() for v, m in zip(tangent, product, strict=True))
    th.testing.assert_close(kl / 1e-10, 0.5 * square, rtol=1e-2, atol=1e-3)


class ScaledNormal(td.Normal):
    """A user's subclass with a KL divergence of its own."""


def test_subclass_of_a_known_family_keeps_its_own_kl() -> None:
    @td.register_kl(ScaledNormal, ScaledNormal)  # type: ignore[no-untyped-call, untyped-decorator]
    def _kl(p: ScaledNormal, q: ScaledNormal) -> th.Tensor:
        return 7 * (p.loc - q.loc) ** 2

    one, two = ScaledNormal(th.ones(N, 1), 1.0), ScaledNormal(th.zeros(N, 1), 1.0)
    family = family_of(one)
    assert family.kl(family.outputs(one), family.outputs(two)).flatten().tolist() == [7.0] * N


class FromLogStd(td.Normal):
    """A subclass whose constructor takes something else than what it keeps."""

    def __init__(self, mean: th.Tensor, log_std: th.Tensor) -> None:
        super().__init__(mean, log_std.exp())


class ScaleIsItsLog(td.Normal):
    """A subclass whose constructor means something else by the name."""

    def __init__(self, loc: th.Tensor, scale: th.Tensor, **options: Any) -> None:
        super().__init__(loc, scale.exp(), **options)


class TanhNormal(td.TransformedDistribution):
    """A squashed Gaussian as users write it."""

    def __init__(self, loc: th.Tensor, scale: th.Tensor) -> None:
        self.mu, self.sigma = loc, scale
        super().__init__(td.Normal(loc, scale), td.TanhTransform(cache_size=1))


class Between(td.Distribution):
    """A distribution with bounds that are no parameters, and its KL divergence."""

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": td.constraints.real,
        "scale": td.constraints.positive,
    }

    def __init__(self, loc: th.Tensor, scale: th.Tensor, low: float, high: float) -> None:
        self.loc, self.scale, self.low, self.high = loc, scale, low, high
        self.inner = td.Normal(loc, scale)
        super().__init__(loc.shape, validate_args=False)


@td.register_kl(Between, Between)  # type: ignore[no-untyped-call, untyped-decorator]
def _kl_between(p: Between, q: Between) -> th.Tensor:
    return td.kl_divergence(p.inner, q.inner)


@pytest.mark.parametrize(
    "make",
    [
        lambda mean, log_std: FromLogStd(mean, log_std),
        lambda mean, log_std: ScaleIsItsLog(mean, log_std),
        lambda mean, log_std: TanhNormal(mean, log_std.exp()),
        lambda mean, log_std: TanhNormal(mean, log_std[0].exp()),
        lambda mean, log_std: td.Independent(TanhNormal(mean, log_std.exp()), 0),
        lambda mean, log_std: Between(mean, log_std.exp(), -1.0, 1.0),
    ],
)
def test_subclass_with_a_constructor_of_its_own_is_the_gaussian_that_it_is(make: Any) -> None:
    mean, log_std = th.randn(N, 2).requires_grad_(), th.randn(2).repeat(N, 1).requires_grad_()
    one = make(mean, log_std)
    two = make(mean.detach() + 0.1, log_std.detach() - 0.2)
    family = family_of(one)
    assert isinstance(family, Generic)
    z, other = family.outputs(one), family.outputs(two)
    gaussian = td.Normal(mean, log_std.exp())
    expected = td.kl_divergence(td.Normal(mean + 0.1, (log_std - 0.2).exp()), gaussian)
    th.testing.assert_close(family.kl(other, z), expected)
    tangent = tuple(th.ones_like(part) for part in z)
    variance = log_std.detach().exp().square()
    product = family.fisher_metric(z)(tangent)
    th.testing.assert_close(product, (1 / variance, 2 / variance))


class WithADerivedNumber(FromLogStd):
    """Another number that the network has computed, which cannot be made anew."""

    def __init__(self, mean: th.Tensor, log_std: th.Tensor) -> None:
        super().__init__(mean, log_std)
        self.log_std = log_std


WithoutNames = type("WithoutNames", (td.Normal,), {"arg_constraints": {}})


@pytest.mark.parametrize(
    ("kind", "why"), [(WithADerivedNumber, "log_std depends on them"), (WithoutNames, "name none")]
)
def test_distribution_whose_parameters_cannot_be_read_is_refused_by_name(
    kind: Any, why: str
) -> None:
    one = kind(th.zeros(N, 2), th.zeros(N, 2, requires_grad=True).exp())
    with pytest.raises(ValueError, match=rf"those of {kind.__name__} cannot be read.*{why}"):
        kl_from_itself(one)


def kl_from_itself(distribution: td.Distribution) -> th.Tensor:
    family = family_of(distribution)
    z = family.outputs(distribution)
    return family.kl(z, z)


def test_list_of_other_distributions_is_refused_by_their_names() -> None:
    blocks = [td.Normal(th.zeros(N), th.ones(N)), td.Categorical(logits=th.zeros(N, 2))]
    with pytest.raises(ValueError, match=r"categorical ones.*\['Normal', 'Categorical'\]"):
        family_of(blocks)


# ActionDistribution, on SB3's distributions


def sb3_distributions() -> dict[str, tuple[Callable[[], Distribution], th.Tensor]]:
    """List SB3's distributions at N states, each with an action per state."""
    mean, log_std = th.randn(N, 2), th.randn(2)
    sde = StateDependentNoiseDistribution(2)
    squashed_sde = StateDependentNoiseDistribution(2, squash_output=True)
    for distribution in (sde, squashed_sde):
        distribution.proba_distribution_net(3, latent_sde_dim=3)
    latent, sde_std = th.randn(N, 3), th.randn(3, 2)
    box, unit = th.randn(N, 2), th.rand(N, 2)
    return {
        "gaussian": (lambda: DiagGaussianDistribution(2).proba_distribution(mean, log_std), box),
        "squashed": (
            lambda: SquashedDiagGaussianDistribution(2).proba_distribution(mean, log_std),
            unit,
        ),
        "sde": (lambda: sde.proba_distribution(mean, sde_std, latent), box),
        "squashed_sde": (lambda: squashed_sde.proba_distribution(mean, sde_std, latent), unit),
        "categorical": (
            lambda: CategoricalDistribution(2).proba_distribution(mean),
            th.randint(2, (N,)),
        ),
        "multi_categorical": (
            lambda: MultiCategoricalDistribution([1, 1]).proba_distribution(mean),
            th.zeros(N, 2),
        ),
        "bernoulli": (
            lambda: BernoulliDistribution(2).proba_distribution(mean),
            th.randint(2, (N, 2)).float(),
        ),
    }


@pytest.mark.parametrize("name", sb3_distributions())
def test_log_prob_and_entropy_are_sb3s_with_one_number_per_state(name: str) -> None:
    make, actions = sb3_distributions()[name]
    ours, sb3 = ActionDistribution(make()), make()
    assert ours.log_prob(actions).shape == (N,)
    th.testing.assert_close(ours.log_prob(actions), sb3.log_prob(actions))
    entropy, expected = ours.entropy(), sb3.entropy()
    if expected is None:
        assert entropy is None
    else:
        assert entropy is not None
        assert entropy.shape == (N,)
        th.testing.assert_close(entropy, expected)


class PerDimension(DiagGaussianDistribution):
    """Its entropy has one number for each dimension of the action."""

    def entropy(self) -> th.Tensor:
        return self.distribution.entropy()  # type: ignore[no-any-return, no-untyped-call]


def test_entropy_of_a_joint_action_is_the_sum_over_its_dimensions() -> None:
    distribution = PerDimension(3).proba_distribution(th.zeros(2, 3), th.zeros(3))
    expected = th.full((2,), 1.5 * math.log(2 * math.pi * math.e))
    entropy = ActionDistribution(distribution).entropy()
    assert entropy is not None
    th.testing.assert_close(entropy, expected)


def test_entropy_without_a_closed_form_is_none() -> None:
    make, _ = sb3_distributions()["squashed_sde"]
    assert ActionDistribution(make()).entropy() is None


def test_distribution_outlives_the_next_call_of_a_policy_that_overwrites_it() -> None:
    sb3 = DiagGaussianDistribution(2)
    first = ActionDistribution(sb3.proba_distribution(th.zeros(N, 2), th.zeros(2)))
    before = first.log_prob(th.zeros(N, 2))
    sb3.proba_distribution(th.full((N, 2), 9.0), th.zeros(2))
    assert th.equal(first.log_prob(th.zeros(N, 2)), before)


def test_gaussian_is_recognised_under_a_squashing_function() -> None:
    """KL is invariant under a bijection: the metric is that of the Gaussian underneath."""
    make, _ = sb3_distributions()["squashed"]
    assert family_of(make().distribution) is family_of(td.Normal(0.0, 1.0))
