import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from sb3_trpo import TRPO
from sb3_trpo._batch import Minibatch
from sb3_trpo._critic import Critic, CriticFit, fit_critic, read_critic
from sb3_trpo._read_buffer import minibatches
from tests import reference
from tests.cases import CASES, POLICIES, actor_and_batch, collected, rollout_of
from tests.policies import LinearExtractor, freeze

# Of SB3's loop in float64, whose sums are in another order: 18 Adam steps of 1e-3 each amplify
# the rounding where a second moment is tiny.
RTOL, ATOL = 1e-8, 1e-10

EPOCHS = 3
Optimizers = dict[str, tuple[type[th.optim.Optimizer], dict[str, Any]]]
OPTIMIZERS: Optimizers = {
    "adam": (th.optim.Adam, {"eps": 1e-5}),
    "adam_with_other_constants": (th.optim.Adam, {"betas": (0.5, 0.7), "eps": 1e-2}),
    "adam_with_decoupled_decay": (
        th.optim.Adam,
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
    ),
    "adam_that_ascends": (th.optim.Adam, {"maximize": True}),
    "adamw": (th.optim.AdamW, {"weight_decay": 0.1}),
    "adam_with_decay": (th.optim.Adam, {"weight_decay": 0.1}),
    "amsgrad": (th.optim.Adam, {"amsgrad": True}),
    "sgd": (th.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    "rmsprop": (th.optim.RMSprop, {"momentum": 0.5}),
    "lbfgs": (th.optim.LBFGS, {"max_iter": 3}),
}


def with_optimizer(name: str) -> dict[str, Any]:
    kind, arguments = OPTIMIZERS[name]
    return {"policy_kwargs": {"optimizer_class": kind, "optimizer_kwargs": arguments}}


def critic_of(model: TRPO) -> Critic:
    actor, _ = actor_and_batch(model)
    return read_critic(model.policy, actor.parameters, actor.modules)


def fit(model: TRPO, epochs: int = EPOCHS, seed: int = 3) -> CriticFit:
    critic = critic_of(model)
    np.random.seed(seed)
    return fit_critic(
        critic,
        minibatches(
            model.rollout_buffer, rollout_of(model), model.batch_size, epochs, critic.features
        ),
    )


def fit_as_sb3_would(model: TRPO, seed: int = 3) -> float:
    actor, _ = actor_and_batch(model)
    np.random.seed(seed)
    policy, buffer = model.policy, model.rollout_buffer
    return reference.fit_critic(policy, buffer, actor.parameters, model.batch_size, EPOCHS)


def parameters_of(policy: ActorCriticPolicy) -> dict[str, th.Tensor]:
    return {name: p.detach().clone() for name, p in policy.named_parameters()}


def optimizer_tensors(policy: ActorCriticPolicy) -> list[th.Tensor]:
    """List a copy of all numbers in the optimizer's state, in a fixed order."""
    state = policy.optimizer.state_dict()["state"]
    return [
        th.as_tensor(value).detach().clone()
        for key in sorted(state)
        for name, value in sorted(state[key].items())
        if isinstance(value, (th.Tensor, int, float))
    ]


def assert_same_models(one: TRPO, two: TRPO) -> None:
    ours, theirs = parameters_of(one.policy), parameters_of(two.policy)
    for name, parameter in ours.items():
        th.testing.assert_close(parameter, theirs[name], rtol=RTOL, atol=ATOL, msg=name)
    pairs = zip(optimizer_tensors(one.policy), optimizer_tensors(two.policy), strict=True)
    for ours_, theirs_ in pairs:
        th.testing.assert_close(ours_, theirs_, rtol=RTOL, atol=ATOL, check_dtype=False)


# Layers that behave differently in training mode make another loop than SB3's plain one.
DETERMINISTIC = [case for case in POLICIES if not case.startswith(("dropout", "batch_norm"))]


@pytest.mark.parametrize("case", DETERMINISTIC, ids=str)
def test_fit_equals_sb3s_plain_loop(case: str) -> None:
    """Twice, so that the second fit starts from the optimizer state of the first."""
    ours, theirs = collected(case, float64=True), collected(case, float64=True)
    for seed in (3, 4):
        result = fit(ours, seed=seed)
        loss = fit_as_sb3_would(theirs, seed=seed)
        assert result.loss == pytest.approx(loss, rel=1e-9)
        assert not result.diverged
    assert_same_models(ours, theirs)


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "lbfgs"])
@pytest.mark.parametrize("name", ["box", "box_shared"])
def test_fit_with_any_optimizer_equals_sb3s_plain_loop(name: str, optimizer: str) -> None:
    arguments = with_optimizer(optimizer)
    ours, theirs = (collected(name, float64=True, **arguments) for _ in range(2))
    for seed in (3, 4):
        fit(ours, seed=seed)
        fit_as_sb3_would(theirs, seed=seed)
    assert_same_models(ours, theirs)


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
@pytest.mark.parametrize("name", ["cnn_box_separate", "dict_box", "box_shared", "beta"])
def test_minibatches_that_do_not_fit_are_evaluated_in_parts(name: str, optimizer: str) -> None:
    whole, cut = (collected(name, float64=True, **with_optimizer(optimizer)) for _ in range(2))
    critic = replace(critic_of(cut), mlp=None, max_states_per_chunk=3)
    largest: list[int] = []
    values = critic.values

    def noting(self: Critic, features: Any) -> th.Tensor:
        result = values(features)
        largest.append(len(result))
        return result

    with mock.patch.object(Critic, "values", noting):
        result = fit_critic(critic, minibatches_of(cut, critic))
    assert max(largest) == 3
    other = replace(critic_of(whole), mlp=None)
    expected = fit_critic(other, minibatches_of(whole, other))
    assert result.loss == pytest.approx(expected.loss, rel=1e-9)
    assert_same_models(whole, cut)


