"""Defects that were found by using the package, each with the case that showed it."""

import copy
import io
import pickle
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
import sb3_contrib
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import distributions as td
from torch import nn

from sb3_trpo import TRPO, RecurrentTRPO
from sb3_trpo._actor import read_actor
from sb3_trpo._critic import read_critic
from sb3_trpo._distributions import family_of
from sb3_trpo._read_buffer import read_rollout
from tests.environments import BOX_ACTIONS, DICT, VECTOR, ToyEnv


def model_of(
    policy: Any = "MlpPolicy",
    observation_space: spaces.Space[Any] = VECTOR,
    action_space: spaces.Space[Any] = BOX_ACTIONS,
    **options: Any,
) -> TRPO:
    env = ToyEnv(copy.deepcopy(observation_space), copy.deepcopy(action_space), 9)
    return TRPO(policy, env, **{"n_steps": 32, "batch_size": 32, "seed": 0, **options})


class Calls(BaseCallback):
    """Calls a function at the start of a rollout, or at its fifth step."""

    def __init__(self, function: Any, at_step: bool) -> None:
        super().__init__()
        self.function, self.at_step = function, at_step

    def _on_rollout_start(self) -> None:
        if not self.at_step:
            self.function(self.model)

    def _on_step(self) -> bool:
        if self.at_step and self.n_calls == 5:
            self.function(self.model)
        return True


def test_environment_pickled_or_copied_in_a_rollout_knows_nothing_of_this_package() -> None:
    env = VecNormalize(DummyVecEnv([lambda: ToyEnv(VECTOR, BOX_ACTIONS, 9)]))
    model = TRPO("MlpPolicy", env, n_steps=32, batch_size=32)
    files: list[bytes] = []
    copies: list[Any] = []

    def keep(model: Any) -> None:
        files.append(pickle.dumps(env))
        copies.append(copy.deepcopy(env))

    model.learn(32, callback=Calls(keep, at_step=True))
    assert b"sb3_trpo" not in files[0]
    for copied in (pickle.loads(files[0]), copies[0]):
        copied.set_venv(DummyVecEnv([lambda: ToyEnv(VECTOR, BOX_ACTIONS, 9)]))
        copied.reset()
        copied.step(np.zeros((1, 3), np.float32))
        assert not any("sb3_trpo" in type(value).__module__ for value in vars(copied).values())


@pytest.mark.parametrize("activation", [nn.LeakyReLU, nn.ELU, nn.SiLU, nn.ReLU])
def test_activation_that_works_in_place_trains(activation: Any) -> None:
    model = model_of(policy_kwargs={"activation_fn": partial(activation, inplace=True)})
    model.learn(32)
    assert model._n_updates == 1


def test_transform_that_the_network_computes_is_refused_as_its_kl_is_unknown() -> None:
    location = th.zeros(4, 2, requires_grad=True)
    learned = td.TransformedDistribution(
        td.Normal(th.zeros(4, 2), 1.0), [td.AffineTransform(location, 1.0)]
    )
    with pytest.raises(ValueError, match=r"TransformedDistribution.*register_kl"):
        family_of(learned)
    fixed = td.TransformedDistribution(td.Normal(location, 1.0), [td.TanhTransform()])
    assert family_of(fixed).outputs(fixed)[0] is location


def test_hook_and_replaced_method_of_the_mlp_extractor_are_respected() -> None:
    calls: list[int] = []
    model = model_of()
    model.policy.mlp_extractor.register_forward_hook(lambda *_: calls.append(1))
    model.learn(32)
    assert len(calls) == 32
    model = model_of()
    extractor = model.policy.mlp_extractor
    extractor.forward_actor = lambda features: th.zeros(len(features), 64)  # type: ignore[method-assign]
    model.learn(32)
    head = cast(nn.Linear, model.policy.action_net)
    before = head.weight.detach().clone()
    model.learn(32, reset_num_timesteps=False)
    # A latent of zeros gives the last layer's weights no gradient.
    th.testing.assert_close(head.weight.detach(), before, rtol=0, atol=0)


# Half of the actions are drawn from another policy.
@pytest.mark.filterwarnings("ignore:The rollout's actions were not drawn")
@pytest.mark.parametrize("at_step", [False, True])
def test_module_replaced_in_a_rollout_acts_from_the_next_rollout_on(at_step: bool) -> None:
    model = model_of(action_space=spaces.Discrete(2), line_search_max_iter=1, target_kl=0.0)
    calls: list[int] = []

    def replace_head(model: Any) -> None:
        if not calls:
            model.policy.action_net = nn.Linear(64, 2)
            model.policy.action_net.bias.data = th.tensor([50.0, -50.0])
            model.policy.value_net.register_forward_hook(lambda *_: calls.append(1))

    model.learn(64 if at_step else 32, callback=Calls(replace_head, at_step))
    assert not model.rollout_buffer.actions.any()
    assert len(calls) >= 32


