"""
Time and memory of ``sb3_trpo.TRPO`` against ``sb3_contrib.TRPO``.

Both classes run in one process, alternating, on the same hyperparameters; a figure is the ratio of
the medians, sb3_contrib's over ours, so more than 1 means faster. Shared machines are too noisy for
absolute times. Memory is the peak beyond what the filled rollout buffer takes, each measured in a
process of its own. On a GPU, section ``gpu``, times and memory are absolute, with the card's name.

    python benchmarks/speed.py update rollout learn floor shares memory large scaling recurrent
    python benchmarks/speed.py gpu --repeats 5
    python benchmarks/speed.py --table
"""

import argparse
import functools
import gc
import json
import multiprocessing
import statistics
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest import mock

import gymnasium as gym
import numpy as np
import sb3_contrib
import torch as th
from gymnasium import spaces
from machine import RESULTS, provenance
from sb3_contrib.ppo_recurrent import MlpLstmPolicy
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import sb3_trpo
from sb3_trpo._fisher import FisherProduct
from sb3_trpo._layerwise import LayerwiseLinearization
from sb3_trpo._mlp import Tape
from sb3_trpo._rollout_forward import RolloutForward, fast_forward
from sb3_trpo.rollout_buffer import fastest

Algorithm = sb3_trpo.TRPO | sb3_contrib.TRPO
CLASSES: dict[str, Any] = {"sb3_contrib": sb3_contrib.TRPO, "sb3_trpo": sb3_trpo.TRPO}
RECURRENT: dict[str, Any] = {"recurrent": sb3_trpo.RecurrentTRPO}
Entry = dict[str, Any]


