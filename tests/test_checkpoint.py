"""Training survives interruptions, and what is left of a killed process is never half a file."""

import contextlib
import errno
import functools
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import weakref
import zipfile
from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    ConvertCallback,
    EvalCallback,
    EveryNTimesteps,
)
from stable_baselines3.common.logger import KVWriter
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from sb3_trpo import (
    TRPO,
    MaskableRecurrentTRPO,
    MaskableTRPO,
    RecurrentTRPO,
    TrainingCheckpoint,
    _checkpoint_file,
    resume_training,
)
from sb3_trpo._atomic import write_atomically
from sb3_trpo._checkpoint_file import (
    Checkpoint,
    find_checkpoint,
    path_in,
    read_checkpoint,
    remove_older,
)
from sb3_trpo._plain_data import plain_dumps, plain_loads
from sb3_trpo.checkpoint import Resumable
from tests.environments import (
    DICT,
    DISCRETE_ACTIONS,
    VECTOR,
    ToyEnv,
    changed,
    random_masks,
    state_of,
)

STEPS = 512
INTERRUPTED_AT = 350
SAVE_FREQ = 100
OPTIONS: dict[str, Any] = {"n_steps": 32, "batch_size": 32, "seed": 3, "device": "cpu"}


class InterruptionError(Exception):
    """Stands for the end of a process in the middle of a rollout."""


class Interrupt(BaseCallback):
    """
    End the training at one step.

    :param at: number of the step
    """

    def __init__(self, at: int = INTERRUPTED_AT) -> None:
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.at:
            raise InterruptionError
        return True


def toy(space: spaces.Space[Any] = VECTOR) -> ToyEnv:
    """Make an environment whose space, and so its generator, no other one shares."""
    return ToyEnv(deepcopy(space), DISCRETE_ACTIONS)


class MaskedToy(ToyEnv):
    """Masks that depend on the environment's own step."""

    def __init__(self) -> None:
        super().__init__(deepcopy(VECTOR), DISCRETE_ACTIONS)
        self.mask_at = random_masks(DISCRETE_ACTIONS)

    def action_masks(self) -> np.ndarray:
        return self.mask_at(self.step_in_episode)


def vector(make: Callable[[], gym.Env[Any, Any]], n_envs: int = 2) -> Callable[[], VecEnv]:
    """Make environments with the usual wrappers."""
    return lambda: DummyVecEnv([lambda: Monitor(make())] * n_envs)


def named(name: str, n_envs: int = 2) -> Callable[[], VecEnv]:
    return vector(lambda: gym.make(name), n_envs)


def unmonitored(name: str) -> VecEnv:
    return DummyVecEnv([lambda: gym.make(name)] * 2)


# Algorithm, policy, environment, hyperparameters.
Case = tuple[type[TRPO], str, Callable[[], VecEnv], dict[str, Any]]
SMALL_LSTM = {"policy_kwargs": {"lstm_hidden_size": 8, "net_arch": [8]}}
CASES: dict[str, Case] = {
    "CartPole": (TRPO, "MlpPolicy", named("CartPole-v1"), {}),
    "Hopper": (TRPO, "MlpPolicy", lambda: VecNormalize(named("Hopper-v5")()), {}),
    "Humanoid": (TRPO, "MlpPolicy", named("Humanoid-v5", 1), {}),
    "Pendulum, VecNormalize": (
        *(TRPO, "MlpPolicy", lambda: VecNormalize(named("Pendulum-v1")(), gamma=0.9)),
        {"gamma": 0.9},
    ),
    "frames": (
        *(TRPO, "MlpPolicy", lambda: VecFrameStack(VecMonitor(unmonitored("Acrobot-v1")), 3)),
        {},
    ),
    "dict": (TRPO, "MultiInputPolicy", vector(lambda: toy(DICT)), {}),
    "schedules": (
        *(TRPO, "MlpPolicy", named("CartPole-v1")),
        {"learning_rate": 1e-3, "target_kl": "lin_0.05", "cg_damping": "lin_0.2"},
    ),
    "gSDE": (
        *(TRPO, "MlpPolicy", named("Pendulum-v1")),
        {"use_sde": True, "sde_sample_freq": 5},
    ),
    "gSDE, one noise per rollout": (TRPO, "MlpPolicy", named("Pendulum-v1"), {"use_sde": True}),
    "sub-sampling": (TRPO, "MlpPolicy", named("CartPole-v1"), {"sub_sampling_factor": 3}),
    "masks": (MaskableTRPO, "MlpPolicy", vector(MaskedToy), {}),
    "LSTM": (RecurrentTRPO, "MlpLstmPolicy", named("CartPole-v1"), SMALL_LSTM),
    "masks, LSTM": (MaskableRecurrentTRPO, "MlpLstmPolicy", vector(MaskedToy), SMALL_LSTM),
}
needs_mujoco = pytest.mark.skipif(find_spec("mujoco") is None, reason="MuJoCo is an extra")
by_case = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=[needs_mujoco] if name in ("Hopper", "Humanoid") else [])
        for name, case in CASES.items()
    ],
)
TOY: Case = (TRPO, "MlpPolicy", vector(toy), {})


def make_model(case: Case, **options: Any) -> TRPO:
    algorithm, policy, make, hyperparameters = case
    return algorithm(policy, make(), **OPTIONS | hyperparameters | options)


def interrupted(
    case: Case, folder: pathlib.Path, *callbacks: BaseCallback, at: int = INTERRUPTED_AT
) -> None:
    """Train with checkpoints until the interruption, and leave other random numbers behind."""
    checkpoint = TrainingCheckpoint(folder, SAVE_FREQ)
    with pytest.raises(InterruptionError):
        make_model(case).learn(STEPS, [checkpoint, *callbacks, Interrupt(at)])
    set_random_seed(99)


def assert_same(one: TRPO, other: TRPO) -> None:
    """Check that two models have ended in the same state, bit for bit."""
    assert not changed(state_of(one), state_of(other))
    optimizers = [model.policy.optimizer.state_dict()["state"] for model in (one, other)]
    for key, state in optimizers[0].items():
        assert all(th.equal(value, optimizers[1][key][name]) for name, value in state.items())
    for name in ("num_timesteps", "_total_timesteps", "_n_updates", "_current_progress_remaining"):
        assert getattr(one, name) == getattr(other, name), name
    np.testing.assert_equal(one._last_obs, other._last_obs)
    np.testing.assert_equal(one._last_episode_starts, other._last_episode_starts)
    episodes = [[(i["r"], i["l"]) for i in model.ep_info_buffer or ()] for model in (one, other)]
    assert episodes[0] == episodes[1]
    assert_same_statistics(one, other)


