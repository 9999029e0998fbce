"""The closed form of an LSTM: autograd's numbers, and only for policies that are contrib's own."""

from typing import Any

import pytest
import torch as th
from torch import nn

from sb3_trpo._linearization import AutogradLinearization, Linearization
from sb3_trpo._plain import read_plain_recurrent
from sb3_trpo._recurrence import RecurrentLinearization, pack
from sb3_trpo._sequences import Sequences
from sb3_trpo._vectors import flatten
from tests.cases import CASES, SMALL_LSTM, actor_and_batch
from tests.cases import toy_model as toy
from tests.stepped import collected

# Sums over some twenty states through an LSTM, in float64.
ROUNDING = 1e-10

PLAIN = (
    *("lstm_box", "lstm_discrete", "lstm_multi_discrete", "lstm_multi_binary"),
    *("lstm_dict", "lstm_two_layers", "lstm_shared", "lstm_no_critic_lstm"),
)
OTHERS = sorted({name for name in CASES if "lstm" in name} - set(PLAIN))


def model_of(case: str, **options: Any) -> Any:
    return collected(toy(case, n_steps=12, batch_size=8, policy_kwargs={**SMALL_LSTM, **options}))


def both(model: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Linearization, Linearization, Any]:
    """Linearise in closed form and by autograd."""
    actor, batch = actor_and_batch(model)
    ours = actor.linearize(batch)
    monkeypatch.setattr("sb3_trpo._actor.linearize_recurrent", lambda *_: None)
    theirs = actor.linearize(batch)
    assert isinstance(ours, RecurrentLinearization)
    assert isinstance(theirs, AutogradLinearization)
    return ours, theirs, batch


def check_equal(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs, batch = both(model, monkeypatch)
    size = sum(parameter.numel() for parameter in theirs.parameters)  # type: ignore[attr-defined]
    vectors = th.randn(3, size, dtype=th.float64)
    found = []
    for linearization in (ours, theirs):
        distribution = linearization.distribution
        with th.enable_grad():
            value = batch.weighted_sum(distribution.log_prob(batch.actions).square())
        found.append([linearization.gradient(value), *map(batch.weigh, distribution.outputs)])
        for vector in vectors:
            tangent = linearization.metric(linearization.jacobian_product(vector))
            weighted = tuple(map(batch.weigh, tangent))
            found[-1] += [*weighted, linearization.transposed_product(weighted)]
    one, other = map(flatten, found)
    assert other.abs().max() > 0
    th.testing.assert_close(one, other, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("case", PLAIN)
def test_closed_form_equals_autograd(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_equal(model_of(case), monkeypatch)


def test_closed_form_equals_autograd_through_three_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    check_equal(model_of("lstm_box", n_lstm_layers=3), monkeypatch)


@pytest.mark.parametrize(
    "frozen", ["weight_ih_l0", "weight_hh_l1", "bias_ih_l0", "bias_hh_l1", "weight_ih_l1"]
)
def test_frozen_parameters_are_left_out(frozen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("lstm_two_layers")
    getattr(model.policy.lstm_actor, frozen).requires_grad_(False)
    check_equal(model, monkeypatch)


@pytest.mark.parametrize("case", OTHERS)
def test_other_policies_go_through_autograd(case: str) -> None:
    actor, batch = actor_and_batch(model_of(case))
    assert not isinstance(actor.linearize(batch), RecurrentLinearization)


@pytest.mark.parametrize(
    "option", [{"bias": False}, {"proj_size": 2}, {"dropout": 0.1}, {"bidirectional": True}]
)
def test_other_lstms_are_not_recognised(option: dict[str, Any]) -> None:
    policy = model_of("lstm_two_layers").policy
    assert read_plain_recurrent(policy) is not None
    policy.lstm_actor = nn.LSTM(3, 3, 2, **option).double()
    assert read_plain_recurrent(policy) is None


def test_hook_on_the_lstm_is_not_skipped() -> None:
    model = model_of("lstm_box")
    model.policy.lstm_actor.register_forward_hook(lambda module, args, output: None)
    actor, batch = actor_and_batch(model)
    assert isinstance(actor.linearize(batch), AutogradLinearization)


def test_packing_lists_every_state_once_and_after_the_one_before_it() -> None:
    lengths = th.tensor([2, 4, 1, 4])
    rows = th.arange(16).reshape(4, 4)
    sequences = Sequences(rows, lengths, (th.zeros(16, 1, 1), th.zeros(16, 1, 1)))
    packing = pack(sequences)
    assert packing.sizes == [4, 3, 2, 2]
    assert packing.order.tolist() == [1, 3, 0, 2]
    assert packing.places.tolist() == [4, 12, 0, 8, 5, 13, 1, 6, 14, 7, 15]
    assert th.equal(packing.places[packing.states[packing.places]], packing.places)
    table = [None] * 4 + packing.places.tolist()
    for place, row in zip(packing.places.tolist(), packing.previous.tolist(), strict=True):
        assert table[row] == (None if place % 4 == 0 else place - 1)
    assert packing.places[packing.states].tolist()[8:12] == [8, 8, 8, 8]


def test_chunks_and_the_whole_give_the_same_gradient() -> None:
    actor, batch = actor_and_batch(model_of("lstm_two_layers"))
    gradients = []
    for size in (1, 10**6):
        total = th.zeros(sum(p.numel() for p in actor.parameters), dtype=th.float64)
        for chunk in batch.chunks(size):
            linearization = actor.linearize(chunk)
            with th.enable_grad():
                log_prob = linearization.distribution.log_prob(chunk.actions)
                value = chunk.weighted_sum(log_prob * chunk.advantages)
            total = total + linearization.gradient(value)
        gradients.append(total)
    th.testing.assert_close(*gradients, rtol=ROUNDING, atol=ROUNDING)
