"""Saved models: exact, readable by sb3-contrib, and readable from sb3-contrib."""

import functools
import json
import subprocess
import sys
import warnings
import zipfile
from collections import UserDict, UserList
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sb3_contrib
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import LinearSchedule

from sb3_trpo import TRPO, TrainingCheckpoint, resume_training
from tests.cases import CASES, copy_rollout, toy_envs, toy_model
from tests.environments import ToyEnv, changed, collect, critic_only, logged, state_of


def saved(model: Any) -> BytesIO:
    file = BytesIO()
    model.save(file)
    file.seek(0)
    return file


def data_of(file: BytesIO) -> dict[str, Any]:
    with zipfile.ZipFile(file) as archive:
        data: dict[str, Any] = json.loads(archive.read("data"))
    return data


def same_tensors(a: Any, b: Any) -> bool:
    """Compare nested containers bitwise."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_tensors(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_tensors, a, b))
    return th.equal(a, b) if isinstance(a, th.Tensor) else bool(a == b)


def test_every_hyperparameter_comes_back() -> None:
    values: dict[str, Any] = {
        "kl_reduction": "mean",
        "ent_coef": 0.01,
        "fisher_sub_sampling_factor": 3,
        "cg_residual_tol": 1e-3,
        "line_search_accept_ratio": 0.1,
        "max_states_per_chunk": 9,
        "target_kl": 0.03,
        "cg_damping": 0.2,
        "sub_sampling_factor": 2,
        "normalize_advantage": False,
    }
    loaded = TRPO.load(saved(toy_model(**values)), device="cpu")
    assert {name: getattr(loaded, name) for name in values} == values


def test_saved_attributes_are_json_or_classes_of_sb3() -> None:
    model = toy_model(target_kl="lin_0.02", cg_damping=LinearSchedule(0.1, 0.0, 1.0)).learn(64)
    data = data_of(saved(model))
    theirs = data_of(saved(toy_model(kind=sb3_contrib.TRPO).learn(64)))
    pickled = {
        name: value[":type:"]
        for name, value in data.items()
        if isinstance(value, dict) and ":serialized:" in value
    }
    assert not {name for name, kind in pickled.items() if "sb3_trpo" in kind}
    # The policy's class is SB3's own too, which its type does not show.
    assert "sb3_trpo" not in str(data["policy_class"].get("__module__"))
    # Everything of ours beyond contrib's attributes is plain JSON.
    assert not {name for name in pickled if name not in theirs}


RUN_IN_CONTRIB = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "sb3_trpo":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())

import gymnasium as gym
import torch as th
from sb3_contrib import TRPO

try:
    import sb3_trpo
except ModuleNotFoundError:
    pass
else:
    sys.exit("sb3_trpo must not be importable here")

path, trains = sys.argv[1], sys.argv[2] == "trains"
model = TRPO.load(path, env=gym.make("Pendulum-v1"), device="cpu")
observation = th.linspace(-1, 1, 3).numpy()
action, _ = model.predict(observation, deterministic=True)
if trains:
    before = {k: v.clone() for k, v in model.policy.state_dict().items()}
    model.learn(64, reset_num_timesteps=False)
    after = model.policy.state_dict()
    assert all(not th.equal(before[k], after[k]) for k in before), "not trained"
    assert model._n_updates == 3, model._n_updates
print("action", repr(float(action[0])))
"""


