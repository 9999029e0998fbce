"""Layers that take their weights out of the graph in evaluation mode are trained all the same."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_trpo import TRPO
from sb3_trpo._actor import read_actor
from sb3_trpo.checkpoint import TrainingCheckpoint, resume_training
from tests.cases import rollout_of, toy_model
from tests.environments import changed, collect, state_of

OPTIONS: dict[str, Any] = {"n_envs": 2, "n_steps": 32, "batch_size": 16, "seed": 1}


class LowRank(nn.Linear):
    """A layer with a low-rank adapter, on its own."""

    def __init__(self, n_inputs: int, n_outputs: int, dropout: float) -> None:
        super().__init__(n_inputs, n_outputs)
        self.down = nn.Parameter(th.randn(2, n_inputs))
        self.up = nn.Parameter(0.1 * th.randn(n_outputs, 2))
        self.weight.requires_grad_(False)
        self.inner = nn.Dropout(dropout)
        self.is_merged = False

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Apply both, or the sum of both."""
        y = super().forward(x)
        return y if self.is_merged else y + self.inner(x) @ self.down.T @ self.up.T

    def merge(self, is_merged: bool) -> None:
        """Add the adapter to the weight, or take it away again."""
        self.weight.data += (1 if is_merged else -1) * self.up.data @ self.down.data
        self.is_merged = is_merged


class Merged(LowRank):
    """The same, merged in evaluation mode as the layers of loralib are."""

    def train(self, mode: bool = True) -> "Merged":
        """Add the adapter to the weight, or take it away again."""
        super().train(mode)
        if self.is_merged is mode:
            self.merge(not mode)
        return self


class AtTheChange(LowRank):
    """One that looks at its flag to see whether it is merged."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Apply both, or the sum of both."""
        y = nn.functional.linear(x, self.weight, self.bias)
        return y + self.inner(x) @ self.down.T @ self.up.T if self.training else y

    def train(self, mode: bool = True) -> "AtTheChange":
        """Add the adapter to the weight, or take it away again."""
        if mode != self.training:
            self.merge(not mode)
        super().train(mode)
        return self


class Noisy(Merged):
    """One whose training mode computes something else."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Add noise."""
        y = super().forward(x)
        return y + th.randn_like(y) if self.training else y


class RandomGradient(Merged):
    """One with dropout of its own, of which the outputs show nothing while ``up`` is zero."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Drop inputs of the adapter."""
        y = nn.functional.linear(x, self.weight, self.bias)
        if self.is_merged:
            return y
        return y + nn.functional.dropout(x, 0.5, self.training) @ self.down.T @ self.up.T


class Trunk(nn.Sequential):
    """A container that does something of its own when its mode is set."""

    def train(self, mode: bool = True) -> "Trunk":
        """Set the mode."""
        super().train(mode)
        return self


class NoisyTrunk(Trunk):
    """A container that computes something random in training mode."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Add noise."""
        y: th.Tensor = nn.Sequential.forward(self, x)  # type: ignore[no-untyped-call]
        return y + th.randn_like(y) if self.training else y


class Normalisation(nn.BatchNorm1d):
    """Batch normalisation that does something of its own when its mode is set."""

    def train(self, mode: bool = True) -> "Normalisation":
        """Set the mode."""
        super().train(mode)
        return self


class ForRareStates(nn.Module):
    """An adapter for states that are not among those that are tried first."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.main, self.rare = layer, Merged(layer.in_features, layer.out_features, 0.0)
        self.least = math.inf

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Add the adapted layer's outputs for large inputs."""
        y: th.Tensor = self.main(x)
        rare = x[:, 0] > self.least
        if rare.any():
            y = y.clone()
            y[rare] += self.rare(x[rare])
        return y