class RandomEnv(gym.Env[Any, Any]):
    """Random observations and rewards, to time updates on spaces of any size."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]):
        self.observation_space = observation_space
        self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = float(self.np_random.normal())
        return self.observation_space.sample(), reward, False, False, {}


def image_env() -> gym.Env[Any, Any]:
    """Make images of the size of stacked Atari frames."""
    return RandomEnv(spaces.Box(0, 255, (4, 84, 84), np.uint8), spaces.Discrete(6))


def dict_env() -> gym.Env[Any, Any]:
    """Make observations with two vectors."""
    parts: dict[str, spaces.Space[Any]] = {
        name: spaces.Box(-1, 1, (16,), np.float32) for name in ("position", "velocity")
    }
    return RandomEnv(spaces.Dict(parts), spaces.Box(-1, 1, (6,), np.float32))


def zoo_hopper() -> VecNormalize:
    """Make Hopper as the RL Zoo trains on it."""
    return VecNormalize(DummyVecEnv([lambda: gym.make("Hopper-v5")] * 2))


# The RL Zoo's values for Hopper.
ZOO_HOPPER = {"n_steps": 1024, "cg_max_steps": 25, "n_critic_updates": 20}
WIDE = {"policy_kwargs": {"net_arch": [256, 256]}}

# Name, policy, environment, hyperparameters.
UPDATES: list[tuple[str, str, Any, dict[str, Any]]] = [
    ("Hopper-v5 64x64", "MlpPolicy", "Hopper-v5", {}),
    ("Humanoid-v5 64x64", "MlpPolicy", "Humanoid-v5", {}),
    ("Hopper-v5 256x256", "MlpPolicy", "Hopper-v5", WIDE),
    ("Hopper-v5 64x64, fisher 1/5", "MlpPolicy", "Hopper-v5", {"fisher": 5}),
    ("Humanoid-v5 64x64, fisher 1/5", "MlpPolicy", "Humanoid-v5", {"fisher": 5}),
    ("Hopper-v5 256x256, fisher 1/5", "MlpPolicy", "Hopper-v5", {**WIDE, "fisher": 5}),
    ("Dict 2x16", "MultiInputPolicy", dict_env, {}),
]
IMAGES = (
    "CnnPolicy, 2048 states of 84x84x4, actor only",
    "CnnPolicy",
    image_env,
    {"n_critic_updates": 0},
)


def make(kind: str, policy: str, env: Any, options: dict[str, Any]) -> Algorithm:
    """
    Make a model with a silent logger.

    :param kind: key of ``CLASSES``
    :param policy: name of the policy
    :param env: name of the environment, or a function that makes it
    :param options: hyperparameters; ``fisher`` is our sub-sampling, which contrib does not have
    :return: the model
    """
    options = dict(options)
    fisher = options.pop("fisher", 1)
    if kind == "sb3_trpo":
        options["fisher_sub_sampling_factor"] = fisher
    made = env if isinstance(env, str) else env()
    options = {"seed": 0, "device": "cpu", **options}
    model: Algorithm = (CLASSES | RECURRENT)[kind](policy, made, **options)
    model.set_logger(Logger(None, []))
    return model


def with_rollout(model: Algorithm) -> Algorithm:
    """
    Fill the rollout buffer.

    :param model: made by :func:`make`
    :return: the model
    """
    _, callback = model._setup_learn(model.n_steps)
    assert model.env is not None
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


def alternate(actions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """
    Time callables in turn, each time with another one first.

    :param actions: what to time, by name
    :param repeats: how often each, after one call that is not counted
    :return: median seconds of each
    """
    times: dict[str, list[float]] = {name: [] for name in actions}
    names = list(actions)
    for repeat in range(repeats + 1):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            actions[name]()
            if repeat > 0:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def ratio(actions: Mapping[str, Callable[[], Any]], repeats: int) -> float:
    """
    Compare contrib's callable with ours.

    :param actions: one per key of ``CLASSES``
    :param repeats: how often each
    :return: contrib's median over ours
    """
    medians = alternate(actions, repeats)
    return medians["sb3_contrib"] / medians["sb3_trpo"]


def train_again(model: Algorithm, start: dict[str, Any]) -> None:
    """
    Update from the same parameters on the same rollout.

    :param model: with a filled buffer
    :param start: parameters and optimizer state to start from
    """
    model.set_parameters(start)
    model.train()


def update(repeats: int) -> list[Entry]:
    """Time ``train()`` on one frozen rollout."""
    name, policy, env, options = IMAGES
    images = name.replace("2048", "512"), policy, env, {**options, "n_steps": 512}
    return [_update(*case, repeats) for case in [*UPDATES, images]]


def _update(name: str, policy: str, env: Any, options: dict[str, Any], repeats: int) -> Entry:
    """Time one case."""
    models = {kind: with_rollout(make(kind, policy, env, options)) for kind in CLASSES}
    actions = {
        kind: partial(train_again, model, _copy(model.get_parameters()))
        for kind, model in models.items()
    }
    medians = alternate(actions, repeats)
    operations = {kind: count_operations(action) for kind, action in actions.items()}
    return {
        "work": f"train(), {name}",
        "ratio": medians["sb3_contrib"] / medians["sb3_trpo"],
        "arithmetic": operations["sb3_trpo"] / matrix_rate() / medians["sb3_trpo"],
        "operations": operations,
        "calls": {kind: count_calls(action) for kind, action in actions.items()},
    }


def matrix_rate() -> float:
    """
    Measure how fast matrices are multiplied here.

    :return: floating-point operations per second
    """
    matrix = th.ones(1024, 1024)
    median = alternate({"product": partial(th.mm, matrix, matrix)}, 7)["product"]
    return 2 * 1024**3 / median


def _copy(parameters: dict[str, Any]) -> dict[str, Any]:
    """Copy parameters, which a model otherwise goes on changing."""
    return {
        name: {key: _clone(value) for key, value in state.items()}
        for name, state in parameters.items()
    }


def _clone(value: Any) -> Any:
    """Copy a tensor, leave the rest."""
    return value.clone() if isinstance(value, th.Tensor) else value


def count_operations(action: Callable[[], Any]) -> int:
    """
    Count the arithmetic of matrix products and convolutions, which no noise can change.

    :param action: what to run once
    :return: floating-point operations
    """
    with cast(Any, _CountOperations)() as counter:
        action()
    return cast(int, counter.total)


# What is called how often in an update: owner, and name of the function.
COUNTED: dict[str, list[tuple[Any, str]]] = {
    "fisher_products": [
        (FisherProduct, "__call__"),
        (sb3_contrib.TRPO, "hessian_vector_product"),
    ],
    "forward_passes": [
        (Tape, "forward"),
        (LayerwiseLinearization, "jacobian_product"),
        (ActorCriticPolicy, "get_distribution"),
        (ActorCriticPolicy, "evaluate_actions"),
        (ActorCriticPolicy, "predict_values"),
    ],
    "backward_passes": [
        (Tape, "cotangent"),
        (LayerwiseLinearization, "transposed_product"),
        (th.autograd, "_engine_run_backward"),
    ],
}


def count_calls(action: Callable[[], Any]) -> dict[str, int]:
    """
    Count Fisher products and passes through networks, which no noise can change.

    :param action: what to run once
    :return: how often each of ``COUNTED`` ran
    """
    counts: Counter[str] = Counter()

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            counts[name] += 1
            return function(*arguments, **options)

        return call

    with wrapped(COUNTED, counting):
        action()
    return {name: counts[name] for name in COUNTED}


@contextmanager
def wrapped(
    places: Mapping[str, Sequence[tuple[Any, str]]],
    around: Callable[[str, Callable[..., Any]], Callable[..., Any]],
) -> Iterator[None]:
    """
    Put something around functions for the duration of a block.

    :param places: owner and name of each function, by what they belong to
    :param around: (key of ``places``, function) -> what is called in its place
    :return: context manager
    """
    with ExitStack() as stack:
        for key, functions in places.items():
            for owner, attribute in functions:
                function = getattr(owner, attribute)
                replacement = functools.wraps(function)(around(key, function))
                stack.enter_context(mock.patch.object(owner, attribute, replacement))
        yield


class _CountOperations(TorchDispatchMode):  # type: ignore[no-untyped-call] # by torch
    """
    Adds up operations by torch's own formulas.

    torch's ``FlopCounterMode`` sets hooks on every module, which the fast paths stand back from.
    """

    total: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # The formulas are those of the functions that return something new.
        name = func._overloadpacket.__name__.removesuffix("_")
        count = flop_registry.get(getattr(th.ops.aten, name, None))
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def rollout(repeats: int) -> list[Entry]:
    """Time the policy's forward passes while collecting, 1,000 at a time, and the buffer."""
    entries = []
    for env in ("CartPole-v1", "Hopper-v5"):
        model = make("sb3_trpo", "MlpPolicy", env, {})
        observation = th.as_tensor(model.observation_space.sample()[None])
        actions = {
            kind: partial(_forward, model, observation, kind == "sb3_trpo") for kind in CLASSES
        }
        entries.append({"work": f"policy forward, {env}", "ratio": ratio(actions, repeats)})
    buffer = model.rollout_buffer
    actions = {kind: partial(_fill, buffer, kind == "sb3_trpo") for kind in CLASSES}
    entries.append({"work": "rollout buffer and advantages", "ratio": ratio(actions, repeats)})
    return entries


