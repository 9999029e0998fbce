"""Failing environments: an exception says where, and an interrupted step shifts no other."""

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor, VecNormalize

from sb3_trpo import TRPO
from sb3_trpo._environment import let_close
from tests.environments import changed, state_of

AT = 5  # the step at which the environment fails


class Counting(gym.Env[Any, Any]):
    """Observes the number of its steps; fails in a chosen way at one of them."""

    action_space = spaces.Discrete(2)

    def __init__(
        self,
        fault: str | None = None,
        fails_in_reset: bool = False,
        size: int = 2,
        training: int | None = None,
    ) -> None:
        self.training = training  # the process that an interruption is for
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.fault = fault
        self.fails_in_reset = fails_in_reset
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if self.fails_in_reset:
            raise ZeroDivisionError("in reset")
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        observation = self._observation()
        if self.steps == AT and self.training is not None:
            time.sleep(0.5)  # until the answer of the first environment was received
            os.kill(self.training, signal.SIGINT)
            time.sleep(2)
        if self.steps != AT or self.fault is None:
            return observation, 1.0, False, False, {}
        return FAULTS[self.fault](observation)

    def _observation(self) -> Any:
        return np.full(self.observation_space.shape, self.steps, np.float32)


def fail(observation: Any) -> Any:
    raise ZeroDivisionError("in step")


FAULTS: dict[str, Callable[[Any], Any]] = {
    "raises": fail,
    "wrong shape": lambda _: (np.zeros((3, 5), np.float32), 1.0, False, False, {}),
    "no array": lambda _: ("text", 1.0, False, False, {}),
    "no reward": lambda observation: (observation, "much", False, False, {}),
    "no infos": lambda observation: (observation, 1.0, False, False, None),
    "four values": lambda observation: (observation, 1.0, False, {}),
    "nan": lambda observation: (observation * np.nan, 1.0, False, False, {}),
    "infinite reward": lambda observation: (observation, np.inf, False, False, {}),
}


def makers(size: int = 2, **options: Any) -> Any:
    """Make three environments of which the second one fails."""
    others = partial(Counting, size=size)
    return [others, partial(Counting, size=size, **options), others]


def model_in(env: Any) -> Any:
    return TRPO("MlpPolicy", env, n_steps=8, batch_size=8, policy_kwargs={"net_arch": [4]}, seed=0)


def said_by(error: BaseException) -> str:
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # VecNormalize subtracts infinities
@pytest.mark.parametrize("wrapper", [None, VecMonitor, VecNormalize])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_dummy_vec_env_names_step_and_environment(fault: str, wrapper: Any) -> None:
    env: Any = DummyVecEnv(makers(fault=fault))
    model = model_in(wrapper(env) if wrapper else env)
    before = state_of(model)
    with pytest.raises(Exception) as caught:  # noqa: PT011 (the environment's own exception)
        model.learn(24)
    said = said_by(caught.value)
    assert "environment 1" in said or f"(step, env) = ({AT}, 1)" in said
    assert f"step {AT}" in said or f"(step, env) = ({AT}, 1)" in said
    assert not changed(before, state_of(model))
    assert model.policy.optimizer.state_dict()["state"] == {}


def test_the_exception_keeps_its_type_and_message() -> None:
    with pytest.raises(ZeroDivisionError, match="in step"):
        model_in(DummyVecEnv(makers(fault="raises"))).learn(24)


def test_a_fault_in_a_reset_is_named() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        model_in(DummyVecEnv(makers(fails_in_reset=True))).learn(24)
    assert "before the first step of a rollout, in environment 1." in said_by(caught.value)


class Ending(Counting):
    """Ends at one step."""

    def step(self, action: Any) -> Any:
        observation, reward, _, *others = super().step(action)
        return observation, reward, self.steps == AT, *others


@pytest.mark.parametrize("stop_at", [AT - 1, AT])
def test_training_goes_on_where_a_callback_stopped_it(stop_at: int) -> None:
    model = model_in(DummyVecEnv([Ending]))
    model.learn(8, lambda *_: model.num_timesteps < stop_at)
    model.learn(8, reset_num_timesteps=False)
    buffer = model.rollout_buffer
    assert buffer.observations[:, 0, 0].tolist() == [stop_at + step for step in range(8)]
    starts = [stop_at + step == AT for step in range(8)]
    assert buffer.episode_starts[:, 0].tolist() == starts