def assert_same_statistics(one: TRPO, other: TRPO) -> None:
    pair: list[Any] = [model.get_vec_normalize_env() for model in (one, other)]
    if pair[0] is not None:
        np.testing.assert_equal(pair[0].obs_rms.mean, pair[1].obs_rms.mean)
        np.testing.assert_equal(pair[0].ret_rms.var, pair[1].ret_rms.var)
        np.testing.assert_equal(pair[0].returns, pair[1].returns)


def checkpoints(folder: pathlib.Path) -> list[str]:
    """List a folder, without the part of the names that differs between trainings."""
    return sorted(re.sub(r"_steps_\w+", "_steps", path.name) for path in folder.iterdir())


def checkpoint_at(folder: pathlib.Path, steps: int) -> pathlib.Path:
    """Find the one checkpoint of a step."""
    (path,) = folder.glob(f"checkpoint_{steps}_steps_*.zip")
    return path


@functools.cache
def toy_checkpoint_file() -> tuple[str, bytes]:
    """Interrupt a training once for all tests that change its checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        interrupted(TOY, pathlib.Path(folder))
        path = checkpoint_at(pathlib.Path(folder), 256)
        return path.name, path.read_bytes()


def toy_checkpoint(folder: pathlib.Path) -> pathlib.Path:
    """Write the checkpoint of an interrupted training."""
    name, content = toy_checkpoint_file()
    path = folder / name
    path.write_bytes(content)
    return path


@by_case
def test_resumed_training_ends_bitwise_as_an_uninterrupted_one(
    case: Case, tmp_path: pathlib.Path
) -> None:
    whole = make_model(case).learn(STEPS)
    draws = th.rand(3), np.random.rand(3)
    interrupted(case, tmp_path)
    resumed = resume_training(tmp_path, case[2](), device="cpu")
    assert type(resumed) is case[0]
    assert_same(whole, resumed)
    assert th.equal(draws[0], th.rand(3))
    assert np.array_equal(draws[1], np.random.rand(3))
    for model in (whole, resumed):
        set_random_seed(1)  # the same draws for both
        model.learn(64, reset_num_timesteps=False)
    assert_same(whole, resumed)


def test_resuming_prints_only_what_the_model_may(tmp_path: pathlib.Path, capsys: Any) -> None:
    case = CASES["CartPole"]
    for verbose in (0, 1):
        interrupted(case, tmp_path / str(verbose))
        resume_training(tmp_path / str(verbose), case[2](), device="cpu", verbose=verbose)
        assert ("Resuming from" in capsys.readouterr().out) == bool(verbose)


def test_resumed_training_can_be_interrupted_again(tmp_path: pathlib.Path) -> None:
    case = CASES["Pendulum, VecNormalize"]
    whole = make_model(case).learn(STEPS)
    interrupted(case, tmp_path, at=200)
    for at in (330, 400):
        callbacks = [TrainingCheckpoint(tmp_path, SAVE_FREQ), Interrupt(at)]
        with pytest.raises(InterruptionError):
            resume_training(tmp_path, case[2](), callbacks, "cpu")
    assert_same(whole, resume_training(tmp_path, case[2](), device="cpu"))


def test_total_of_a_second_learn_is_finished(tmp_path: pathlib.Path) -> None:
    whole = make_model(TOY).learn(128).learn(STEPS, reset_num_timesteps=False)
    model = make_model(TOY).learn(128)
    with pytest.raises(InterruptionError):
        model.learn(
            STEPS,
            [TrainingCheckpoint(tmp_path, SAVE_FREQ), Interrupt(400)],
            reset_num_timesteps=False,
        )
    resumed = resume_training(tmp_path, TOY[2](), device="cpu")
    assert resumed.num_timesteps == 128 + STEPS
    assert_same(whole, resumed)


def test_file_of_the_last_update_has_nothing_left_to_train(tmp_path: pathlib.Path) -> None:
    case = CASES["Pendulum, VecNormalize"]
    whole = make_model(case).learn(STEPS, TrainingCheckpoint(tmp_path, STEPS))
    assert checkpoints(tmp_path) == [f"checkpoint_{STEPS}_steps.zip"]
    whole.learn(128, reset_num_timesteps=False)
    resumed = resume_training(tmp_path, case[2](), device="cpu")
    assert resumed.num_timesteps == STEPS
    assert_same(whole, resumed.learn(128, reset_num_timesteps=False))


def test_file_is_written_at_the_first_update_after_save_freq_steps(tmp_path: pathlib.Path) -> None:
    make_model(TOY).learn(STEPS, TrainingCheckpoint(tmp_path, SAVE_FREQ, keep=100))
    # An update every 64 steps: 128 are the first after 100.
    assert checkpoints(tmp_path) == [f"checkpoint_{n}_steps.zip" for n in (128, 256, 384, 512)]


def test_steps_are_counted_through_calls_of_learn(tmp_path: pathlib.Path) -> None:
    model, checkpoint = make_model(TOY), TrainingCheckpoint(tmp_path, SAVE_FREQ, keep=100)
    for _ in range(6):
        model.learn(64, checkpoint, reset_num_timesteps=False)
    assert checkpoints(tmp_path) == [f"checkpoint_{n}_steps.zip" for n in (128, 256, 384)]


# What `learn` of SB3 takes, too.
LOOSE_ARGUMENTS: dict[str, dict[str, Any]] = {
    "float": {"total_timesteps": 5.12e2},
    "NumPy": {"total_timesteps": np.int64(STEPS), "log_interval": np.int64(2)},
    "not whole": {"total_timesteps": STEPS - 0.5, "log_interval": 1.5},
    "float interval": {"log_interval": 2.0},
    "truth value": {"log_interval": True},
    "never": {"log_interval": math.inf},
    "None": {"log_interval": None, "progress_bar": None},
    "0": {"progress_bar": 0},
    "path": {"tb_log_name": pathlib.Path("a")},
}


@pytest.mark.parametrize("arguments", LOOSE_ARGUMENTS.values(), ids=LOOSE_ARGUMENTS)
def test_training_resumes_whatever_kind_its_arguments_were_of(
    arguments: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    arguments = {"total_timesteps": STEPS, **arguments}
    whole = make_model(TOY).learn(**arguments)
    callbacks = [TrainingCheckpoint(tmp_path, SAVE_FREQ), Interrupt()]
    with pytest.raises(InterruptionError):
        make_model(TOY).learn(**arguments, callback=callbacks)
    assert_same(whole, resume_training(tmp_path, TOY[2](), device="cpu"))


def test_training_without_end_resumes(tmp_path: pathlib.Path) -> None:
    callbacks = [TrainingCheckpoint(tmp_path, SAVE_FREQ), Interrupt()]
    with pytest.raises(InterruptionError):
        make_model(TOY).learn(math.inf, callbacks)  # type: ignore[arg-type]
    with pytest.raises(InterruptionError):
        resume_training(tmp_path, TOY[2](), Interrupt(STEPS), device="cpu")


def test_arguments_that_no_checkpoint_can_hold_are_warned_of_at_the_start(
    tmp_path: pathlib.Path,
) -> None:
    name = "x" * 256
    with pytest.warns(UserWarning, match="resume_training will not .*tb_log_name.*text"):
        make_model(TOY).learn(64, TrainingCheckpoint(tmp_path, 64), tb_log_name=name)


def test_older_files_are_removed(tmp_path: pathlib.Path) -> None:
    make_model(TOY).learn(STEPS, TrainingCheckpoint(tmp_path, SAVE_FREQ, keep=2))
    assert checkpoints(tmp_path) == ["checkpoint_384_steps.zip", "checkpoint_512_steps.zip"]


def test_two_folders_take_checkpoints_of_one_training(tmp_path: pathlib.Path) -> None:
    whole = make_model(TOY).learn(STEPS)
    often, seldom = (TrainingCheckpoint(tmp_path / name, n) for name, n in (("a", 64), ("b", 200)))
    with pytest.raises(InterruptionError):
        make_model(TOY).learn(STEPS, [often, seldom, Interrupt()])
    for name in "ab":
        assert_same(whole, resume_training(tmp_path / name, TOY[2](), device="cpu"))


def test_rollout_that_a_callback_stopped_is_not_written(tmp_path: pathlib.Path) -> None:
    model = make_model(TOY)
    stop = ConvertCallback(lambda *_: model.num_timesteps < 150)
    model.learn(STEPS, [TrainingCheckpoint(tmp_path, 1), stop])
    assert checkpoints(tmp_path) == [f"checkpoint_{n}_steps.zip" for n in (128, 64)]


def test_new_run_in_the_folder_of_a_longer_one_is_the_newest(tmp_path: pathlib.Path) -> None:
    make_model(TOY).learn(STEPS, TrainingCheckpoint(tmp_path, STEPS))
    make_model(TOY).learn(64, TrainingCheckpoint(tmp_path, 64, keep=5))
    assert resume_training(tmp_path, TOY[2](), device="cpu").num_timesteps == 64


def test_trainings_that_share_a_folder_keep_each_others_files(tmp_path: pathlib.Path) -> None:
    for _ in range(2):
        make_model(TOY).learn(256, TrainingCheckpoint(tmp_path, 64, keep=1))
    assert checkpoints(tmp_path) == ["checkpoint_256_steps.zip"] * 2


def test_resumed_training_removes_the_files_that_it_continues(tmp_path: pathlib.Path) -> None:
    interrupted(TOY, tmp_path)
    for at in (400, STEPS):
        checkpoint = TrainingCheckpoint(tmp_path, 64, keep=1)
        with contextlib.suppress(InterruptionError):
            resume_training(tmp_path, TOY[2](), [checkpoint, Interrupt(at + 1)], "cpu")
    assert checkpoints(tmp_path) == [f"checkpoint_{STEPS}_steps.zip"]


def test_only_the_files_of_named_runs_are_removed(tmp_path: pathlib.Path) -> None:
    folder, other = tmp_path / "checkpoints", tmp_path / "other"
    (folder / "checkpoint_1_steps_x").mkdir(parents=True)
    other.mkdir()
    names = [path_in(folder, steps, f"{steps:08x}") for steps in range(4)]
    for path in (*names, other / "thesis.zip", other / "data.zip"):
        path.touch()
    remove_older(names[0], 1, ["*", "x/../../other/*", "????????", "00000003"])
    assert sorted(path for path in folder.glob("*.zip")) == names[:3]
    assert len(list(other.iterdir())) == 2


def test_only_one_checkpoint_is_kept_in_memory(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(TOY).learn(STEPS, TrainingCheckpoint(tmp_path, 64, keep=8))
    found: list[weakref.ref[Any]] = []

    def counted(path: pathlib.Path) -> Any:
        assert sum(each() is not None for each in found) <= 1
        checkpoint = read_checkpoint(path)
        found.append(weakref.ref(checkpoint))
        return checkpoint

    monkeypatch.setattr(_checkpoint_file, "read_checkpoint", counted)
    assert find_checkpoint(tmp_path).checkpoint.state["num_timesteps"] == STEPS
    assert len(found) == 9  # the newest again


def rewritten(path: pathlib.Path, **changes: Any) -> pathlib.Path:
    """Change the state in a checkpoint, with a checksum that fits."""
    checkpoint = read_checkpoint(path)
    path.write_bytes(Checkpoint(checkpoint.model, checkpoint.state | changes).to_bytes())
    return path


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("arguments", {"tb_log_name": value}) for value in ("../out", "/tmp/out", "a/../..", 3)),
        *(("arguments", {"tb_log_name": value}) for value in ("a\0b", "x" * 5000)),
        *(("arguments", {"log_interval": value}) for value in ("1", 0, math.nan)),
        ("arguments", {"progress_bar": "yes"}),
        ("arguments", {"use_masking": 3}),
        ("arguments", {"callback": None}),
        ("arguments", [1]),
        *(("algorithm", value) for value in (3, "PPO", "MaskableTRPO")),
        *((name, "8") for name in ("num_timesteps", "total_timesteps", "rollouts", "n_calls")),
        *(("total_timesteps", value) for value in (-1, math.nan, 2**63)),
        *((name, [3]) for name in ("environments", "last", "noise", "random")),
        ("environments", {"names": []}),
        *(("runs", value) for value in (["*"], ["x/../../other/*"], ["0123abcd\n"], [3], "*")),
    ],
)
def test_state_of_other_kinds_is_refused_by_name(
    name: str, value: Any, tmp_path: pathlib.Path
) -> None:
    path = rewritten(toy_checkpoint(tmp_path), **{name: value})
    names = value if name == "arguments" and isinstance(value, dict) else [name]
    with pytest.raises(ValueError, match=rf"{path.name}.*{next(iter(names))}"):
        resume_training(path, TOY[2](), device="cpu", algorithm=TRPO)


# Where in a state, and what does not belong there.
MISPLACED: list[tuple[tuple[Any, ...], list[Any]]] = [
    (("format",), [th.zeros(2), 2, None]),
    (("last", "_last_obs"), [None, [1], np.zeros(3), np.full((2, 3), "x")]),
    (("last", "_last_episode_starts"), [3, np.zeros(7)]),
    (("last", "_last_lstm_states"), [3, [[th.zeros(2)] * 2] * 2, [[]]]),
    *((("random", name), [None, [1], {}, th.zeros(2)]) for name in ("python", "numpy", "torch")),
    (("random", "gpus"), [None, [3], [th.zeros(2)]]),
    (("noise",), [{"exploration_mat": value} for value in (3, None, th.zeros(2))]),
    (("episodes",), [[], [[3], []], [[{"r": "x", "l": 1}], []], [[], ["x"]]]),
    (
        ("logged",),
        [
            [],
            [3, 3, 3],
            [{"a": "x"}, {}, {}],
            [{3: 1}, {}, {}],
            [{}, {}, {"a": 3}],
            [{}, {}, {"a": th.zeros(2)}],
        ],
    ),
    (("environments", "wrappers"), [None, [b"x"], [None]]),
    (
        ("environments", "episodes"),
        [None, [], [b"x"] * 2, [b""] * 2, [plain_dumps([])] * 2, [3] * 2],
    ),
    (("environments", "spaces"), [None, b"x", plain_dumps([3, 3])]),
    (("environments", "num_envs"), ["2", None]),
    (("environments", "names"), [3, [3]]),
    (("environments", "reason"), [3]),
]


@pytest.mark.parametrize(
    ("where", "value"), [(where, value) for where, values in MISPLACED for value in values]
)
def test_inside_of_a_state_is_refused_by_name_before_environments_change(
    where: tuple[str, ...], value: Any, tmp_path: pathlib.Path
) -> None:
    path = toy_checkpoint(tmp_path)
    state = read_checkpoint(path).state
    changed_part = value if len(where) == 1 else state[where[0]] | {where[1]: value}
    rewritten(path, **{where[0]: changed_part})
    env: Any = TOY[2]()
    with pytest.raises(ValueError, match=rf"(?s){path.name}.*({where[0]}|version)"):
        resume_training(path, env, device="cpu")
    assert {each.unwrapped.step_in_episode for each in env.envs} == {0}


@pytest.mark.parametrize("data", [b"x", plain_dumps([]), plain_dumps({"layers": 3, "states": 3})])
def test_state_of_a_wrapper_is_refused_by_name(data: bytes, tmp_path: pathlib.Path) -> None:
    case = CASES["Pendulum, VecNormalize"]
    interrupted(case, tmp_path)
    path = checkpoint_at(tmp_path, 256)
    environments = read_checkpoint(path).state["environments"] | {"wrappers": [data]}
    rewritten(path, environments=environments)
    with pytest.raises(ValueError, match=rf"{path.name} was not resumed: the VecNormalize"):
        resume_training(path, case[2](), device="cpu")


def test_log_name_of_an_own_run_needs_trust_to_leave_its_folder(tmp_path: pathlib.Path) -> None:
    interrupted(TOY, tmp_path)
    path = rewritten(checkpoint_at(tmp_path, 256), arguments={"tb_log_name": "../own"})
    resume_training(path, TOY[2](), device="cpu", trust_checkpoint=True)


def test_an_untrusted_checkpoint_does_not_choose_the_folder_of_logs(
    tmp_path: pathlib.Path,
) -> None:
    theirs, own = tmp_path / "theirs", tmp_path / "own"
    model = make_model(TOY, tensorboard_log=str(theirs))
    model.learn(128, TrainingCheckpoint(tmp_path, 64))
    shutil.rmtree(theirs)
    path = checkpoint_at(tmp_path, 64)
    with pytest.warns(UserWarning, match=r"theirs'.*Pass tensorboard_log"):
        resume_training(path, TOY[2](), device="cpu")
    resume_training(path, TOY[2](), device="cpu", tensorboard_log=str(own))
    assert own.exists()
    assert not theirs.exists()
    resume_training(path, TOY[2](), device="cpu", trust_checkpoint=True)
    assert theirs.exists()


@pytest.mark.parametrize("algorithm", [PPO, MaskableTRPO, "TRPO"])
def test_class_that_is_not_that_of_the_checkpoint_is_refused(
    algorithm: Any, tmp_path: pathlib.Path
) -> None:
    interrupted(TOY, tmp_path)
    with pytest.raises(ValueError, match=r"algorithm"):
        resume_training(tmp_path, TOY[2](), algorithm=algorithm)


def test_callbacks_count_on(tmp_path: pathlib.Path) -> None:
    make = CASES["CartPole"][2]
    whole = EvalCallback(make(), eval_freq=90)
    make_model(CASES["CartPole"]).learn(STEPS, whole)
    whole.evaluations_timesteps.clear()
    interrupted(CASES["CartPole"], tmp_path)
    resumed = EvalCallback(make(), eval_freq=90, log_path=str(tmp_path / "log"))
    resume_training(tmp_path, make(), resumed, "cpu")
    assert resumed.n_calls == whole.n_calls
    assert resumed.evaluations_timesteps == [360]


class Rows(KVWriter):
    """Keep what is logged, except for the time."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], *_: Any) -> None:
        times = ("time/fps", "time/time_elapsed")
        self.rows.append({key: key_values[key] for key in key_values if key not in times})