class TenTimes(nn.Module):
    """A critic's last layer that is no plain one."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.net = nn.Linear(n_features, 1)

    def forward(self, features: th.Tensor) -> th.Tensor:
        return 10 * cast(th.Tensor, self.net(features))


@pytest.mark.parametrize("algorithm", [TRPO, RecurrentTRPO])
@pytest.mark.parametrize(
    "replacement", [lambda n: nn.Sequential(nn.Linear(n, 4), nn.Tanh(), nn.Linear(4, 1)), TenTimes]
)
def test_replaced_value_net_trains_beside_a_plain_actor(algorithm: Any, replacement: Any) -> None:
    name = "MlpLstmPolicy" if algorithm is RecurrentTRPO else "MlpPolicy"
    model = algorithm(name, ToyEnv(VECTOR, BOX_ACTIONS, 9), n_steps=32, batch_size=32, seed=0)
    policy = model.policy
    policy.value_net = replacement(policy.value_net.in_features)
    policy.optimizer = policy.optimizer_class(policy.parameters(), lr=1e-3)
    before = copy.deepcopy(policy.state_dict())
    model.learn(32)
    moved = {name for name, value in policy.state_dict().items() if not value.equal(before[name])}
    assert "action_net.weight" in moved
    assert any(name.startswith("value_net") for name in moved)


def test_plain_policy_with_parameters_of_two_types_trains() -> None:
    model = model_of()
    model.policy.log_std.data = model.policy.log_std.data.double()
    before = model.policy.log_std.detach().clone()
    model.learn(32)
    assert not model.policy.log_std.equal(before)


class Gain(nn.Module):
    """A features extractor that a user puts in place of SB3's."""

    features_dim = VECTOR.shape[0]

    def __init__(self, is_learned: bool) -> None:
        super().__init__()
        self.gain = nn.Parameter(th.full(VECTOR.shape, 5.0), requires_grad=is_learned)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return observations * self.gain


@pytest.mark.parametrize("is_learned", [False, True])
def test_replaced_features_extractor_acts_and_the_one_left_behind_is_named(
    is_learned: bool,
) -> None:
    model = model_of(n_steps=128)
    policy: Any = model.policy
    policy.features_extractor = Gain(is_learned)
    policy.action_net.weight.data.mul_(100)
    policy.log_std.data.fill_(-2)
    with pytest.warns(UserWarning, match="replace pi_features_extractor"):
        model.learn(128)
    policy.pi_features_extractor = policy.vf_features_extractor = policy.features_extractor
    model.learn(128, reset_num_timesteps=False)


class Elsewhere(ActorCriticPolicy):
    """A policy that acts otherwise than its get_distribution says."""

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
        return self.action_dist.proba_distribution(2.0 + self.action_net(latent_pi), self.log_std)

    def get_distribution(self, obs: Any) -> Any:
        distribution: Any = super().get_distribution(obs)
        distribution.distribution.loc = distribution.distribution.loc - 2.0
        return distribution


def test_distribution_that_the_policy_does_not_act_with_is_told() -> None:
    with pytest.warns(UserWarning, match="were not drawn from what policy.get_distribution"):
        model_of(Elsewhere).learn(32)


def test_nan_weights_raise_sb3s_error_and_do_not_act() -> None:
    model = model_of()
    nn.init.constant_(cast(nn.Linear, model.policy.action_net).bias, float("nan"))
    with pytest.raises(ValueError, match="loc"):
        model.learn(32)


@pytest.mark.parametrize("trained_by_contrib", [False, True])
def test_model_that_contrib_trained_on_keeps_contribs_convention(trained_by_contrib: bool) -> None:
    first, second = io.BytesIO(), io.BytesIO()
    model_of().learn(64).save(first)
    first.seek(0)
    contribs = sb3_contrib.TRPO.load(first, env=ToyEnv(VECTOR, BOX_ACTIONS, 9))
    if trained_by_contrib:
        contribs.learn(32, reset_num_timesteps=False)
    contribs.save(second)
    second.seek(0)
    if trained_by_contrib:
        with pytest.warns(UserWarning, match="kl_reduction='mean'"):
            assert TRPO.load(second).kl_reduction == "mean"
    else:
        assert TRPO.load(second).kl_reduction == "sum"


