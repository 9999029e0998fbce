"""
Kill trainings at random moments, resume them, and compare their ends with uninterrupted ones.

    python benchmarks/survival.py
    python benchmarks/survival.py --runs 2 --kinds LSTM --output /tmp/survival.json

Each run is killed with SIGKILL several times. After each kill every checkpoint has to be whole, and
at most ``save_freq`` steps and one update may be lost. Resumed to its end, the run has to have
bitwise the parameters of one that nobody killed.
"""

import argparse
import collections
import contextlib
import hashlib
import io
import json
import mmap
import multiprocessing
import os
import random
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from machine import RESULTS, provenance, read_result
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_trpo import (
    TRPO,
    MaskableRecurrentTRPO,
    MaskableTRPO,
    RecurrentTRPO,
    TrainingCheckpoint,
    resume_training,
)
from sb3_trpo._checkpoint_file import PATTERN, read_checkpoint

N_STEPS, N_ENVS, UPDATES, SAVE_FREQ = 64, 2, 16, 256
ROLLOUT = N_STEPS * N_ENVS
STAGES = ("start", "rollout", "update", "checkpoint")
SIZES: dict[str, Any] = {"n_steps": N_STEPS, "batch_size": 64, "seed": 1, "device": "cpu"}
KILLS_PER_RUN = 4
# Part of the kills that wait for a checkpoint's write, and the seconds that it takes.
AIMED, WRITE = 0.3, 0.03
LSTM = {"policy_kwargs": {"lstm_hidden_size": 16}, "n_critic_updates": 2}

# What a process tells about itself while it runs: its stage and its steps.
TOLD = struct.Struct("qq")


def masked(name: str) -> gym.Env[Any, Any]:
    """Forbid one action where the cart is far from the centre."""

    def masks(env: gym.Env[Any, Any]) -> np.ndarray:
        position = env.unwrapped.state[0]  # type: ignore[attr-defined] # CartPole's
        return np.array([position > -1, position < 1])

    return ActionMasker(gym.make(name), masks)


def vector(make: Callable[[str], Any], name: str) -> VecEnv:
    return DummyVecEnv([lambda: Monitor(make(name))] * N_ENVS)


Kind = tuple[type[TRPO], str, Callable[[], VecEnv], dict[str, Any]]
KINDS: dict[str, Kind] = {
    "CartPole": (TRPO, "MlpPolicy", lambda: vector(gym.make, "CartPole-v1"), {}),
    "Hopper": (TRPO, "MlpPolicy", lambda: VecNormalize(vector(gym.make, "Hopper-v5")), {}),
    "masks": (MaskableTRPO, "MlpPolicy", lambda: vector(masked, "CartPole-v1"), {}),
    "LSTM": (RecurrentTRPO, "MlpLstmPolicy", lambda: vector(gym.make, "CartPole-v1"), LSTM),
    "masks, LSTM": (
        *(MaskableRecurrentTRPO, "MlpLstmPolicy", lambda: vector(masked, "CartPole-v1")),
        LSTM,
    ),
}
RUNS = {"CartPole": 26, "Hopper": 26, "masks": 7, "LSTM": 7, "masks, LSTM": 7}


class Tell(BaseCallback):
    """
    Tell the parent process what this one is doing.

    :param shared: memory of both
    """

    def __init__(self, shared: mmap.mmap) -> None:
        super().__init__()
        self._shared = shared

    def tell(self, stage: str) -> None:
        """Write the stage and the steps."""
        self._shared[: TOLD.size] = TOLD.pack(STAGES.index(stage), self.model.num_timesteps)

    def _on_rollout_start(self) -> None:
        self.tell("rollout")

    def _on_step(self) -> bool:
        self.tell("rollout")
        return True

    def _on_rollout_end(self) -> None:
        self.tell("update")


class Checkpoint(TrainingCheckpoint):
    """
    A checkpoint that reports when it writes.

    :param folder: of the files
    :param tell: takes the report
    """

    def __init__(self, folder: Path, tell: Tell) -> None:
        super().__init__(folder, SAVE_FREQ)
        self._tell = tell

    def write(self) -> Path | None:
        """Write a file."""
        self._tell.tell("checkpoint")
        return super().write()


def train(kind: Kind, folder: Path, shared: mmap.mmap) -> None:
    """Train to the end, from the newest checkpoint if there is one, and write a digest."""
    algorithm, policy, make, options = kind
    callbacks = [tell := Tell(shared), Checkpoint(folder, tell)]
    with contextlib.redirect_stdout(io.StringIO()):
        if list(folder.glob(PATTERN)):
            model = resume_training(folder, make(), callbacks, "cpu")
        else:
            model = algorithm(policy, make(), **SIZES, **options)
            model.learn(ROLLOUT * UPDATES, callbacks)
    (folder / "digest").write_text(digest(model))