@pytest.mark.slow
@pytest.mark.parametrize("use", ["trains", "predicts"])
def test_our_zip_works_in_contrib_where_this_package_is_missing(use: str, tmp_path: Path) -> None:
    schedules = {"target_kl": "lin_0.02", "cg_damping": "lin_0.2"} if use == "predicts" else {}
    model = TRPO(
        "MlpPolicy",
        "Pendulum-v1",
        n_steps=64,
        batch_size=32,
        seed=0,
        device="cpu",
        policy_kwargs={"net_arch": [8]},
        **schedules,  # type: ignore[arg-type]
    ).learn(128)
    model.save(tmp_path / "model.zip")
    result = subprocess.run(
        [sys.executable, "-c", RUN_IN_CONTRIB, str(tmp_path / "model.zip"), use],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    observation = th.linspace(-1, 1, 3).numpy()
    action, _ = model.predict(observation, deterministic=True)
    assert result.stdout.split() == ["action", repr(float(action[0]))]


class TestContribsZip:
    @pytest.mark.parametrize("source", ["path", "path without suffix", "string", "stream"])
    def test_goes_on_with_contribs_convention_and_says_so_once(
        self, source: str, tmp_path: Path
    ) -> None:
        contrib = toy_model("box", kind=sb3_contrib.TRPO).learn(64)
        contrib.save(tmp_path / "model.zip")
        paths: dict[str, Any] = {
            "path": tmp_path / "model.zip",
            "path without suffix": tmp_path / "model",
            "string": str(tmp_path / "model"),
            "stream": BytesIO((tmp_path / "model.zip").read_bytes()),
        }
        with pytest.warns(UserWarning, match="kl_reduction") as messages:
            model = TRPO.load(paths[source], toy_envs(CASES["box"], 2), device="cpu")
        assert len(messages) == 1
        assert Path(messages[0].filename).name == Path(__file__).name
        assert model.kl_reduction == "mean"
        assert same_tensors(model.get_parameters(), contrib.get_parameters())

    @pytest.mark.parametrize("case", ["box", "discrete", "multi_binary", "gsde"])
    def test_takes_the_same_actor_step_as_contrib_would(self, case: str) -> None:
        contrib = toy_model(case, kind=sb3_contrib.TRPO, cg_max_steps=200).learn(64)
        with pytest.warns(UserWarning, match="kl_reduction"):
            model = TRPO.load(saved(contrib), toy_envs(CASES[case], 2), device="cpu")
        assert model.num_timesteps == contrib.num_timesteps
        collect(contrib)
        copy_rollout(contrib, model)
        before = state_of(contrib)
        for each in (contrib, model):
            each.train()
        names = [name for name in before if not critic_only(name)]
        step, contribs = (
            th.cat([(state_of(each)[name] - before[name]).flatten() for name in names])
            for each in (model, contrib)
        )
        assert contribs.norm() > 0
        assert float((step - contribs).norm()) <= 2e-3 * float(contribs.norm())

    @pytest.mark.parametrize("kl_reduction", ["sum", "mean"])
    def test_an_explicit_choice_wins_silently(self, kl_reduction: str) -> None:
        contrib = toy_model(kind=sb3_contrib.TRPO)
        model = TRPO.load(saved(contrib), device="cpu", kl_reduction=kl_reduction)
        assert model.kl_reduction == kl_reduction

    def test_our_zip_that_contrib_trained_on_is_contribs(self) -> None:
        model = toy_model(kl_reduction="sum").learn(64)
        contrib = sb3_contrib.TRPO.load(saved(model), model.get_env(), device="cpu")
        assert TRPO.load(saved(contrib), device="cpu").kl_reduction == "sum"
        contrib.learn(64, reset_num_timesteps=False)
        with pytest.warns(UserWarning, match="not last trained by sb3_trpo"):
            assert TRPO.load(saved(contrib), device="cpu").kl_reduction == "mean"

    def test_the_choice_stays_with_our_zip(self) -> None:
        contrib = toy_model(kind=sb3_contrib.TRPO)
        with pytest.warns(UserWarning, match="kl_reduction"):
            model = TRPO.load(saved(contrib), device="cpu")
        assert TRPO.load(saved(model), device="cpu").kl_reduction == "mean"
        assert TRPO.load(saved(toy_model()), device="cpu").kl_reduction == "sum"
        with pytest.warns(UserWarning, match="meant for kl_reduction='mean'"):
            again = TRPO.load(saved(model), device="cpu", kl_reduction="sum")
        assert again.kl_reduction == "sum"


class TestLoad:
    @pytest.mark.parametrize("how", ["custom_objects", "keyword"])
    @pytest.mark.parametrize("kind", [TRPO, sb3_contrib.TRPO])
    def test_without_environment_and_with_learning_rate_zero_it_predicts(
        self, how: str, kind: type[Any]
    ) -> None:
        model = toy_model("box", kind=kind).learn(64)
        zeros: dict[str, Any] = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0}
        arguments: dict[str, Any] = (
            {"custom_objects": zeros} if how == "custom_objects" else {"learning_rate": 0.0}
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*kl_reduction")
            loaded = TRPO.load(saved(model), device="cpu", **arguments)
        assert loaded.get_env() is None
        assert loaded.learning_rate == 0.0
        assert loaded.lr_schedule(1.0) == 0.0
        observation = model.get_env().reset()
        actions = [m.predict(observation, deterministic=True)[0] for m in (model, loaded)]
        np.testing.assert_array_equal(actions[0], actions[1])

    def test_custom_objects_replace_what_was_saved(self) -> None:
        model = toy_model(target_kl=lambda _: 0.03, n_steps=16)
        objects = {"target_kl": 0.005, "n_steps": 32, "tensorboard_log": None}
        loaded = TRPO.load(
            saved(model), toy_envs(CASES["box"], 2), device="cpu", custom_objects=objects
        )
        assert (loaded.target_kl, loaded.n_steps) == (0.005, 32)
        collect(loaded)
        loaded.train()
        assert logged(loaded)["train/target_kl"] == 0.005

    def test_schedules_come_back(self) -> None:
        model = toy_model(target_kl="lin_0.02", cg_damping=lambda progress: 0.1 * progress)
        envs = toy_envs(CASES["box"], 2)
        loaded = TRPO.load(saved(model), envs, device="cpu", trust_checkpoint=True)
        collect(loaded)
        loaded._current_progress_remaining = 0.5
        loaded.train()
        assert logged(loaded)["train/target_kl"] == pytest.approx(0.01)
        assert logged(loaded)["train/cg_damping"] == pytest.approx(0.05)

    def test_another_number_of_environments(self) -> None:
        loaded = TRPO.load(saved(toy_model(n_envs=2)), toy_envs(CASES["box"], 4), device="cpu")
        assert loaded.learn(128).num_timesteps == 128

    def test_learning_goes_on_where_it_stopped(self) -> None:
        model = toy_model().learn(64)
        loaded = TRPO.load(saved(model), toy_envs(CASES["box"], 2), device="cpu")
        loaded.learn(64, reset_num_timesteps=False)
        assert (loaded.num_timesteps, loaded._n_updates) == (128, 2)

    @pytest.mark.parametrize("force_reset", [True, False])
    def test_the_last_observation_is_forgotten_if_the_environment_is_reset(
        self, force_reset: bool
    ) -> None:
        model = toy_model().learn(64)
        loaded = TRPO.load(saved(model), model.get_env(), device="cpu", force_reset=force_reset)
        assert (loaded._last_obs is None) is force_reset

    def test_the_environments_state_may_be_kept(self) -> None:
        model = toy_model().learn(64)
        loaded = TRPO.load(saved(model), model.get_env(), device="cpu", force_reset=False)
        before = state_of(loaded)
        loaded.learn(64, reset_num_timesteps=False)
        assert changed(before, state_of(loaded))

    def test_a_stream_is_read_from_where_it_stands(self) -> None:
        file = saved(toy_model())
        prefixed = BytesIO(b"prefix" + file.getvalue())
        prefixed.seek(6)
        assert TRPO.load(prefixed, device="cpu").kl_reduction == "sum"

    @pytest.mark.parametrize("kind", [TRPO, sb3_contrib.TRPO])
    def test_a_stream_that_cannot_go_back_is_read(self, kind: type[Any]) -> None:
        class OneWay(BytesIO):
            def seek(self, *_: Any) -> int:
                raise OSError("not seekable")

        model = toy_model("box", kind=kind)
        file = OneWay(saved(model).getvalue())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*kl_reduction")
            loaded = TRPO.load(file, device="cpu")
        assert same_tensors(model.get_parameters(), loaded.get_parameters())

    @pytest.mark.parametrize("content", [b"", b"no model", "other zip", "broken data"])
    @pytest.mark.parametrize("source", ["path", "stream"])
    def test_a_file_that_is_no_model_is_named(
        self, content: bytes | str, source: str, tmp_path: Path
    ) -> None:
        path = tmp_path / "file.zip"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("data" if content == "broken data" else "notes.txt", "{")
        file = path if source == "path" else BytesIO(path.read_bytes())
        with pytest.raises(ValueError, match=r"is not a model saved with `save`"):
            TRPO.load(file)

    def test_a_missing_file_is_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            TRPO.load(tmp_path / "nothing")

    def test_an_environment_with_other_spaces_is_refused_as_in_sb3(self) -> None:
        with pytest.raises(ValueError, match="spaces do not match"):
            TRPO.load(saved(toy_model()), ToyEnv(action_space=CASES["discrete"].action_space))


def test_the_optimizer_holds_all_parameters_in_the_policys_order() -> None:
    policy = toy_model("dict").policy
    held = [id(p) for group in policy.optimizer.param_groups for p in group["params"]]
    assert held == [id(parameter) for parameter in policy.parameters()]


def test_only_policy_and_optimizer_are_saved_as_tensors() -> None:
    with zipfile.ZipFile(saved(toy_model().learn(64))) as archive:
        names = {name for name in archive.namelist() if name.endswith(".pth")}
    assert names == {"policy.pth", "policy.optimizer.pth", "pytorch_variables.pth"}


def test_options_of_a_configuration_are_saved_as_plain_dictionaries(tmp_path: Path) -> None:
    # Mistake: a model that was configured by Hydra trains, and its file is refused.
    sizes = UserDict({"pi": UserList([8]), "vf": [8]})
    options: Any = UserDict({"net_arch": sizes, "ortho_init": True})
    model = TRPO("MlpPolicy", "CartPole-v1", policy_kwargs=options, device="cpu")
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", device="cpu")
    assert loaded.policy_kwargs == {"net_arch": {"pi": [8], "vf": [8]}, "ortho_init": True}
    assert type(loaded.policy_kwargs["net_arch"]) is dict


class Configured(FlattenExtractor):
    """Reads what it is given by its type."""

    def __init__(self, space: spaces.Space[Any], config: UserDict[str, int], other: spaces.Dict):
        assert type(config) is UserDict
        assert type(other) is spaces.Dict
        super().__init__(space)


def test_what_a_users_class_is_given_stays_as_it_is() -> None:
    # Mistake: a configuration, or a space of dictionaries, arrives as a plain dictionary.
    options = UserDict(config=UserDict(width=3), other=spaces.Dict(a=spaces.Discrete(2)))
    kwargs: Any = {"features_extractor_class": Configured, "features_extractor_kwargs": options}
    TRPO("MlpPolicy", "CartPole-v1", policy_kwargs=kwargs, device="cpu")


def test_a_file_that_load_will_refuse_is_named_when_it_is_saved(tmp_path: Path) -> None:
    # Mistake: a user learns after the training that the model cannot be loaded.
    model = toy_model("box")
    model.save(tmp_path / "model")  # a warning would be an error
    model.note = functools.partial(print, "done")
    with pytest.warns(UserWarning, match="one that load will refuse: the attribute 'note' holds"):
        model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="'note' holds"):
        TRPO.load(tmp_path / "model", device="cpu")
    model.save(tmp_path / "model", exclude=["note"])
    TRPO.load(tmp_path / "model", device="cpu")


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_another_unit_than_the_saved_one_is_warned_of(reduction: str) -> None:
    file = saved(toy_model(kl_reduction=reduction).learn(64))
    other = {"sum": "mean", "mean": "sum"}[reduction]
    with pytest.warns(UserWarning, match=f"meant for kl_reduction='{reduction}'"):
        loaded = TRPO.load(file, device="cpu", kl_reduction=other)
    assert loaded.kl_reduction == other
    numbers: dict[str, Any] = {"target_kl": 0.02, "cg_damping": 0.2}
    quiet: list[dict[str, Any]] = [
        {},
        {"kl_reduction": reduction},
        {"kl_reduction": other, **numbers},
    ]
    for name in numbers:
        file.seek(0)
        half: dict[str, Any] = {"kl_reduction": other, name: numbers[name]}
        with pytest.warns(UserWarning, match="Pass both"):
            TRPO.load(file, device="cpu", **half)
    for options in quiet:
        file.seek(0)
        TRPO.load(file, device="cpu", **options)


