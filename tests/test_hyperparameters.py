"""Bad hyperparameters are named, wherever they come from; good ones pass."""

import math
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trpo import TRPO
from tests import cases
from tests.cases import toy_model
from tests.environments import BOX_ACTIONS, VECTOR, ToyEnv, collect, logged

NOT_COUNTS: list[Any] = [0, -1, 1.5, 2.0, math.nan, "2", None, True]
NOT_FINITE: list[Any] = [math.nan, math.inf, -math.inf, "0.5", None, True]
NOT_SCHEDULES: list[Any] = [
    -0.1,
    math.nan,
    math.inf,
    True,
    "0.02",
    "lin",
    "lin_",
    "lin_x",
    "lin_-0.1",
    "lin_nan",
    "lin_inf",
    "exp_0.1",
    lambda _: -0.1,
    lambda _: math.nan,
]

ODD: list[Any] = ["odd", 1.5, [1], np.array([1, 2]), object]

BAD: dict[str, list[Any]] = {
    "learning_rate": [-0.1, math.nan, math.inf, "0.02", None, True, [1], np.array([1, 2])],
    "rollout_buffer_class": [*ODD, int],
    "rollout_buffer_kwargs": [*ODD, {1: 2}],
    "use_sde": ODD,
    "sde_sample_freq": [-2, *ODD],
    "normalize_advantage": ODD,
    "stats_window_size": [*NOT_COUNTS, *ODD],
    "tensorboard_log": [1, 1.5, [1], object, b"folder"],
    "verbose": [-1, None, *ODD],
    "seed": [-1, 2**32, *ODD],
    "device": [None, -1, *ODD],
    "n_steps": NOT_COUNTS,
    "batch_size": NOT_COUNTS,
    "gamma": [-0.1, 1.1, *NOT_FINITE],
    "gae_lambda": [-0.1, 1.1, *NOT_FINITE],
    "cg_max_steps": NOT_COUNTS,
    "cg_damping": NOT_SCHEDULES,
    "damped_step_size": [0, 1, None, "True"],
    "line_search_shrinking_factor": [0.0, 1.0, -0.5, 2.0, *NOT_FINITE],
    "line_search_max_iter": [-1, 1.5, "2", None, True],
    "n_critic_updates": [-1, 1.5, "2", None, True],
    "target_kl": NOT_SCHEDULES,
    "sub_sampling_factor": [*NOT_COUNTS, 33, 1000],
    "kl_reduction": ["max", "", 1],
    "ent_coef": NOT_FINITE,
    "fisher_sub_sampling_factor": [*NOT_COUNTS, 65, 1000],
    "cg_residual_tol": [-0.1, 1.0, *NOT_FINITE],
    "line_search_accept_ratio": [-0.1, 1.0, *NOT_FINITE],
    "max_states_per_chunk": [0, -1, 1.5, "2", True],
    "data_parallel": [2, None, "True", 0.5],
}

GOOD: dict[str, list[Any]] = {
    "learning_rate": [0, 0.0, 1e-3, "lin_0.001", lambda p: 0.01 * p, np.float32(0.01)],
    "rollout_buffer_class": [None, RolloutBuffer],
    "rollout_buffer_kwargs": [None, {}, {"gamma": 0.5}],
    "use_sde": [True, False, 0, np.bool_(True)],
    "sde_sample_freq": [-1, 0, np.int64(4)],
    "normalize_advantage": [True, False, 1, np.bool_(False)],
    "stats_window_size": [1, np.int64(3)],
    "tensorboard_log": [None],
    "verbose": [0, 1, 2, np.int64(0), False],
    "seed": [None, 0, np.int64(3), 2**32 - 1],
    "device": ["auto", "cpu", th.device("cpu")],
    "n_steps": [1, np.int64(8)],
    "batch_size": [1, np.int64(4)],
    "gamma": [0, 0.0, 1, 1.0, np.float32(0.5)],
    "gae_lambda": [0, 0.0, 1, 1.0, np.float64(0.5)],
    "cg_max_steps": [1, np.int32(3)],
    "cg_damping": [None, 0, 0.0, 10, "lin_0.1", LinearSchedule(0.1, 0.0, 1.0), np.float32(0.1)],
    "damped_step_size": [True, False, np.bool_(True)],
    "line_search_shrinking_factor": [0.01, 0.99, np.float32(0.5)],
    "line_search_max_iter": [0, 1, np.int64(3)],
    "n_critic_updates": [0, 1, np.int64(3)],
    "target_kl": [None, 0, 0.0, 1, "lin_0.02", "lin_1e-3", lambda p: 0.01 * p, np.float32(0.01)],
    "sub_sampling_factor": [1, 32, np.int64(2)],
    "kl_reduction": ["sum", "mean"],
    "ent_coef": [0, 0.0, 0.01, -0.01, np.float32(0.1)],
    "fisher_sub_sampling_factor": [1, 64, np.int64(2)],
    "cg_residual_tol": [0, 0.0, 0.9],
    "line_search_accept_ratio": [0, 0.0, 0.9],
    "max_states_per_chunk": [None, 1, 7, 10**9, np.int64(5)],
    "data_parallel": [False, 0, np.bool_(False)],
}


