import copy
import gc
import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import distributions as td
from torch import nn

from sb3_trpo import TRPO
from sb3_trpo import _actor as actor_module
from sb3_trpo import _layerwise as layerwise
from sb3_trpo._actor import Actor, LinearizedActor, read_actor
from sb3_trpo._batch import ActorBatch
from sb3_trpo._critic import read_critic
from sb3_trpo._layerwise import LayerwiseLinearization
from sb3_trpo._linearization import AutogradLinearization
from sb3_trpo._read_buffer import read_rollout
from sb3_trpo._running_statistics import training_mode
from tests import reference
from tests.cases import (
    CASES,
    POLICIES,
    Case,
    actor_and_batch,
    collected,
    fisher_products,
    random_vectors,
    toy_model,
)
from tests.environments import VECTOR, collect
from tests.policies import LinearExtractor, freeze

# Cases with parameters that are not the weights of layers, or without such weights.
BY_AUTOGRAD = {
    "gsde_expln",
    "batch_norm_shared",
    "batch_norm_separate",
    "only_log_std_trained",
}


def names_of(policy: ActorCriticPolicy, parameters: tuple[nn.Parameter, ...]) -> set[str]:
    wanted = {id(parameter) for parameter in parameters}
    return {name for name, p in policy.named_parameters() if id(p) in wanted}


def jacobian_products(actor: Actor, batch: ActorBatch) -> tuple[th.Tensor, th.Tensor]:
    """Multiply random vectors by J and by Jᵀ."""
    generator = th.Generator().manual_seed(0)
    linearization = actor.linearize(batch)
    v = th.randn(sum(p.numel() for p in actor.parameters), generator=generator, dtype=th.float64)
    z = linearization.distribution.outputs
    u = tuple(th.randn(o.shape, generator=generator, dtype=th.float64) for o in z)
    # Rows that add up to 0, as the metric's do.
    u = tuple(part - part.mean(-1, keepdim=True) for part in u)
    dtype = actor.parameters[0].dtype
    forward = linearization.jacobian_product(v.to(dtype))
    pulled = linearization.transposed_product(tuple(part.to(dtype) for part in u))
    inner = sum(((a * b).sum() for a, b in zip(forward, u, strict=True)), th.zeros(()))
    return inner, (pulled * v).sum()


@pytest.mark.parametrize("case", POLICIES)
def test_actor_parameters_are_those_that_move_the_distribution(case: str) -> None:
    actor, batch = actor_and_batch(collected(case))
    expected = reference.actor_parameters(actor.policy, batch.observations)
    assert [id(p) for p in actor.parameters] == [id(p) for p in expected]


def test_parameters_are_found_by_influence_and_not_by_name() -> None:
    """A substring search for "value" misses two of these and lets the critic move them."""
    actor, _ = actor_and_batch(collected("value_proj"))
    names = names_of(actor.policy, actor.parameters)
    assert {"action_net.value_proj.weight", "action_net.value_net.bias"} <= names
    assert not any("policy_proj" in name for name in names)


def test_parameter_that_nothing_depends_on_is_not_the_actors() -> None:
    actor, _ = actor_and_batch(collected("beta"))
    assert "log_std" in dict(actor.policy.named_parameters())
    assert "log_std" not in names_of(actor.policy, actor.parameters)


class RareHead(BaseFeaturesExtractor):
    """A layer for all states, and another one for those that begin with one number."""

    number = 0.0

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=4)
        self.usual = nn.Linear(3, 4)
        self.rare = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5))

    def forward(self, x: th.Tensor) -> th.Tensor:
        features, is_rare = self.usual(x), x[:, 0] == self.number
        if is_rare.any():
            features = features.index_add(0, is_rare.nonzero().flatten(), self.rare(x[is_rare]))
        return th.tanh(features)


