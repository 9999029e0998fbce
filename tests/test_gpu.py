"""
The update on a GPU: the same step as on the CPU, chunked or not, and the same again every time.

The table is that of ``cases.py``. In float64 both devices differ by rounding only.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch as th

from sb3_trpo import _cuda_graph, _fisher
from sb3_trpo._actor import read_actor
from tests.cases import (
    CASES,
    EVERY,
    POLICIES,
    actor_and_batch,
    collected,
    copy_rollout,
    fisher_of,
    surrogate_of,
    toy_model,
)
from tests.environments import changed_actor, collect, logged, state_of, step_of
from tests.reference import run_in_float64

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not th.cuda.is_available(), reason="torch has no GPU here"),
]

NAMES = tuple(dict.fromkeys((*EVERY, *POLICIES)))
CLOSED_FORMS = [
    name for name in NAMES if name in ("box", "discrete", "lstm_box", "lstm_two_layers")
]
DOUBLE_ROUNDING = 1e-10


@pytest.fixture
def deterministic() -> Any:
    """Let torch use deterministic algorithms, and raise where it has none."""
    th.use_deterministic_algorithms(True)
    yield
    th.use_deterministic_algorithms(False)


def pair_of(case: str, **kwargs: Any) -> tuple[Any, Any]:
    """Make the same model with the same rollout on the CPU and on the GPU, in float64."""
    on_cpu = collected(case, **kwargs)
    options = {"net_arch": [5], **CASES[case].policy_kwargs}
    on_gpu = toy_model(
        case, 3, n_steps=8, batch_size=8, seed=0, device="cuda", policy_kwargs=options, **kwargs
    )
    copy_rollout(on_cpu, on_gpu)
    on_gpu.policy.set_training_mode(False)
    for model in (on_cpu, on_gpu):
        run_in_float64(model.policy)
    return on_cpu, on_gpu


@pytest.mark.parametrize("case", NAMES)
def test_the_step_equals_the_cpus_in_double_precision(case: str) -> None:
    on_cpu, on_gpu = pair_of(case, n_critic_updates=0)
    expected, step = step_of(on_cpu), step_of(on_gpu).cpu()
    assert float((step - expected).norm()) <= DOUBLE_ROUNDING * float(expected.norm())


@pytest.mark.parametrize("case", NAMES)
def test_gradient_and_fisher_product_equal_the_cpus_in_chunks_too(case: str) -> None:
    vectors: list[th.Tensor] = []
    for model in pair_of(case):
        actor, batch = actor_and_batch(model)
        for chunks in ((batch,), batch.chunks(5)):
            gradient = surrogate_of(actor, chunks).gradient
            vectors.append(th.cat([gradient, fisher_of(actor, chunks, 0.1)(gradient)]).cpu())
    for vector in vectors[1:]:
        th.testing.assert_close(vector, vectors[0], rtol=1e-9, atol=DOUBLE_ROUNDING)


@pytest.mark.parametrize("case", EVERY)
def test_an_accepted_step_improves_inside_the_trust_region(case: str) -> None:
    model = toy_model(case, device="cuda")
    collect(model)
    model.train()
    values = logged(model)
    assert values["train/is_line_search_success"] == 1.0
    assert values["train/actual_improvement"] > 0
    assert 0 < values["train/kl_divergence_loss"] <= model.target_kl * (1 + 1e-3)


@pytest.mark.parametrize("case", EVERY)
def test_rejected_step_leaves_the_actor_bitwise_unchanged(case: str) -> None:
    options: dict[str, Any] = {"line_search_accept_ratio": 0.999, "line_search_max_iter": 2}
    model = toy_model(case, device="cuda", target_kl=20.0, **options)
    collect(model)
    before = copy.deepcopy(state_of(model))
    model.train()
    assert logged(model)["train/is_line_search_success"] == 0.0
    assert not changed_actor(before, state_of(model))


@pytest.mark.parametrize("case", EVERY)
def test_same_seed_gives_bitwise_the_same_parameters(case: str, deterministic: None) -> None:
    first, second = (state_of(toy_model(case, seed=5, device="cuda").learn(192)) for _ in range(2))
    assert all(th.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("case", ["box", "cnn", "dict", "lstm_box", "masked_discrete"])
def test_a_model_of_either_device_loads_on_the_other_and_trains_on(
    case: str, tmp_path: Path
) -> None:
    model = toy_model(case, device="cuda").learn(64)
    for device in ("cpu", "cuda"):
        model.save(tmp_path / "model")
        loaded = type(model).load(tmp_path / "model", env=model.get_env(), device=device)
        assert loaded.device.type == device
        for name, tensor in model.policy.state_dict().items():
            th.testing.assert_close(loaded.policy.state_dict()[name].cpu(), tensor.cpu())
        model = loaded.learn(64, reset_num_timesteps=False)


def test_the_memory_budget_is_a_share_of_the_cards_memory() -> None:
    model = toy_model("box", device="cuda")
    collect(model)
    batch = actor_and_batch(model)[1]
    free = read_actor(model.policy, batch).max_states_in_memory
    taken = th.empty(th.cuda.mem_get_info()[0] // 2, dtype=th.uint8, device="cuda")
    assert read_actor(model.policy, batch).max_states_in_memory == free
    del taken


@pytest.mark.parametrize("case", CLOSED_FORMS)
def test_a_recorded_product_takes_the_same_step(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launched, recorded = (pair_of(case, n_critic_updates=0)[1] for _ in range(2))
    expected = step_of(launched)
    monkeypatch.setattr(_fisher, "USES_CUDA_GRAPHS", True)
    record, recordings = _cuda_graph.as_cuda_graph, []

    def count(*arguments: Any) -> Any:
        recordings.append(arguments)
        return record(*arguments)

    monkeypatch.setattr(_fisher, "as_cuda_graph", count)
    step = step_of(recorded)
    assert len(recordings) == 1
    assert float((step - expected).norm()) <= DOUBLE_ROUNDING * float(expected.norm())