def test_compiled_policy_takes_the_parameters_that_it_gives(tmp_path: Any) -> None:
    model = model_of()
    model.learn(32)
    model.save(tmp_path / "model")
    expected = copy.deepcopy(model.policy.state_dict())
    model.policy = cast(ActorCriticPolicy, th.compile(model.policy, backend="eager"))
    for source in (model.get_parameters(), str(tmp_path / "model")):
        model.set_parameters(cast(Any, source))
        for name, value in model.get_parameters()["policy"].items():
            th.testing.assert_close(value, expected[name], rtol=0, atol=0)
    assert isinstance(model.policy, th._dynamo.OptimizedModule)


class Normalizing(BaseFeaturesExtractor):
    """Batch normalisation, called without its hooks if asked to."""

    def __init__(self, space: spaces.Box, by_forward: bool = False) -> None:
        super().__init__(space, features_dim=space.shape[0])
        self.norm = nn.BatchNorm1d(space.shape[0])
        self.by_forward = by_forward

    def forward(self, observations: th.Tensor) -> th.Tensor:
        call = self.norm.forward if self.by_forward else self.norm
        return cast(th.Tensor, call(observations))


@pytest.mark.filterwarnings("ignore:The critic's batch_size")
def test_last_minibatch_of_one_state_is_passed_over_by_batch_normalisation() -> None:
    options = {"features_extractor_class": Normalizing, "share_features_extractor": False}
    model = model_of(n_steps=33, policy_kwargs=options)
    model.learn(33)
    assert model._n_updates == 1


def test_layer_that_the_actor_runs_without_calling_it_is_still_the_actors() -> None:
    options = {
        "features_extractor_class": Normalizing,
        "features_extractor_kwargs": {"by_forward": True},
    }
    model = model_of(policy_kwargs=options, target_kl=0.0)
    model.learn(32)
    norm = cast(Normalizing, model.policy.features_extractor).norm
    assert int(cast(th.Tensor, norm.num_batches_tracked)) == 1  # the one pass, none of the critic's


class Huge(ToyEnv):
    """Returns a number that double precision has and single precision has not."""

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return np.full_like(observation, 1e39, dtype=np.float64), *rest


def test_observation_beyond_single_precision_is_refused_at_its_step() -> None:
    space = spaces.Box(-np.inf, np.inf, cast(Any, VECTOR.shape), np.float64)
    model = TRPO("MlpPolicy", Huge(space, BOX_ACTIONS, 9), n_steps=32, batch_size=32)
    with pytest.raises(ValueError, match=r"observation is not finite.*\(1, 0\)"):
        model.learn(32)


@pytest.mark.parametrize("shared", [True, False])
def test_features_of_dict_observations_without_weights_are_computed_once(shared: bool) -> None:
    options = {"share_features_extractor": shared}
    model = model_of("MultiInputPolicy", DICT, policy_kwargs=options)
    model.learn(32)
    model.policy.set_training_mode(False)
    batch = read_rollout(model.rollout_buffer, model.device, th.float32).actor_batch
    actor = read_actor(model.policy, batch)
    critic = read_critic(model.policy, actor.parameters, actor.modules)
    assert critic.trunk is model.policy.vf_features_extractor


def test_policy_copied_in_a_rollout_trains_on() -> None:
    copies: list[Any] = []
    model = model_of()
    keep = Calls(lambda model: copies.append(copy.deepcopy(model.policy)), at_step=True)
    model.learn(32, callback=keep)
    model.policy = copies[0]
    model.learn(32, reset_num_timesteps=False)
    assert model._n_updates == 2


def test_normalisation_that_was_never_reset_can_take_over() -> None:
    def make() -> VecNormalize:
        return VecNormalize(DummyVecEnv([lambda: ToyEnv(VECTOR, BOX_ACTIONS, 9)]))

    model = TRPO("MlpPolicy", make(), n_steps=32, batch_size=32)
    model.learn(32)
    second = make()
    second.venv.reset()
    model.set_env(second, force_reset=False)
    model.learn(32, reset_num_timesteps=False)
    assert model._n_updates == 2


def test_update_is_safe_where_torch_does_not_check_distributions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(td.Distribution, "_validate_args", False)
    model = model_of()
    model.learn(32)
    nn.init.constant_(cast(nn.Linear, model.policy.action_net).bias, float("nan"))
    before = copy.deepcopy(model.policy.state_dict())
    model.train()
    for name, value in model.policy.state_dict().items():
        if not name.startswith(("value_net", "mlp_extractor.value_net")):
            th.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
