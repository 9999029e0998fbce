"""Several processes that train one policy."""

import copy
import io
import math
import os
import pathlib
import signal
import time
import warnings
from datetime import timedelta
from functools import partial
from itertools import chain
from typing import Any, cast
from unittest import mock

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_trpo import TRPO, maskable
from sb3_trpo._checkpoint_file import find_checkpoint
from sb3_trpo._critic import Critic, fit_critic, read_critic
from sb3_trpo._data_parallel import check_equal_parameters
from sb3_trpo._processes import processes_of
from sb3_trpo._sequences import select
from sb3_trpo.checkpoint import TrainingCheckpoint, resume_training
from tests import cases
from tests.environments import collect
from tests.parallel import exit_codes, in_processes

# Rounding of float64 sums of some states in another order, through the few steps of CG in which it
# does not multiply rounding a millionfold (with 15, other chunks alone move the step by 1e-7).
TOLERANCE = 1e-10
CG_STEPS = 5

# The environments of one batch that each process has.
PARTS = {2: (slice(0, 2), slice(2, 5)), 3: (slice(0, 1), slice(1, 2), slice(2, 5))}
N_ENVS = 5

KINDS = (
    *("box", "discrete", "cnn_box_separate", "dict", "gsde"),
    *("masked_discrete", "lstm_box", "masked_lstm_multi_discrete"),
)
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"ent_coef": 0.05, "max_states_per_chunk": 7},
    {"sub_sampling_factor": 3, "fisher_sub_sampling_factor": 2},
)


def part_of(joined: Any, name: str, envs: slice, **settings: Any) -> Any:
    """Give a model some environments of another model's rollout, and its weights."""
    n_envs = len(range(*envs.indices(N_ENVS)))
    part = cases.collected(name, float64=True, n_envs=n_envs, **settings)
    part.policy.load_state_dict(joined.policy.state_dict())
    for key, array in vars(joined.rollout_buffer).items():
        if isinstance(array, np.ndarray) and array.ndim > 1:
            axis = 2 if key.startswith(("hidden", "cell")) else 1
            setattr(part.rollout_buffer, key, array[(slice(None),) * axis + (envs,)])
    if isinstance(joined.rollout_buffer.observations, dict):
        part.rollout_buffer.observations = {
            key: array[:, envs] for key, array in joined.rollout_buffer.observations.items()
        }
    part.data_parallel = True
    return part


def take_the_step_of_one_process(rank: int, parts: tuple[slice, ...]) -> None:
    for name in KINDS:
        for settings in SETTINGS:
            if name.startswith(("lstm", "masked_lstm")) and "sub_sampling_factor" in settings:
                continue  # every process takes every k-th of its own sequences
            options = {**settings, "n_critic_updates": 0, "cg_max_steps": CG_STEPS}
            joined = cases.collected(name, float64=True, n_envs=N_ENVS, **options)
            part = part_of(joined, name, parts[rank], **options)
            before = copy.deepcopy(joined.policy.state_dict())
            joined.train()
            part.train()
            moved = 0.0
            for key, value in joined.policy.state_dict().items():
                moved = max(moved, float((value - before[key]).abs().max()))
                error = float((part.policy.state_dict()[key] - value).abs().max())
                assert error < TOLERANCE, (name, settings, key, error)
            assert moved > 1e-4, (name, settings)


@pytest.mark.parametrize("size", [2, 3])
def test_uneven_parts_of_a_batch_give_the_step_of_one_process(size: int) -> None:
    in_processes(size, take_the_step_of_one_process, PARTS[size])