def test_batch_normalisation_sees_whole_minibatches() -> None:
    model = collected("batch_norm_separate")
    actor, _ = actor_and_batch(model)
    critic = read_critic(model.policy, actor.parameters, actor.modules, max_states_per_chunk=3)
    assert critic.max_states_per_chunk is None


def minibatches_of(model: TRPO, critic: Critic) -> list[Minibatch]:
    np.random.seed(3)
    rollout = rollout_of(model)
    return list(minibatches(model.rollout_buffer, rollout, 16, EPOCHS, critic.features))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_closed_form_equals_autograd_with_any_optimizer(optimizer: str) -> None:
    closed, other = (collected("box", float64=True, **with_optimizer(optimizer)) for _ in range(2))
    plain = critic_of(closed)
    assert plain.mlp is not None
    one = fit_critic(plain, minibatches_of(closed, plain))
    by_autograd = replace(critic_of(other), mlp=None)
    two = fit_critic(by_autograd, minibatches_of(other, by_autograd))
    assert one.loss == pytest.approx(two.loss, rel=1e-9)
    assert_same_models(closed, other)


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name.startswith("adam")])
@pytest.mark.parametrize("name", ["box", "box_shared"])
def test_step_of_adam_is_bitwise_that_of_its_method(name: str, optimizer: str) -> None:
    """A hook makes the fit call the method."""
    options = {**with_optimizer(optimizer), "learning_rate": 2e-3}
    ours, hooked = (collected(name, **options) for _ in range(2))
    hooked.policy.optimizer.register_step_post_hook(lambda *_: None)
    for model in (ours, hooked):
        fit(model)
        fit(model)
    expected = parameters_of(hooked.policy)
    assert all(th.equal(p, expected[key]) for key, p in parameters_of(ours.policy).items())
    pairs = zip(optimizer_tensors(ours.policy), optimizer_tensors(hooked.policy), strict=True)
    assert all(th.equal(a, b) for a, b in pairs)


def test_first_step_of_adam_alone_goes_through_its_method() -> None:
    model = collected("box")
    with mock.patch.object(
        th.optim.Adam, "step", autospec=True, side_effect=th.optim.Adam.step
    ) as step:
        fit(model)
        fit(model)
    assert step.call_count == 1


@pytest.mark.parametrize("name", ["box", "box_shared"])
def test_loss_of_an_optimizer_with_several_evaluations_is_that_before_its_step(name: str) -> None:
    model = collected(name, float64=True, **with_optimizer("lbfgs"))
    critic = critic_of(model)
    (minibatch, *_) = minibatches_of(model, critic)
    rollout = rollout_of(model)
    np.random.seed(3)
    (plain, *_) = minibatches(model.rollout_buffer, rollout, 16)
    values = model.policy.predict_values(plain[0])
    expected = float((values.flatten() - plain[1]).square().mean().detach())
    assert fit_critic(critic, [minibatch]).loss == pytest.approx(expected, rel=1e-12)


