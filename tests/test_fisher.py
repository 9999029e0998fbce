"""The products against the dense Hessian, over the whole table of cases and in float64."""

import math
from dataclasses import replace

import pytest
import torch as th

from sb3_trpo import TRPO
from sb3_trpo import _layerwise as layerwise
from sb3_trpo._actor import Actor, LinearizedActor
from sb3_trpo._batch import ActorBatch
from sb3_trpo._fisher import FisherProduct
from sb3_trpo._linearization import Linearization
from sb3_trpo._surrogate import surrogate_at
from sb3_trpo._trust_region import natural_step
from tests import reference
from tests.cases import (
    POLICIES,
    actor_and_batch,
    collected,
    data_of,
    fisher_of,
    fisher_products,
    random_vectors,
)

# Sums of 24 states over nets of up to 4 layers in float64, entries up to 1e2.
RTOL, ATOL = 1e-8, 1e-11

# Steps of the same update that differ in the order of the sums only.
SAME_STEP = 1e-10


def products(actor: Actor, chunks: tuple[ActorBatch, ...], damping: float = 0.0) -> th.Tensor:
    """Multiply by all unit vectors."""
    size = sum(parameter.numel() for parameter in actor.parameters)
    return fisher_products(actor, chunks, th.eye(size, dtype=th.float64), damping).T