class Seen(BaseCallback):
    """Note the counted steps and the observations; perhaps stop at a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.stop_at = stop_at
        self.steps: list[int] = []
        self.observations: list[np.ndarray] = []

    def _on_training_start(self) -> None:
        self._note(self.training_env)

    def _on_step(self) -> bool:
        self.steps.append(self.model.num_timesteps)
        self._note(self.training_env)
        return self.n_calls != self.stop_at

    def _note(self, env: Any) -> None:
        if isinstance(env, VecNormalize):
            self.observations.append(cast(np.ndarray, env.get_original_obs()))


def flat(model: TRPO) -> th.Tensor:
    return th.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])


def gathered(item: Any) -> list[Any]:
    return processes_of(True, th.device("cpu")).gather(item)


def learn_together(rank: int) -> None:
    env: Any = VecNormalize(cases.toy_envs(cases.CASES["box"], rank + 1))
    options = {"log_std_init": -0.1 * rank}  # rank 0 decides
    settings: dict[str, Any] = {"seed": 3, "n_steps": 16, "batch_size": 20}
    model = cases.toy_model("box", env=env, data_parallel=True, policy_kwargs=options, **settings)
    seen = Seen()
    model.learn(50 * 48, callback=seen)

    assert model.num_timesteps == 50 * 48
    assert model._n_updates == 50
    assert seen.steps == list(range(3, 50 * 48 + 1, 3))
    first, second = gathered(flat(model))
    assert th.equal(first, second)
    rewards = gathered(model.rollout_buffer.rewards.flatten())
    assert not np.isin(rewards[0], rewards[1]).any(), "both collect the same rollout"
    buffers = gathered(list(model.ep_info_buffer))
    assert buffers[0] == buffers[1]
    assert rank == 0 or not model.logger.output_formats

    whole = RunningMeanStd(shape=env.obs_rms.mean.shape)
    for batch in chain.from_iterable(gathered(seen.observations)):
        whole.update(batch)
    np.testing.assert_allclose(env.obs_rms.mean, whole.mean, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(env.obs_rms.var, whole.var, rtol=1e-10)
    assert env.obs_rms.count == pytest.approx(whole.count)
    train_on_elsewhere(model)
    for name in (
        "cnn_discrete",
        "dict",
        "lstm_box",
        "masked_discrete",
        "masked_lstm_dict",
        "batch_norm_shared",
    ):
        other = cases.toy_model(name, n_envs=rank + 1, data_parallel=True)
        other.learn(2 * 96)
        first, second = gathered(flat(other))
        assert th.equal(first, second), name


class Partly(nn.Module):
    """
    A network with a part that runs for the states of one process only.

    :param network: that runs for all
    :param part: that the other one adds
    :param runs: whether it does in this process
    """

    def __init__(self, network: nn.Module, part: nn.Module, runs: bool) -> None:
        super().__init__()
        self.network, self.part, self.runs = network, part, runs

    def forward(self, x: th.Tensor) -> th.Tensor:
        latent = self.network(x)
        return latent + self.part(latent) if self.runs else th.as_tensor(latent)


def learn_what_one_process_sees(rank: int) -> None:
    models = [cases.toy_model("box", n_envs=rank + 1, data_parallel=True) for _ in range(3)]
    if rank == 0:
        models[0].policy.action_net.register_forward_hook(lambda *_: None)
        models[0].policy.value_net.register_forward_hook(lambda *_: None)
    parts: list[Any] = [lambda n: nn.Linear(n, n), lambda n: nn.BatchNorm1d(n, affine=False)]
    for model, make in zip(models[1:], parts, strict=True):
        nets = model.policy.mlp_extractor
        for name, size in (("policy_net", nets.latent_dim_pi), ("value_net", nets.latent_dim_vf)):
            setattr(nets, name, Partly(getattr(nets, name), make(size), runs=rank == 0))
        model.policy.optimizer = th.optim.Adam(model.policy.parameters(), lr=1e-3)
    for model in models:
        before = flat(model)
        model.learn(2 * 96)
        assert not th.equal(before, flat(model))
        tensors = [*model.policy.parameters(), *model.policy.buffers()]
        first, second = gathered(th.cat([tensor.detach().double().flatten() for tensor in tensors]))
        assert th.equal(first, second)


def train_on_elsewhere(model: TRPO) -> None:
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    alone = TRPO.load(stream, env=cases.toy_envs(cases.CASES["box"], 2))
    assert not alone.data_parallel
    alone.learn(32)
    stream.seek(0)
    again = TRPO.load(stream, env=cases.toy_envs(cases.CASES["box"], 1), data_parallel=True)
    again.learn(32)
    first, second = gathered(flat(again))
    assert th.equal(first, second)


def critic_and_data(model: TRPO) -> tuple[Critic, Any, th.Tensor]:
    actor, _ = cases.actor_and_batch(model)
    critic = read_critic(model.policy, actor.parameters, actor.modules)
    rollout = cases.rollout_of(model)
    return critic, critic.features(rollout.observations), rollout.returns


def fit_one_critic(rank: int) -> None:
    for name in ("box", "value_proj", "batch_norm_separate"):
        model = cases.collected(name, float64=True)
        other = copy.deepcopy(model)
        critic, features, returns = critic_and_data(model)
        parts = [slice(0, 3), slice(3, 12)], [slice(12, 20), slice(20, 24)]
        mine = [(select(features, part[rank]), returns[part[rank]]) for part in parts]
        fit = fit_critic(critic, mine, processes_of(True, th.device("cpu")))
        if name != "batch_norm_separate":  # whose statistics are those of a process's share
            whole = [slice(0, 12), slice(12, 24)]
            joined = [(select(features, part), returns[part]) for part in whole]
            expected = fit_critic(critic_and_data(other)[0], joined)
            assert fit.loss == pytest.approx(expected.loss, rel=1e-12)
            assert float((flat(model) - flat(other)).abs().max()) < TOLERANCE
        tensors = [*model.policy.parameters(), *model.policy.buffers()]
        first, second = gathered(th.cat([tensor.detach().double().flatten() for tensor in tensors]))
        assert th.equal(first, second), name


def end_together(rank: int) -> None:
    model = cases.toy_model("box", data_parallel=True)
    model.learn(10_000, callback=Seen(stop_at=5 if rank == 1 else None))
    assert gathered(model.num_timesteps) == [model.num_timesteps] * 2
    assert model.num_timesteps < 10_000

    end_at_faults_of_the_environment(rank)
    end_at_faults_at_the_start(rank)

    model = cases.toy_model("box", data_parallel=True)
    collect(model)
    if rank == 0:
        model.rollout_buffer.advantages[3, 1] = math.inf
    error = ValueError if rank == 0 else RuntimeError
    with pytest.raises(error, match=r"\(step, env\) = \(3, 1\)"):
        model.train()

    name_what_differs(rank)
    model = cases.toy_model("box", data_parallel=True)
    with th.no_grad():
        next(model.policy.parameters()).add_(rank)
    with pytest.raises(RuntimeError, match="parameters of process 1 differ"):
        check_equal_parameters(model.policy, processes_of(True, th.device("cpu")))


def lin(progress: float) -> float:
    return 0.01 * progress


def name_what_differs(rank: int) -> None:
    differing: list[tuple[dict[str, tuple[Any, Any]], str]] = [
        ({"target_kl": (0.01, 0.02)}, r"target_kl is 0\.01 in process 0 and 0\.02 in process 1"),
        ({"target_kl": ("lin_0.01", lin)}, ""),  # the same numbers
        ({"target_kl": ("lin_0.01", 0.01)}, r"target_kl is '0\.01 at 1, .* and 0\.01 in"),
        ({"learning_rate": (lin, lambda _: 0.01)}, r"learning_rate is '0\.01 at 1, 0\.007 at"),
        ({"cg_damping": (0.1, lin)}, "cg_damping is 0.1 in process 0 and '0.01 at"),
        ({"batch_size": (64, 32)}, "batch_size is 64 in process 0 and 32 in process 1"),
        ({"gamma": (0.9, 0.8)}, r"gamma is 0\.9 in process 0 and 0\.8 in process 1"),
        ({"policy_kwargs": ({}, {"activation_fn": th.nn.ReLU})}, "its layers differ"),
        ({"policy_kwargs": ({}, {"net_arch": [5]})}, "its layers differ"),
    ]
    for settings, message in differing:
        own = {name: values[rank] for name, values in settings.items()}
        model = cases.toy_model("box", data_parallel=True, **own)
        if not message:
            model.learn(64)
            continue
        # The process whose layers are others knows what they are; the first one names it.
        error = RuntimeError if "layers" in message and rank == 0 else ValueError
        with pytest.raises(error, match=message):
            model.learn(64)


class Interrupted(KeyboardInterrupt):
    """An interruption with a class of its own."""


def end_together_at_an_interruption(rank: int) -> None:
    model = cases.toy_model("box", data_parallel=True)

    def interrupt(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if rank == 1 and local["self"].num_timesteps > 400:
            raise Interrupted
        return True

    with pytest.raises(Interrupted):
        model.learn(10_000, interrupt)
    first, second = gathered(flat(model))
    assert th.equal(first, second)


def show_the_progress_of_all(rank: int) -> None:
    warnings.simplefilter("ignore")  # rich is new to tqdm
    model = cases.toy_model("box", data_parallel=True)
    bars: list[Any] = []

    def note(local: dict[str, Any], _: dict[str, Any]) -> None:
        bars.extend(getattr(local["callback"], "callbacks", [])[1:])

    model.learn(192, note, progress_bar=True)
    assert len(bars) == (model.num_timesteps // 4 if rank == 0 else 0)
    assert all(bar.pbar.n == model.num_timesteps for bar in bars)


def end_at_faults_of_the_environment(rank: int) -> None:
    faults: tuple[tuple[Any, type[Exception]], ...]
    faults = (math.nan, ValueError), (LookupError("lost"), LookupError)
    for fault, error in faults:
        model = cases.toy_model("box", data_parallel=True)
        before = flat(model).clone()
        if rank == 1:
            model.env.envs[0].unwrapped.step = partial(faulty, model, fault)
        with pytest.raises(error if rank == 1 else RuntimeError) as caught:
            model.learn(200)
        if rank == 0:
            assert f"process 1: {error.__name__}" in str(caught.value)
            assert "This happened in step" in str(caught.value)
            assert th.equal(flat(model), before)


class Refusing(BaseCallback):
    """Raise before the first rollout."""

    def _on_training_start(self) -> None:
        raise LookupError("no place")

    def _on_step(self) -> bool:
        return True


def end_at_faults_at_the_start(rank: int) -> None:
    # Mistake: the others wait for the timeout, and do not hear of the reason.
    model = cases.toy_model("box", data_parallel=True)
    error: type[Exception] = LookupError if rank == 1 else RuntimeError
    with pytest.raises(error, match="no place"):
        model.learn(200, Refusing() if rank == 1 else None)
    masked = cases.toy_model("masked_discrete", data_parallel=True)
    error = ValueError if rank == 1 else RuntimeError
    with (
        mock.patch.object(maskable, "is_masking_supported", return_value=rank == 0),
        pytest.raises(error, match="no method action_masks"),
    ):
        masked.learn(200)


def faulty(model: TRPO, fault: Any, action: Any) -> Any:
    if isinstance(fault, Exception):
        raise fault
    return model.observation_space.sample(), fault, False, False, {}


class Killing(BaseCallback):
    """Kill the process at a step."""

    def _on_step(self) -> bool:
        if self.n_calls == 40:
            kill()
        return True


def kill(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def lose_a_process(rank: int, place: str) -> None:
    model = cases.toy_model("box", data_parallel=True)
    if rank == 1:
        if place == "update":
            model.policy.optimizer.register_step_pre_hook(kill)
        model.learn(10_000, callback=Killing() if place == "rollout" else None)
    else:
        with pytest.raises(RuntimeError, match="has lost contact: process 1 has ended"):
            model.learn(10_000)


@pytest.mark.parametrize("place", ["rollout", "update"])
def test_the_others_end_when_a_process_is_killed(place: str) -> None:
    assert exit_codes(2, lose_a_process, place) == [0, -signal.SIGKILL]


def lose_the_saving_process(rank: int, folder: str) -> None:
    model = cases.toy_model("box", data_parallel=True)
    replace = os.replace

    def kill_at_the_third(source: Any, target: Any) -> None:
        if len(list(pathlib.Path(folder).glob("*.zip"))) == 2:
            kill()
        replace(source, target)

    os.replace = kill_at_the_third  # type: ignore[assignment]
    checkpoint = TrainingCheckpoint(folder, save_freq=96)
    with pytest.raises(RuntimeError, match=r"has lost contact.*process 0, has ended"):
        model.learn(10_000, checkpoint)


def test_a_process_killed_while_it_saves_leaves_the_last_checkpoint(tmp_path: pathlib.Path) -> None:
    codes = exit_codes(2, lose_the_saving_process, str(tmp_path))
    assert codes == [-signal.SIGKILL, 0]
    assert find_checkpoint(tmp_path).checkpoint.state["num_timesteps"] == 256


def wait_for_a_hanging_process(rank: int, told: pathlib.Path) -> None:
    model = cases.toy_model("box", data_parallel=True)
    if rank == 1:
        model.env.envs[0].unwrapped.step = lambda action: time.sleep(1000)
    with pytest.raises(RuntimeError, match="lost contact: process 1 has ended, or did not answer"):
        model.learn(10_000)
    if rank == 2:
        told.touch()
    while not told.exists():  # process 0 has the store, which tells the others who is missing
        time.sleep(0.05)


def test_a_hanging_process_is_named_within_the_timeout(tmp_path: pathlib.Path) -> None:
    told, timeout = tmp_path / "told", timedelta(seconds=10)
    codes = exit_codes(3, wait_for_a_hanging_process, told, timeout=timeout, hanging=[1])
    assert codes == [0, None, 0]


def resume_together(rank: int, folder: str) -> None:
    def env() -> VecNormalize:
        return VecNormalize(cases.toy_envs(cases.CASES["box"], rank + 1))

    model = cases.toy_model("box", env=env(), data_parallel=True)
    model.learn(3 * 96, callback=TrainingCheckpoint(folder, save_freq=96, keep=9))
    gathered("process 0 has written the last file")
    files = sorted(pathlib.Path(folder).iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert len(files) == 3
    resumed = resume_training(files[0], env(), data_parallel=True)
    assert resumed.num_timesteps == 3 * 96
    first, second = gathered(flat(resumed))
    assert th.equal(first, second)
    rewards = gathered(resumed.rollout_buffer.rewards.flatten())
    assert not np.isin(rewards[0], rewards[1]).any()
    statistics: Any = resumed.env
    for name in ("obs_rms", "ret_rms"):
        one, other = gathered(getattr(statistics, name))
        assert one.count == other.count
        np.testing.assert_array_equal(one.mean, other.mean)
        np.testing.assert_array_equal(one.var, other.var)


def test_a_checkpoint_is_written_once_and_resumed_by_all(tmp_path: pathlib.Path) -> None:
    in_processes(2, resume_together, str(tmp_path))


@pytest.mark.parametrize(
    "work",
    [
        *(learn_together, learn_what_one_process_sees, fit_one_critic, end_together),
        *(end_together_at_an_interruption, show_the_progress_of_all),
    ],
)
def test_two_processes(work: Any) -> None:
    in_processes(2, work)


def test_without_a_process_group_the_remedy_is_named() -> None:
    with pytest.raises(ValueError, match="init_process_group"):
        cases.toy_model("box", data_parallel=True)
