"""Models that are worth loading do load without trust, predict the same and train on."""

import os
import subprocess
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import sb3_contrib
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_trpo import TRPO, load_vec_normalize
from tests.cases import CASES, toy_envs, toy_model
from tests.environments import ToyEnv, changed, state_of
from tests.hostile import GADGETS, Call, unpack
from tests.hostile import changed as with_attributes
from tests.policies import OwnOptimizer
from tests.published import (
    linear_schedule,
    old_pickle,
    old_space,
    published,
    without_separate_extractors,
)


def saved(model: Any) -> BytesIO:
    file = BytesIO()
    model.save(file)
    file.seek(0)
    return file


def check_same_and_trains(model: Any, loaded: Any, envs: Any) -> None:
    """Check that a loaded model acts as the saved one, and that an update changes it."""
    observation = envs.reset()
    expected, actual = (m.predict(observation, deterministic=True)[0] for m in (model, loaded))
    np.testing.assert_array_equal(expected, actual)
    before = state_of(loaded)
    loaded.learn(loaded.n_steps * loaded.n_envs, reset_num_timesteps=False)
    assert loaded.num_timesteps == model.num_timesteps + loaded.n_steps * loaded.n_envs
    assert changed(before, state_of(loaded))


@pytest.mark.parametrize("case", CASES)
def test_our_own_models(case: str) -> None:
    model = toy_model(case).learn(64)
    envs = toy_envs(CASES[case], 2)
    loaded = type(model).load(saved(model), envs, device="cpu")
    assert state_of(loaded).keys() == state_of(model).keys()
    check_same_and_trains(model, loaded, envs)