def test_optimizers_state_shares_no_memory_between_parameters() -> None:
    """A tensor is saved with the whole memory that it is a part of."""
    model = collected("box")
    fit(model)
    for entry in model.policy.optimizer.state.values():
        for tensor in entry.values():
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_fit_equals_sb3s_plain_loop_to_rounding_in_float32() -> None:
    ours, theirs = collected("box"), collected("box")
    fit(ours)
    fit_as_sb3_would(theirs)
    expected = parameters_of(theirs.policy)
    for name, parameter in parameters_of(ours.policy).items():
        th.testing.assert_close(parameter, expected[name], rtol=1e-4, atol=1e-5)


def test_truncated_minibatches_count_as_any_other() -> None:
    with pytest.warns(UserWarning, match="truncated"):
        ours = collected("box", float64=True, batch_size=7)
    with pytest.warns(UserWarning, match="truncated"):
        theirs = collected("box", float64=True, batch_size=7)
    assert fit(ours).loss == pytest.approx(fit_as_sb3_would(theirs), rel=1e-9)
    assert_same_models(ours, theirs)


@pytest.mark.parametrize("name", ["box", "box_shared"])
def test_layer_that_was_frozen_for_a_while_is_fitted_as_by_sb3(name: str) -> None:
    """Adam counts the steps of every parameter for itself."""
    ours, theirs = collected(name, float64=True), collected(name, float64=True)
    for model in (ours, theirs):
        freeze("value_net")(model.policy)
    fit(ours)
    fit_as_sb3_would(theirs)
    for model in (ours, theirs):
        for parameter in model.policy.value_net.parameters():
            parameter.requires_grad_(True)
    fit(ours)
    fit_as_sb3_would(theirs)
    assert_same_models(ours, theirs)


# What must not move


def with_other_parameters(model: TRPO) -> None:
    model.policy.load_state_dict(copy.deepcopy(model.policy.state_dict()), assign=True)


def with_a_part_in_the_optimizer(model: TRPO) -> None:
    model.policy.optimizer = th.optim.Adam(model.policy.value_net.parameters(), 1e-3, eps=1e-5)


def with_two_groups(model: TRPO) -> None:
    head = list(model.policy.value_net.parameters())
    rest = [p for p in model.policy.parameters() if not any(p is q for q in head)]
    groups: list[dict[str, Any]] = [
        {"params": head, "lr": 3e-3},
        {"params": rest, "betas": (0.5, 0.7)},
    ]
    model.policy.optimizer = th.optim.Adam(groups, 1e-3, eps=1e-5)


def with_tied_layers(model: TRPO) -> None:
    layers: Any = model.policy.mlp_extractor.value_net
    width = layers[-2].out_features
    th.manual_seed(0)
    tied = nn.Linear(width, width).double()
    layers.extend([tied, nn.Tanh(), tied])
    model.policy.optimizer = th.optim.Adam(model.policy.parameters(), 1e-3, eps=1e-5)


def with_a_masked_gradient(model: TRPO) -> None:
    weight: Any = model.policy.value_net.weight
    weight.register_hook(lambda gradient: 0 * gradient)


def with_a_scheduler(model: TRPO) -> None:
    th.optim.lr_scheduler.StepLR(model.policy.optimizer, 1)


@pytest.mark.parametrize(
    "change",
    [
        with_other_parameters,
        with_a_part_in_the_optimizer,
        with_two_groups,
        with_tied_layers,
        with_a_masked_gradient,
        with_a_scheduler,
    ],
)
def test_plain_critic_that_was_changed_is_fitted_as_by_sb3(
    change: Callable[[TRPO], None], tmp_path: Path
) -> None:
    model, twin = (collected("box", float64=True) for _ in range(2))
    for m in (model, twin):
        change(m)
    before = parameters_of(model.policy)
    is_special = change in (with_tied_layers, with_a_masked_gradient)
    assert (critic_of(model).mlp is None) == is_special
    fit(model)
    fit_as_sb3_would(twin)
    assert_same_models(model, twin)
    moved = parameters_of(model.policy)
    assert th.equal(moved["value_net.weight"], before["value_net.weight"]) == (
        change in (with_other_parameters, with_a_masked_gradient)
    )
    model.save(tmp_path / "model")


