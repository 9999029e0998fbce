"""
What holds for every class of the package, with and without masks and LSTM.

One test per invariant over the one table, against the twin that evaluates one state at a time.
"""

import copy
from typing import Any

import numpy as np
import pytest
import torch as th

import sb3_trpo
from sb3_trpo._surrogate import improvement_and_kl
from sb3_trpo.trpo import ACTOR_UPDATES
from tests import reference, stepped
from tests.cases import (
    CASES,
    EVERY,
    actor_and_batch,
    copy_rollout,
    fisher_of,
    fisher_products,
    random_vectors,
    surrogate_of,
    toy_envs,
    toy_model,
)
from tests.environments import (
    changed,
    changed_actor,
    collect,
    logged,
    state_of,
    step_of,
)
from tests.test_saved_model import same_tensors, saved

# Rounding of a float32 mean over some hundred states.
ROUNDING = 1e-4
# Sums over some twenty states, through an LSTM where there is one, in float64.
DOUBLE_ROUNDING = 1e-10

# Hessians of the others have more than 10^12 entries.
SMALL = [name for name in EVERY if "cnn" not in name]


def collected(case: str, **kwargs: Any) -> Any:
    model = toy_model(case, **kwargs)
    collect(model)
    return model


def in_float64(case: str, **kwargs: Any) -> Any:
    return stepped.collected(toy_model(case, **{"n_steps": 12, "batch_size": 8, **kwargs}))


@th.no_grad()
def distributions(model: Any) -> list[list[Any]]:
    model.policy.set_training_mode(False)
    return stepped.distributions(model)


def outputs(model: Any) -> list[th.Tensor]:
    """List what the action distributions of all states are made of."""
    names = ("logits", "loc", "scale")
    blocks = [block for blocks in distributions(model) for block in blocks]
    return [getattr(b, name) for b in blocks for name in names if hasattr(b, name)]


