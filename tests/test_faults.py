"""An exception in a stage of rollout or update leaves the state that the stage found."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch as th

from sb3_trpo import trpo
from tests.cases import toy_model
from tests.environments import all_finite, changed, collect, state_of
from tests.test_interrupts import hooks_of, switches
from tests.test_saved_model import same_tensors

stages: Any = trpo

UPDATE = (
    "read_rollout",
    "read_actor",
    "surrogate_at",
    "natural_step",
    "backtrack",
    "read_critic",
    "fit_critic",
)
CASES = ["box", "batch_norm_shared", "masked_discrete", "lstm_box"]
ERRORS = [ValueError, RuntimeError, MemoryError, KeyboardInterrupt, SystemExit]


class Fault:
    """Raise before or after a function runs, and keep the model's state at that moment."""

    def __init__(
        self, model: Any, function: Callable[..., Any], error: type[BaseException], when: str
    ):
        self.model, self.function, self.error, self.when = model, function, error, when
        self.state: Any = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if self.when == "after":
            self.function(*arguments, **options)
        self.state = full_state(self.model)
        raise self.error("injected")


def full_state(model: Any) -> Any:
    return copy.deepcopy((state_of(model), model.policy.optimizer.state_dict()["state"]))


def assert_clean(model: Any, before: tuple[Any, ...]) -> None:
    """Check that nothing is left of an update but its numbers."""
    assert switches() == before
    assert hooks_of(model.policy) == 0
    assert not any(module.training for module in model.policy.modules())
    assert all(parameter.grad is None for parameter in model.policy.parameters())
    copy.deepcopy(model.policy)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("stage", UPDATE)
@pytest.mark.parametrize("case", CASES)
def test_an_exception_leaves_the_state_of_its_stage(
    case: str, stage: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy_model(case)
    model.learn(64)
    # Each with what the last one has left.
    for error in ERRORS if case == "box" else (RuntimeError, KeyboardInterrupt):
        collect(model)
        before = switches()
        fault = Fault(model, getattr(stages, stage), error, when)
        with monkeypatch.context() as patch:
            patch.setattr(stages, stage, fault)
            with pytest.raises(error):
                model.train()
        assert same_tensors(list(fault.state), list(full_state(model)))
        assert_clean(model, before)
    model.learn(64, reset_num_timesteps=False)
    assert all_finite(model)


@pytest.mark.parametrize("place", ["forward", "predict_values", "reset_noise", "obs_to_tensor"])
@pytest.mark.parametrize("error", ERRORS)
def test_an_exception_of_the_policy_in_a_rollout_leaves_the_parameters(
    place: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy_model("gsde")
    model.learn(64)
    before, settings = full_state(model), switches()

    def fail(*_: Any, **__: Any) -> Any:
        raise error("injected")

    with monkeypatch.context() as patch:
        patch.setattr(model.policy, place, fail)
        with pytest.raises(error):
            model.learn(64, reset_num_timesteps=False)
    assert same_tensors(list(before), list(full_state(model)))
    assert switches() == settings
    assert model._last_obs is None
    model.learn(64, reset_num_timesteps=False)
    assert all_finite(model)


@pytest.mark.parametrize("name", ["advantages", "returns", "values", "log_probs"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_rollout_that_is_not_finite_changes_nothing(name: str, number: float) -> None:
    model = toy_model()
    model.learn(64)
    collect(model)
    getattr(model.rollout_buffer, name)[3, 1] = number
    before, settings = full_state(model), switches()
    with pytest.raises(ValueError, match=r"\(step, env\) = \(3, 1\)"):
        model.train()
    assert same_tensors(list(before), list(full_state(model)))
    assert_clean(model, settings)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("evaluation", [1, 2, 3])
def test_an_exception_while_a_candidate_is_evaluated_restores_the_actor(
    evaluation: int, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy_model(line_search_accept_ratio=0.99, target_kl=1.0)
    model.learn(64)
    collect(model)
    calls: list[None] = []
    evaluate, before = stages.improvement_and_kl, state_of(model)

    def sometimes(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == evaluation:
            raise error("injected")
        return evaluate(*arguments)[0], float("inf")

    monkeypatch.setattr(stages, "improvement_and_kl", sometimes)
    with pytest.raises(error):
        model.train()
    assert not changed(before, state_of(model))


def test_a_device_that_runs_out_of_memory_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = toy_model()
    model.learn(64)
    collect(model)
    before = full_state(model)

    def exhausted(*_: Any, **__: Any) -> Any:
        raise th.cuda.OutOfMemoryError("injected")

    monkeypatch.setattr(stages.FisherProduct, "__call__", exhausted)
    with pytest.raises(th.cuda.OutOfMemoryError):
        model.train()
    assert same_tensors(list(before), list(full_state(model)))