def test_steps_of_a_wrapped_or_watched_optimizer_are_taken() -> None:
    model, steps = collected("box"), []
    handle = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    fit(model, epochs=1)
    handle.remove()
    watched = len(steps)
    step = mock.Mock(side_effect=model.policy.optimizer.step)
    vars(model.policy.optimizer)["step"] = step
    fit(model, epochs=1)
    assert step.call_count == watched > 0


class Masked(LinearExtractor):
    """An extractor with a constant that is not finite, as masks of attention are."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space)
        self.register_buffer("mask", th.tensor([0.0, -math.inf]))


def test_constants_that_are_not_finite_are_no_divergence() -> None:
    model = collected(
        "box", policy_kwargs={"features_extractor_class": Masked, "share_features_extractor": False}
    )
    model.policy.vf_features_extractor.mask[1] = -math.inf
    assert not fit(model).diverged


class WithoutClosure(th.optim.SGD):
    """An optimizer whose author left out what SB3 does not pass."""

    def step(self) -> None:  # type: ignore[override]
        super().step()

    def zero_grad(self) -> None:  # type: ignore[override]
        super().zero_grad()


class IgnoringClosure(th.optim.SGD):
    """An optimizer that takes a closure and does not call it."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()


class WithSharedState(th.optim.SGD):
    """An optimizer with an entry of no parameter, and with an infinity to compare with."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        self.state["k"] = th.ones(1)  # type: ignore[index]
        self.state["shared"] = {"k": th.ones(1)}  # type: ignore[index]
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["best"] = th.tensor(float("inf"))
        return result


@pytest.mark.parametrize("kind", [WithoutClosure, IgnoringClosure, WithSharedState, th.optim.LBFGS])
def test_every_optimizer_that_sb3_steps_is_stepped(kind: Any) -> None:
    model = collected("box")
    model.policy.optimizer = kind(model.policy.parameters(), lr=1e-2)
    before = parameters_of(model.policy)
    assert not fit(model).diverged
    assert not th.equal(before["value_net.weight"], parameters_of(model.policy)["value_net.weight"])


def test_fused_optimizer_other_than_adam_steps_by_itself() -> None:
    options = {"optimizer_class": th.optim.SGD, "optimizer_kwargs": {"fused": True}}
    model = TRPO("MlpPolicy", "Pendulum-v1", n_steps=64, batch_size=32, policy_kwargs=options)
    before = [parameter.clone() for parameter in model.policy.value_net.parameters()]
    model.learn(64)
    after = list(model.policy.value_net.parameters())
    assert not any(th.equal(*pair) for pair in zip(before, after, strict=True))


@pytest.mark.parametrize("fused", [None, False])
def test_adam_is_fused_for_the_duration_of_a_fit(fused: bool | None) -> None:
    model = collected("box_shared")
    (group,) = model.policy.optimizer.param_groups
    group["fused"] = fused
    seen: list[Any] = []
    model.policy.optimizer.register_step_post_hook(lambda *_: seen.append(group["fused"]))
    fit(model)
    assert set(seen) == {fused is None}
    assert group["fused"] is fused


@pytest.mark.parametrize("case", POLICIES)
def test_fit_leaves_actor_parameters_bitwise_unchanged(case: str) -> None:
    """Shared features extractors are the actor's."""
    model = collected(case)
    actor, _ = actor_and_batch(model)
    held = {id(parameter) for parameter in actor.parameters}
    before = parameters_of(model.policy)
    fit(model)
    moved = {name for name, p in model.policy.named_parameters() if not th.equal(p, before[name])}
    names = {name for name, p in model.policy.named_parameters() if id(p) in held}
    assert not moved & names
    assert "value_net.bias" in moved or "value_net.policy_proj.bias" in moved


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["box", "box_shared", "gsde_shared", "batch_norm_shared"])
def test_no_optimizer_moves_the_actor(name: str, optimizer: str) -> None:
    """Weight decay, momentum and LBFGS move whatever has a gradient, or all parameters at once."""
    model = collected(name, **with_optimizer(optimizer))
    actor, _ = actor_and_batch(model)
    before = [parameter.detach().clone() for parameter in actor.parameters]
    for _ in range(2):
        result = fit(model)
    assert math.isfinite(result.loss)
    assert all(th.equal(a, b) for a, b in zip(actor.parameters, before, strict=True))