def adapted(kind: type[LowRank], part: str, dropout: float = 0.0) -> TRPO:
    """Make a model whose first layer of one network has an adapter."""
    model: TRPO = toy_model("discrete", **OPTIONS)
    network = getattr(model.policy.mlp_extractor, part)
    th.manual_seed(0)
    network[0] = kind(network[0].in_features, network[0].out_features, dropout)
    model.policy.optimizer = th.optim.SGD(model.policy.parameters(), lr=0.05)
    return model


@pytest.mark.parametrize(
    ("part", "dropout"), [("policy_net", 0.0), ("policy_net", 0.5), ("value_net", 0.0)]
)
@pytest.mark.parametrize("merging", [Merged, AtTheChange])
def test_merged_adapter_is_trained_as_one_that_is_never_merged(
    merging: type[LowRank], part: str, dropout: float
) -> None:
    states = []
    for kind in (merging, LowRank):
        model = adapted(kind, part, dropout)
        start = state_of(model)
        model.learn(64)
        states.append(state_of(model))
    merged, apart = states
    assert merged.keys() == apart.keys()
    for name, values in merged.items():
        th.testing.assert_close(values, apart[name], rtol=1e-3, atol=1e-5)
    name = f"mlp_extractor.{part}.0.up"
    assert not th.equal(merged[name], start[name])


def test_adapter_may_be_all_that_is_trained() -> None:
    model = adapted(Merged, "policy_net")
    layer: Any = model.policy.mlp_extractor.policy_net[0]
    before = layer.up.detach().clone()
    for name, parameter in model.policy.named_parameters():
        parameter.requires_grad_("value" in name or parameter is layer.up)
    model.learn(64)
    assert not th.equal(layer.up, before)


@pytest.mark.parametrize("kind", [Merged, AtTheChange])
@pytest.mark.parametrize("container", [nn.Sequential, Trunk, NoisyTrunk])
def test_adapter_inside_a_container_with_modes_of_its_own_is_trained(
    container: type[nn.Sequential], kind: type[LowRank]
) -> None:
    model = adapted(kind, "policy_net")
    layers: Any = model.policy.mlp_extractor
    layers.policy_net = container(*layers.policy_net)
    layer = layers.policy_net[0]
    before, weight = layer.up.detach().clone(), layer.weight.clone()
    model.learn(64)
    assert not th.equal(layer.up, before)
    th.testing.assert_close(layer.weight, weight, rtol=0, atol=1e-6)  # apart, and frozen


def test_policy_that_merges_its_layers_itself_is_trained() -> None:
    model = adapted(LowRank, "policy_net")
    layer: Any = model.policy.mlp_extractor.policy_net[0]

    class Merging(type(model.policy)):  # type: ignore[misc]
        def train(self, mode: bool = True) -> "Merging":
            super().train(mode)
            if layer.is_merged is mode:
                layer.merge(not mode)
            return self

    model.policy.__class__ = Merging
    before = layer.up.detach().clone()
    model.learn(64)
    assert not th.equal(layer.up, before)