@th.no_grad()
def _forward(model: Algorithm, observation: th.Tensor, fast: bool) -> None:
    forward: Any = fast_forward(model.policy) if fast else model.policy
    for _ in range(1000):
        forward(observation)


@th.no_grad()
def _fill(buffer: RolloutBuffer, fast: bool) -> None:
    """Fill a buffer, and compute its advantages."""
    observation, action = np.zeros((1, *buffer.obs_shape)), np.zeros((1, buffer.action_dim))
    numbers, start = np.zeros(1, np.float32), np.zeros(1, bool)
    value, log_prob = th.zeros(1, 1), th.zeros(1)
    buffer.reset()
    method: Any = fastest if fast else getattr
    add = method(buffer, "add")
    for _ in range(buffer.buffer_size):
        add(observation, action, numbers, start, value, log_prob)
    method(buffer, "compute_returns_and_advantage")(value, start)


def learn(repeats: int) -> list[Entry]:
    """Time ``learn()`` for four rollouts."""
    cases: list[tuple[str, Any, dict[str, Any]]] = [
        ("CartPole-v1", "CartPole-v1", {}),
        ("Hopper-v5", "Hopper-v5", {}),
        ("HalfCheetah-v5", "HalfCheetah-v5", {}),
        ("Hopper-v5, RL Zoo's values", zoo_hopper, ZOO_HOPPER),
    ]
    return [_learn(*case, repeats) for case in cases]