def with_a_rare_state(shared: bool) -> Any:
    """Collect a rollout of which one state runs a layer, and none of those that are tried."""
    options = {"features_extractor_class": RareHead, "share_features_extractor": shared}
    model = collected(Case(policy_kwargs=options), float64=True)
    observations: Any = read_rollout(model.rollout_buffer, model.device, th.float64).actor_batch
    few: Any = observations.every(2, 0).observations[:, 0]
    number = next(x for x in observations.observations[:, 0] if x not in few)
    for extractor in (model.policy.pi_features_extractor, model.policy.vf_features_extractor):
        extractor.number = number
    return model


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("most", [None, 5])
def test_part_that_runs_for_one_state_is_the_actors(shared: bool, most: int | None) -> None:
    model = with_a_rare_state(shared)
    batch = read_rollout(model.rollout_buffer, model.device, th.float64).actor_batch.normalized()
    evaluate = actor_module.read_distribution
    with mock.patch.object(actor_module, "read_distribution", side_effect=evaluate) as read:
        actor = read_actor(model.policy, batch, max_states_per_chunk=most)
    assert max(len(call.args[1]) for call in read.mock_calls[1:]) == (most or len(batch))
    head = model.policy.pi_features_extractor.rare
    assert {*head.parameters()} <= {*actor.parameters}
    assert {*head} <= actor.modules
    vectors = random_vectors(actor)
    expected = reference.fisher_products_by_differences(
        actor.policy, batch.observations, actor.parameters, vectors
    )
    ours = fisher_products(actor, batch.chunks(actor.max_states_per_chunk), vectors)
    th.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-7)

    critic = read_critic(model.policy, actor.parameters, actor.modules)
    assert {*head.parameters()}.isdisjoint(critic.parameters)


@pytest.mark.parametrize("name", ["box", "box_shared", "gsde", "beta"])
def test_parameter_frozen_later_is_left_alone(name: str) -> None:
    model = collected(name)
    before, batch = actor_and_batch(model)
    freeze("action_net")(model.policy)
    after = read_actor(model.policy, batch)
    gone = names_of(model.policy, before.parameters) - names_of(model.policy, after.parameters)
    assert gone == {"action_net.weight", "action_net.bias"}


def test_policy_with_nothing_to_train_is_refused() -> None:
    model = collected("discrete")
    _, batch = actor_and_batch(model)
    freeze("mlp_extractor.policy_net", "action_net")(model.policy)
    with pytest.raises(ValueError, match=r"nothing to train.*requires_grad"):
        read_actor(model.policy, batch)


def test_inference_mode_is_refused_by_name() -> None:
    model = collected("box")
    _, batch = actor_and_batch(model)
    with th.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        read_actor(model.policy, batch)


@pytest.mark.parametrize(
    "name", ["box", "box_shared", "discrete", "multi_discrete", "cnn_discrete"]
)
def test_policy_can_be_copied_at_any_moment_of_an_update(name: str) -> None:
    """Tensors on a graph cannot: none may stay on the policy's own distribution."""
    model = collected(name)
    actor, batch = actor_and_batch(model)
    copy.deepcopy(model.policy)
    jacobian_products(actor, batch)
    copy.deepcopy(model.policy)


@pytest.mark.parametrize("name", ["box", "cnn_discrete", "lstm_box", "batch_norm_shared"])
def test_nothing_of_a_read_actor_stays_in_memory(name: str) -> None:
    def n_tensors() -> int:
        gc.collect()
        return sum(type(thing) is th.Tensor for thing in gc.get_objects())

    _, batch = actor_and_batch(model := collected(name))
    read_actor(model.policy, batch)
    before = n_tensors()
    for _ in range(3):
        read_actor(model.policy, batch)
    assert n_tensors() == before


def test_unknown_distribution_is_refused() -> None:
    model = collected("box")
    _, batch = actor_and_batch(model)
    original = model.policy.get_distribution

    def get_distribution(observations: Any) -> Any:
        distribution = original(observations)
        distribution.distribution = td.StudentT(th.ones(len(observations), 2))
        return distribution

    policy: Any = model.policy
    policy.get_distribution = get_distribution
    with pytest.raises(ValueError, match="StudentT"):
        read_actor(policy, batch)


@pytest.mark.parametrize("case", POLICIES)
def test_every_policy_whose_parameters_are_of_layers_can_be_differentiated_by_layers(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layerwise, "SLOPE_COST", 0.0)
    monkeypatch.setattr("sb3_trpo._actor.linearize_mlp", lambda *_: None)
    actor, batch = actor_and_batch(collected(case))
    kind = AutogradLinearization if case in BY_AUTOGRAD else LayerwiseLinearization
    assert type(actor.linearize(batch)) is kind


@pytest.mark.parametrize("case", POLICIES)
def test_jacobian_and_its_transpose_are_adjoint(case: str) -> None:
    """⟨Jv, u⟩ = ⟨v, Jᵀu⟩."""
    actor, batch = actor_and_batch(collected(case, float64=True))
    one, two = jacobian_products(actor, batch)
    th.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", POLICIES)
