"""Derivatives layer by layer: the same numbers as autograd, and only where they are right."""

import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch as th
from gymnasium import spaces
from torch import nn
from torch.nn import functional as F

from sb3_trpo import _layerwise as layerwise
from sb3_trpo._actor import Actor
from sb3_trpo._batch import ActorBatch
from sb3_trpo._layerwise import LayerwiseLinearization
from sb3_trpo._linearization import AutogradLinearization
from sb3_trpo._vectors import flatten
from tests.cases import POLICIES, Case, actor_and_batch, collected
from tests.environments import BOX_ACTIONS, DISCRETE_ACTIONS, TINY_IMAGE, VECTOR
from tests.layers import case_of
from tests.policies import freeze

# Sums of a few thousand products in double precision.
TOLERANCE = {"rtol": 1e-9, "atol": 1e-11}


def one_layer() -> dict[str, nn.Module]:
    return {"layer": nn.Linear(3, 4), "other": nn.Linear(4, 4)}


def products(actor: Actor, batch: ActorBatch) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """Multiply fixed vectors by J and by Jᵀ, and differentiate something."""
    linearization = actor.linearize(batch)
    generator = th.Generator().manual_seed(0)
    size = sum(parameter.numel() for parameter in actor.parameters)
    z = linearization.distribution.outputs
    vector = th.randn(size, generator=generator, dtype=th.float64)
    tangent = tuple(th.randn(o.shape, generator=generator, dtype=th.float64) for o in z)
    with th.enable_grad():
        value = linearization.distribution.log_prob(batch.actions).square().sum()
    is_relative = linearization.distribution.family.is_shift_invariant

    def centred(u: th.Tensor) -> th.Tensor:
        """Logits' tangents are the same if they differ by a constant, cotangents add up to 0."""
        return u - u.mean(dim=1, keepdim=True) if is_relative else u

    return (
        flatten([centred(t) for t in linearization.jacobian_product(vector)]),
        linearization.transposed_product(tuple(map(centred, tangent))),
        linearization.gradient(value),
    )