class Log(BaseCallback):
    """
    Log to a writer, too.

    :param writer: the writer
    """

    def __init__(self, writer: KVWriter) -> None:
        super().__init__()
        self.writer = writer

    def _on_training_start(self) -> None:
        self.logger.output_formats.append(self.writer)

    def _on_step(self) -> bool:
        return True


def test_log_goes_on_where_it_was(tmp_path: pathlib.Path) -> None:
    whole, before, after = Rows(), Rows(), Rows()
    make_model(TOY).learn(STEPS, Log(whole))
    interrupted(TOY, tmp_path, Log(before))
    resume_training(tmp_path, TOY[2](), Log(after), "cpu")
    assert (len(whole.rows), len(before.rows), len(after.rows)) == (8, 5, 4)
    np.testing.assert_equal(after.rows, whole.rows[4:])


def test_log_is_written_at_the_steps_of_an_uninterrupted_training(tmp_path: pathlib.Path) -> None:
    whole, parts = Rows(), Rows()
    make_model(TOY).learn(STEPS, Log(whole), log_interval=3)
    checkpoint, interrupt = TrainingCheckpoint(tmp_path, 64), Interrupt(200)
    with pytest.raises(InterruptionError):
        make_model(TOY).learn(STEPS, [Log(parts), checkpoint, interrupt], log_interval=3)
    callbacks = [Log(parts), TrainingCheckpoint(tmp_path, 64), Interrupt(460)]
    with pytest.raises(InterruptionError):
        resume_training(tmp_path, TOY[2](), callbacks, "cpu")
    resume_training(tmp_path, TOY[2](), Log(parts), "cpu")
    steps = [[row["time/total_timesteps"] for row in each.rows] for each in (whole, parts)]
    assert steps[0] == [192, 384]
    assert list(dict.fromkeys(steps[1])) == steps[0]