def test_distribution_is_that_of_the_policy(case: str) -> None:
    actor, batch = actor_and_batch(collected(case, float64=True))
    expected = actor.policy.get_distribution(batch.observations)
    ours = actor.distribution(batch).log_prob(batch.actions)
    th.testing.assert_close(ours, expected.log_prob(batch.actions), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["box", "gsde"])
def test_distribution_follows_the_parameters(name: str) -> None:
    """Nothing that is kept for derivatives may hide a step of the line search."""
    actor, batch = actor_and_batch(collected(name, float64=True))
    actor.linearize(batch)
    with th.no_grad():
        for parameter in actor.parameters:
            parameter.add_(0.1)
    expected = actor.policy.get_distribution(batch.observations).log_prob(batch.actions)
    ours = actor.distribution(batch).log_prob(batch.actions)
    th.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_linearizations_stay_as_far_as_there_is_memory() -> None:
    actor, batch = actor_and_batch(collected("gsde"))
    first, second, third = chunks = batch.chunks(8)
    linearized = LinearizedActor(replace(actor, max_states_in_memory=16), chunks)
    one, two = linearized.at(first), linearized.at(second)
    assert linearized.at(second) is two
    linearized.at(third)
    assert linearized.at(first) is one
    assert linearized.at(second) is not two