@pytest.fixture(autouse=True)
def _whatever_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks as small as these are cheaper by autograd."""
    monkeypatch.setattr(layerwise, "SLOPE_COST", 0.0)


def check_equal_to_autograd(case: Case | str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = collected(case, float64=True)
    actor, batch = actor_and_batch(model)
    assert isinstance(actor.linearize(batch), LayerwiseLinearization)
    ours = products(actor, batch)
    monkeypatch.setattr(layerwise, "SLOPE_COST", math.inf)
    actor, batch = actor_and_batch(model)
    assert isinstance(actor.linearize(batch), AutogradLinearization)
    for one, other in zip(ours, products(actor, batch), strict=True):
        assert other.abs().max() > 1e-6
        th.testing.assert_close(one, other, **cast(Any, TOLERANCE))


def kind_of(case: str | Case) -> type[Any]:
    actor, batch = actor_and_batch(collected(case, float64=True))
    return type(actor.linearize(batch))


@pytest.mark.parametrize(
    "name",
    [
        "box_shared",
        "gsde_shared",
        "cnn_box_separate",
        "value_proj",
        "beta",
        "frozen_extractor",
        "dropout_shared",
    ],
)
def test_products_equal_those_of_autograd(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_equal_to_autograd(name, monkeypatch)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1},
        {"dilation": 2},
        {"groups": 2, "padding": (0, 2)},
        {"bias": False, "stride": (1, 2)},
    ],
    ids=str,
)
@pytest.mark.parametrize("actions", [BOX_ACTIONS, DISCRETE_ACTIONS], ids=["box", "discrete"])
def test_products_of_convolutions_equal_those_of_autograd(
    options: dict[str, Any], actions: spaces.Space[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> dict[str, nn.Module]:
        return {"first": nn.Conv2d(1, 2, 3), "second": nn.Conv2d(2, 4, 3, **options)}

    def run(layers: Any, images: th.Tensor) -> Any:
        return F.relu(layers["second"](layers["first"](images).tanh())).mean(dim=(2, 3))

    check_equal_to_autograd(case_of(make, run, TINY_IMAGE, actions), monkeypatch)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"dilation": 2, "stride": (1, 2)},
        {"bias": False, "padding": (0, 2)},
    ],
    ids=str,
)
@pytest.mark.parametrize("frozen", ["", "weight", "bias"])
def test_convolution_with_few_weights_has_its_jacobian(
    options: dict[str, Any], frozen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> dict[str, nn.Module]:
        layer = nn.Conv2d(1, 4, 2, **options)
        if frozen and layer.bias is not None:
            getattr(layer, frozen).requires_grad = False
        return {"layer": layer}

    def run(layers: Any, images: th.Tensor) -> Any:
        return layers["layer"](images).tanh().mean(dim=(2, 3))

    case = case_of(make, run, TINY_IMAGE)
    check_equal_to_autograd(case, monkeypatch)
    monkeypatch.setattr(layerwise, "SLOPE_COST", 0.0)
    actor, batch = actor_and_batch(collected(case, float64=True))
    linearization = actor.linearize(batch)
    assert isinstance(linearization, LayerwiseLinearization)
    assert isinstance(linearization._layers[0], layerwise._SmallLayer)


def test_activation_that_overwrites_a_layers_output_is_no_trouble(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(layers: Any, x: th.Tensor) -> Any:
        return layers["other"](F.elu(layers["layer"](x), inplace=True)).tanh_()

    check_equal_to_autograd(case_of(one_layer, run), monkeypatch)


def test_branches_and_skip_connections_are_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(layers: Any, x: th.Tensor) -> Any:
        h = layers["layer"](x).tanh()
        return h * layers["other"](h).sigmoid() + h

    check_equal_to_autograd(case_of(one_layer, run), monkeypatch)


def test_layer_that_runs_aside_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """An auxiliary head, say, whose output the policy does not use."""

    def run(layers: Any, x: th.Tensor) -> Any:
        h = layers["layer"](x).tanh()
        layers["other"](h)
        return h

    check_equal_to_autograd(case_of(one_layer, run), monkeypatch)


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_half_frozen_layers_are_no_trouble(frozen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> dict[str, nn.Module]:
        layers = one_layer()
        getattr(layers["layer"], frozen).requires_grad_(False)
        return layers

    def run(layers: Any, x: th.Tensor) -> Any:
        return layers["other"](layers["layer"](x).tanh())

    check_equal_to_autograd(case_of(make, run), monkeypatch)


def sort_the_states(layers: Any, x: th.Tensor) -> Any:
    order = x[:, 0].argsort()
    return layers["other"](layers["layer"](x[order]).tanh())[order.argsort()]


def read_a_table_of_as_many_rows(layers: Any, x: th.Tensor) -> Any:
    table = th.arange(4.0 * len(x)).to(x).cos().view(len(x), 4)
    return (layers["layer"](x) @ layers["other"](table).T).softmax(1) @ table


def swap_two_states(layers: Any, x: th.Tensor) -> Any:
    order = th.arange(len(x))
    order[-2:] = order[-2:].flip(0)
    return layers["other"](layers["layer"](x).tanh()[order])[order]


@pytest.mark.parametrize("run", [sort_the_states, read_a_table_of_as_many_rows, swap_two_states])
def test_layers_whose_rows_are_not_the_states_in_order_are_no_trouble(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Mistake: the slopes of row i are taken for those of state i.
    check_equal_to_autograd(case_of(one_layer, run), monkeypatch)


def run_twice(layers: Any, x: th.Tensor) -> Any:
    h = layers["layer"](x).tanh()
    return layers["other"](layers["other"](h).tanh())


def use_a_weight_elsewhere(layers: Any, x: th.Tensor) -> Any:
    return layers["other"](layers["layer"](x).tanh()) * layers["other"].weight.norm()


def use_a_layer_aside_and_its_weight(layers: Any, x: th.Tensor) -> Any:
    h = layers["layer"](x).tanh()
    layers["other"](h)
    return F.linear(h, layers["other"].weight)


def overwrite_an_input(layers: Any, x: th.Tensor) -> Any:
    h = layers["layer"](x)
    y = layers["other"](h.detach())
    h.mul_(2.0)
    return y + h


def run_on_part_of_the_states(layers: Any, x: th.Tensor) -> Any:
    h = layers["layer"](x)
    return th.cat([layers["other"](h[:-1]), h[-1:]])


def have_a_parameter_of_its_own(layers: Any, x: th.Tensor) -> Any:
    return layers["norm"](layers["layer"](x))


@pytest.mark.parametrize(
    "run",
    [
        run_twice,
        use_a_weight_elsewhere,
        use_a_layer_aside_and_its_weight,
        run_on_part_of_the_states,
        have_a_parameter_of_its_own,
    ],
)
def test_what_is_not_one_layer_after_the_other_goes_through_autograd(run: Any) -> None:
    def make() -> dict[str, nn.Module]:
        return {**one_layer(), "norm": nn.LayerNorm(4)}

    assert kind_of(case_of(make, run)) is AutogradLinearization


def test_layer_whose_input_is_overwritten_is_left_to_autograd_which_refuses_it() -> None:
    case = case_of(one_layer, overwrite_an_input)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kind_of(case)
    options = {**case.policy_kwargs, "share_features_extractor": False}
    actor_alone = replace(case, policy_kwargs=options, prepare=freeze("vf_features_extractor"))
    assert kind_of(actor_alone) is AutogradLinearization


@pytest.mark.parametrize("options", [{"padding": "same"}, {"padding_mode": "circular"}], ids=str)
def test_unusual_padding_goes_through_autograd(options: dict[str, Any]) -> None:
    def make() -> dict[str, nn.Module]:
        return {"layer": nn.Conv2d(1, 4, 3, **({"padding": 1} | options))}

    def run(layers: Any, images: th.Tensor) -> Any:
        return layers["layer"](images).mean(dim=(2, 3))

    assert kind_of(case_of(make, run, TINY_IMAGE)) is AutogradLinearization


def test_parameter_that_was_hung_on_a_layer_goes_through_autograd() -> None:
    def make() -> dict[str, nn.Module]:
        layers = one_layer()
        layers["layer"].register_parameter("scale", nn.Parameter(th.ones(1)))
        return layers

    def run(layers: Any, x: th.Tensor) -> Any:
        return layers["other"](layers["layer"](x) * layers["layer"].scale)

    assert kind_of(case_of(make, run)) is AutogradLinearization


def test_layer_with_a_hook_goes_through_autograd() -> None:
    def make() -> dict[str, nn.Module]:
        layers = one_layer()
        layers["layer"].register_forward_hook(lambda module, args, output: 2 * output)
        return layers

    def run(layers: Any, x: th.Tensor) -> Any:
        return layers["other"](layers["layer"](x))

    assert kind_of(case_of(make, run)) is AutogradLinearization


def test_layer_with_a_hook_on_its_gradient_goes_through_autograd() -> None:
    def make() -> dict[str, nn.Module]:
        layers = one_layer()
        weight: Any = layers["layer"].weight
        weight.register_hook(lambda gradient: 0 * gradient)
        return layers

    def run(layers: Any, x: th.Tensor) -> Any:
        return layers["other"](layers["layer"](x))

    assert kind_of(case_of(make, run)) is AutogradLinearization


def test_hook_on_all_modules_of_the_process_is_respected() -> None:
    def run(layers: Any, x: th.Tensor) -> Any:
        return layers["other"](layers["layer"](x))

    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: output)
    try:
        assert kind_of(case_of(one_layer, run)) is AutogradLinearization
    finally:
        handle.remove()


def test_a_single_logit_goes_through_autograd() -> None:
    """There is no other logit to compare the only one with."""

    def run(layers: Any, x: th.Tensor) -> Any:
        return layers["other"](layers["layer"](x))

    assert kind_of(case_of(one_layer, run, actions=spaces.Discrete(2))) is LayerwiseLinearization
    assert kind_of(case_of(one_layer, run, actions=spaces.Discrete(1))) is AutogradLinearization
    blocks = case_of(one_layer, run, actions=spaces.MultiDiscrete([1, 3]))
    assert kind_of(blocks) is AutogradLinearization


@pytest.mark.parametrize(
    ("width", "actions", "is_layerwise"),
    [(8, 2, False), (64, 2, True), (64, 4, False), (512, 4, True), (512, 12, False)],
)
def test_layers_are_wide_for_the_number_of_actions_where_they_are_cheaper(
    width: int, actions: int, is_layerwise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("sb3_trpo._actor.linearize_mlp", lambda *_: None)
    case = Case("MlpPolicy", VECTOR, spaces.Discrete(actions), {"net_arch": [width, width]})
    assert (kind_of(case) is LayerwiseLinearization) is is_layerwise


@pytest.mark.parametrize("case", POLICIES)
def test_no_hook_is_left_behind(case: str) -> None:
    actor, batch = actor_and_batch(collected(case))
    actor.linearize(batch)
    hooks = [hook for m in actor.policy.modules() for hook in m._forward_hooks.values()]
    assert not hooks
