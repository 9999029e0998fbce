"""
Train for hours with a random fault in one of ten updates, and watch what the process holds.

    python benchmarks/soak.py --minutes 120
    python benchmarks/soak.py --minutes 1 --output /tmp/soak.json

Four models train in turn: plain, masked, with an LSTM, with batch normalisation. A fault is an
exception or a NaN in a stage of the update, in the environment or in a callback; the model trains
on after it. Memory, threads and open files after the first fifth and at the end should agree.
"""

import argparse
import collections
import gc
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import torch as th
from machine import RESULTS, provenance
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_trpo import TRPO, MaskableTRPO, RecurrentTRPO, trpo

STAGES = ("read_rollout", "read_actor", "surrogate_at", "natural_step", "backtrack", "fit_critic")
ERRORS = (ValueError, RuntimeError, KeyboardInterrupt)
SHARE_OF_FAULTS = 0.1
# Share of the time that passes before the first measurement.
WARM_UP = 0.2
SIZES: dict[str, Any] = {"n_steps": 64, "batch_size": 64, "seed": 0, "device": "cpu"}


class NormalizingExtractor(FlattenExtractor):
    """The observation through batch normalisation."""

    def __init__(self, observation_space: Any) -> None:
        super().__init__(observation_space)
        self.norm = th.nn.BatchNorm1d(self.features_dim)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """Normalise."""
        normalised: th.Tensor = self.norm(super().forward(observations))
        return normalised


class Failing(BaseCallback):
    """Raise once, at a chosen step."""

    def __init__(self) -> None:
        super().__init__()
        self.at: int | None = None

    def _on_step(self) -> bool:
        if self.at is not None and self.n_calls % 64 == self.at:
            self.at = None
            raise LookupError("injected")
        return True


def masked() -> gym.Env[Any, Any]:
    """Make CartPole with masks that allow everything."""
    return ActionMasker(gym.make("CartPole-v1"), lambda _: np.ones(2, dtype=bool))


def models() -> list[Any]:
    """Make the models that train in turn."""
    pendulum = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")] * 2))
    cartpole = DummyVecEnv([lambda: gym.make("CartPole-v1")] * 2)
    extractor = {"features_extractor_class": NormalizingExtractor}
    lstm = {"lstm_hidden_size": 16}
    return [
        TRPO("MlpPolicy", pendulum, **SIZES),
        TRPO("MlpPolicy", cartpole, policy_kwargs=extractor, **SIZES),
        MaskableTRPO("MlpPolicy", DummyVecEnv([masked] * 2), **SIZES),
        RecurrentTRPO("MlpLstmPolicy", cartpole, policy_kwargs=lstm, n_critic_updates=2, **SIZES),
    ]


@contextmanager
def fault_in_a_stage(model: Any) -> Iterator[None]:
    """Let a stage of the next update raise, before or after its work."""
    stage, error, after = random.choice(STAGES), random.choice(ERRORS), random.random() < 0.5
    work: Callable[..., Any] = getattr(trpo, stage)

    def fail(*arguments: Any, **options: Any) -> Any:
        if after:
            work(*arguments, **options)
        raise error("injected")

    with mock.patch.object(trpo, stage, fail):
        yield


@contextmanager
def fault_in_the_buffer(model: Any) -> Iterator[None]:
    """Let the next rollout end with a return that is not a number."""
    compute = model.rollout_buffer.compute_returns_and_advantage

    def spoil(*arguments: Any, **options: Any) -> None:
        compute(*arguments, **options)
        model.rollout_buffer.returns[3, 1] = np.nan

    with mock.patch.object(model.rollout_buffer, "compute_returns_and_advantage", spoil):
        yield


@contextmanager
def fault_in_the_environment(model: Any) -> Iterator[None]:
    """Let the environment raise."""

    def fail() -> None:
        raise ZeroDivisionError("injected")

    with mock.patch.object(model.get_env().unwrapped, "step_wait", fail):
        yield


@contextmanager
def fault_in_the_callback(model: Any) -> Iterator[None]:
    """Let the callback raise."""
    model.failing.at = random.randrange(64)
    yield
    model.failing.at = None


FAULTS = (
    *(fault_in_a_stage, fault_in_the_buffer),
    *(fault_in_the_environment, fault_in_the_callback),
)


def train_once(model: Any, counts: collections.Counter[str]) -> None:
    """Train for one update, in one of ten cases with a fault."""
    steps = model.n_steps * model.n_envs
    if random.random() >= SHARE_OF_FAULTS:
        model.learn(steps, callback=model.failing, reset_num_timesteps=False)
        counts["updates"] += 1
        return
    fault = random.choice(FAULTS)
    try:
        with fault(model):
            model.learn(steps, callback=model.failing, reset_num_timesteps=False)
    except (Exception, KeyboardInterrupt) as error:
        counts[type(error).__name__] += 1
    assert all(bool(p.isfinite().all()) for p in model.policy.parameters())


def held() -> dict[str, int]:
    """Measure what the process holds."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "memory_mb": pages * os.sysconf("SC_PAGE_SIZE") // 2**20,
        "threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),
    }


def soak(minutes: float) -> dict[str, Any]:
    """
    Train with faults.

    :param minutes: how long
    :return: what the process held after the warm-up and at the end, and how often what happened
    """
    trained = models()
    for model in trained:
        model.failing = Failing()
    counts: collections.Counter[str] = collections.Counter()
    start, first = time.monotonic(), None
    while (passed := time.monotonic() - start) < 60 * minutes:
        if first is None and passed > 60 * minutes * WARM_UP:
            first = held()
        for model in trained:
            train_once(model, counts)
    return {"minutes": minutes, "counts": dict(counts), "first": first, "last": held()}


def main() -> None:
    """Run, print and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--output", type=Path, default=RESULTS / "soak.json")
    arguments = parser.parse_args()
    # oneDNN, which runs LSTMs for torch, keeps compiled code for the last 1,024 shapes of input.
    # Sequences have a new shape in nearly every update: the process would grow by some 100 MB.
    os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "16"
    th.set_num_threads(1)
    random.seed(0)
    result = provenance() | soak(arguments.minutes)
    print(json.dumps(result, indent=2))
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