def _learn(name: str, env: Any, options: dict[str, Any], repeats: int) -> Entry:
    """Time one case."""
    models = {kind: make(kind, "MlpPolicy", env, options) for kind in CLASSES}
    actions = {kind: partial(model.learn, 4 * 2048) for kind, model in models.items()}
    return {"work": f"learn(), {name}", "ratio": ratio(actions, repeats)}


class RecordActions(BaseCallback):
    """Keep the actions that a run gave to its environment."""

    def __init__(self) -> None:
        super().__init__()
        self.actions: list[np.ndarray] = []

    def _on_step(self) -> bool:
        self.actions.append(self.locals["clipped_actions"].copy())
        return True


def floor(repeats: int) -> list[Entry]:
    """Compare ``learn()`` with what the environment needs to replay the run's own actions."""
    entries = []
    for env in ("CartPole-v1", "Hopper-v5", "HalfCheetah-v5"):
        models = {kind: make(kind, "MlpPolicy", env, {}) for kind in CLASSES}
        recorder = RecordActions()
        models["sb3_trpo"].learn(2 * 2048, callback=recorder)
        actions: dict[str, Callable[[], Any]] = {
            kind: partial(model.learn, 2 * 2048) for kind, model in models.items()
        }
        actions["environment"] = partial(_replay, models["sb3_trpo"], recorder.actions)
        medians = alternate(actions, repeats)
        over = {kind: medians[kind] / medians["environment"] for kind in CLASSES}
        entries.append({"work": f"learn(), {env}", "over_floor": over})
    return entries


def _replay(model: Algorithm, actions: list[np.ndarray]) -> None:
    """Step the environment through recorded actions; its episodes start, and end, elsewhere."""
    assert model.env is not None
    model.env.reset()
    for action in actions:
        model.env.step(action)


# Whose time is added up: owner, and name of the function.
PARTS: dict[str, list[tuple[Any, str]]] = {
    "environment": [(DummyVecEnv, "step_wait")],
    "with its normalisation": [(VecEnv, "step")],
    "forward pass": [(RolloutForward, "__call__")],
    "train()": [(sb3_trpo.TRPO, "train")],
    "critic": [(sb3_trpo.trpo, "fit_critic")],
    "Fisher products": [(FisherProduct, "__call__")],
    "surrogate": [(sb3_trpo.trpo, "surrogate_at")],
}


def shares(repeats: int) -> list[Entry]:
    """Find out what of ``learn()`` and ``train()`` is spent where."""
    cases: list[tuple[str, Any, dict[str, Any]]] = [
        ("Hopper-v5", "Hopper-v5", {}),
        ("Hopper-v5, RL Zoo's values", zoo_hopper, ZOO_HOPPER),
    ]
    entries = []
    for name, env, options in cases:
        model = make("sb3_trpo", "MlpPolicy", env, options)
        model.learn(2048)
        gc.collect()  # falls into one of the parts otherwise
        spent = time_parts(partial(model.learn, repeats * 2048))
        for whole, parts in (("learn()", list(PARTS)[:4]), ("train()", list(PARTS)[4:])):
            found = {part: spent[part] / spent[whole] for part in parts}
            entries.append({"work": f"{whole}, {name}", "shares": found})
    return entries


def time_parts(action: Callable[[], Any]) -> dict[str, float]:
    """
    Add up the time that is spent in ``PARTS``.

    :param action: what to run once
    :return: seconds by part, those of all under ``learn()``
    """
    seconds: defaultdict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                seconds[name] += time.perf_counter() - start

        return call

    with wrapped(PARTS, timed):
        timed("learn()", action)()
    return dict(seconds)