def test_adapter_for_rare_states_is_trained() -> None:
    model = toy_model("discrete", **OPTIONS)
    network = model.policy.mlp_extractor.policy_net
    part = network[0] = ForRareStates(network[0])
    collect(model)
    batch: Any = rollout_of(model).actor_batch
    tried: Any = batch.every(len(batch) // 16, 0)
    part.least = float(tried.observations[:, 0].max())
    assert bool((batch.observations[:, 0] > part.least).any())
    before = part.rare.up.detach().clone()
    model.train()
    assert not th.equal(part.rare.up, before)


@pytest.mark.parametrize("kind", [Noisy, RandomGradient])
def test_what_evaluation_mode_does_not_compute_is_not_trained_and_named(
    kind: type[LowRank],
) -> None:
    model = adapted(kind, "policy_net")
    layer: Any = model.policy.mlp_extractor.policy_net[0]
    nn.init.zeros_(layer.up)
    before = layer.up.detach().clone()
    with pytest.warns(UserWarning, match=r"not trained: .*policy_net\.0\.down.*\.up\."):
        model.learn(64)
    assert th.equal(layer.up, before)
    assert model.logger.name_to_value["train/is_line_search_success"] == 1


def test_running_statistics_do_not_move_before_the_step() -> None:
    model = toy_model("discrete", **OPTIONS)
    extractor = model.policy.mlp_extractor
    first, *others = extractor.policy_net
    norm = Normalisation(first.out_features)
    extractor.policy_net = nn.Sequential(first, norm, *others)
    collect(model)
    model.policy.set_training_mode(False)
    before = copy.deepcopy(norm.state_dict())
    read_actor(model.policy, rollout_of(model).actor_batch)
    for name, values in norm.state_dict().items():
        assert th.equal(values, before[name])


def test_part_of_a_merged_critic_that_is_pinned_to_evaluation_mode_stays_in_it() -> None:
    model = adapted(Merged, "value_net", dropout=0.5)
    layer: Any = model.policy.mlp_extractor.value_net[0]
    seen = []
    layer.inner.register_forward_hook(lambda *_: seen.append(layer.inner.training))
    set_mode = model.policy.set_training_mode

    def pinning(mode: bool) -> None:
        set_mode(mode)
        layer.inner.train(False)

    model.policy.set_training_mode = pinning  # type: ignore[method-assign]
    model.learn(64)
    assert seen
    assert not any(seen)


def test_fit_that_is_undone_leaves_merged_weights_as_they_were() -> None:
    model = adapted(Merged, "value_net")
    layer: Any = model.policy.mlp_extractor.value_net[0]
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    collect(model)
    calls = []

    def fail(*_: Any) -> None:
        calls.append(not th.equal(layer.up, before["up"]))
        if layer.training and any(calls):
            raise ArithmeticError

    layer.register_forward_hook(fail)
    with pytest.raises(ArithmeticError):
        model.train()
    model.policy.set_training_mode(True)
    for name, values in layer.state_dict().items():
        th.testing.assert_close(values, before[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ["discrete", "lstm_box", "masked_discrete"])
def test_policy_is_in_training_mode_after_learning(case: str) -> None:
    model = toy_model(case, **OPTIONS)
    model.learn(64)
    assert all(module.training for module in model.policy.modules())


@pytest.mark.parametrize("has_predicted", [False, True])
def test_saved_model_with_a_merged_layer_acts_as_the_model(
    has_predicted: bool, tmp_path: Path
) -> None:
    model = adapted(Merged, "policy_net").learn(64)
    observations = th.randn(9, *(model.observation_space.shape or ()))
    if has_predicted:
        model.predict(observations[0].numpy())
    model.save(tmp_path / "model.zip")
    loaded = adapted(Merged, "policy_net")
    loaded.policy.set_training_mode(not has_predicted)
    loaded.set_parameters(str(tmp_path / "model.zip"))
    one, other = (m.policy.evaluate_actions(observations, th.zeros(9)) for m in (model, loaded))
    assert model.policy.training is not has_predicted
    th.testing.assert_close(one[1], other[1])


class MergedExtractor(BaseFeaturesExtractor):
    """A features extractor with a merged layer."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 8)
        self.layer = Merged(observation_space.shape[0], 8, 0.0)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """Evaluate the layer."""
        return self.layer(observations)  # type: ignore[no-any-return]


def test_training_with_a_merged_layer_resumes_bitwise(tmp_path: Path) -> None:
    extractor = {"features_extractor_class": MergedExtractor}
    options: dict[str, Any] = {"policy_kwargs": extractor, "n_steps": 32, "batch_size": 32}
    model = TRPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu", **options)
    model.learn(128, callback=TrainingCheckpoint(tmp_path, save_freq=64))
    (checkpoint,) = tmp_path.glob("*_64_*")
    resumed = resume_training(checkpoint, "CartPole-v1", device="cpu")
    assert not changed(state_of(model), state_of(resumed))