def digest(model: TRPO) -> str:
    """Hash the parameters, the optimizer and the last observations."""
    state: Any = model.policy.state_dict(), model.policy.optimizer.state_dict()["state"]
    arrays = [value.numpy() for value in (*state[0].values(), *_leaves(state[1]))]
    content = b"".join(array.tobytes() for array in [*arrays, np.asarray(model._last_obs)])
    return hashlib.sha256(content).hexdigest()


def _leaves(state: dict[int, dict[str, Any]]) -> list[th.Tensor]:
    return [th.as_tensor(value) for entry in state.values() for value in entry.values()]


def prepare() -> None:
    """Import what torch and SB3 import at their first use, so that copies start at once."""
    th.set_num_threads(1)
    TRPO("MlpPolicy", "CartPole-v1", device="cpu").save(io.BytesIO())


def start(kind: Kind, folder: Path, shared: mmap.mmap) -> Any:
    """Start a process, which takes no time: it is a copy of this one."""
    shared[: TOLD.size] = TOLD.pack(0, 0)
    process = multiprocessing.get_context("fork").Process(target=train, args=(kind, folder, shared))
    process.start()
    return process


def survive(kind: Kind, expected: str, length: float, rng: random.Random) -> dict[str, Any]:
    """Kill one run several times, check after each, and let it end."""
    result: dict[str, Any] = {"kills": 0, "unreadable": 0, "lost": [], "stages": []}
    shared = mmap.mmap(-1, TOLD.size)
    with TemporaryDirectory() as name:
        folder = Path(name)
        while result["kills"] < KILLS_PER_RUN and not (folder / "digest").exists():
            process = start(kind, folder, shared)
            process.join(rng.uniform(0, length / 2))
            if rng.random() < AIMED:
                await_write(process, shared)
                process.join(rng.uniform(0, WRITE))
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                note(result, folder, shared)
        process = start(kind, folder, shared)
        process.join()
        result["same"] = (folder / "digest").read_text() == expected
    return result


def await_write(process: Any, shared: mmap.mmap) -> None:
    """Wait until a process starts to write a checkpoint, or ends."""
    writing = STAGES.index("checkpoint")
    while process.is_alive() and TOLD.unpack(shared[: TOLD.size])[0] != writing:
        time.sleep(1e-4)


def note(result: dict[str, Any], folder: Path, shared: mmap.mmap) -> None:
    """Look at what a kill has left."""
    stage, steps = TOLD.unpack(shared[: TOLD.size])
    result["kills"] += 1
    result["stages"].append(STAGES[stage])
    kept = 0
    for path in folder.glob(PATTERN):
        try:
            kept = max(kept, int(read_checkpoint(path).state["num_timesteps"]))
        except ValueError:
            result["unreadable"] += 1
    if stage > 0:
        result["lost"].append(steps - kept)


def reference(kind: Kind) -> tuple[str, float]:
    """Train without an interruption, in a process of its own."""
    begin = time.monotonic()
    with TemporaryDirectory() as name:
        process = start(kind, Path(name), mmap.mmap(-1, TOLD.size))
        process.join()
        return (Path(name) / "digest").read_text(), time.monotonic() - begin


def measure(name: str, runs: int, seed: int) -> dict[str, Any]:
    """Kill the runs of one kind and add up what came of them."""
    expected, length = reference(KINDS[name])
    again, _ = reference(KINDS[name])
    assert again == expected, f"{name} is not deterministic here"
    rng = random.Random(f"{seed} {name}")
    results = [survive(KINDS[name], expected, length, rng) for _ in range(runs)]
    summary = {
        "runs": runs,
        "kills": sum(result["kills"] for result in results),
        "killed in": collections.Counter(s for result in results for s in result["stages"]),
        "unreadable checkpoints": sum(result["unreadable"] for result in results),
        "largest loss in steps": max(lost for result in results for lost in [0, *result["lost"]]),
        "allowed loss in steps": SAVE_FREQ + ROLLOUT,
        "bitwise equal ends": sum(result["same"] for result in results),
        "seconds of an uninterrupted run": round(length, 2),
    }
    print(name, json.dumps(summary), flush=True)
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--runs", type=int, help="of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--output", type=Path, default=RESULTS / "survival.json")
    options = parser.parse_args()
    prepare()
    measured = {
        name: measure(name, options.runs or RUNS[name], options.seed) for name in options.kinds
    }
    kinds = read_result(options.output).get("kinds", {}) | measured
    report = {**provenance(), "kinds": kinds}
    options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