def memory(repeats: int) -> list[Entry]:
    """Measure the peak memory of ``train()`` beyond the buffer."""
    entries = []
    for case in [IMAGES, *(case for case in UPDATES if "fisher" not in case[3])]:
        peaks = {kind: isolated(peak_memory, kind, case) for kind in CLASSES}
        share = peaks["sb3_trpo"] / max(peaks["sb3_contrib"], 1)
        entries.append({"work": f"train(), {case[0]}", "bytes": peaks, "share": share})
    return entries


def isolated(function: Callable[..., int], *arguments: Any) -> int:
    """
    Run a function in a fresh process.

    :param function: of this module
    :param arguments: its arguments
    :return: its result
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def peak_memory(kind: str, case: tuple[str, str, Any, dict[str, Any]]) -> int:
    """
    Measure one update.

    :param kind: key of ``CLASSES``
    :param case: name, policy, environment, hyperparameters
    :return: bytes that the resident memory rises above its level before, at its highest
    """
    th.set_num_threads(1)
    warnings.simplefilter("ignore")
    _, policy, env, options = case
    model = with_rollout(make(kind, policy, env, options))
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    model.train()
    return _status("VmHWM") - before


def large(repeats: int) -> list[Entry]:
    """Measure the same for a large rollout of images, with few products and one critic epoch."""
    few = {"n_steps": 8192, "cg_max_steps": 2, "n_critic_updates": 1, "batch_size": 1024}
    envs = partial(random_envs, 8, None, ATARI)
    case = "CnnPolicy, 65,536 states of 84x84x4", "CnnPolicy", envs, few
    return [{"work": f"train(), {case[0]}", "bytes": isolated(peak_memory, "sb3_trpo", case)}]


def _status(key: str) -> int:
    """Read a number of bytes from the kernel's report on this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def scaling(repeats: int) -> list[Entry]:
    """Compare an update with one of 8 times the states."""
    small, large = (
        with_rollout(make("sb3_trpo", "MlpPolicy", "Hopper-v5", {"n_steps": n}))
        for n in (2048, 8 * 2048)
    )
    actions = {
        name: partial(train_again, model, _copy(model.get_parameters()))
        for name, model in (("small", small), ("large", large))
    }
    medians = alternate(actions, repeats)
    times = medians["large"] / medians["small"]
    return [{"work": "train() with 8 times the states", "times": times}]


class SteppedPolicy(MlpLstmPolicy):
    """Calls the LSTM once per step, as contrib's policies do where an episode starts in between."""

    @staticmethod
    def _process_sequence(  # type: ignore[override] # contrib's annotation is not what it returns
        features: th.Tensor,
        lstm_states: tuple[th.Tensor, th.Tensor],
        episode_starts: th.Tensor,
        lstm: th.nn.LSTM,
    ) -> tuple[th.Tensor, tuple[th.Tensor, th.Tensor]]:
        outputs = []
        n_sequences = lstm_states[0].shape[1]
        for step in features.reshape(n_sequences, -1, lstm.input_size).swapaxes(0, 1):
            hidden, lstm_states = lstm(step[None], lstm_states)
            outputs.append(hidden)
        return th.cat(outputs).transpose(0, 1).flatten(0, 1), lstm_states


def recurrent(repeats: int) -> list[Entry]:
    """Time ``RecurrentTRPO.train()`` against the same update that steps the LSTM."""
    space = spaces.Box(-1, 1, (4,), np.float32)
    options: dict[str, Any] = {
        "n_steps": 64,
        "batch_size": 256,
        "seed": 0,
        "device": "cpu",
        "policy_kwargs": {"lstm_hidden_size": 64},
    }
    actions = {}
    for name, policy in {"sb3_contrib": SteppedPolicy, "sb3_trpo": MlpLstmPolicy}.items():
        env = DummyVecEnv([lambda: RandomEnv(space, spaces.Discrete(2))] * 8)
        model = sb3_trpo.RecurrentTRPO(policy, env, **options)
        model.set_logger(Logger(None, []))
        with_rollout(model)
        actions[name] = partial(train_again, model, _copy(model.get_parameters()))
    work = "RecurrentTRPO.train(), 8 sequences of 64 states, over stepping the LSTM"
    return [{"work": work, "ratio": ratio(actions, repeats)}]