class Simulator:
    """Stands for one that was written in C."""

    __slots__ = ("position",)


class Uncopyable(ToyEnv):
    """Something in it is no plain data."""

    def __init__(self) -> None:
        super().__init__(deepcopy(VECTOR), DISCRETE_ACTIONS)
        self.simulator = Simulator()


class Counter:
    """Counts the steps."""

    def __init__(self) -> None:
        self.count = 0

    def weigh(self, reward: float) -> float:
        self.count += 1
        return reward * float(np.sin(self.count))


class Sensor:
    """
    Reads its environment.

    :param env: that has it
    """

    def __init__(self, env: "Weighing") -> None:
        self.env = env

    def weigh(self, reward: float) -> float:
        return reward * float(np.sin(self.env.step_in_episode))


class Weighing(ToyEnv):
    """Keeps state where an environment's attributes do not show it at once."""

    def __init__(self, where: str) -> None:
        super().__init__(deepcopy(VECTOR), DISCRETE_ACTIONS)
        count = [0]

        def weigh(reward: float) -> float:
            count[0] += 1
            return reward * float(np.sin(count[0]))

        self.env: Any = Counter() if where == "attribute env" else None
        if where == "object that refers back":
            self.env = Sensor(self)
        self.weigh: Any = weigh if where == "closure" else None
        if where == "bound method":
            self.weigh = Counter().weigh

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, (self.weigh or self.env.weigh)(reward), *rest