@pytest.mark.parametrize("slope_cost", [0.0, math.inf], ids=["layers", "autograd"])
@pytest.mark.parametrize("case", POLICIES)
def test_fisher_product_equals_the_dense_hessian_of_the_mean_kl(
    case: str, slope_cost: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layerwise, "SLOPE_COST", slope_cost)
    actor, batch = actor_and_batch(collected(case, float64=True))
    expected = reference.dense_fisher(actor.policy, batch.observations, actor.parameters)
    assert expected.abs().max() > 1e-6
    th.testing.assert_close(products(actor, (batch,)), expected, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize(
    "name", ["box", "multi_binary", "multi_discrete", "discrete", "gsde", "beta"]
)
def test_mean_reduction_gives_the_hessian_of_contribs_kl(name: str) -> None:
    """Contrib averages over the dimensions of Box and MultiBinary, and sums MultiDiscrete."""
    actor, batch = actor_and_batch(collected(name, float64=True), kl_reduction="mean")
    expected = reference.dense_fisher(actor.policy, batch.observations, actor.parameters, "mean")
    th.testing.assert_close(products(actor, (batch,)), expected, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize(("name", "dimensions"), [("box", 3), ("multi_binary", 3)])
def test_sum_is_the_number_of_dimensions_times_the_mean(name: str, dimensions: int) -> None:
    model = collected(name, float64=True)
    (joint, batch), (mean, _) = actor_and_batch(model), actor_and_batch(model, "mean")
    expected = dimensions * products(mean, (batch,))
    th.testing.assert_close(products(joint, (batch,)), expected, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("name", ["box", "gsde", "dict_box", "batch_norm_shared"])
@pytest.mark.parametrize("size", [1, 7, 24])
def test_damping_is_added_once_whatever_the_number_of_chunks(size: int, name: str) -> None:
    actor, batch = actor_and_batch(collected(name, float64=True))
    vector = th.randn_like(reference.flat(actor.parameters))
    plain = fisher_of(actor, (batch,), 0.0)(vector)
    damped = fisher_of(actor, batch.chunks(size), 0.1)(vector)
    th.testing.assert_close(damped, plain + 0.1 * vector, rtol=RTOL, atol=ATOL)


def full_step(model: TRPO, size: int, cg_steps: int) -> th.Tensor:
    actor, batch = actor_and_batch(model)
    chunks = batch.chunks(size)
    linearized = LinearizedActor(actor, chunks)
    surrogate = surrogate_at(linearized, chunks, ent_coef=0.01)
    fisher = FisherProduct(linearized, chunks, 0.1)
    natural = natural_step(fisher, surrogate.gradient, 0.01, cg_steps, 1e-13)
    assert natural.failure is None
    return natural.step


@pytest.mark.parametrize("case", POLICIES)
def test_chunk_sizes_one_seven_and_all_give_the_same_step(case: str) -> None:
    model = collected(case, float64=True)
    # Few steps of the solver: without the loss of conjugacy it does not multiply the rounding.
    whole = full_step(model, 24, cg_steps=3)
    for size in (1, 7):
        step = full_step(model, size, cg_steps=3)
        th.testing.assert_close(step, whole, rtol=SAME_STEP, atol=SAME_STEP * float(whole.norm()))


@pytest.mark.parametrize("case", POLICIES)
def test_step_equals_the_dense_step(case: str) -> None:
    model = collected(case, float64=True)
    actor, batch = actor_and_batch(model)
    fisher = reference.dense_fisher(model.policy, batch.observations, actor.parameters)
    value = reference.surrogate(model.policy, *data_of(batch), ent_coef=0.01)
    expected = reference.natural_step(
        fisher + 0.1 * th.eye(len(fisher), dtype=th.float64),
        reference.dense_gradient(value, actor.parameters),
        0.01,
    )
    step = full_step(model, 24, cg_steps=200)
    th.testing.assert_close(step, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("in_memory", "linearizations"),
    [
        (24, 4),  # all four chunks for good
        (23, 4 + 2 + 2),  # two chunks for good, and room to build the others in
        (7, 3 * 4),  # as many states as one chunk has
    ],
)
def test_linearizations_are_kept_as_far_as_there_is_memory(
    in_memory: int, linearizations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor, batch = actor_and_batch(collected("box", float64=True))
    actor = replace(actor, max_states_in_memory=in_memory)
    built: list[int] = []

    def counted(self: Actor, chunk: ActorBatch) -> Linearization:
        built.append(len(chunk))
        return linearize(self, chunk)

    linearize = Actor.linearize
    monkeypatch.setattr(Actor, "linearize", counted)
    fisher = fisher_of(actor, batch.chunks(7), 0.1)
    (vector,) = random_vectors(actor, 1)
    products = [fisher(vector) for _ in range(3)]
    assert all(th.equal(product, products[0]) for product in products)
    assert sum(map(len, fisher.linearized._built)) <= in_memory
    assert len(built) == linearizations


def test_products_do_not_depend_on_the_vectors_before_them() -> None:
    actor, batch = actor_and_batch(collected("box", float64=True))
    fisher = fisher_of(actor, (batch,), 0.1)
    one, two = random_vectors(actor, 2)
    first = fisher(one)
    kept = first.clone()
    fisher(two)
    assert th.equal(first, kept)
    assert th.equal(fisher(one), kept)


def test_product_in_float32_has_the_digits_of_float32() -> None:
    actor, batch = actor_and_batch(collected("box"))
    exact, exact_batch = actor_and_batch(collected("box", float64=True))
    vector = random_vectors(actor, 1)[0].float()
    product = fisher_of(actor, (batch,), 0.1)(vector)
    expected = fisher_of(exact, (exact_batch,), 0.1)(vector.double())
    assert product.dtype == th.float32
    th.testing.assert_close(product.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_chunk_is_linearised_once_for_the_gradient_and_the_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actor, batch = actor_and_batch(collected("box", float64=True))
    chunks = batch.chunks(7)
    built: list[ActorBatch] = []

    def counted(self: Actor, chunk: ActorBatch) -> Linearization:
        built.append(chunk)
        return linearize(self, chunk)

    linearize = Actor.linearize
    monkeypatch.setattr(Actor, "linearize", counted)
    linearized = LinearizedActor(actor, chunks)
    gradient = surrogate_at(linearized, chunks).gradient
    FisherProduct(linearized, chunks)(gradient)
    assert built == list(chunks)