def random_envs(n_envs: int, observations: int | None, actions: spaces.Space[Any]) -> DummyVecEnv:
    """
    Make environments whose updates are timed on a GPU.

    :param n_envs: how many
    :param observations: length of a vector; ``None`` for the images of Atari
    :param actions: action space
    :return: vectorized environment
    """
    space: spaces.Box[Any] = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    if observations is not None:
        space = spaces.Box(-1, 1, (observations,), np.float32)
    return DummyVecEnv([lambda: RandomEnv(space, actions)] * n_envs)


ACTOR_ONLY = {"n_critic_updates": 0}
CHEETAH, HUMANOID = (spaces.Box(-1, 1, (n,), np.float32) for n in (6, 17))
ATARI, ALL_BUTTONS = spaces.Discrete(6), spaces.Discrete(18)
LARGE = {"n_steps": 4096, "batch_size": 4096, **WIDE}
IMAGE_CRITIC = {"n_steps": 2048, "n_critic_updates": 4, "batch_size": 256}

# Classes, name, policy, arguments of `random_envs`, hyperparameters.
BOTH, OURS = tuple(CLASSES), ("recurrent",)
ON_GPU: list[tuple[Sequence[str], str, str, tuple[Any, ...], dict[str, Any]]] = [
    (BOTH, "MLP 64x64, 17 -> 6, 2048 states", "MlpPolicy", (1, 17, CHEETAH), {}),
    (BOTH, "the same, actor only", "MlpPolicy", (1, 17, CHEETAH), ACTOR_ONLY),
    (BOTH, "MLP 256x256, 348 -> 17, 65,536 states", "MlpPolicy", (16, 348, HUMANOID), LARGE),
    (BOTH, "NatureCNN, 6 actions, 2048, actor only", "CnnPolicy", (1, None, ATARI), ACTOR_ONLY),
    (BOTH, "NatureCNN, 6 actions, 16,384, actor only", "CnnPolicy", (8, None, ATARI), ACTOR_ONLY),
    (BOTH, "the same, whole", "CnnPolicy", (8, None, ATARI), IMAGE_CRITIC),
    (
        *(BOTH, "NatureCNN, 18 actions, 16,384, actor only", "CnnPolicy"),
        *((8, None, ALL_BUTTONS), ACTOR_ONLY),
    ),
    (OURS, "RecurrentTRPO, 8 x 256 steps", "MlpLstmPolicy", (8, 17, CHEETAH), {"n_steps": 256}),
]


def gpu(repeats: int) -> list[Entry]:
    """Time ``train()`` on a GPU, and measure its memory there."""
    if not th.cuda.is_available():
        raise SystemExit("The section gpu needs a GPU that torch can use.")
    return [time_on("cuda", *case, repeats) for case in ON_GPU]


def time_on(
    device: str,
    kinds: Sequence[str],
    name: str,
    policy: str,
    envs: tuple[Any, ...],
    options: dict[str, Any],
    repeats: int,
) -> Entry:
    """
    Time one update with each class.

    :param device: of torch
    :param kinds: keys of ``CLASSES``, or ``recurrent``
    :param name: what is timed
    :param policy: name of the policy
    :param envs: arguments of :func:`random_envs`
    :param options: hyperparameters
    :param repeats: how often
    :return: median milliseconds and peak memory, by class
    """
    options = {**options, "device": device}
    models = {
        kind: with_rollout(make(kind, policy, partial(random_envs, *envs), options))
        for kind in kinds
    }
    actions = {
        kind: partial(train_and_wait, model, _copy(model.get_parameters()))
        for kind, model in models.items()
    }
    medians = alternate(actions, repeats)
    return {
        "work": f"train(), {name}",
        "device": device if device == "cpu" else th.cuda.get_device_name(),
        "milliseconds": {kind: round(1000 * median, 1) for kind, median in medians.items()},
        "peak_mb": {kind: peak_on_gpu(action) for kind, action in actions.items()},
    }


