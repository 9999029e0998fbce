"""Closed-form derivatives of multi-layer perceptrons, and what is recognised as one."""

import itertools
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.autograd import functional
from torch.func import functional_call

from sb3_trpo._linearization import MlpLinearization
from sb3_trpo._mlp import Tape, pairs_of
from sb3_trpo._plain import Mlp, read_mlp, read_plain
from tests.cases import POLICIES, actor_and_batch, collected
from tests.environments import BOX_ACTIONS, VECTOR

# Both sides evaluate the same float64 formulas in another order.
RTOL = 1e-12

N_STATES, N_FEATURES, N_OUTPUTS = 9, 5, 3
ACTIVATIONS = [
    nn.Tanh,
    nn.ReLU,
    nn.ELU,
    nn.LeakyReLU,
    nn.SiLU,
    nn.GELU,
    nn.Sigmoid,
    nn.Softplus,
]
HIDDEN: list[list[int]] = [[], [7], [7, 6], [4, 5, 6]]


def network(hidden: list[int], activation: type[nn.Module]) -> nn.Sequential:
    sizes = [N_FEATURES, *hidden]
    layers: list[nn.Module] = []
    for size, following in itertools.pairwise(sizes):
        layers += [nn.Linear(size, following), activation()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], N_OUTPUTS)).double()


def read(model: nn.Sequential) -> Mlp:
    mlp = read_mlp(model[:-1], model[-1])
    assert mlp is not None
    return mlp


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
def test_tape_is_the_network_and_its_products_are_autograds(
    hidden: list[int], activation: type[nn.Module]
) -> None:
    model = network(hidden, activation)
    features = th.randn(N_STATES, N_FEATURES, dtype=th.float64)
    names = [name for name, _ in model.named_parameters()]
    parameters = tuple(p.detach() for p in model.parameters())
    change = tuple(th.randn_like(p) for p in parameters)
    cotangent = th.randn(N_STATES, N_OUTPUTS, dtype=th.float64)

    def evaluate(*values: th.Tensor) -> th.Tensor:
        output = functional_call(model, dict(zip(names, values, strict=True)), (features,))
        assert isinstance(output, th.Tensor)
        return output

    derivatives: Any = functional  # without annotations in torch
    outputs, tangent = derivatives.jvp(evaluate, parameters, change)
    _, gradient = derivatives.vjp(evaluate, parameters, cotangent)

    mlp = read(model)
    tape = Tape(mlp, mlp.weights, N_STATES)
    th.testing.assert_close(tape.forward(features), outputs, rtol=RTOL, atol=RTOL)
    ours = tape.tangent(pairs_of(change))
    th.testing.assert_close(ours, tangent, rtol=RTOL, atol=RTOL)
    written = [th.empty_like(p) for p in parameters]
    tape.cotangent(cotangent, pairs_of(written))
    for actual, expected in zip(written, gradient, strict=True):
        th.testing.assert_close(actual, expected, rtol=RTOL, atol=RTOL)


def test_missing_changes_count_as_zero_and_missing_gradients_are_not_written() -> None:
    model = network([7], nn.Tanh)
    mlp = read(model)
    tape = Tape(mlp, mlp.weights, N_STATES)
    tape.forward(th.randn(N_STATES, N_FEATURES, dtype=th.float64))
    bias = th.randn(7, dtype=th.float64)
    zeros = [th.zeros_like(p) for p in mlp.parameters]
    some = tape.tangent([(None, bias), (None, None)]).clone()
    whole = tape.tangent(pairs_of([zeros[0], bias, *zeros[2:]]))
    th.testing.assert_close(some, whole, rtol=0, atol=0)
    gradients = [th.full_like(p, 7.0) for p in mlp.parameters]
    cotangent = th.ones(N_STATES, N_OUTPUTS, dtype=th.float64)
    tape.cotangent(cotangent, [(None, gradients[1]), (None, None)])
    assert all(bool((g == 7).all()) for g in (gradients[0], *gradients[2:]))
    assert not (gradients[1] == 7).any()