@pytest.mark.parametrize("where", ["attribute env", "closure", "object that refers back"])
def test_state_anywhere_in_an_environment_is_copied(where: str, tmp_path: pathlib.Path) -> None:
    case: Case = (TRPO, "MlpPolicy", vector(lambda: Weighing(where)), {})
    whole = make_model(case).learn(STEPS)
    interrupted(case, tmp_path)
    assert_same(whole, resume_training(tmp_path, case[2](), device="cpu"))


def test_state_behind_a_method_of_another_object_is_not_passed_over(tmp_path: pathlib.Path) -> None:
    case: Case = (TRPO, "MlpPolicy", vector(lambda: Weighing("bound method")), {})
    with pytest.warns(UserWarning, match=r"start new episodes.*Weighing\.weigh holds"):
        interrupted(case, tmp_path)


class Chain:
    """A link, with those after it."""

    def __init__(self, length: int) -> None:
        self.next = Chain(length - 1) if length else None


@pytest.mark.parametrize(
    "value", [Chain(300), th.ones(2, dtype=th.bfloat16), th.ones(2).to_sparse()]
)
def test_attribute_that_cannot_be_copied_does_not_end_the_training(
    value: Any, tmp_path: pathlib.Path
) -> None:
    def make() -> ToyEnv:
        env = toy()
        vars(env)["unusual"] = value
        return env

    case: Case = (TRPO, "MlpPolicy", vector(make), {})
    with pytest.warns(UserWarning, match=r"start new episodes.*ToyEnv\.unusual holds"):
        interrupted(case, tmp_path)


class Redrawn(gym.Wrapper[Any, Any, Any, Any]):
    """Draws another mass at each reset."""

    def reset(self, **options: Any) -> Any:
        answer = super().reset(**options)
        model: Any = self.unwrapped.model  # type: ignore[attr-defined]
        model.body_mass[1:] = self.unwrapped.np_random.uniform(1, 2, len(model.body_mass) - 1)
        return answer


@needs_mujoco
def test_simulation_whose_model_a_reset_changes_starts_new_episodes(tmp_path: pathlib.Path) -> None:
    make = vector(lambda: Redrawn(gym.make("InvertedPendulum-v5")), 1)
    case: Case = (TRPO, "MlpPolicy", make, {})
    interrupted(case, tmp_path)
    with pytest.warns(UserWarning, match="start new episodes.*is of another MuJoCo model"):
        resume_training(tmp_path, make(), device="cpu")


class Keeping(VecEnvWrapper):
    """
    Keeps what it wraps under a second name, as SB3's VecVideoRecorder does, and something else.

    :param venv: what it wraps
    :param simulator: that cannot be copied
    """

    def __init__(self, venv: VecEnv, simulator: Any = None) -> None:
        super().__init__(venv)
        self.env, self.simulator = venv, simulator

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()


def test_wrapper_that_keeps_what_it_wraps_twice_is_copied(tmp_path: pathlib.Path) -> None:
    case: Case = (TRPO, "MlpPolicy", lambda: Keeping(VecNormalize(vector(toy)())), {})
    whole = make_model(case).learn(STEPS)
    interrupted(case, tmp_path)
    assert_same(whole, resume_training(tmp_path, case[2](), device="cpu"))


def test_wrapper_that_cannot_be_copied_leaves_the_others_their_state(
    tmp_path: pathlib.Path,
) -> None:
    def make() -> VecEnv:
        return Keeping(VecNormalize(vector(toy)()), Simulator())

    case: Case = (TRPO, "MlpPolicy", make, {})
    with pytest.warns(UserWarning, match=r"start new episodes.*Keeping\.simulator holds"):
        interrupted(case, tmp_path)
    with pytest.warns(UserWarning, match="start new episodes"):
        resumed = resume_training(tmp_path, make(), device="cpu")
    normalization: Any = resumed.get_vec_normalize_env()
    assert normalization.obs_rms.count > STEPS


class Global(ToyEnv):
    """Draws from the generators of its process."""

    def __init__(self) -> None:
        super().__init__(deepcopy(VECTOR), DISCRETE_ACTIONS)

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, reward * np.random.rand(), *rest

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            np.random.seed(seed)
        return super().reset(seed=seed, options=options)