def train_and_wait(model: Algorithm, start: dict[str, Any]) -> None:
    """
    Update, and wait until the GPU has done so.

    :param model: with a filled buffer
    :param start: parameters and optimizer state to start from
    """
    train_again(model, start)
    if model.device.type == "cuda":
        th.cuda.synchronize()


def peak_on_gpu(action: Callable[[], Any]) -> int | None:
    """
    Measure the memory that torch allocates beyond what it holds already.

    :param action: what to run once
    :return: in MB; ``None`` without a GPU
    """
    if not th.cuda.is_available():
        return None
    th.cuda.reset_peak_memory_stats()
    before = th.cuda.memory_allocated()
    action()
    return (th.cuda.max_memory_allocated() - before) // 2**20


SECTIONS = {
    f.__name__: f
    for f in (update, rollout, learn, floor, shares, memory, large, scaling, recurrent, gpu)
}


def main() -> None:
    """Run the sections, print their tables and write their entries."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("sections", nargs="*", type=_section, help=", ".join(SECTIONS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the README's table")
    arguments = parser.parse_args()
    th.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    if not (arguments.sections or arguments.table):
        parser.error("name a section, or --table")
    if arguments.sections:
        print(json.dumps(provenance(), indent=2), *HEADER, sep="\n", flush=True)
    for section in arguments.sections:
        entries = SECTIONS[section](arguments.repeats)
        print(*map(row, entries), sep="\n", flush=True)
        result = {**provenance(), "repeats": arguments.repeats, "entries": entries}
        _file(section).write_text(json.dumps(result, indent=2) + "\n")
    if arguments.table:
        print(table())


def _section(name: str) -> str:
    """Refuse what is no section; argparse's choices would refuse that there is none, too."""
    if name not in SECTIONS:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(SECTIONS)}")
    return name


HEADER = ("| work | result |", "|---|---|")


def row(entry: Entry) -> str:
    """
    Write an entry as a row of a Markdown table.

    :param entry: of any section
    :return: the row
    """
    if "ratio" in entry:
        figure = f"{entry['ratio']:.1f} times as fast"
    elif "over_floor" in entry:
        ours, theirs = entry["over_floor"]["sb3_trpo"], entry["over_floor"]["sb3_contrib"]
        figure = f"{ours:.1f} times the environment's own time (sb3_contrib: {theirs:.1f})"
    elif "shares" in entry:
        figure = ", ".join(f"{part} {share:.0%}" for part, share in entry["shares"].items())
    elif "milliseconds" in entry:
        times, peaks = entry["milliseconds"], entry["peak_mb"]
        cells = (f"{kind} {times[kind]} ms, {peaks[kind]} MB" for kind in times)
        figure = f"{'; '.join(cells)} ({entry['device']})"
    elif "bytes" in entry and "share" not in entry:
        figure = f"{entry['bytes'] / 1e6:.0f} MB beyond the rollout buffer"
    elif "share" in entry:
        peak = entry["bytes"]["sb3_trpo"] / 1e6
        figure = f"{entry['share']:.0%} of sb3_contrib's peak memory ({peak:.0f} MB)"
    else:
        figure = f"{entry['times']:.1f} times the time"
    return f"| {entry['work']} | {figure} |"


def table() -> str:
    """
    Write all results as Markdown.

    :return: one row per entry
    """
    files = filter(Path.exists, map(_file, SECTIONS))
    entries = [entry for file in files for entry in json.loads(file.read_text())["entries"]]
    return "\n".join([*HEADER, *map(row, entries)])


def _file(section: str) -> Path:
    """Return where the results of a section are."""
    return RESULTS / f"speed_{section}.json"


if __name__ == "__main__":
    main()