OF_SB3S_LOAD = {"stats_window_size", "device"}


def pairs(table: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(name, value, id=f"{name}={'schedule' if callable(value) else value!r}-{i}")
        for name, values in table.items()
        for i, value in enumerate(values)
    ]


@pytest.fixture(scope="module")
def saved_model() -> bytes:
    file = BytesIO()
    toy_model().save(file)
    return file.getvalue()


def test_the_tables_cover_every_hyperparameter_with_a_range() -> None:
    from sb3_trpo._hyperparameters import RANGES

    # The tests' models have policy_kwargs of their own.
    assert RANGES.keys() - {"policy_kwargs"} == BAD.keys() == GOOD.keys()


@pytest.mark.parametrize(("name", "value"), pairs(BAD))
def test_bad_value_raises_at_construction_and_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        toy_model(**{name: value})


@pytest.mark.parametrize("value", [*ODD, {1: 2}])
def test_policy_kwargs_are_none_or_a_dict(value: Any) -> None:
    with pytest.raises(ValueError, match="policy_kwargs"):
        TRPO("MlpPolicy", "CartPole-v1", policy_kwargs=value)
    TRPO("MlpPolicy", "CartPole-v1", policy_kwargs=None)


@pytest.mark.parametrize(("name", "value"), pairs(BAD))
def test_bad_value_raises_at_loading_and_is_named(
    saved_model: bytes, name: str, value: Any
) -> None:
    if name in OF_SB3S_LOAD:
        pytest.skip("SB3's load has an argument of this name, or compares it with the file's")
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        TRPO.load(BytesIO(saved_model), device="cpu", **{name: value})


@pytest.mark.parametrize(("name", "value"), pairs(GOOD))
def test_good_value_passes_and_trains(name: str, value: Any) -> None:
    settings = {"batch_size": 1 if name == "n_steps" else 4, name: value}
    model = toy_model(**{"n_critic_updates": 1, **settings})
    collect(model)
    model.train()
    is_parsed = value is None or isinstance(value, str)
    kept = getattr(model, {"stats_window_size": "_stats_window_size"}.get(name, name))
    assert is_parsed or kept == value


def test_the_message_has_the_value_and_the_range() -> None:
    with pytest.raises(ValueError, match=r"line_search_shrinking_factor.* between 0 and 1.*1\.5"):
        toy_model(line_search_shrinking_factor=1.5)


def test_a_value_injected_after_construction_is_checked_when_the_model_is_set_up() -> None:
    model = toy_model(_init_setup_model=False)
    model.target_kl = -1.0
    with pytest.raises(ValueError, match="target_kl"):
        model._setup_model()


def test_a_reduction_that_is_set_later_is_checked_before_training() -> None:
    # Mistake: another word than "sum" trains as "mean".
    model = toy_model()
    model.kl_reduction = "Sum"
    with pytest.raises(ValueError, match=r"kl_reduction has to be .*'Sum'"):
        model.learn(64)
    assert model.num_timesteps == 0


@pytest.mark.parametrize("case", ["box", "masked_discrete", "lstm_box", "masked_lstm_dict"])
@pytest.mark.parametrize(
    ("name", "value"), [("log_interval", 0), ("log_interval", "1"), ("total_timesteps", "many")]
)
def test_arguments_of_learn_are_checked_before_training(case: str, name: str, value: Any) -> None:
    model = toy_model(case)
    with pytest.raises(ValueError, match=f"{name} has to be .*{value}"):
        model.learn(**{"total_timesteps": 64, name: value})
    assert model.num_timesteps == 0


@pytest.mark.parametrize("total_timesteps", [1e2, np.int64(100), np.array(100), -1, 0])
@pytest.mark.parametrize("log_interval", [None, -1, 2, True, np.bool_(True)])
def test_arguments_of_learn_may_be_what_they_may_be_in_sb3(
    total_timesteps: Any, log_interval: Any
) -> None:
    model = toy_model().learn(total_timesteps, log_interval=log_interval)
    assert model.num_timesteps == (128 if total_timesteps > 0 else 0)


def test_a_default_that_was_taken_away_after_set_up_is_an_error() -> None:
    model = toy_model()
    collect(model)
    model.target_kl = None
    with pytest.raises(ValueError, match="target_kl=None"):
        model.train()


def test_a_string_becomes_sb3s_linear_schedule() -> None:
    model = toy_model(target_kl="lin_0.02", cg_damping="lin_0.1")
    assert type(model.target_kl) is LinearSchedule
    assert type(model.cg_damping) is LinearSchedule
    for progress, share in [(1.0, 1.0), (0.25, 0.25), (0.0, 0.0)]:
        assert model.target_kl(progress) == pytest.approx(0.02 * share)
        assert model.cg_damping(progress) == pytest.approx(0.1 * share)


