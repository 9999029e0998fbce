"""The benchmark of several processes: what an update sends, and the model of its time."""

import importlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from torch import distributed as dist

from tests.parallel import in_processes

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def send_what_the_formula_says(rank: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        scaling: Any = importlib.import_module("scaling")
        patch.setattr(scaling, "ROLLOUTS", 1)
        found = scaling.learn(scaling.Share("CartPole-v1", 96, 32))
        update = scaling.Update(**found["update"])
        expected: Counter[int] = Counter()
        for times, size in update.messages.values():
            expected[size] += times
        assert found["sent"] == expected
        assert update.minibatches == 10 * 6
        assert update.products > 0
        assert dist.get_world_size() == 2


def test_messages_of_an_update_are_those_of_the_formula() -> None:
    in_processes(2, send_what_the_formula_says)


@pytest.fixture
def communication(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the model."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("communication")


@pytest.mark.parametrize("processes", [2, 3, 1000])
def test_network_is_found_from_its_own_times(communication: Any, processes: int) -> None:
    network = communication.Network(2e-5, 1e9)
    times = {size: communication.ring(network, processes, size) for size in (4, 4096, 10**6)}
    assert communication.fit_network(times, processes) == pytest.approx(network)
    updates = [communication.Update(100, 90, products, 1, 160) for products in (5, 15)]
    seconds = [communication.seconds_of(update, network, processes) for update in updates]
    cases = [(update, 0.1, 0.1 + each) for update, each in zip(updates, seconds, strict=True)]
    assert communication.latency_of(cases, 1e9, processes) == pytest.approx(2e-5)


def test_ring_and_tree_differ_in_latency_only(communication: Any) -> None:
    instant = communication.Network(0.0, 1e9)
    slow = communication.Network(1e-4, float("inf"))
    ring, tree = communication.ring, communication.tree
    assert ring(instant, 1000, 1e6) == pytest.approx(tree(instant, 1000, 1e6))
    assert ring(slow, 2, 1e6) == pytest.approx(tree(slow, 2, 1e6))
    assert ring(slow, 1000, 1e6) == pytest.approx(2 * 999 * 1e-4)
    assert tree(slow, 1000, 1e6) == pytest.approx(2 * 10 * 1e-4)


def test_tables_of_the_documentation_are_those_of_the_result(communication: Any) -> None:
    scaling = importlib.import_module("scaling")
    text = (BENCHMARKS.parent / "docs" / "pages" / "scaling.md").read_text()
    tables = (
        scaling.table(json.loads(communication.RESULT.read_text())),
        communication.efficiency_table("Hopper-v5"),
        communication.remedies_table("Hopper-v5"),
    )
    assert all(table in text for table in tables)