class DirectCall(BaseFeaturesExtractor):
    """An extractor that runs a layer without parameters past the hooks of its call."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=3)
        self.norm = nn.BatchNorm1d(3, affine=False)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.norm.forward(observations)


def test_all_modules_of_the_actors_extractor_are_the_actors() -> None:
    case = Case(policy_kwargs={"features_extractor_class": DirectCall})
    actor, batch = actor_and_batch(collected(case))
    before = running_statistics(actor.policy)
    assert actor.refresh_running_statistics([batch])
    after = running_statistics(actor.policy)
    assert before
    assert not any(th.equal(before[key], after[key]) for key in before)


def test_metric_builds_no_graph() -> None:
    actor, batch = actor_and_batch(collected("box"))
    linearization = actor.linearize(batch)
    with th.enable_grad():
        products = linearization.metric(linearization.distribution.outputs)
    detached = tuple(z.detach() for z in linearization.distribution.outputs)
    assert not any(u.requires_grad for u in linearization.metric(detached))
    th.testing.assert_close(tuple(u.detach() for u in products), linearization.metric(detached))


# th.compile


def check_compiled(model: TRPO, compile_part: Callable[[Any], Any]) -> None:
    """Compare the actor before and after a part of the policy, or all of it, is compiled."""
    plain, batch = actor_and_batch(model)
    expected = jacobian_products(plain, batch)
    outputs = tuple(z.detach() for z in plain.distribution(batch).outputs)
    model.policy = compile_part(model.policy)
    actor, batch = actor_and_batch(model)
    assert [id(p) for p in actor.parameters] == [id(p) for p in plain.parameters]
    assert plain.modules <= actor.modules
    th.testing.assert_close(jacobian_products(actor, batch), expected, rtol=1e-4, atol=1e-5)
    with th.no_grad():  # as the line search does, through the compiled code
        compiled = actor.distribution(batch).outputs
    th.testing.assert_close(compiled, outputs, rtol=1e-5, atol=1e-6)


def compiled_nets(policy: Any) -> Any:
    """Compile both networks, for good, with a backend whose graphs have no second derivative."""
    nets = policy.mlp_extractor
    nets.policy_net = th.compile(nets.policy_net, backend="aot_eager")
    nets.value_net = th.compile(nets.value_net, backend="aot_eager")
    return policy


def compiled_extractor(policy: Any) -> Any:
    policy.features_extractor.compile(backend="aot_eager")
    return policy


@pytest.mark.parametrize("name", ["box", "gsde", "batch_norm_shared"])
def test_compiled_policy_is_the_same_actor(name: str) -> None:
    check_compiled(collected(name), lambda policy: th.compile(policy, backend="aot_eager"))


@pytest.mark.parametrize("compile_part", [compiled_nets, compiled_extractor])
@pytest.mark.parametrize("name", ["box_shared", "batch_norm_shared"])
def test_policy_with_a_compiled_part_is_the_same_actor(
    name: str, compile_part: Callable[[Any], Any]
) -> None:
    check_compiled(collected(name), compile_part)


# Modes and running statistics


def running_statistics(policy: ActorCriticPolicy) -> dict[str, th.Tensor]:
    return {name: b.clone() for name, b in policy.named_buffers() if "running" in name}


@pytest.mark.parametrize("name", ["batch_norm_shared", "batch_norm_separate"])
def test_running_statistics_move_in_the_one_pass_and_at_no_other_time(name: str) -> None:
    model = collected(name)
    before = running_statistics(model.policy)
    assert before
    actor, batch = actor_and_batch(model)
    jacobian_products(actor, batch)
    actor.distribution(batch)
    still = running_statistics(model.policy)
    assert all(th.equal(before[key], still[key]) for key in before)
    assert actor.refresh_running_statistics(batch.chunks(8))
    moved = running_statistics(model.policy)
    shared = name == "batch_norm_shared"
    for key in before:
        is_actors = shared or not key.startswith("vf_")
        assert th.equal(before[key], moved[key]) is not is_actors, key
    assert not any(module.training for module in model.policy.modules())


def test_running_statistics_are_those_of_one_pass_in_training_mode() -> None:
    model, twin = collected("batch_norm_shared"), collected("batch_norm_shared")
    actor, batch = actor_and_batch(model)
    actor.refresh_running_statistics(batch.chunks(8))
    twin.policy.set_training_mode(True)
    for chunk in batch.chunks(8):
        twin.policy.get_distribution(chunk.observations)
    ours, theirs = running_statistics(model.policy), running_statistics(twin.policy)
    assert all(th.equal(ours[key], theirs[key]) for key in ours)


def test_pass_over_the_batch_draws_no_dropout() -> None:
    """Only the batch normalisation is in training mode."""
    kwargs = {"features_extractor_kwargs": {"batch_norm": True, "dropout": 0.5}}
    actor, batch = actor_and_batch(collected("batch_norm_shared", policy_kwargs=kwargs))
    state = th.get_rng_state()
    assert actor.refresh_running_statistics([batch])
    assert th.equal(th.get_rng_state(), state)


def test_single_states_are_passed_over_because_they_have_no_variance() -> None:
    model = collected("batch_norm_shared")
    before = running_statistics(model.policy)
    actor, batch = actor_and_batch(model)
    assert actor.refresh_running_statistics(batch.chunks(1))
    after = running_statistics(model.policy)
    assert all(th.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", ["box", "dropout_shared"])
def test_policy_without_running_statistics_needs_no_pass(name: str) -> None:
    actor, batch = actor_and_batch(collected(name))
    assert not actor.refresh_running_statistics([batch])


class Normalizing(nn.Module):
    """Normalises by the mean of what it has seen in training mode."""

    count: th.Tensor
    total: th.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", th.tensor(0))
        self.register_buffer("total", th.zeros(3))
        self.register_buffer("constant", th.ones(3))

    def forward(self, x: th.Tensor) -> th.Tensor:
        if self.training:
            self.count += len(x)
            self.total += x.sum(0)
        return x - self.total / self.count.clamp(min=1)


class Seen(BaseFeaturesExtractor):
    """
    A layer of two modes in front of a linear one.

    :param mode: ``pinned`` if a pretrained layer is to stay as it is
    """

    def __init__(self, observation_space: spaces.Box, layer: Any, mode: str = "") -> None:
        super().__init__(observation_space, features_dim=4)
        self.layer, self.mode = layer(), mode
        self.last = nn.Linear(3, 4)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return th.tanh(self.last(self.layer(x)))

    def train(self, mode: bool = True) -> "Seen":
        super().train(mode)
        if self.mode == "pinned":
            self.layer.eval()
        return self


def seeing(name: str, layer: Any, mode: str = "", **options: Any) -> Any:
    """Make a model with such an extractor, for actor and critic each."""
    case = CASES[name]
    kwargs = {
        "features_extractor_class": Seen,
        "features_extractor_kwargs": {"layer": layer, "mode": mode},
        "share_features_extractor": False,
    }
    return toy_model(replace(case, policy_kwargs=case.policy_kwargs | kwargs), **options)


@pytest.mark.parametrize("name", ["box", "lstm_box"])
def test_layer_that_normalises_by_what_it_has_seen_sees_the_rollout_once(name: str) -> None:
    model = seeing(name, Normalizing).learn(64)
    layer = model.policy.pi_features_extractor.layer
    assert layer.count == 64  # of an LSTM's sequences, no padding
    rollout = read_rollout(model.rollout_buffer, model.device, th.float32).actor_batch
    observations: Any = rollout.observations
    th.testing.assert_close(layer.total, observations.sum(0), rtol=1e-4, atol=1e-4)


def test_spectral_norm_of_the_actor_stays_one() -> None:
    def layer() -> nn.Module:
        return nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))

    model = seeing("box", layer, target_kl=0.3).learn(64 * 20)
    weight = model.policy.pi_features_extractor.layer.weight
    assert float(th.linalg.matrix_norm(weight.detach(), 2)) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", ["box", "lstm_box"])
def test_pretrained_layer_that_is_pinned_to_evaluation_mode_stays_as_it_is(name: str) -> None:
    model = seeing(name, lambda: nn.BatchNorm1d(3), mode="pinned")
    before = running_statistics(model.policy)
    assert len(before) >= 4
    model.learn(64)
    after = running_statistics(model.policy)
    assert all(th.equal(before[key], after[key]) for key in before)
    assert "train/kl_after_running_statistics" not in model.logger.name_to_value


class Averaging(nn.Module):
    """Replaces its buffers in training mode, as moving averages are often written."""

    count: th.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", th.tensor(0.0))

    def forward(self, x: th.Tensor) -> th.Tensor:
        if self.training:
            self.count = self.count + 1
        return x - 0.01 * self.count


def test_layer_that_replaces_its_buffer_sees_every_minibatch() -> None:
    model = seeing("box", Averaging, n_critic_updates=3)
    model.learn(64)
    assert model.policy.pi_features_extractor.layer.count == 64 / model.batch_size
    assert model.policy.vf_features_extractor.layer.count == 3 * 64 / model.batch_size
    assert "train/kl_after_running_statistics" in model.logger.name_to_value


class AtLast(Normalizing):
    """Runs for the last state of an episode alone."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        is_last = x[:, 2] > 0.9
        if not is_last.any():
            return x
        return x.index_copy(0, is_last.nonzero().flatten(), super().forward(x[is_last]))