@pytest.mark.parametrize("name", ["target_kl", "cg_damping"])
@pytest.mark.parametrize("late", [-0.01, math.nan, math.inf])
def test_a_schedule_that_goes_bad_later_is_named_before_anything_changes(
    name: str, late: float
) -> None:
    schedule: dict[str, Any] = {name: lambda progress: 0.01 if progress > 0.9 else late}
    model = toy_model(**schedule)
    collect(model)
    model._current_progress_remaining = 0.5
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    with pytest.raises(ValueError, match=name):
        model.train()
    assert all(value.equal(before[key]) for key, value in model.policy.state_dict().items())


def test_numbers_and_schedules_are_logged_as_they_were_used() -> None:
    model = toy_model(target_kl=lambda progress: 0.02 * progress, cg_damping="lin_0.4")
    collect(model)
    model._current_progress_remaining = 0.5
    model.train()
    assert logged(model)["train/target_kl"] == pytest.approx(0.01)
    assert logged(model)["train/cg_damping"] == pytest.approx(0.2)


@pytest.mark.parametrize("value", [0.0123, "lin_0.0123", lambda _: 0.0123])
def test_a_radius_set_on_a_finished_model_takes_effect_as_in_contrib(value: Any) -> None:
    model = toy_model()
    collect(model)
    model.target_kl = value
    model.train()
    assert logged(model)["train/target_kl"] == pytest.approx(0.0123)


def test_no_environment_is_an_error_with_its_remedy() -> None:
    with pytest.raises(ValueError, match=r"env=None.*Pass an environment"):
        TRPO("MlpPolicy", None)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ["MlpPolicy", "MultiInputPolicy"])
def test_observation_spaces_that_sb3_has_no_buffer_for_are_refused_as_by_sb3(policy: str) -> None:
    space = spaces.Tuple([VECTOR, spaces.Discrete(2)])
    env = DummyVecEnv([lambda: ToyEnv(space, BOX_ACTIONS)])
    for kind in (PPO, TRPO):
        with pytest.raises(NotImplementedError, match=r"Tuple.*not supported"):
            kind(policy, env, n_steps=64, batch_size=64)


def test_gsde_in_policy_kwargs_is_refused() -> None:
    with pytest.raises(ValueError, match="use_sde=True"):
        TRPO("MlpPolicy", "Pendulum-v1", policy_kwargs={"use_sde": True})


UNSET: dict[str, Any] = {"target_kl": None, "cg_damping": None}


@pytest.mark.parametrize(
    "values", [{"target_kl": 0.01}, {"cg_damping": 0.2}, {"target_kl": 0.02, "cg_damping": 0.1}]
)
@pytest.mark.parametrize("case", ["box", "gsde", "multi_binary", "lstm_box"])
def test_a_radius_or_damping_that_may_be_written_for_contrib_is_warned_of_once_with_both_remedies(
    case: str, values: dict[str, float]
) -> None:
    with pytest.warns(UserWarning, match="KL divergence") as caught:
        model = toy_model(case, **{"kl_reduction": None, **UNSET, **values})
    (warning,) = caught
    assert warning.filename == cases.__file__  # the line that calls the constructor
    for part in ("3 dimensions", "kl_reduction='mean'", "kl_reduction='sum'"):
        assert part in str(warning.message)
    for name in UNSET:
        for factor in (1, 3):
            shown = f"{name}={factor * values.get(name, 0.0):g}"
            assert (shown in str(warning.message)) == (name in values)
    assert model.kl_reduction == "sum"


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("box", {"kl_reduction": "sum"}),
        ("box", {"kl_reduction": "mean"}),
        ("box", UNSET),
        ("box", {"target_kl": "lin_0.01", "cg_damping": "lin_0.1"}),  # sb3-contrib has numbers only
        ("box", {"target_kl": 0.0, "cg_damping": 0.0}),
        ("discrete", {}),
        ("multi_discrete", {}),
        ("masked_multi_binary", {}),
    ],
    ids=str,
)
def test_a_radius_that_means_the_same_or_was_chosen_is_not_warned_of(
    case: str, options: dict[str, Any]
) -> None:
    toy_model(case, **{"kl_reduction": None, "target_kl": 0.01, **options})  # warnings are errors


def test_one_action_dimension_is_not_warned_of() -> None:
    TRPO("MlpPolicy", "Pendulum-v1", target_kl=0.01)


def test_a_saved_model_says_what_its_radius_means() -> None:
    file = BytesIO()
    toy_model(kl_reduction=None, **UNSET).save(file)
    file.seek(0)
    assert TRPO.load(file, device="cpu", target_kl=0.01).kl_reduction == "sum"
    file.seek(0)
    with pytest.raises(ValueError, match="kl_reduction"):
        TRPO.load(file, device="cpu", kl_reduction=None)
