"""Layers that take their weights out of the graph in evaluation mode are trained all the same."""

from pathlib import Path
from typing import Any

import pytest
import torch as th
from torch import nn

from sb3_trpo import TRPO
from tests.cases import toy_model
from tests.environments import state_of

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


class Merged(LowRank):
    """The same, merged in evaluation mode as the layers of loralib are."""

    def train(self, mode: bool = True) -> "Merged":
        """Add the adapter to the weight, or take it away again."""
        super().train(mode)
        if self.is_merged is mode:
            self.weight.data += (-1 if mode else 1) * self.up.data @ self.down.data
            self.is_merged = not mode
        return self


class Noisy(Merged):
    """One whose training mode computes something else."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Add noise."""
        y = super().forward(x)
        return y + th.randn_like(y) if self.training else y


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
def test_merged_adapter_is_trained_as_one_that_is_never_merged(part: str, dropout: float) -> None:
    states = []
    for kind in (Merged, LowRank):
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


def test_what_evaluation_mode_does_not_compute_is_not_trained_and_named() -> None:
    model = adapted(Noisy, "policy_net")
    layer: Any = model.policy.mlp_extractor.policy_net[0]
    before = layer.up.detach().clone()
    with pytest.warns(UserWarning, match="Noisy are not trained"):
        model.learn(64)
    assert th.equal(layer.up, before)
    assert model.logger.name_to_value["train/is_line_search_success"] == 1


@pytest.mark.parametrize("case", ["discrete", "lstm_box", "masked_discrete"])
def test_policy_is_in_training_mode_after_learning(case: str) -> None:
    model = toy_model(case, **OPTIONS)
    model.learn(64)
    assert all(module.training for module in model.policy.modules())


def test_saved_model_with_a_merged_layer_acts_as_the_model(tmp_path: Path) -> None:
    model = adapted(Merged, "policy_net")
    model.learn(64)
    model.save(tmp_path / "model.zip")
    loaded = adapted(Merged, "policy_net")
    loaded.set_parameters(str(tmp_path / "model.zip"))
    observations = th.randn(9, *(model.observation_space.shape or ()))
    one, other = (m.policy.evaluate_actions(observations, th.zeros(9)) for m in (model, loaded))
    th.testing.assert_close(one[1], other[1])
