"""Everything that SB3's on-policy algorithms accept is accepted and trained."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
)
from torch import nn

from tests.cases import CASES, Case, toy_envs, toy_model
from tests.environments import (
    BOX_ACTIONS,
    DICT,
    DISCRETE_ACTIONS,
    IMAGE,
    IMAGE_DICT,
    MULTI_BINARY_ACTIONS,
    MULTI_DISCRETE_ACTIONS,
    UNIT_BOX_ACTIONS,
    VECTOR,
    ToyEnv,
    all_finite,
    changed,
    changed_actor,
    collect,
    critic_only,
    logged,
    state_of,
)
from tests.policies import BetaPolicy

TARGET_KL = 0.01

ACTION_SPACES: dict[str, spaces.Space[Any]] = {
    "box": BOX_ACTIONS,
    "matrix": spaces.Box(-1.0, 1.0, (2, 2)),
    "discrete": DISCRETE_ACTIONS,
    "multi_discrete": MULTI_DISCRETE_ACTIONS,
    "multi_binary": MULTI_BINARY_ACTIONS,
}

OBSERVATION_SPACES: dict[str, tuple[str, spaces.Space[Any]]] = {
    "vector": ("MlpPolicy", VECTOR),
    "matrix": ("MlpPolicy", spaces.Box(-1.0, 1.0, (2, 3))),
    "double": ("MlpPolicy", spaces.Box(-1.0, 1.0, (3,), dtype=np.float64)),
    "image": ("CnnPolicy", IMAGE),
    "flat_image": ("MlpPolicy", IMAGE),
    "dict": ("MultiInputPolicy", DICT),
    "image_dict": ("MultiInputPolicy", IMAGE_DICT),
    "discrete": ("MlpPolicy", spaces.Discrete(5)),
    "multi_discrete": ("MlpPolicy", spaces.MultiDiscrete([3, 4])),
    "multi_binary": ("MlpPolicy", MULTI_BINARY_ACTIONS),
}


def train_twice(model: Any) -> None:
    """Check that two updates stay in the trust region and move the actor and the critic."""
    before = state_of(model)
    for _ in range(2):
        collect(model)
        model.train()
        log = logged(model)
        assert log["train/is_line_search_success"] == 1.0, log["train/actor_update"]
        assert 0 < log["train/kl_divergence_loss"] <= TARGET_KL
        assert log["train/actual_improvement"] > 0
    after = state_of(model)
    assert changed_actor(before, after)
    assert {name for name in changed(before, after) if critic_only(name)}
    assert all_finite(model)


@pytest.mark.parametrize(
    ("observations", "actions"),
    [("vector", actions) for actions in ACTION_SPACES]
    + [("dict", actions) for actions in ACTION_SPACES]
    + [(name, "box") for name in OBSERVATION_SPACES if name not in ("vector", "dict")],
)
def test_every_space(observations: str, actions: str) -> None:
    policy, space = OBSERVATION_SPACES[observations]
    train_twice(toy_model(Case(policy, space, ACTION_SPACES[actions], {})))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_expln": True},
        {"full_std": False},
        {"squash_output": True},
        {"squash_output": True, "full_std": False, "use_expln": True},
        {"log_std_init": -2.0},
    ],
    ids=str,
)
def test_gsde(options: dict[str, Any]) -> None:
    train_twice(toy_model("gsde", policy_kwargs={"net_arch": [8], **options}, sde_sample_freq=4))


@pytest.mark.parametrize("ent_coef", [0.01, -0.01])
def test_squashed_gsde_with_an_entropy_coefficient(ent_coef: float) -> None:
    policy_kwargs = {"net_arch": [8], "squash_output": True}
    train_twice(toy_model("gsde", policy_kwargs=policy_kwargs, ent_coef=ent_coef))


def frame_stack(case: Case) -> VecEnv:
    return VecFrameStack(toy_envs(case, 2), 3)


def image_frame_stack(case: Case) -> VecEnv:
    return VecTransposeImage(VecFrameStack(toy_envs(case, 2), 3))


def normalized(case: Case) -> VecEnv:
    return VecNormalize(toy_envs(case, 2))


def stacked_and_normalized(case: Case) -> VecEnv:
    return VecFrameStack(VecNormalize(toy_envs(case, 2)), 2)


@pytest.mark.parametrize(
    ("case", "wrap"),
    [
        ("box", frame_stack),
        ("cnn", image_frame_stack),
        ("box", normalized),
        ("discrete", stacked_and_normalized),
    ],
)
def test_vectorized_wrappers(case: str, wrap: Callable[[Case], VecEnv]) -> None:
    train_twice(toy_model(case, env=wrap(CASES[case])))


def test_normalised_dict() -> None:
    env = VecNormalize(toy_envs(CASES["dict"], 2), norm_obs_keys=["position"])
    train_twice(toy_model("dict", env=env))


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("case", ["box", "gsde", "dict"])
def test_numbers_of_environments(case: str, n_envs: int) -> None:
    train_twice(toy_model(case, n_envs=n_envs, batch_size=32 * n_envs))


@pytest.mark.slow
def test_environments_in_processes_of_their_own() -> None:
    env = SubprocVecEnv([partial(ToyEnv, copy.deepcopy(VECTOR)) for _ in range(2)])
    try:
        train_twice(toy_model("box", env=env))
    finally:
        env.close()


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {"net_arch": []},
        {"net_arch": [8, 4]},
        {"net_arch": {"pi": [], "vf": [4]}},
        {"net_arch": {"pi": [4, 4, 4], "vf": []}},
        {"net_arch": [8], "activation_fn": nn.ReLU},
        {"net_arch": [8], "activation_fn": nn.SiLU},
        {"net_arch": [8], "ortho_init": False},
        {"net_arch": [8], "log_std_init": -3.0},
        {"net_arch": [8], "share_features_extractor": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("case", ["box", "gsde"])
def test_networks(case: str, policy_kwargs: dict[str, Any]) -> None:
    train_twice(toy_model(case, policy_kwargs=policy_kwargs))


@pytest.mark.parametrize("case", ["cnn", "dict"])
def test_separate_features_extractors(case: str) -> None:
    policy_kwargs = {"net_arch": [8], "share_features_extractor": False}
    model = toy_model(case, policy_kwargs=policy_kwargs)
    before = state_of(model)
    train_twice(model)
    if case == "cnn":
        moved = changed(before, state_of(model))
        assert any(name.startswith("vf_features_extractor") for name in moved)
        assert any(name.startswith("pi_features_extractor") for name in moved)


class Extractor(BaseFeaturesExtractor):
    """Features through a given layer, with parameters of its own before it."""

    def __init__(self, observation_space: spaces.Box, layer: Callable[[], nn.Module]) -> None:
        super().__init__(observation_space, 6)
        self.layers = nn.Sequential(nn.Linear(3, 6), layer(), nn.Tanh())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        features: th.Tensor = self.layers(observations)
        return features


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "dropout": partial(nn.Dropout, 0.5),
    "batch norm": partial(nn.BatchNorm1d, 6),
    "layer norm": partial(nn.LayerNorm, 6),
}


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("case", ["box", "discrete"])
def test_features_extractors_with_modes(case: str, layer: str, share: bool) -> None:
    policy_kwargs = {
        "net_arch": [8],
        "features_extractor_class": Extractor,
        "features_extractor_kwargs": {"layer": LAYERS[layer]},
        "share_features_extractor": share,
    }
    train_twice(toy_model(case, policy_kwargs=policy_kwargs))


class OwnValuesPolicy(ActorCriticPolicy):
    """The fit has to ask the policy itself for its values."""

    def predict_values(self, obs: Any) -> th.Tensor:
        return 2 * super().predict_values(obs)


@pytest.mark.parametrize("optimizer", [th.optim.Adam, th.optim.SGD])
def test_the_fit_holds_a_shared_extractor_of_any_policy(
    optimizer: type[th.optim.Optimizer],
) -> None:
    # Mistake: the critic's optimizer moves a shared trunk, and with it the policy.
    policy_kwargs = {
        "net_arch": [8],
        "features_extractor_class": Extractor,
        "features_extractor_kwargs": {"layer": nn.Identity},
        "optimizer_class": optimizer,
    }
    case = Case(OwnValuesPolicy, VECTOR, BOX_ACTIONS, {})
    model = toy_model(case, target_kl=0.0, policy_kwargs=policy_kwargs)
    collect(model)
    before = state_of(model)
    model.train()
    moved = changed(before, state_of(model))
    assert moved
    assert not {name for name in moved if not critic_only(name) or "extractor.layers" in name}


def batch_norm_model(**kwargs: Any) -> Any:
    policy_kwargs = {
        "net_arch": [8],
        "features_extractor_class": Extractor,
        "features_extractor_kwargs": {"layer": LAYERS["batch norm"]},
    }
    return toy_model("box", policy_kwargs=policy_kwargs, **kwargs)


@pytest.mark.parametrize("n_critic_updates", [0, 4])
def test_batch_norm_statistics_of_the_actor_move_once_per_update(n_critic_updates: int) -> None:
    model = batch_norm_model(n_critic_updates=n_critic_updates, batch_size=16)
    collect(model)
    counter = "features_extractor.layers.1.num_batches_tracked"
    assert int(state_of(model)[counter]) == 0
    model.train()
    assert int(state_of(model)[counter]) == 64 // 16
    assert logged(model)["train/kl_after_running_statistics"] >= 0


def test_dropout_leaves_the_kl_at_the_old_parameters_zero() -> None:
    # A tiny radius would be left at once if the two evaluations were not of the same network.
    policy_kwargs = {
        "net_arch": [8],
        "features_extractor_class": Extractor,
        "features_extractor_kwargs": {"layer": LAYERS["dropout"]},
    }
    model = toy_model("box", policy_kwargs=policy_kwargs, target_kl=1e-6)
    collect(model)
    model.train()
    assert logged(model)["train/is_line_search_success"] == 1.0
    assert logged(model)["train/backtracks"] <= 2


def test_custom_policy_with_a_beta_distribution() -> None:
    train_twice(toy_model("beta"))


class UnknownPolicy(BetaPolicy):
    """A policy that TRPO cannot train: torch has no KL divergence of its distribution."""

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
        distribution = super()._get_action_dist_from_latent(latent_pi)
        distribution.distribution = th.distributions.StudentT(1 + latent_pi[:, :2].exp())
        return distribution


def test_a_distribution_without_kl_is_named() -> None:
    case = Case(UnknownPolicy, VECTOR, UNIT_BOX_ACTIONS)
    model = toy_model(case)
    before = state_of(model)
    with pytest.raises(ValueError, match="StudentT"):
        model.learn(64)
    assert not changed(before, state_of(model))


class OddNamesPolicy(ActorCriticPolicy):
    """An actor's layer is called as the critic's usually are."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.value_proj = nn.Linear(self.features_dim, self.features_dim)
        self.optimizer = th.optim.Adam(self.parameters(), lr=lr_schedule(1))

    def get_distribution(self, obs: Any) -> Distribution:
        features = self.value_proj(self.extract_features(obs, self.pi_features_extractor))
        return self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(features))

    def forward(self, obs: Any, deterministic: bool = False) -> Any:
        distribution = self.get_distribution(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        log_prob = distribution.log_prob(actions)
        return actions.reshape((-1, *self.action_space.shape)), self.predict_values(obs), log_prob  # type: ignore[misc]


@pytest.mark.parametrize("target_kl", [0.0, TARGET_KL])
def test_actor_parameters_are_found_whatever_their_names(target_kl: float) -> None:
    # Mistake: choosing them by a substring.
    case = Case(OddNamesPolicy, VECTOR, BOX_ACTIONS, {})
    model = toy_model(case, target_kl=target_kl)
    before = state_of(model)
    collect(model)
    model.train()
    moved = "value_proj.weight" in changed(before, state_of(model))
    assert moved == (target_kl > 0)
    if target_kl > 0:
        train_twice(model)


LAYER = "mlp_extractor.policy_net.0"


@pytest.mark.parametrize(
    ("case", "frozen"),
    [
        *((case, name) for case in ("box", "gsde") for name in ("log_std", "action_net.weight")),
        *(("box", name) for name in ("action_net.bias", f"{LAYER}.weight", f"{LAYER}.bias")),
        *(("discrete", name) for name in ("action_net.bias", f"{LAYER}.bias")),
    ],
)
def test_frozen_parameters_are_left_alone(case: str, frozen: str) -> None:
    model = toy_model(case)
    parameters = dict(model.policy.named_parameters())
    collect(model)
    model.train()
    parameters[frozen].requires_grad_(False)  # between two updates
    before = state_of(model)
    train_twice(model)
    assert frozen not in changed(before, state_of(model))


def test_a_frozen_extractor_is_left_alone() -> None:
    model = toy_model("cnn")
    for parameter in model.policy.features_extractor.parameters():
        parameter.requires_grad_(False)
    before = state_of(model)
    train_twice(model)
    moved = changed(before, state_of(model))
    assert not {name for name in moved if "features_extractor" in name}


def test_a_frozen_critic_is_left_alone() -> None:
    model = toy_model("box")
    for name, parameter in model.policy.named_parameters():
        parameter.requires_grad_(not critic_only(name))
    before = state_of(model)
    collect(model)
    model.train()
    moved = changed(before, state_of(model))
    assert moved
    assert not {name for name in moved if critic_only(name)}


def test_a_frozen_actor_is_an_error_that_says_so() -> None:
    model = toy_model("box")
    for name, parameter in model.policy.named_parameters():
        parameter.requires_grad_(critic_only(name))
    collect(model)
    with pytest.raises(ValueError, match="requires_grad"):
        model.train()


def test_a_policy_replaced_after_construction_is_trained() -> None:
    model, other = toy_model("box", seed=1), toy_model("box", seed=2)
    model.policy = other.policy
    train_twice(model)


def test_a_gym_environment_is_wrapped_as_in_sb3() -> None:
    env: gym.Env[Any, Any] = ToyEnv()
    model = toy_model("box", env=env)
    assert isinstance(model.get_env(), DummyVecEnv)
    train_twice(model)