def test_what_was_not_set_is_saved_as_a_number() -> None:
    model = toy_model("box", target_kl=None, cg_damping=None, kl_reduction="mean").learn(64)
    contrib = sb3_contrib.TRPO.load(saved(model), model.get_env(), device="cpu")
    assert (contrib.target_kl, contrib.cg_damping) == (0.01, 0.1)
    before = state_of(contrib)
    contrib.learn(64)
    assert changed(before, state_of(contrib))


def accumulating(kind: type[Any]) -> type[Any]:
    """Derive a class whose models save more than SB3's do."""

    class Accumulating(kind):  # type: ignore[misc]
        history: list[int] = []  # noqa: RUF012
        options: dict[str, int] = {"a": 1}  # noqa: RUF012

        def _setup_model(self) -> None:
            super()._setup_model()
            self.beta = th.tensor([0.5])
            self.extra = th.nn.Linear(2, 1)

        def _excluded_save_params(self) -> list[str]:
            return [*super()._excluded_save_params(), "beta", "extra"]

        def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
            return [*super()._get_torch_save_params()[0], "extra"], ["beta"]

    return Accumulating


class TestSubclass:
    def trained(self) -> Any:
        model = toy_model(kind=accumulating(TRPO))
        model.history, model.options = [1, 2], {"b": 2}
        model.beta.fill_(7.0)
        th.nn.init.constant_(model.extra.weight, 7.0)
        return model

    def test_tensors_state_and_attributes_come_back(self) -> None:
        model = self.trained()
        loaded = type(model).load(saved(model), device="cpu")
        assert (loaded.history, loaded.options) == ([1, 2], {"b": 2})
        assert loaded.beta.item() == 7.0
        assert (loaded.extra.weight == 7.0).all()

    def test_parameters_are_taken_from_its_file(self) -> None:
        model = self.trained()
        other = toy_model(kind=type(model), seed=3)
        other.set_parameters(saved(model))
        assert same_tensors(model.get_parameters(), other.get_parameters())

    def test_what_the_class_does_not_have_is_refused(self) -> None:
        with pytest.raises(ValueError, match="'extra'"):
            TRPO.load(saved(self.trained()), device="cpu")
        with pytest.raises(ValueError, match="'extra'"):
            toy_model().set_parameters(saved(self.trained()))

        class Without(type(self.trained())):  # type: ignore[misc]
            def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
                return super()._get_torch_save_params()[0], []

        with pytest.raises(ValueError, match=r"'beta'.*trust_checkpoint=True"):
            Without.load(saved(self.trained()), device="cpu")

    @pytest.mark.parametrize("name", ["policy_aliases", "buffer_classes", "learn", "logger"])
    def test_parts_of_the_class_stay(self, name: str) -> None:
        model = self.trained()
        vars(model)[name] = {}
        with pytest.raises(ValueError, match=f"'{name}' would replace a part"):
            type(model).load(saved(model), device="cpu")