@pytest.mark.parametrize("target_kl", [0.001, 0.05])
@pytest.mark.parametrize("case", EVERY)
def test_an_accepted_step_improves_inside_the_trust_region(case: str, target_kl: float) -> None:
    model = collected(case, target_kl=target_kl)
    old = distributions(model)
    with th.no_grad():
        before = float(stepped.surrogate(model))
    model.train()
    assert logged(model)["train/is_line_search_success"] == 1.0
    with th.no_grad():
        kl = float(stepped.mean_kl(model, old))
        improvement = float(stepped.surrogate(model)) - before
    assert improvement > 0
    assert 0 < kl <= target_kl * (1 + ROUNDING) + 1e-7
    # Dividing the advantages' variance by n, not n - 1, would be 8e-3 off.
    assert logged(model)["train/actual_improvement"] == pytest.approx(improvement, rel=2e-3)
    assert logged(model)["train/kl_divergence_loss"] == pytest.approx(kl, rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("case", EVERY)
def test_rejected_step_leaves_the_actor_bitwise_unchanged(case: str) -> None:
    # Far outside the region where the linear model holds no candidate gains what it predicts.
    model = collected(case, target_kl=20.0, line_search_accept_ratio=0.999, line_search_max_iter=2)
    before = state_of(model)
    model.train()
    assert logged(model)["train/is_line_search_success"] == 0.0
    assert logged(model)["train/actual_improvement"] == 0.0
    assert ACTOR_UPDATES[logged(model)["train/actor_update"]] == "line_search_failed"
    assert logged(model)["train/skipped_updates"] == 1
    assert not changed_actor(before, state_of(model))
    assert changed(before, state_of(model))


@pytest.mark.parametrize("case", EVERY)
def test_a_candidate_that_raises_leaves_no_trace(case: str) -> None:
    model = collected(case)
    before, policy = state_of(model), model.policy
    get_distribution = policy.get_distribution

    def fragile(*arguments: Any, **options: Any) -> Any:
        if changed_actor(before, state_of(model)):
            raise KeyError("a candidate")
        return get_distribution(*arguments, **options)

    policy.get_distribution = fragile
    with pytest.raises(KeyError, match="a candidate"):
        model.train()
    assert not changed(before, state_of(model))
    assert not policy.optimizer.state


# contrib shares an LSTM only where the features extractor is shared.
SHARES = [
    (name, share) for name in EVERY for share in (True, False) if share or "shared" not in name
]


@pytest.mark.parametrize(("case", "share"), SHARES)
def test_the_critics_fit_leaves_the_action_distribution_bitwise_unchanged(
    case: str, share: bool
) -> None:
    options = {"net_arch": [8], **CASES[case].policy_kwargs}
    policy_kwargs = {**options, "share_features_extractor": share}
    model = collected(case, target_kl=0.0, learning_rate=0.1, policy_kwargs=policy_kwargs)
    before, state = outputs(model), state_of(model)
    model.train()
    after = outputs(model)
    assert len(before) == len(after) >= 64
    assert all(th.equal(a, b) for a, b in zip(before, after, strict=True))
    assert {name for name in changed(state, state_of(model)) if "value" in name}
    assert not changed_actor(state, state_of(model))


@pytest.mark.parametrize("case", EVERY)
def test_same_seed_gives_bitwise_the_same_parameters(case: str) -> None:
    states = [state_of(toy_model(case, seed=5).learn(128)) for _ in range(2)]
    assert not changed(*states)
    assert changed(states[0], state_of(toy_model(case, seed=6).learn(128)))


@pytest.mark.parametrize(("case", "chunk"), [("box", 1), ("box", 64), *((c, 7) for c in EVERY)])
def test_chunks_change_nothing(case: str, chunk: int) -> None:
    whole = collected(case)
    chunked = toy_model(case, max_states_per_chunk=chunk)
    copy_rollout(whole, chunked)
    step, chunked_step = step_of(whole), step_of(chunked)
    assert float((chunked_step - step).norm()) <= 2e-3 * float(step.norm())


@pytest.mark.parametrize("size", [1, 10, 30])
@pytest.mark.parametrize("case", SMALL)
def test_chunks_change_nothing_in_double_precision(case: str, size: int) -> None:
    actor, batch = actor_and_batch(in_float64(case))
    chunks = batch.chunks(size)
    whole, cut = surrogate_of(actor, (batch,), 0.1), surrogate_of(actor, chunks, 0.1)
    assert cut.value == pytest.approx(whole.value, rel=DOUBLE_ROUNDING)
    near: dict[str, Any] = {"rtol": DOUBLE_ROUNDING, "atol": DOUBLE_ROUNDING}
    th.testing.assert_close(cut.gradient, whole.gradient, **near)
    vector = th.randn_like(whole.gradient)
    products = [fisher_of(actor, c, 0.1)(vector) for c in ((batch,), chunks)]
    th.testing.assert_close(products[1], products[0], **near)


@pytest.mark.parametrize("case", SMALL)
def test_surrogate_gradient_and_kl_equal_those_of_one_state_at_a_time(case: str) -> None:
    model = in_float64(case)
    actor, batch = actor_and_batch(model)
    surrogate = surrogate_of(actor, batch.chunks(9))
    value = stepped.surrogate(model)
    expected = reference.dense_gradient(value, actor.parameters)
    assert surrogate.value == pytest.approx(reference.number(value), abs=1e-9)
    th.testing.assert_close(surrogate.gradient, expected, rtol=1e-7, atol=1e-9)
    old = distributions(model)
    with th.no_grad():
        reference.add_to(actor.parameters, 0.05 * th.randn_like(expected))
        improvement, kl = improvement_and_kl(actor, surrogate.old)
        assert kl == pytest.approx(float(stepped.mean_kl(model, old)), rel=1e-8)
        gain = float(stepped.surrogate(model)) - reference.number(value)
    assert improvement == pytest.approx(gain, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("case", SMALL)
def test_fisher_products_equal_second_derivatives_of_one_state_at_a_time(case: str) -> None:
    options = {**CASES[case].policy_kwargs, "net_arch": [2]}
    if "lstm" in case:
        options.update(lstm_hidden_size=2, net_arch=[])
    model = in_float64(case, policy_kwargs=options, n_steps=6, batch_size=12)
    actor, batch = actor_and_batch(model)
    if CASES[case].masks:
        assert not model.rollout_buffer.action_masks.all()
    if "lstm" in case:
        names = {name for name, p in model.policy.named_parameters() if p in set(actor.parameters)}
        last = options.get("n_lstm_layers", 1) - 1
        assert {"lstm_actor.weight_hh_l0", f"lstm_actor.weight_ih_l{last}"} <= names
    old = distributions(model)
    vectors = random_vectors(actor)
    kl = stepped.mean_kl(model, old)
    expected = reference.hessian_products(kl, actor.parameters, vectors)
    found = fisher_products(actor, (batch,), vectors)
    assert expected.abs().max() > 1e-4
    th.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("case", EVERY)
def test_a_loaded_model_is_the_same_and_takes_bitwise_the_same_next_update(case: str) -> None:
    model = toy_model(case, cg_damping="lin_0.2").learn(64)
    kind = type(model)
    loaded = kind.load(saved(model), toy_envs(CASES[case], 2), device="cpu")
    assert same_tensors(model.get_parameters(), loaded.get_parameters())
    observation = model.get_env().reset()
    actions = [m.predict(observation, deterministic=True)[0] for m in (model, loaded)]
    np.testing.assert_array_equal(actions[0], actions[1])
    collect(model)
    loaded.rollout_buffer = copy.deepcopy(model.rollout_buffer)
    loaded._setup_learn(1)
    for each in (model, loaded):
        each._current_progress_remaining = 0.5
        np.random.seed(3)
        each.train()
    assert same_tensors(model.get_parameters(), loaded.get_parameters())
    assert model._n_updates == loaded._n_updates == 2
    loaded.learn(64, reset_num_timesteps=False)
    assert logged(loaded)["train/n_updates"] == 3
    if CASES[case].masks:
        loaded.learn(64, use_masking=False)


def test_every_class_is_in_the_table() -> None:
    kinds = {getattr(sb3_trpo, name) for name in sb3_trpo.__all__ if name.endswith("TRPO")}
    assert {case.kind for case in CASES.values()} == kinds