# The observations are changed after the rollout.
@pytest.mark.filterwarnings("ignore:The rollout's actions were not drawn")
def test_layer_that_runs_for_few_states_sees_all_of_these() -> None:
    model = seeing("box", AtLast, batch_size=8)
    model.policy.set_training_mode(False)
    model.rollout_buffer = collected("box", n_steps=32, n_envs=2).rollout_buffer
    observations = model.rollout_buffer.observations
    observations[..., 2] = np.arange(64).reshape(32, 2) >= 50
    model._setup_learn(64)
    model.train()
    assert model.policy.pi_features_extractor.layer.count == 14


def test_spectral_norm_behind_an_lstm_stays_one() -> None:
    model = toy_model("lstm_box", target_kl=0.3)
    network = model.policy.mlp_extractor.policy_net
    network[0] = nn.utils.parametrizations.spectral_norm(network[0])
    model.policy.optimizer = th.optim.Adam(model.policy.parameters())
    model.learn(64 * 15)
    assert float(th.linalg.matrix_norm(network[0].weight.detach(), 2)) == pytest.approx(1, abs=0.01)


def test_batch_normalisation_that_is_pinned_may_see_single_states() -> None:
    model = seeing("box", lambda: nn.BatchNorm1d(3), mode="pinned").learn(64)
    actor, _ = actor_and_batch(model)
    critic = read_critic(model.policy, actor.parameters, actor.modules, 16)
    assert (critic.least_states, critic.max_states_per_chunk) == (1, 16)


def test_training_mode_is_left_even_when_the_block_raises() -> None:
    outer = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout())).eval()
    inner = outer[1]

    def fail() -> None:
        with training_mode([outer, inner]):
            assert [m.training for m in (outer, outer[0], inner)] == [True, False, True]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not any(module.training for module in outer.modules())


# Memory


def repeated(batch: ActorBatch, times: int) -> ActorBatch:
    index = th.arange(len(batch)).repeat(times)
    return batch.select(index)


@pytest.mark.parametrize("name", ["box", "gsde", "cnn_discrete", "dict_box", "empty_net_arch"])
def test_chunk_size_does_not_depend_on_the_number_of_states(name: str) -> None:
    """Memory is counted per state; a bigger rollout has the same states."""
    model = collected(name)
    _, batch = actor_and_batch(model)
    sizes = {
        read_actor(model.policy, repeated(batch, times)).max_states_per_chunk
        for times in (2, 20, 200)
    }
    assert max(sizes) <= 1.05 * min(sizes)