def test_generators_of_processes_of_environments_go_on(tmp_path: pathlib.Path) -> None:
    def make() -> VecEnv:
        return SubprocVecEnv([lambda: Resumable(Monitor(Global()))] * 2, start_method="fork")

    case: Case = (TRPO, "MlpPolicy", make, {})
    whole = make_model(case).learn(STEPS)
    interrupted(case, tmp_path)
    resumed = resume_training(tmp_path, make(), device="cpu")
    assert_same(whole, resumed)
    for model in (whole, resumed):
        model.env.close()  # type: ignore[union-attr]


class Recorder(gym.Wrapper[Any, Any, Any, Any]):
    """
    Notes each reset in a file.

    :param folder: of the file
    """

    def __init__(self, env: gym.Env[Any, Any], folder: pathlib.Path | str) -> None:
        super().__init__(env)
        self.folder, self.word, self.options = folder, "a", {"place": "here"}

    def reset(self, **options: Any) -> Any:
        pathlib.Path(self.folder).mkdir(parents=True, exist_ok=True)
        (pathlib.Path(self.folder) / f"{self.word}.txt").touch()
        return super().reset(**options)


def recorded(folder: pathlib.Path | str) -> Case:
    return (TRPO, "MlpPolicy", vector(lambda: Recorder(toy(), folder), 1), {})


def with_attributes(path: pathlib.Path, **attributes: Any) -> pathlib.Path:
    """Change the attributes of the recorder in a checkpoint."""
    environments = read_checkpoint(path).state["environments"]
    episode = plain_loads(environments["episodes"][0], [spaces.Box, spaces.Discrete])
    assert episode["layers"][1] == "Recorder"
    episode["states"][1] |= attributes
    return rewritten(path, environments=environments | {"episodes": [plain_dumps(episode)]})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 3) for name in ("env", "step", "reset", "metadata", "render_mode", "spec")),
        ("word", b"/etc/b"),
    ],
)
def test_a_state_sets_no_code_and_nothing_that_is_not_copied(
    name: str, value: Any, tmp_path: pathlib.Path
) -> None:
    case = recorded(tmp_path / "mine")
    interrupted(case, tmp_path)
    path = with_attributes(checkpoint_at(tmp_path, 256), **{name: value})
    env: Any = case[2]()
    with pytest.raises(ValueError, match=rf"{path.name} was not resumed.*Recorder\.{name}"):
        resume_training(path, env, device="cpu")
    assert env.envs[0].env.word == "a"