OPTIONS: dict[str, dict[str, Any]] = {
    "linear schedules": {
        "learning_rate": LinearSchedule(1e-3, 1e-4, 0.5),
        "target_kl": "lin_0.02",
        "cg_damping": LinearSchedule(0.1, 0.01, 1.0),
    },
    "optimizer": {
        "policy_kwargs": {
            "optimizer_class": th.optim.RMSprop,
            "optimizer_kwargs": {"alpha": 0.9, "eps": 1e-5},
        }
    },
    "optimizer of one's own": {"policy_kwargs": {"optimizer_class": OwnOptimizer}},
    "activation": {"policy_kwargs": {"activation_fn": th.nn.ELU, "ortho_init": False}},
    "log folder": {"tensorboard_log": None},
    "numpy numbers": {"gamma": np.float32(0.9), "n_steps": np.int64(32)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_our_own_models_with_options(options: dict[str, Any]) -> None:
    model = toy_model("box", **options).learn(64)
    envs = toy_envs(CASES["box"], 2)
    loaded = TRPO.load(saved(model), envs, device="cpu")
    for name in ("learning_rate", "target_kl", "cg_damping", "gamma"):
        assert repr(getattr(loaded, name)) == repr(getattr(model, name))
    check_same_and_trains(model, loaded, envs)


@pytest.mark.parametrize("case", ["box", "discrete", "gsde", "cnn", "dict"])
def test_fresh_models_of_contrib(case: str) -> None:
    contrib = toy_model(case, kind=sb3_contrib.TRPO).learn(64)
    envs = toy_envs(CASES[case], 2)
    with pytest.warns(UserWarning, match="kl_reduction"):
        loaded = TRPO.load(saved(contrib), envs, device="cpu")
    check_same_and_trains(contrib, loaded, envs)


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("case", ["box", "discrete", "gsde", "multi_discrete", "multi_binary"])
def test_published_agents(case: str, protocol: int) -> None:
    contrib = toy_model(case, kind=sb3_contrib.TRPO).learn(64)
    content = published(
        contrib,
        protocol,
        policy_kwargs={
            "net_arch": [{"pi": [8], "vf": [8]}],
            "activation_fn": th.nn.Tanh,
            "sde_net_arch": None,
        },
    )
    envs = toy_envs(CASES[case], 2)
    loaded = TRPO.load(BytesIO(content), envs, device="cpu", kl_reduction="mean")
    assert loaded.observation_space == contrib.observation_space
    assert loaded.action_space == contrib.action_space
    check_same_and_trains(contrib, loaded, envs)


def test_published_agents_whose_weights_are_stored_once() -> None:
    contrib = toy_model("cnn", kind=sb3_contrib.TRPO).learn(64)
    content = without_separate_extractors(published(contrib, 4))
    envs = toy_envs(CASES["cnn"], 2)
    with pytest.warns(UserWarning, match=r"1\.7\.0"):
        loaded = TRPO.load(BytesIO(content), envs, device="cpu", kl_reduction="mean")
    check_same_and_trains(contrib, loaded, envs)


@pytest.mark.parametrize("steps", [128, 100])  # with 100 the last rate is below 0
@pytest.mark.parametrize("protocol", [4, 5])
def test_a_learning_rate_that_is_a_function_serves_prediction(protocol: int, steps: int) -> None:
    contrib = toy_model("box", kind=sb3_contrib.TRPO, learning_rate=linear_schedule(0.02))
    contrib.learn(steps)
    envs = toy_envs(CASES["box"], 2)
    with pytest.warns(UserWarning, match="learning_rate is a function") as messages:
        loaded = TRPO.load(
            BytesIO(published(contrib, protocol)), envs, device="cpu", kl_reduction="mean"
        )
    assert Path(messages[0].filename).name == Path(__file__).name
    assert loaded.learning_rate == max(contrib.policy.optimizer.param_groups[0]["lr"], 0)
    with pytest.raises(ValueError, match="pass learning_rate"):
        loaded.learn(64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options: dict[str, Any] = {"learning_rate": 0.1, "kl_reduction": "mean"}
        chosen = TRPO.load(BytesIO(published(contrib, protocol)), device="cpu", **options)
    assert chosen.learning_rate == 0.1


class NamedBox(spaces.Box):
    """A space of the program's own, whose methods note that they were called."""

    calls: ClassVar[list[str]] = []

    def __init__(self, *arguments: Any, names: list[str]) -> None:
        self.calls.append("__init__")
        super().__init__(*arguments)
        self.names = names


class RestoredBox(spaces.Box):
    """A space that restores itself."""

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self.middle = (self.low + self.high) / 2


class SlottedBox(spaces.Box):
    """A space whose attributes are not all in its dictionary."""

    __slots__ = ("middle",)


class NamedActions(spaces.Discrete):
    """Actions of the program's own."""


def own_envs() -> DummyVecEnv:
    box = NamedBox(-np.ones(3, np.float32), np.ones(3, np.float32), names=["a", "b", "c"])
    return DummyVecEnv([lambda: ToyEnv(box, NamedActions(2, start=0))] * 2)


def test_spaces_of_the_programs_own_classes_are_made_without_calling_them() -> None:
    envs, file = own_envs(), BytesIO()
    model = TRPO("MlpPolicy", envs, n_steps=32, batch_size=32, device="cpu").learn(64)
    envs.observation_space.sample()  # which makes a random generator
    model.save(file)
    file.seek(0)
    NamedBox.calls.clear()
    loaded = TRPO.load(file, device="cpu")
    assert NamedBox.calls == []
    assert type(loaded.observation_space) is NamedBox
    assert type(loaded.action_space) is NamedActions
    assert (loaded.observation_space, loaded.action_space) == (
        envs.observation_space,
        envs.action_space,
    )
    assert loaded.observation_space.names == ["a", "b", "c"]
    assert loaded.observation_space.contains(loaded.observation_space.sample())
    loaded.set_env(envs)
    loaded.learn(64)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"names": subprocess.Popen}, "Popen"),
        ({"sample": 3}, "method sample is replaced"),
        ({"low": np.zeros(7, np.float32)}, "damaged"),
        ({"low": "low"}, "bounds are not arrays"),
    ],
    ids=str,
)
def test_a_space_of_the_programs_own_class_is_checked(changes: dict[str, Any], told: str) -> None:
    envs, file = own_envs(), BytesIO()
    model = TRPO("MlpPolicy", envs, n_steps=32, batch_size=32, device="cpu")
    vars(model.observation_space).update(changes)
    model.save(file)
    file.seek(0)
    with pytest.raises(ValueError, match=told):
        TRPO.load(file, device="cpu")


@pytest.mark.parametrize(
    ("kind", "told"),
    [(RestoredBox, "restores its attributes by own code"), (SlottedBox, "made of its attributes")],
)
def test_a_space_that_would_be_half_made_is_refused(kind: type[Any], told: str) -> None:
    box, file = kind(-np.ones(3, np.float32), np.ones(3, np.float32)), BytesIO()
    box.middle = 0
    envs = DummyVecEnv([lambda: ToyEnv(box, spaces.Discrete(2))])
    TRPO("MlpPolicy", envs, n_steps=32, batch_size=32, device="cpu").save(file)
    file.seek(0)
    with pytest.raises(ValueError, match=f"{told}.*custom_objects"):
        TRPO.load(file, device="cpu")