@pytest.mark.parametrize(
    "extra",
    [nn.Dropout(), nn.LayerNorm(N_FEATURES), nn.PReLU(), nn.Sequential(), nn.BatchNorm1d(5)],
    ids=lambda module: type(module).__name__,
)
def test_chain_with_anything_else_is_not_recognised(extra: nn.Module) -> None:
    model = network([5], nn.Tanh)
    assert read_mlp(nn.Sequential(*model[:-1], extra), model[-1]) is None


def test_layer_without_a_bias_is_not_recognised() -> None:
    assert read_mlp(nn.Sequential(), nn.Linear(3, 2, bias=False)) is None


def test_layers_that_share_their_weights_are_not_recognised() -> None:
    layers = network([5, 5, 5], nn.Tanh)
    assert read_mlp(layers[:-1], layers[-1]) is not None
    layers[4] = layers[2]
    assert read_mlp(layers[:-1], layers[-1]) is None
    layers[4] = nn.Linear(5, 5).double()
    layers[4].bias = layers[2].bias
    assert read_mlp(layers[:-1], layers[-1]) is None


def test_hook_on_a_gradient_is_not_passed_over() -> None:
    layers: Any = network([5], nn.Tanh)
    handle = layers[0].weight.register_hook(lambda gradient: 2 * gradient)
    assert read_mlp(layers[:-1], layers[-1]) is None
    handle.remove()
    assert read_mlp(layers[:-1], layers[-1]) is not None
    layers[-1].bias.register_post_accumulate_grad_hook(lambda parameter: None)
    assert read_mlp(layers[:-1], layers[-1]) is None
    plain: Any = policy()
    plain.log_std.register_hook(lambda gradient: 2 * gradient)
    assert read_plain(plain) is None


def policy() -> ActorCriticPolicy:
    return ActorCriticPolicy(VECTOR, BOX_ACTIONS, lambda progress: 1e-3)


def test_sb3s_policy_is_recognised_with_actor_and_critic_apart() -> None:
    plain = policy()
    parts = read_plain(plain)
    assert parts is not None
    actor, critic = parts.actor, parts.critic
    assert actor is not None
    assert critic is not None
    assert actor.layers[-1] is plain.action_net
    assert critic.layers[-1] is plain.value_net
    assert not set(actor.parameters) & set(critic.parameters)


def test_hook_on_every_module_of_the_process_turns_closed_forms_off() -> None:
    plain = policy()
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: None)
    try:
        assert read_plain(plain) is None
    finally:
        handle.remove()
    assert read_plain(plain) is not None


# Cases whose networks are SB3's and see nothing but vectors.
PLAIN = {
    "box",
    "discrete",
    "multi_discrete",
    "multi_binary",
    "discrete_observation",
    "multi_discrete_observation",
    "multi_binary_observation",
    "dict_box",
    "dict_multi_discrete_separate",
    "empty_net_arch",
    "relu_unequal_nets",
    "frozen_layer",
    "frozen_log_std",
    "only_log_std_trained",
}


@pytest.mark.parametrize("case", POLICIES)
@pytest.mark.parametrize("float64", [False, True])
def test_plain_policies_and_no_others_take_the_closed_form(case: str, float64: bool) -> None:
    actor, batch = actor_and_batch(collected(case, float64=float64))
    assert (type(actor.linearize(batch)) is MlpLinearization) is (case in PLAIN)


@pytest.mark.parametrize("case", sorted(PLAIN))
def test_closed_form_equals_autograd(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    actor, batch = actor_and_batch(collected(case, float64=True))
    closed_form = actor.linearize(batch)
    monkeypatch.setattr("sb3_trpo._actor.linearize_mlp", lambda *_: None)
    by_autograd = actor.linearize(batch)
    vector = th.randn(sum(p.numel() for p in actor.parameters), dtype=th.float64)
    products = []
    for linearization in (closed_form, by_autograd):
        tangent = linearization.metric(linearization.jacobian_product(vector))
        products.append(linearization.transposed_product(tangent))
    assert products[1].abs().max() > 0
    th.testing.assert_close(*products, rtol=RTOL, atol=RTOL)