def test_gradients_that_someone_left_behind_move_nothing() -> None:
    model = collected("box_shared")
    actor, _ = actor_and_batch(model)
    before = [parameter.detach().clone() for parameter in actor.parameters]
    for parameter in model.policy.parameters():
        parameter.grad = th.ones_like(parameter)
    fit(model)
    assert all(th.equal(a, b) for a, b in zip(actor.parameters, before, strict=True))


@pytest.mark.parametrize("change", [lambda _: None, with_a_part_in_the_optimizer])
@pytest.mark.parametrize("name", ["box", "box_shared"])
def test_no_gradients_are_left_behind(name: str, change: Callable[[TRPO], None]) -> None:
    model = collected(name, float64=True)
    change(model)
    fit(model)
    assert all(parameter.grad is None for parameter in model.policy.parameters())


@pytest.mark.parametrize("name", ["box", "box_shared", "discrete_separate"])
def test_frozen_critic_parameters_are_left_alone(name: str) -> None:
    model = collected(name)
    freeze("value_net", "vf_features_extractor")(model.policy)
    before = parameters_of(model.policy)
    fit(model)
    after = parameters_of(model.policy)
    frozen = {key for key, p in model.policy.named_parameters() if not p.requires_grad}
    assert {"value_net.weight", "value_net.bias"} <= frozen
    assert all(th.equal(before[key], after[key]) for key in frozen)