def test_layers_that_actor_and_critic_shared_are_named() -> None:
    contrib = toy_model("box", kind=sb3_contrib.TRPO)
    content = published(contrib, 4, policy_kwargs={"net_arch": [8, {"pi": [8], "vf": [8]}]})
    with pytest.raises(ValueError, match="net_arch has layers that actor and critic share"):
        TRPO.load(BytesIO(content), device="cpu", kl_reduction="mean")


def normalized(case: str) -> VecNormalize:
    envs = VecNormalize(toy_envs(CASES[case], 2), gamma=0.9, clip_obs=5.0)
    envs.reset()
    for _ in range(20):
        envs.step(np.stack([envs.action_space.sample() for _ in range(2)]))
    return envs


class OwnNormalize(VecNormalize):
    """A user's."""


class TestVecNormalize:
    def test_comes_back_as_sb3_loads_it(self, tmp_path: Path) -> None:
        path = tmp_path / "vecnormalize.pkl"
        envs = normalized("box")
        envs.save(str(path))
        ours = load_vec_normalize(path, toy_envs(CASES["box"], 2))
        theirs = VecNormalize.load(str(path), toy_envs(CASES["box"], 2))
        for name in ("gamma", "clip_obs", "clip_reward", "epsilon", "training", "norm_reward"):
            assert getattr(ours, name) == getattr(theirs, name)
        observations, rewards = np.ones((2, 3)), np.ones(2)
        np.testing.assert_array_equal(
            ours.normalize_obs(observations), theirs.normalize_obs(observations)
        )
        np.testing.assert_array_equal(
            ours.normalize_reward(rewards), theirs.normalize_reward(rewards)
        )
        TRPO("MlpPolicy", ours, n_steps=32, batch_size=32).learn(64)
        ours.save(str(path))
        VecNormalize.load(str(path), toy_envs(CASES["box"], 2))

    @pytest.mark.parametrize("protocol", [3, 4, 5])
    def test_of_then(self, protocol: int, tmp_path: Path) -> None:
        path = tmp_path / "vecnormalize.pkl"
        envs = normalized("box")
        for space in (envs.observation_space, envs.action_space):
            old_space(space)
        path.write_bytes(old_pickle(envs, protocol))
        loaded: Any = load_vec_normalize(path, toy_envs(CASES["box"], 2))
        statistics: Any = envs.obs_rms
        np.testing.assert_array_equal(loaded.obs_rms.mean, statistics.mean)

    @pytest.mark.parametrize("gadget", GADGETS)
    def test_runs_no_code(self, gadget: str, tmp_path: Path) -> None:
        path, canary = tmp_path / "vecnormalize.pkl", tmp_path / "canary"
        path.write_bytes(GADGETS[gadget](str(canary)))
        with pytest.raises(ValueError, match=r"vecnormalize\.pkl"):
            load_vec_normalize(path, toy_envs(CASES["box"], 2))
        assert not canary.exists()

    @pytest.mark.parametrize("field", ["obs_rms", "ret_rms", "gamma", "norm_obs", "training"])
    def test_runs_no_code_in_a_field(self, field: str, tmp_path: Path) -> None:
        path, canary = tmp_path / "vecnormalize.pkl", tmp_path / "canary"
        envs = normalized("box")
        vars(envs)[field] = Call(os.mkdir, str(canary))
        envs.save(str(path))
        with pytest.raises(ValueError, match=r"posix\.mkdir"):
            load_vec_normalize(path, toy_envs(CASES["box"], 2))
        assert not canary.exists()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"gamma": "high"}, "gamma"),
            ({"clip_obs": -1.0}, "clip_obs"),
            ({"norm_obs": 5}, "norm_obs"),
            ({"obs_rms": None}, "obs_rms"),
            ({"norm_obs_keys": ["a"]}, "norm_obs_keys"),
        ],
    )
    def test_names_what_is_wrong(
        self, change: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        path = tmp_path / "vecnormalize.pkl"
        envs = normalized("box")
        vars(envs).update(change)
        envs.save(str(path))
        with pytest.raises(ValueError, match=message):
            load_vec_normalize(path, toy_envs(CASES["box"], 2))

    @pytest.mark.parametrize("name", ["training", "norm_reward", "norm_obs"])
    @pytest.mark.parametrize("value", [0, 1, np.False_, np.True_])
    def test_flags_of_0_and_1_are_taken(self, name: str, value: Any, tmp_path: Path) -> None:
        path = tmp_path / "vecnormalize.pkl"
        envs = normalized("box")
        vars(envs)[name] = value
        envs.save(str(path))
        loaded = load_vec_normalize(path, toy_envs(CASES["box"], 2))
        assert getattr(loaded, name) is bool(value)

    @pytest.mark.parametrize("value", [2, -1, "yes", 0.5])
    def test_other_flags_are_refused_by_name(self, value: Any, tmp_path: Path) -> None:
        path = tmp_path / "vecnormalize.pkl"
        envs = normalized("box")
        vars(envs)["training"] = value
        envs.save(str(path))
        with pytest.raises(ValueError, match=f"training is '{value}'"):
            load_vec_normalize(path, toy_envs(CASES["box"], 2))

    def test_a_subclass_needs_trust_and_is_told_so(self, tmp_path: Path) -> None:
        path = tmp_path / "vecnormalize.pkl"
        OwnNormalize(toy_envs(CASES["box"], 2)).save(str(path))
        with pytest.raises(ValueError, match=r"OwnNormalize.*trust_checkpoint=True"):
            load_vec_normalize(path, toy_envs(CASES["box"], 2))
        loaded = load_vec_normalize(path, toy_envs(CASES["box"], 2), trust_checkpoint=True)
        assert type(loaded) is OwnNormalize

    def test_of_other_environments_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "vecnormalize.pkl"
        normalized("box").save(str(path))
        with pytest.raises(ValueError, match=r"obs_rms has shape"):
            load_vec_normalize(path, toy_envs(CASES["cnn"], 2))

    def test_statistics_that_are_not_finite_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "vecnormalize.pkl"
        envs = normalized("box")
        envs.ret_rms.var = np.array(np.nan)
        envs.save(str(path))
        with pytest.raises(ValueError, match="not finite"):
            load_vec_normalize(path, toy_envs(CASES["box"], 2))

    def test_a_trusted_file_may_run_code(self, tmp_path: Path) -> None:
        path, canary = tmp_path / "vecnormalize.pkl", tmp_path / "canary"
        path.write_bytes(GADGETS["os.mkdir"](str(canary)))
        with pytest.raises(AttributeError):
            load_vec_normalize(path, toy_envs(CASES["box"], 2), trust_checkpoint=True)
        assert canary.exists()


def test_other_on_policy_models_are_as_safe_on_the_command_line(tmp_path: Path) -> None:
    from sb3_trpo.zoo.builder import Builder
    from sb3_trpo.zoo.errors import UsageError

    envs = toy_envs(CASES["box"], 2)
    model = PPO("MlpPolicy", envs, n_steps=32, batch_size=32).learn(64)
    path, canary = tmp_path / "model.zip", tmp_path / "canary"
    model.save(path)
    check_same_and_trains(model, Builder("ppo").load(path, env=envs, device="cpu"), envs)
    gadget = GADGETS["os.mkdir"](str(canary))
    path.write_bytes(with_attributes(unpack(path.read_bytes()), gamma=gadget))
    with pytest.raises(UsageError, match="gamma"):
        Builder("ppo").load(path, env=envs)
    assert not canary.exists()
    with pytest.raises(UsageError, match="--trust-checkpoint"):
        Builder("sac").load(path)


@pytest.mark.parametrize(
    ("algo", "kind", "name"),
    [
        *(("ppo", PPO, name) for name in ("learning_rate", "clip_range", "clip_range_vf")),
        ("a2c", A2C, "learning_rate"),
        ("trpo", TRPO, "learning_rate"),
    ],
)
@pytest.mark.filterwarnings("ignore:The saved learning_rate is a function")
def test_a_function_is_replaced_or_trusted_before_training_on(
    algo: str, kind: Any, name: str, tmp_path: Path
) -> None:
    from sb3_trpo.zoo.builder import Builder
    from sb3_trpo.zoo.errors import UsageError

    envs, path = toy_envs(CASES["box"], 2), tmp_path / "model.zip"
    options: dict[str, Any] = {} if kind is A2C else {"batch_size": 32}
    options[name] = lambda progress: 0.1 * progress
    model: Any = kind("MlpPolicy", envs, n_steps=32, **options)
    model.learn(64).save(path)
    predicting: Any = Builder(algo).load(path)
    observation = envs.reset()
    np.testing.assert_array_equal(
        *(m.predict(observation, deterministic=True)[0] for m in (model, predicting))
    )
    assert kind is TRPO or "_needs_learning_rate" not in vars(predicting)
    with pytest.raises(UsageError, match=rf"--hyperparams {name}:.*--trust-checkpoint"):
        Builder(algo).load(path, env=envs)
    chosen: Any = Builder(algo).load(path, env=envs, **{name: 0.05})
    trusted: Any = Builder(algo, is_trusted=True).load(path, env=envs)
    schedule = "lr_schedule" if name == "learning_rate" else name
    assert getattr(chosen, schedule)(0.5) == 0.05
    assert getattr(trusted, schedule)(0.5) == 0.05
    chosen.learn(64)