@pytest.mark.parametrize(
    "options",
    [
        *({"verbose": value} for value in (True, 3, np.int64(2))),
        *({"use_sde": value} for value in (1, 0, np.True_)),
        *({"seed": value} for value in (None, 0, 2**32 - 1, np.int64(3))),
        *({"sde_sample_freq": value} for value in (-1, np.int32(4))),
        *({"stats_window_size": value} for value in (1, np.int64(10**4))),
        *({"learning_rate": value} for value in (0, np.float32(0.1), "lin_0.1")),
        {"normalize_advantage": 1},
    ],
    ids=str,
)
def test_what_the_constructor_accepts_is_loaded(options: dict[str, Any]) -> None:
    model = toy_model(**options)
    loaded = TRPO.load(saved(model), device="cpu")
    for name in options:
        name = "_stats_window_size" if name == "stats_window_size" else name
        assert repr(getattr(loaded, name)) == repr(getattr(model, name))


def test_a_stream_at_its_end_is_read_from_its_start() -> None:
    file = BytesIO()
    model = toy_model()
    model.save(file)
    for _ in range(2):
        loaded = TRPO.load(file, device="cpu")
        assert same_tensors(model.get_parameters(), loaded.get_parameters())


def test_statistics_of_many_episodes_come_back() -> None:
    model = toy_model(stats_window_size=10_000).learn(64)
    model.ep_info_buffer.extend({"r": 1.0, "l": 3, "t": 0.5} for _ in range(8000))
    loaded = TRPO.load(saved(model), device="cpu")
    assert loaded.ep_info_buffer == model.ep_info_buffer


