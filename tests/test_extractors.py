"""Whatever features extractor PPO and A2C train is trained, with the right Fisher products."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from torch import nn

from sb3_trpo._linearization import RowwiseLinearization
from sb3_trpo._surrogate import improvement_and_kl
from tests import reference
from tests.cases import (
    Case,
    actor_and_batch,
    collected,
    fisher_products,
    random_vectors,
    surrogate_of,
    toy_envs,
    toy_model,
)
from tests.environments import DISCRETE_ACTIONS, VECTOR
from tests.layers import LAYERS, behind_a_linear_layer

# torch calls nested and compressed tensors prototypes; ours says what is slow.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*cannot differentiate twice:UserWarning"),
]

ATTENTION = [name for name in LAYERS if "ttention" in name]
TINY: dict[str, Any] = {"n_envs": 3, "n_steps": 8, "batch_size": 8}

# Second differences in float64 of a KL divergence whose derivatives are around 1.
RTOL, ATOL = 1e-4, 1e-7


@pytest.mark.parametrize("name", LAYERS)
def test_every_extractor_is_trained(name: str) -> None:
    model = toy_model(behind_a_linear_layer(name), **TINY)
    before = reference.flat(list(model.policy.parameters()))
    model.learn(24)
    assert model.logger.name_to_value["train/is_line_search_success"] == 1
    assert not th.equal(reference.flat(list(model.policy.parameters())), before)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_table_lists_what_ppo_and_a2c_train(name: str) -> None:
    case = behind_a_linear_layer(name)
    env = toy_envs(case, 3)
    options: dict[str, Any] = {"policy_kwargs": {"net_arch": [5], **case.policy_kwargs}, "seed": 0}
    for model in (
        PPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, **options),
        A2C("MlpPolicy", env, n_steps=8, **options),
    ):
        before = reference.flat(list(model.policy.parameters()))
        model.learn(24)
        assert not th.equal(reference.flat(list(model.policy.parameters())), before)


@pytest.mark.parametrize("name", LAYERS)
def test_fisher_product_equals_second_differences_of_the_kl(name: str) -> None:
    actor, batch = actor_and_batch(collected(behind_a_linear_layer(name), float64=True))
    vectors = random_vectors(actor)
    expected = reference.fisher_products_by_differences(
        actor.policy, batch.observations, actor.parameters, vectors
    )
    assert expected.abs().max() > 1e-6
    ours = fisher_products(actor, batch.chunks(16), vectors)
    th.testing.assert_close(ours, expected, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("name", ATTENTION)
def test_kl_divergence_from_itself_is_zero_to_rounding(name: str) -> None:
    """The gradient and the line search see the same numbers, fused kernels or not."""
    actor, batch = actor_and_batch(collected(behind_a_linear_layer(name)))
    surrogate = surrogate_of(actor, (batch,))
    improvement, kl = improvement_and_kl(actor, surrogate.old)
    assert kl == pytest.approx(0.0, abs=1e-10)
    assert improvement == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("EmbeddingBag, sum", "_embedding_bag_backward"),
        ("segment_reduce, PReLU", "_segment_reduce_backward"),
        ("once differentiable", "leaves autograd"),
        ("backward outside autograd", "leaves autograd"),
    ],
)
def test_operation_that_makes_the_update_slow_is_named(name: str, reason: str) -> None:
    model = collected(behind_a_linear_layer(name))
    with pytest.warns(UserWarning, match=f"cannot differentiate twice.*{reason}"):
        actor, batch = actor_and_batch(model)
    assert isinstance(actor.linearize(batch), RowwiseLinearization)


def test_settings_of_torch_are_as_before() -> None:
    before = th.backends.mha.get_fastpath_enabled(), th._C._get_flash_sdp_enabled()
    actor_and_batch(collected(behind_a_linear_layer("TransformerEncoder")))
    after = th.backends.mha.get_fastpath_enabled(), th._C._get_flash_sdp_enabled()
    assert before == after == (True, True)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e-7, 1e-6, 1e-5, 1e-4, 1e-2])
def test_nearly_uniform_logits_are_no_fault_of_an_operation(scale: float) -> None:
    """The gradient of their sum is the rounding of terms that cancel."""
    model = collected(Case("MlpPolicy", VECTOR, spaces.Discrete(2), {"net_arch": [4]}))
    with th.no_grad():
        model.policy.action_net.weight *= scale
        model.policy.action_net.bias *= scale
    model.rollout_buffer.observations *= 100
    actor, batch = actor_and_batch(model)
    assert not actor.is_differentiable_once
    assert type(actor.linearize(batch)) is not RowwiseLinearization


@pytest.mark.parametrize("most", [None, 3])
def test_sparse_gradients_are_trained_with(most: int | None) -> None:
    case = behind_a_linear_layer("Embedding")
    model = toy_model(case, **TINY, max_states_per_chunk=most)
    for module in model.policy.modules():
        if isinstance(module, th.nn.Embedding):
            module.sparse = True
    model.policy.optimizer = th.optim.SGD(model.policy.parameters(), 1e-3)
    model.learn(24)
    assert model.logger.name_to_value["train/is_line_search_success"] == 1


class Frozen(BaseFeaturesExtractor):
    """
    A frozen encoder in another precision, in front of what is trained.

    :param dtype: of its weights
    """

    def __init__(self, space: spaces.Box, dtype: th.dtype) -> None:
        super().__init__(space, 4)
        weights = 30 * th.randn(4, space.shape[0])
        self.weights = nn.Parameter(weights.to(dtype), requires_grad=False)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return th.tanh(x @ (self.weights.float() / 30).T)


@pytest.mark.parametrize("dtype", [th.bfloat16, th.float16, th.float64, th.int8])
def test_frozen_part_in_another_precision_does_not_choose_that_of_the_update(
    dtype: th.dtype,
) -> None:
    options = {"features_extractor_class": Frozen, "features_extractor_kwargs": {"dtype": dtype}}
    model = toy_model(Case("MlpPolicy", VECTOR, DISCRETE_ACTIONS, options), **TINY)
    seen: list[th.dtype] = []
    update = model._update_actor

    def look(rollout: Any) -> Any:
        seen.extend([rollout.returns.dtype, rollout.actor_batch.old_log_prob.dtype])
        return update(rollout)

    vars(model)["_update_actor"] = look
    model.learn(24)
    assert set(seen) == {th.float32}
    assert model.logger.name_to_value["train/is_line_search_success"] == 1


class MixedPrecision(NatureCNN):
    """Convolutions in half the precision, as automatic mixed precision runs them."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        with th.autocast("cpu", dtype=th.bfloat16):
            return super().forward(observations).float()


def test_mixed_precision_is_trained() -> None:
    images = spaces.Box(0, 255, (1, 36, 36), np.uint8)
    options = {"features_extractor_class": MixedPrecision}
    model = toy_model(Case("CnnPolicy", images, DISCRETE_ACTIONS, options), **TINY).learn(24)
    assert model.logger.name_to_value["train/is_line_search_success"] == 1