@pytest.mark.parametrize("own", ["folder", "{}/mine"])
def test_a_checkpoint_does_not_choose_where_a_wrapper_writes(
    own: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    case = recorded(own.format(tmp_path))
    whole = make_model(case).learn(STEPS)
    interrupted(case, tmp_path)
    other = str(tmp_path / "other")
    path = with_attributes(checkpoint_at(tmp_path, 256), folder=other, word="../../b")
    assert_same(whole, resume_training(path, case[2](), device="cpu"))
    assert not (tmp_path / "other").exists()
    path = with_attributes(path, options={"place": other})
    with pytest.warns(UserWarning, match="start new episodes.*holds the path"):
        resume_training(path, case[2](), device="cpu")


def test_other_text_is_state(tmp_path: pathlib.Path) -> None:
    case = recorded(tmp_path / "mine")
    interrupted(case, tmp_path)
    path = with_attributes(checkpoint_at(tmp_path, 256), word="go to the red ball")
    resume_training(path, case[2](), device="cpu")
    assert (tmp_path / "mine" / "go to the red ball.txt").exists()


class Foreign(DummyVecEnv):
    """A vectorised environment of a package that offers SB3's steps only."""

    def has_attr(self, attr_name: str) -> bool:
        raise NotImplementedError

    def env_method(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


def test_vectorised_environments_of_others_train_with_checkpoints(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sb3_trpo._environment_state.DummyVecEnv", SubprocVecEnv)
    case: Case = (TRPO, "MlpPolicy", lambda: Foreign([toy] * 2), {})
    with pytest.warns(UserWarning, match="start new episodes"):
        interrupted(case, tmp_path)


def test_environments_that_cannot_be_copied_start_new_episodes(tmp_path: pathlib.Path) -> None:
    case: Case = (TRPO, "MlpPolicy", lambda: VecNormalize(vector(Uncopyable)()), {})
    with pytest.warns(UserWarning, match=r"start new episodes.*Uncopyable\.simulator holds"):
        interrupted(case, tmp_path)
    kept = make_model(case).learn(256)
    with pytest.warns(UserWarning, match="start new episodes, as theirs could not be copied"):
        resumed = resume_training(tmp_path, case[2](), Look(kept), "cpu")
    assert resumed.num_timesteps == STEPS


class Look(BaseCallback):
    """
    Compare a resumed model, before it is trained on, with the one that was interrupted.

    :param before: the model at the checkpoint
    """

    def __init__(self, before: TRPO) -> None:
        super().__init__()
        self.before = before

    def _on_rollout_start(self) -> None:
        if self.num_timesteps > self.before.num_timesteps:
            return
        assert isinstance(self.model, TRPO)
        assert not changed(state_of(self.before), state_of(self.model))
        starts = self.model._last_episode_starts
        assert starts is not None
        assert starts.all()
        statistics: Any = self.model.get_vec_normalize_env()
        # 256 steps, the first reset and that of the resumed training
        assert round(statistics.obs_rms.count) == 256 + 2 + 2

    def _on_step(self) -> bool:
        return True


def subprocesses(resumable: bool) -> VecEnv:
    def make() -> gym.Env[Any, Any]:
        env = Monitor(gym.make("Pendulum-v1"))
        return Resumable(env) if resumable else env

    return SubprocVecEnv([make, make])


@pytest.mark.slow
@pytest.mark.parametrize("resumable", [True, False])
def test_environments_in_processes_resume_if_they_are_resumable(
    tmp_path: pathlib.Path, resumable: bool, recwarn: pytest.WarningsRecorder
) -> None:
    case: Case = (TRPO, "MlpPolicy", lambda: subprocesses(resumable), {})
    model = make_model(case)
    with pytest.raises(InterruptionError):
        model.learn(STEPS, [TrainingCheckpoint(tmp_path, SAVE_FREQ), Interrupt()])
    env = case[2]()
    resumed = resume_training(tmp_path, env, device="cpu")
    whole = make_model(case).learn(STEPS)
    same = not changed(state_of(whole), state_of(resumed))
    for each in (model, resumed, whole):
        assert each.env is not None
        each.env.close()
    assert same == resumable
    assert any("Resumable" in str(w.message) for w in recwarn) == (not resumable)


# Faults of the file system, and of whoever hands files around.


def test_damaged_files_are_skipped_and_named(tmp_path: pathlib.Path) -> None:
    whole = make_model(TOY).learn(STEPS)
    interrupted(TOY, tmp_path)
    newest = tmp_path / "checkpoint_320_steps_of_it.zip"
    interrupted(TOY, tmp_path / "other", at=200)
    content = checkpoint_at(tmp_path, 256).read_bytes()
    for size in (0, 10, len(content) // 2, len(content) - 1):
        newest.write_bytes(content[:size])
        with pytest.warns(UserWarning, match=r"Skipped .*_of_it\.zip: its checksum is wrong"):
            resumed = resume_training(tmp_path, TOY[2](), device="cpu")
        assert_same(whole, resumed)


def test_every_flipped_byte_is_noticed(tmp_path: pathlib.Path) -> None:
    interrupted(TOY, tmp_path)
    path = checkpoint_at(tmp_path, 256)
    content = path.read_bytes()
    for position in np.random.default_rng(0).integers(len(content), size=50):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(bytes(damaged))
        with pytest.raises(ValueError, match=r"no checkpoint to resume from in .*checksum"):
            resume_training(path, TOY[2]())


@pytest.mark.parametrize("make", [lambda path: None, pathlib.Path.mkdir, pathlib.Path.touch])
def test_path_without_a_checkpoint_is_refused(
    tmp_path: pathlib.Path, make: Callable[[pathlib.Path], None]
) -> None:
    make(tmp_path / "run")
    with pytest.raises(ValueError, match=r"no checkpoint to resume from in .*run"):
        resume_training(tmp_path / "run", TOY[2]())


def test_other_environment_is_refused(tmp_path: pathlib.Path) -> None:
    interrupted(TOY, tmp_path)
    with pytest.raises(ValueError, match="has 1 environments, and that of the checkpoint had 2"):
        resume_training(tmp_path, vector(ToyEnv, 1)())
    with pytest.raises(ValueError, match=r"wrappers \['VecNormalize'\].* had \[\]"):
        resume_training(tmp_path, VecNormalize(TOY[2]()))
    with pytest.warns(UserWarning, match=r"saved from \['Monitor', 'ToyEnv'\]"):
        resume_training(tmp_path, vector(lambda: gym.wrappers.TimeLimit(toy(), 9))())


def fault(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


class Full:
    """A file on a full disk: some bytes fit."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "Full":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def write(self, data: Any) -> int:
        self._file.write(bytes(data)[:100])
        return fault()  # type: ignore[no-any-return]


def full_disk(path: pathlib.Path, *arguments: Any, **options: Any) -> Any:
    return Full(open(path, *arguments, **options))


# What fails when a file is written, and how.
STAGES: dict[str, tuple[Any, str, Any]] = {
    "open": (pathlib.Path, "open", fault),
    "write": (pathlib.Path, "open", full_disk),
    "fsync": (os, "fsync", fault),
    "replace": (os, "replace", fault),
}
by_stage = pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)


@by_stage
def test_training_continues_when_a_checkpoint_cannot_be_written(
    tmp_path: pathlib.Path, stage: tuple[Any, str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_model(TOY).learn(STEPS)
    make_model(TOY).learn(256, TrainingCheckpoint(tmp_path, 256))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(*stage)
    with pytest.warns(UserWarning, match="No space left"):
        trained = make_model(TOY).learn(STEPS, TrainingCheckpoint(tmp_path, 256))
    monkeypatch.undo()
    assert_same(whole, trained)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_training_continues_when_an_older_checkpoint_cannot_be_removed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Mistake: the new file, which is there, counts as not written, and every update writes another.
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("not yours")

    checkpoint = TrainingCheckpoint(tmp_path, 128, keep=1)
    monkeypatch.setattr(pathlib.Path, "unlink", refuse)
    with pytest.warns(UserWarning, match="older checkpoint could not be removed: not yours"):
        make_model(TOY).learn(256, checkpoint)
    assert checkpoints(tmp_path) == ["checkpoint_128_steps.zip", "checkpoint_256_steps.zip"]
    assert checkpoint.latest == find_checkpoint(tmp_path).path


def test_checkpoint_that_failed_is_tried_again_after_the_next_update(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Repair(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps > 300:
                monkeypatch.undo()
            return True

    monkeypatch.setattr(os, "replace", fault)
    with pytest.warns(UserWarning, match="tries again. There is none yet"):
        make_model(TOY).learn(STEPS, [TrainingCheckpoint(tmp_path, 200), Repair()])
    assert checkpoints(tmp_path) == ["checkpoint_320_steps.zip"]


def test_older_file_is_kept_when_the_new_one_reads_back_differently(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(TOY).learn(256, TrainingCheckpoint(tmp_path, 256, keep=1))
    monkeypatch.setattr(pathlib.Path, "read_bytes", lambda path: b"bit rot")
    with pytest.warns(UserWarning, match="did not contain"):
        make_model(TOY).learn(320, TrainingCheckpoint(tmp_path, 320, keep=1))
    assert checkpoints(tmp_path) == ["checkpoint_256_steps.zip"]


def test_folder_is_made_and_what_killed_processes_left_is_removed(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    living = f".checkpoint_64_steps_b.zip.{os.getppid()}.tmp"
    elsewhere = f".checkpoint_64_steps_c.zip.{ended.pid}.tmp"  # its process is on another host
    for name in (f".checkpoint_64_steps_a.zip.{ended.pid}.tmp", living, elsewhere):
        (folder / name).write_bytes(b"half")
        if name != elsewhere:
            os.utime(folder / name, (1e9, 1e9))
    make_model(TOY).learn(64, TrainingCheckpoint(folder, 64))
    assert len(list(folder.iterdir())) == 3
    assert (folder / living).is_file()
    assert (folder / elsewhere).is_file()
    assert checkpoint_at(folder, 64).is_file()


def test_folder_that_cannot_be_made_is_refused_before_training(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    model = make_model(TOY)
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"cannot be written to save_path=.*Pass a folder"):
            model.learn(64, TrainingCheckpoint(path, 64))
    assert model.num_timesteps == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("save_freq", value) for value in (0, -5, float("nan"), "16", None, True)),
        *(("keep", value) for value in (0, 1.5, "3", None, True)),
        *(("save_path", value) for value in (None, 3, b"folder")),
    ],
)
def test_arguments_of_wrong_values_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} has to be .*, but it is {value!r}"):
        TrainingCheckpoint(**{"save_path": "folder", "save_freq": 10, name: value})


def test_numbers_of_numpy_are_taken(tmp_path: pathlib.Path) -> None:
    numbers: dict[str, Any] = {"save_freq": np.int64(64), "keep": np.int32(1)}
    checkpoint = TrainingCheckpoint(tmp_path, **numbers)
    make_model(TOY).learn(128, checkpoint)
    assert checkpoints(tmp_path) == ["checkpoint_128_steps.zip"]


@pytest.mark.parametrize(
    "around",
    [
        lambda inner: EveryNTimesteps(64, inner),
        lambda inner: EveryNTimesteps(64, CallbackList([inner])),
        lambda inner: EvalCallback(toy(), callback_after_eval=inner),
        lambda inner: EvalCallback(toy(), callback_on_new_best=inner),
        lambda inner: EvalCallback(
            Monitor(toy()), callback_on_new_best=CallbackList([inner]), eval_freq=1, verbose=0
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Training and eval env are not of the same type")
def test_a_checkpoint_inside_an_event_is_refused(
    around: Callable[[BaseCallback], BaseCallback], tmp_path: pathlib.Path
) -> None:
    model = make_model(TOY)
    callback = around(TrainingCheckpoint(tmp_path / "new", 64))
    with pytest.raises(ValueError, match=rf"{type(callback).__name__}.*Pass it to learn directly"):
        model.learn(64, callback)
    assert model.num_timesteps <= 2
    assert not list(tmp_path.glob("new/*"))


def test_algorithms_of_others_are_refused_before_they_train(tmp_path: pathlib.Path) -> None:
    model = PPO("MlpPolicy", TOY[2](), n_steps=32, batch_size=32)
    with pytest.raises(ValueError, match=r"PPO.*TRPO, MaskableTRPO, RecurrentTRPO"):
        model.learn(64, TrainingCheckpoint(tmp_path / "new", 64))
    assert model.num_timesteps == 0
    assert not (tmp_path / "new").exists()


def test_checkpoint_holds_no_pickle_outside_of_the_model(tmp_path: pathlib.Path) -> None:
    interrupted(TOY, tmp_path)
    with zipfile.ZipFile(checkpoint_at(tmp_path, 256)) as archive:
        assert archive.namelist() == ["model.zip", "state"]
        state = archive.read("state")
    assert state[8:9] == b"{"
    assert b"builtins" not in state


def test_own_class_is_named_and_can_be_passed(tmp_path: pathlib.Path) -> None:
    class Own(TRPO):
        """A user's."""

    interrupted((Own, *TOY[1:]), tmp_path)
    with pytest.raises(ValueError, match="of a Own, which sb3_trpo does not have"):
        resume_training(tmp_path, TOY[2]())
    assert type(resume_training(tmp_path, TOY[2](), device="cpu", algorithm=Own)) is Own


# `save`


@pytest.mark.skipif(os.name == "nt", reason="permissions are of another kind")
def test_saved_again_a_model_keeps_its_files_permissions(tmp_path: pathlib.Path) -> None:
    model = make_model(TOY)
    model.save(tmp_path / "model")
    (tmp_path / "model.zip").chmod(0o600)
    model.save(tmp_path / "model")
    assert (tmp_path / "model.zip").stat().st_mode & 0o777 == 0o600


@by_stage
def test_model_that_cannot_be_saved_leaves_the_old_file(
    tmp_path: pathlib.Path, stage: tuple[Any, str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(TOY)
    model.save(tmp_path / "model")
    before = (tmp_path / "model.zip").read_bytes()
    monkeypatch.setattr(*stage)
    with pytest.raises(OSError, match="No space left"):
        model.save(tmp_path / "model")
    monkeypatch.undo()
    assert checkpoints(tmp_path) == ["model.zip"]
    assert (tmp_path / "model.zip").read_bytes() == before


def test_file_that_cannot_be_written_is_called_by_its_name(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "missing" / "model.zip"
    with pytest.raises(FileNotFoundError) as caught:
        write_atomically(path, b"content")
    assert caught.value.filename == str(path)


def test_interruption_while_saving_leaves_the_old_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(TOY)
    model.save(tmp_path / "model.zip")
    before = (tmp_path / "model.zip").read_bytes()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.save(tmp_path / "model.zip")
    assert checkpoints(tmp_path) == ["model.zip"]
    assert (tmp_path / "model.zip").read_bytes() == before


def test_saved_file_is_named_as_sb3_names_it(tmp_path: pathlib.Path) -> None:
    model = make_model(TOY)
    model.save(tmp_path / "a")
    model.save(str(tmp_path / "b.model"))
    with pytest.warns(UserWarning, match="does not exist"):
        model.save(tmp_path / "new" / "c.zip")
    (tmp_path / "d.zip").mkdir()
    with pytest.warns(UserWarning, match="is a folder"):
        model.save(tmp_path / "d")
    for name in ("a.zip", "b.model", "new/c.zip", "d.zip_2.zip"):
        assert not changed(state_of(model), state_of(TRPO.load(tmp_path / name)))


@pytest.mark.parametrize("path", [".", "..", "", "new/..", pathlib.Path(), "/"])
def test_folder_without_a_name_is_refused_before_anything_is_written(
    path: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"is a folder.*Pass the path of a file"):
        make_model(TOY).save(path)
    assert checkpoints(tmp_path) == []


def test_symbolic_link_stays_one(tmp_path: pathlib.Path) -> None:
    model = make_model(TOY)
    (tmp_path / "link.zip").symlink_to(tmp_path / "model.zip")
    model.save(tmp_path / "link.zip")
    assert (tmp_path / "link.zip").is_symlink()
    assert (tmp_path / "model.zip").is_file()


def test_spaces_stay_the_objects_that_others_refer_to(tmp_path: pathlib.Path) -> None:
    interrupted(CASES["CartPole"], tmp_path)
    env = CASES["CartPole"][2]()
    assert isinstance(env, DummyVecEnv)
    space = env.envs[0].unwrapped.action_space
    resume_training(tmp_path, env, device="cpu")
    assert env.envs[0].unwrapped.action_space is space
    assert isinstance(space, spaces.Discrete)