def test_a_fault_of_a_callback_blames_no_environment() -> None:
    class Failing(BaseCallback):
        def _on_step(self) -> bool:
            raise LookupError("callback")

    with pytest.raises(LookupError) as caught:
        model_in(DummyVecEnv(makers())).learn(24, callback=Failing())
    assert "step 1 of a rollout." in said_by(caught.value)


@pytest.mark.slow
def test_a_worker_process_that_ended_is_named(capfd: Any) -> None:
    # Not forked: the other workers would keep the pipe of the one that ended open.
    model = model_in(SubprocVecEnv(makers(fault="raises"), start_method="forkserver"))
    before = state_of(model)
    with pytest.raises((EOFError, ConnectionError)) as caught:
        model.learn(24)
    assert f"step {AT} of a rollout, in environment 1." in said_by(caught.value)
    assert not changed(before, state_of(model))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["raises", "interrupts"])
@pytest.mark.parametrize("size", [2, 100_000])  # which no pipe holds
def test_environments_are_closed_after_a_step_that_failed(
    fault: str, size: int, capfd: Any
) -> None:
    options: Any = {"fault": "raises"} if fault == "raises" else {"training": os.getpid()}
    env = SubprocVecEnv(makers(size=size, **options), start_method="forkserver")
    with pytest.raises((EOFError, ConnectionError, KeyboardInterrupt)):
        model_in(env).learn(24)

    raised: list[type[Exception]] = []

    def close() -> None:
        let_close(env)
        try:
            env.close()
        except Exception as error:
            raised.append(type(error))

    closing = threading.Thread(target=close, daemon=True)
    closing.start()
    closing.join(timeout=30)
    assert not closing.is_alive()
    assert raised == ([EOFError] if fault == "raises" else [])


@pytest.mark.parametrize("reset_num_timesteps", [True, False])
@pytest.mark.parametrize(("sent", "received"), [(1, 0), (3, 0), (3, 1), (3, 3)])
def test_an_interrupted_step_does_not_shift_the_next_ones(
    reset_num_timesteps: bool, sent: int, received: int
) -> None:
    env = SubprocVecEnv(makers(), start_method="fork")
    model = model_in(env).learn(24)
    # What an interrupt leaves: some workers were told to step, some answers were received.
    for remote in env.remotes[:sent]:
        remote.send(("step", 0))
    env.waiting = sent == 3
    for remote in env.remotes[:received]:
        remote.recv()
    with pytest.warns(UserWarning, match="interrupted step"):
        model.learn(24, reset_num_timesteps=reset_num_timesteps)
    observed = model.rollout_buffer.observations.reshape(8, 3, 2)[..., 0]
    np.testing.assert_array_equal(np.diff(observed, axis=0), 1)
    last: Any = env.step(np.zeros(3, int))[0]
    np.testing.assert_array_equal(last[:, 0], observed[-1] + 2)
    env.close()


@pytest.mark.parametrize("vec_env", [DummyVecEnv, SubprocVecEnv])
def test_after_an_exception_the_environment_is_reset(vec_env: Any) -> None:
    class Failing(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 3:
                raise KeyboardInterrupt
            return True

    model = model_in(vec_env(makers()))
    with pytest.raises(KeyboardInterrupt):
        model.learn(24, callback=Failing())
    model.learn(24, reset_num_timesteps=False)
    assert model.rollout_buffer.episode_starts[0].all()
    observed = model.rollout_buffer.observations.reshape(8, 3, 2)[..., 0]
    np.testing.assert_array_equal(observed[:2, 0], [3, 4])
    model.get_env().close()


@pytest.mark.filterwarnings("ignore:An interrupted step")
def test_learning_continues_after_an_interrupt_between_the_halves_of_a_step() -> None:
    class Interrupting(SubprocVecEnv):
        after = 4

        def step_wait(self) -> Any:
            self.after -= 1
            if self.after == 0:
                os.kill(os.getpid(), signal.SIGINT)
            return super().step_wait()

    env = Interrupting(makers(), start_method="fork")
    model = model_in(env)
    with pytest.raises(KeyboardInterrupt):
        model.learn(24)
    model.learn(48, reset_num_timesteps=False)
    assert model._n_updates == 2
    env.close()