@pytest.mark.parametrize("name", ["box", "box_shared"])
def test_wholly_frozen_critic_is_no_error(name: str) -> None:
    model = collected(name)
    freeze("value_net", "vf_features_extractor", "mlp_extractor.value_net")(model.policy)
    before = parameters_of(model.policy)
    assert math.isfinite(fit(model).loss)
    after = parameters_of(model.policy)
    assert all(th.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", ["box", "box_shared"])
def test_no_minibatches_change_nothing(name: str) -> None:
    model = collected(name)
    before, state = parameters_of(model.policy), optimizer_tensors(model.policy)
    result = fit(model, epochs=0)
    after = parameters_of(model.policy)
    assert math.isnan(result.loss)
    assert not result.diverged
    assert all(th.equal(before[key], after[key]) for key in before)
    assert optimizer_tensors(model.policy) == state == []


# Divergence

DIVERGING: list[tuple[str, str, float]] = [
    ("box", "adam", 1e30),
    ("box", "adam", 1e20),
    ("box_shared", "adam", 1e30),
    ("box_shared", "adam", 1e20),
    ("discrete_separate", "adam", 1e20),
    ("box", "sgd", 1e30),
    ("box_shared", "rmsprop", 1e30),
]


@pytest.mark.parametrize(("name", "optimizer", "size"), DIVERGING)
def test_diverging_fit_is_undone_with_the_optimizers_state(
    name: str, optimizer: str, size: float
) -> None:
    """Returns whose squares overflow leave an infinity in Adam's state, which stops it for good."""
    model = collected(name, **with_optimizer(optimizer))
    fit(model)
    before, state = parameters_of(model.policy), optimizer_tensors(model.policy)
    model.rollout_buffer.returns *= size
    result = fit(model)
    after = parameters_of(model.policy)
    assert result.diverged
    assert all(th.equal(before[key], after[key]) for key in before)
    pairs = zip(state, optimizer_tensors(model.policy), strict=True)
    assert all(th.equal(a, b) for a, b in pairs)


def test_diverging_fit_leaves_no_optimizer_state_where_there_was_none() -> None:
    model = collected("box_shared")
    model.rollout_buffer.returns *= 1e30
    assert fit(model).diverged
    assert optimizer_tensors(model.policy) == []


def test_diverging_fit_leaves_the_critics_running_statistics_as_they_were() -> None:
    model = collected("batch_norm_separate", **with_optimizer("sgd"))
    before = {name: b.clone() for name, b in model.policy.named_buffers()}
    model.rollout_buffer.returns *= 1e30
    assert fit(model).diverged
    assert all(th.equal(b, before[name]) for name, b in model.policy.named_buffers())


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "lbfgs"])
@pytest.mark.parametrize("name", ["box", "box_shared", "batch_norm_separate"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_fit_is_undone_when_a_minibatch_raises(
    name: str, optimizer: str, error: type[BaseException]
) -> None:
    model = collected(name, **with_optimizer(optimizer))
    fit(model)
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    state = copy.deepcopy(model.policy.optimizer.state_dict())
    critic = critic_of(model)

    def two_and_an_error() -> Iterator[Minibatch]:
        yield from minibatches_of(model, critic)[:2]
        moved = model.policy.state_dict()
        assert any(not th.equal(moved[key], before[key]) for key in before)
        raise error

    with pytest.raises(error):
        fit_critic(critic, two_and_an_error())
    after = model.policy.state_dict()
    assert all(th.equal(after[key], before[key]) for key in before)
    th.testing.assert_close(model.policy.optimizer.state_dict(), state, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.policy.parameters())
    assert not any(module.training for module in model.policy.modules())


# Modes


def modes_during(model: TRPO, name: str) -> tuple[dict[str, bool], CriticFit]:
    """Note in which mode the modules of a policy run while the critic is evaluated."""
    seen: dict[str, bool] = {}

    def note(key: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, args: Any) -> None:
            seen[key] = module.training

        return hook

    critic = critic_of(model)
    rollout = rollout_of(model)
    handles = [
        module.register_forward_pre_hook(note(key))
        for key, module in model.policy.named_modules()
        if key
    ]
    batches: list[Minibatch] = list(
        minibatches(model.rollout_buffer, rollout, model.batch_size, 1, critic.features)
    )
    result = fit_critic(critic, batches)
    for handle in handles:
        handle.remove()
    return seen, result


@pytest.mark.parametrize("name", ["dropout_separate", "batch_norm_separate"])
def test_critics_own_layers_are_in_training_mode(name: str) -> None:
    seen, _ = modes_during(collected(name), name)
    own = {key: mode for key, mode in seen.items() if "vf_features_extractor.layers." in key}
    assert own
    assert all(own.values())


@pytest.mark.parametrize("name", ["dropout_shared", "batch_norm_shared", "gsde_shared"])
def test_layers_that_the_actor_runs_through_stay_in_evaluation_mode(name: str) -> None:
    seen, _ = modes_during(collected(name), name)
    shared = {key: mode for key, mode in seen.items() if "features_extractor" in key}
    assert shared
    assert not any(shared.values())


@pytest.mark.parametrize("case", POLICIES)
def test_all_modules_are_in_evaluation_mode_afterwards(case: str) -> None:
    model = collected(case)
    fit(model)
    assert not any(module.training for module in model.policy.modules())


def test_running_statistics_of_shared_layers_do_not_move() -> None:
    model = collected("batch_norm_shared")
    before = {name: b.clone() for name, b in model.policy.named_buffers()}
    fit(model)
    assert all(th.equal(b, before[name]) for name, b in model.policy.named_buffers())


def test_running_statistics_of_the_critics_own_layers_move() -> None:
    model = collected("batch_norm_separate")
    before = {name: b.clone() for name, b in model.policy.named_buffers()}
    fit(model)
    moved = {name for name, b in model.policy.named_buffers() if not th.equal(b, before[name])}
    assert {"vf_features_extractor.layers.1.running_mean"} <= moved
    assert all(name.startswith("vf_") for name in moved)


def test_minibatch_of_one_state_is_passed_over_by_batch_normalisation() -> None:
    ours, theirs = (collected("batch_norm_separate") for _ in range(2))
    critic, twin = critic_of(ours), critic_of(theirs)
    (observations, returns), *_ = minibatches_of(ours, critic)
    assert isinstance(observations, th.Tensor)
    one_state = observations[:1], returns[:1]
    assert math.isnan(fit_critic(critic, [one_state]).loss)
    result = fit_critic(critic, [one_state, (observations, returns), one_state])
    assert result == fit_critic(twin, [(observations, returns)])
    expected = theirs.policy.state_dict()
    assert all(th.equal(v, expected[key]) for key, v in ours.policy.state_dict().items())


@pytest.mark.parametrize("name", ["box", "box_shared"])
def test_minibatch_of_one_state_counts_without_batch_normalisation(name: str) -> None:
    model = collected(name)
    critic = critic_of(model)
    (observations, returns), *_ = minibatches_of(model, critic)
    assert isinstance(observations, th.Tensor)
    assert math.isfinite(fit_critic(critic, [(observations[:1], returns[:1])]).loss)


def test_dropout_of_the_critic_is_random() -> None:
    first, second = collected("dropout_separate"), collected("dropout_separate")
    fit(first)
    th.manual_seed(99)
    fit(second)
    one, two = parameters_of(first.policy), parameters_of(second.policy)
    assert not th.equal(one["value_net.weight"], two["value_net.weight"])


# Features that are computed once


@pytest.mark.parametrize("case", DETERMINISTIC, ids=str)
def test_value_of_a_features_row_is_that_of_its_observation(case: str) -> None:
    model = collected(case, float64=True)
    critic = critic_of(model)
    observations = rollout_of(model).observations
    if critic.mlp is not None:
        return  # its values are never asked for; the fit is compared as a whole
    values = critic.values(critic.features(observations))
    expected = model.policy.predict_values(observations).flatten()
    th.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "is_fixed"),
    [
        ("cnn_discrete", True),
        ("cnn_box_separate", False),
        ("dropout_shared", True),
        ("dropout_separate", False),
        ("box_shared", True),
        ("frozen_extractor", True),
    ],
)
def test_features_are_computed_once_where_the_fit_cannot_move_them(
    name: str, is_fixed: bool
) -> None:
    assert (critic_of(collected(name)).trunk is not None) is is_fixed