@pytest.mark.parametrize("name", ["box", "cnn_discrete"])
def test_chunk_size_is_deterministic_and_takes_what_it_is_told(name: str) -> None:
    model = collected(name)
    _, batch = actor_and_batch(model)
    sizes = {read_actor(model.policy, batch).max_states_per_chunk for _ in range(3)}
    ballast = th.zeros(10**7)
    sizes.add(read_actor(model.policy, batch).max_states_per_chunk)
    assert len(sizes) == 1
    assert ballast.sum() == 0
    told = read_actor(model.policy, batch, max_states_per_chunk=5)
    assert told.max_states_per_chunk == told.max_states_in_memory == 5


def test_reading_an_actor_evaluates_a_few_states_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = collected("box_shared")
    _, batch = actor_and_batch(model)
    sizes: list[int] = []
    original = model.policy.get_distribution

    def counted(observations: Any) -> Any:
        sizes.append(len(observations))
        return original(observations)

    monkeypatch.setattr(model.policy, "get_distribution", counted)
    read_actor(model.policy, repeated(batch, 100))
    assert sum(sizes) <= 16


def test_graphs_take_about_half_a_gigabyte() -> None:
    """Counted here as everything that four forward passes save for their backward passes."""
    actor, batch = actor_and_batch(collected("gsde", policy_kwargs={"net_arch": [64, 64]}))
    saved: dict[int, int] = {}

    def note(tensor: th.Tensor) -> th.Tensor:
        saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with th.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        actor.policy.get_distribution(batch.observations)
    own = {parameter.data_ptr() for parameter in actor.policy.parameters()}
    per_state = sum(size for key, size in saved.items() if key not in own) / len(batch)
    assert 2.5e8 < 4 * per_state * actor.max_states_in_memory < 5.5e8


def test_bigger_networks_get_smaller_chunks() -> None:
    small, large = collected("box"), collected("box", policy_kwargs={"net_arch": [512, 512]})
    actors = [actor_and_batch(model)[0] for model in (small, large)]
    assert actors[1].max_states_per_chunk < actors[0].max_states_per_chunk / 10
    assert actors[1].max_states_in_memory > 2048


def test_frozen_weights_are_not_counted_per_state() -> None:
    """They are kept once, however many states there are."""
    model = collected("box", policy_kwargs={"net_arch": [512, 512]})
    free, batch = actor_and_batch(model)
    freeze("mlp_extractor.policy_net.2")(model.policy)
    frozen = read_actor(model.policy, batch)
    assert frozen.max_states_per_chunk >= 0.9 * free.max_states_per_chunk


def test_slopes_of_many_outputs_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer by layer, every output of the network keeps its slopes with respect to every layer."""
    extractor = {"features_extractor_class": LinearExtractor, "net_arch": [64, 64]}
    cases = [Case("MlpPolicy", VECTOR, spaces.Discrete(n), extractor) for n in (2, 8)]
    monkeypatch.setattr(layerwise, "SLOPE_COST", 0.0)
    few, many = (actor_and_batch(collected(case))[0].max_states_in_memory for case in cases)
    assert many < 0.75 * few


def test_only_images_are_cut_into_chunks_that_stay_in_the_caches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An LSTM's time goes by the step, whatever the number of sequences."""
    monkeypatch.setattr(actor_module, "_CHUNK_BUDGET", 1)
    images, _ = actor_and_batch(collected("cnn_discrete"))
    vectors, _ = actor_and_batch(collected("box_shared"))
    assert images.max_states_per_chunk == 1 < images.max_states_in_memory
    assert vectors.max_states_per_chunk == vectors.max_states_in_memory
    model = toy_model("lstm_box")
    collect(model)
    model.policy.set_training_mode(False)
    batch = read_rollout(model.rollout_buffer, model.device, th.float32).actor_batch
    sequences = read_actor(model.policy, batch)
    assert sequences.max_states_per_chunk == sequences.max_states_in_memory


def test_a_gpus_memory_budget_is_a_share_of_all_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    card = types.SimpleNamespace(total_memory=80_000_000_000)
    monkeypatch.setattr(th.cuda, "get_device_properties", lambda device: card)
    assert actor_module._memory_budget(th.device("cuda:0")) == 16_000_000_000
    assert actor_module._memory_budget(th.device("cpu")) == 480_000_000