@pytest.mark.filterwarnings("ignore:This model was not last trained")
@pytest.mark.parametrize("kind", [TRPO, sb3_contrib.TRPO])
@pytest.mark.parametrize("success", [True, np.True_, 1.0])
def test_statistics_of_successes_come_back(success: Any, kind: Any) -> None:
    model = toy_model("discrete", kind=kind).learn(64)
    model.ep_success_buffer.extend([success, not success])
    loaded = TRPO.load(saved(model), device="cpu")
    assert [*(loaded.ep_success_buffer or ())] == [True, False]
    assert loaded.ep_info_buffer == model.ep_info_buffer


@pytest.mark.filterwarnings("ignore:This model was not last trained")
@pytest.mark.parametrize("kind", [TRPO, sb3_contrib.TRPO])
@pytest.mark.parametrize("total", [6.4e1, 63.5, np.float32(64), np.int64(64), np.inf])
def test_a_total_of_steps_of_any_kind_is_loaded(total: Any, kind: Any) -> None:
    model = toy_model("discrete", kind=kind)
    model.learn(total, lambda *_: model.num_timesteps < 64)
    loaded = TRPO.load(saved(model), device="cpu")
    assert loaded._total_timesteps == total


def test_lost_statistics_are_warned_of() -> None:
    model = toy_model().learn(64)
    model.ep_info_buffer.append({"r": "much"})
    with pytest.warns(UserWarning, match="statistics of past episodes"):
        assert TRPO.load(saved(model), device="cpu").ep_info_buffer is None


