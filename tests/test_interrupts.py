"""Ctrl-C at any line of an update or a rollout leaves a model that can train on."""

import itertools
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

import sb3_trpo
from sb3_trpo._interrupts import deferring_interrupts
from tests.cases import copy_rollout, toy_model
from tests.environments import all_finite, changed, collect, state_of

PACKAGE = str(Path(sb3_trpo.__file__).parent)
CASES = ["box", "batch_norm_shared", "lstm_discrete", "cnn_discrete", "masked_discrete"]


# Lines that run before an interrupt is deferred.
FIRST_LINES = 20


class AtLine:
    """Call a function at the n-th line of the package that runs in a block."""

    def __init__(self, n: int, action: Callable[[], None]) -> None:
        self.lines, self.n, self.action = itertools.count(1), n, action

    def __call__(self, frame: Any, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line" and next(self.lines) == self.n:
            self.action()
        return self

    def __enter__(self) -> "AtLine":
        sys.settrace(self)
        return self

    def __exit__(self, *_: Any) -> None:
        sys.settrace(None)


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def lines_of(action: Callable[[], Any]) -> int:
    with AtLine(0, lambda: None) as tracer:
        action()
    return next(tracer.lines) - 1


def switches() -> tuple[Any, ...]:
    """Read the global switches that an update sets for a while."""
    return (
        th.is_grad_enabled(),
        th.backends.cudnn.enabled,
        th.backends.mha.get_fastpath_enabled(),
        th._C._get_flash_sdp_enabled(),
        signal.getsignal(signal.SIGINT),
    )


def hooks_of(policy: th.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in policy.modules())


@pytest.mark.parametrize("case", CASES)
def test_ctrl_c_at_any_line_of_an_update_waits_for_its_end(case: str) -> None:
    model, twin = toy_model(case), toy_model(case)
    collect(model)
    copy_rollout(model, twin)
    np.random.seed(0)
    n_lines = lines_of(twin.train)
    assert n_lines > 10 * FIRST_LINES
    before = switches()
    for line in np.linspace(1, n_lines - 1, 12, dtype=int).tolist():
        interrupted = toy_model(case)
        copy_rollout(model, interrupted)
        interrupted.policy.set_training_mode(False)
        np.random.seed(0)
        with AtLine(line, ctrl_c), pytest.raises(KeyboardInterrupt):
            interrupted.train()
        # All of the update or, in its very first lines, nothing of it.
        expected = twin if interrupted._n_updates == 1 else model
        assert interrupted._n_updates == 1 or line < FIRST_LINES
        assert not changed(state_of(expected), state_of(interrupted))
        assert switches() == before
        assert hooks_of(interrupted.policy) == 0
        modes = {module.training for module in interrupted.policy.modules()}
        assert modes == {interrupted._n_updates == 1}
    interrupted.learn(64, reset_num_timesteps=False)
    assert all_finite(interrupted)


@pytest.mark.parametrize("case", ["box", "lstm_discrete", "gsde"])
def test_ctrl_c_at_any_line_of_a_rollout_leaves_the_parameters(case: str) -> None:
    model = toy_model(case, n_steps=4, batch_size=4)
    n_lines = lines_of(lambda: collect(model))
    before, settings = state_of(model), switches()
    for line in np.linspace(5, n_lines - 5, 20, dtype=int).tolist():
        with AtLine(line, ctrl_c), pytest.raises(KeyboardInterrupt):
            collect(model)
        assert not changed(before, state_of(model))
        assert switches() == settings
    model.learn(16, reset_num_timesteps=False)
    assert all_finite(model)


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    reached = []

    @deferring_interrupts()
    def work() -> None:
        ctrl_c()
        reached.append("first")
        ctrl_c()
        reached.append("second")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == ["first"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_program_is_left_alone() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    try:
        with deferring_interrupts():
            ctrl_c()
            assert seen == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_exception_of_the_block_is_raised() -> None:
    @deferring_interrupts()
    def work() -> None:
        ctrl_c()
        raise LookupError

    with pytest.raises(LookupError):
        work()


def test_another_thread_trains() -> None:
    model = toy_model()
    thread = threading.Thread(target=model.learn, args=(64,))
    thread.start()
    thread.join()
    assert model._n_updates == 1