class Standardizing(BaseFeaturesExtractor):
    """Nothing to learn, but running statistics."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, observation_space.shape[0])
        self.norm = nn.BatchNorm1d(observation_space.shape[0], affine=False)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return cast(th.Tensor, self.norm(observations))


def test_extractor_with_nothing_to_move_but_running_statistics_is_not_taken_for_fixed() -> None:
    options = {"features_extractor_class": Standardizing, "share_features_extractor": False}
    model = collected("box", policy_kwargs=options)
    assert critic_of(model).trunk is None
    norm = cast(Standardizing, model.policy.vf_features_extractor).norm
    before = cast(th.Tensor, norm.running_mean).clone()
    fit(model)
    assert not th.equal(cast(th.Tensor, norm.running_mean), before)


class DetachedPolicy(ActorCriticPolicy):
    """The actor reads the shared features, and leaves their training to the critic."""

    def get_distribution(self, obs: Any) -> Distribution:
        features = self.extract_features(obs, self.features_extractor)
        assert isinstance(features, th.Tensor)
        latent = self.mlp_extractor.forward_actor(features.detach())
        return self._get_action_dist_from_latent(latent)


def test_features_that_the_fit_moves_are_not_computed_once_though_the_actor_reads_them() -> None:
    case = replace(CASES["box_shared"], policy=DetachedPolicy)
    ours, theirs = collected(case, float64=True), collected(case, float64=True)
    before = parameters_of(ours.policy)
    fit(ours)
    fit_as_sb3_would(theirs)
    assert_same_models(ours, theirs)
    name = "features_extractor.layers.0.weight"
    assert not th.equal(parameters_of(ours.policy)[name], before[name])


@pytest.mark.parametrize(
    ("name", "is_closed"),
    [("box", True), ("discrete", True), ("gsde", True), ("box_shared", False), ("beta", False)],
)
def test_plain_critics_are_fitted_in_closed_form(name: str, is_closed: bool) -> None:
    assert (critic_of(collected(name)).mlp is not None) is is_closed


@pytest.mark.parametrize("name", ["box", "batch_norm_shared", "cnn_discrete"])
def test_compiled_policy_is_fitted_as_the_plain_one(name: str) -> None:
    ours, theirs = collected(name), collected(name)
    compiled: Any = th.compile(ours.policy, backend="eager")
    ours.policy = compiled
    fit(ours)
    fit(theirs)
    expected = parameters_of(theirs.policy)
    for key, parameter in parameters_of(ours.policy).items():
        plain_key = key.removeprefix("_orig_mod.")
        th.testing.assert_close(parameter, expected[plain_key], rtol=1e-4, atol=1e-5)