class TestLearningRateThatIsAFunction:
    def model(self) -> Any:
        return toy_model("box", learning_rate=lambda progress: 0.01 * progress).learn(64)

    def load(self, file: BytesIO, **options: Any) -> Any:
        return TRPO.load(file, toy_envs(CASES["box"], 2), device="cpu", **options)

    def test_it_predicts_and_does_not_train(self) -> None:
        model = self.model()
        with pytest.warns(UserWarning, match="learning_rate is a function"):
            loaded = self.load(saved(model))
        assert same_tensors(model.get_parameters(), loaded.get_parameters())
        again = self.load(saved(loaded))
        for each in (loaded, again):
            before = state_of(each)
            with pytest.raises(ValueError, match=r"learning_rate=.*trust_checkpoint=True"):
                each.learn(64)
            assert not changed(before, state_of(each))
        assert self.load(saved(loaded), learning_rate=0.1).learn(64).learning_rate == 0.1

    @pytest.mark.parametrize(
        "options",
        [
            {"learning_rate": 0.02},
            {"custom_objects": {"learning_rate": 0.02}},
            {"trust_checkpoint": True},
        ],
        ids=str,
    )
    def test_it_trains_with_one_that_is_given(self, options: dict[str, Any]) -> None:
        loaded = self.load(saved(self.model()), **options)
        rate = loaded.lr_schedule(1.0)
        loaded.learn(64)
        assert rate > 0.005
        assert loaded.policy.optimizer.param_groups[0]["lr"] in (rate, rate * 0.0)


@pytest.mark.parametrize("name", ["learning_rate", "target_kl"])
def test_a_checkpoint_with_a_function_is_warned_of_and_named(name: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {name: lambda progress: 0.01 * progress}
    model = toy_model("box", **options)
    with pytest.warns(UserWarning, match=rf"resume_training .*{name}.*trust_checkpoint=True"):
        model.learn(128, TrainingCheckpoint(tmp_path, 64))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*learning_rate is a function")
        with pytest.raises(ValueError, match=f"{name}.*trust_checkpoint=True") as error:
            resume_training(tmp_path, toy_envs(CASES["box"], 2), device="cpu")
    assert "BytesIO" not in str(error.value)
    if name == "target_kl":
        assert str(tmp_path) in str(error.value)
    resume_training(tmp_path, toy_envs(CASES["box"], 2), device="cpu", trust_checkpoint=True)
