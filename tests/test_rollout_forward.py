"""The fast forward pass while collecting is SB3's, to rounding, and nothing of it can be seen."""

import copy
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_trpo import TRPO
from sb3_trpo._rollout_forward import fast_forward
from tests.environments import BOX_ACTIONS, VECTOR, ToyEnv

# Both passes run the same float32 layers; they differ in the order of a few sums.
RTOL, ATOL = 1e-5, 1e-6

ACTIONS: dict[str, spaces.Space[Any]] = {
    "box": BOX_ACTIONS,
    "matrix": spaces.Box(-1, 1, (2, 3)),
    "wide": spaces.Box(-1, 1, (20,)),
    "discrete": spaces.Discrete(4),
    "many": spaces.Discrete(20),
    "multi_discrete": spaces.MultiDiscrete([3, 2, 4]),
    "multi_binary": spaces.MultiBinary(3),
}
OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "vector": VECTOR,
    "double": spaces.Box(-1, 1, (5,), np.float64),
    "matrix": spaces.Box(-1, 1, (2, 3)),
    "discrete": spaces.Discrete(5),
    "multi_discrete": spaces.MultiDiscrete([3, 4]),
    "multi_binary": spaces.MultiBinary(4),
    "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
    "dict": spaces.Dict({"one": VECTOR, "two": spaces.Box(-1, 1, (2, 2), np.float64)}),
    "mixed_dict": spaces.Dict({"one": VECTOR, "two": spaces.Discrete(3)}),
}


def model_of(
    observation_space: spaces.Space[Any] = VECTOR,
    action_space: spaces.Space[Any] = BOX_ACTIONS,
    n_envs: int = 1,
    **policy_kwargs: Any,
) -> TRPO:
    def make() -> ToyEnv:
        return ToyEnv(copy.deepcopy(observation_space), copy.deepcopy(action_space), 9)

    # Large weights: SB3's own start is so near zero that every action looks right.
    options = {"net_arch": [16, 8], "ortho_init": False, **policy_kwargs}
    env = DummyVecEnv([make] * n_envs)
    policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    return TRPO(policy, env, n_steps=32, batch_size=32, seed=0, policy_kwargs=options)


def observations_of(model: TRPO, n_envs: int) -> list[Any]:
    space = model.observation_space
    space.seed(1)
    samples = [[space.sample() for _ in range(n_envs)] for _ in range(20)]
    if isinstance(space, spaces.Dict):
        return [
            {key: th.as_tensor(np.stack([one[key] for one in sample])) for key in space}
            for sample in samples
        ]
    return [th.as_tensor(np.stack(sample)) for sample in samples]


def fast(model: TRPO) -> Any:
    forward = fast_forward(model.policy)
    assert forward is not None
    return forward


@th.no_grad()
def act(policy: Any, observations: list[Any]) -> list[Any]:
    th.manual_seed(3)
    return [policy(observation) for observation in observations]


def assert_same(ours: list[Any], theirs: list[Any]) -> None:
    for ours_now, theirs_now in zip(ours, theirs, strict=True):
        for actual, expected in zip(ours_now, theirs_now, strict=True):
            assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
            th.testing.assert_close(actual, expected, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("n_envs", [1, 5])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("actions", ACTIONS)
def test_actions_values_and_log_probs_are_sb3s(
    actions: str, activation: type[nn.Module], n_envs: int
) -> None:
    model = model_of(action_space=ACTIONS[actions], n_envs=n_envs, activation_fn=activation)
    observations = observations_of(model, n_envs)
    theirs = act(model.policy, observations)
    ours = act(fast(model), observations)
    assert_same(ours, theirs)


@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("net_arch", [[], [8], {"pi": [8, 4], "vf": []}], ids=str)
def test_every_kind_of_observation_and_network_is_read_as_sb3_reads_it(
    observation: str, net_arch: Any
) -> None:
    model = model_of(OBSERVATIONS[observation], n_envs=2, net_arch=net_arch)
    observations = observations_of(model, 2)
    theirs = act(model.policy, observations)
    assert_same(act(fast(model), observations), theirs)


@pytest.mark.parametrize("size", [3, 20])
def test_an_exponential_variate_of_zero_wins(size: int, monkeypatch: Any) -> None:
    """The generator gives one in some ten million draws."""
    model = model_of(action_space=spaces.Discrete(size))
    observation = observations_of(model, 1)[0]

    def all_ones_but(tensor: th.Tensor) -> th.Tensor:
        tensor.fill_(1.0)[:, 1] = 0.0
        return tensor

    monkeypatch.setattr(th.Tensor, "exponential_", all_ones_but)
    with th.no_grad(), np.errstate(divide="ignore"):
        action, _, log_prob = fast(model)(observation)
    assert action.tolist() == [1]
    assert log_prob.isfinite().all()


def double_by_set_parameters(model: TRPO) -> None:
    parameters = copy.deepcopy(model.get_parameters())
    parameters["policy"] = {key: 2 * value for key, value in parameters["policy"].items()}
    model.set_parameters(cast(Any, parameters))


def double_by_vector(model: TRPO) -> None:
    model.policy.load_from_vector(2 * model.policy.parameters_to_vector())


def double_by_data(model: TRPO) -> None:
    for parameter in model.policy.parameters():
        parameter.data = 2 * parameter.data


def double_by_assignment(model: TRPO) -> None:
    state = {key: 2 * value for key, value in model.policy.state_dict().items()}
    model.policy.load_state_dict(state, assign=True)


def double_in_place(model: TRPO) -> None:
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.mul_(2)


@pytest.mark.parametrize(
    "double",
    [
        double_by_set_parameters,
        double_by_vector,
        double_by_data,
        double_by_assignment,
        double_in_place,
    ],
)
def test_weights_written_a_moment_ago_are_the_ones_that_act(
    double: Callable[[TRPO], None],
) -> None:
    model = model_of()
    observations = observations_of(model, 1)
    forward = fast(model)
    before = act(forward, observations)
    double(model)
    ours = act(forward, observations)
    assert_same(ours, act(model.policy, observations))
    assert not th.allclose(ours[0][1], before[0][1])


def give_layer_a_forward(policy: Any) -> None:
    forward = policy.action_net.forward
    policy.action_net.forward = lambda latent: 2 * forward(latent)


def give_policy_a_method(policy: Any) -> None:
    extract = policy.extract_features
    policy.extract_features = lambda obs, *args: 2 * extract(obs, *args)


def give_distribution_a_method(policy: Any) -> None:
    sample = policy.action_dist.sample
    policy.action_dist.sample = lambda: sample() + 1


def append_a_module(policy: Any) -> None:
    policy.mlp_extractor.policy_net.append(nn.LayerNorm(8))


def transpose_a_weight(policy: Any) -> None:
    weight = policy.mlp_extractor.policy_net[2].weight
    weight.data = weight.data.t()


def remove_a_bias(policy: Any) -> None:
    policy.action_net.bias = None


def parametrize_a_layer(policy: Any) -> None:
    nn.utils.parametrizations.weight_norm(policy.action_net)


def share_the_std(policy: Any) -> None:
    policy.log_std = nn.Parameter(th.full((1,), -0.5))


def let_the_std_vanish(policy: Any) -> None:
    policy.log_std.data.fill_(-41.0)


def compile_a_layer(policy: Any) -> None:
    policy.action_net.compile(backend="eager")


@pytest.mark.parametrize(
    "change", [transpose_a_weight, remove_a_bias, share_the_std, let_the_std_vanish]
)
@pytest.mark.parametrize("n_envs", [1, 5])
def test_what_a_callback_does_to_the_weights_holds_for_the_next_action(
    change: Callable[[Any], None], n_envs: int
) -> None:
    model = model_of(n_envs=n_envs, net_arch=[8, 8])
    observations = observations_of(model, n_envs)
    forward = fast(model)
    act(forward, observations)
    change(model.policy)
    ours = act(forward, observations)
    assert_same(ours, act(model.policy, observations))


def test_hook_on_every_module_is_run() -> None:
    model = model_of()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert fast_forward(model.policy) is None
    finally:
        handle.remove()


def test_observation_that_is_not_finite_is_refused() -> None:
    # Saturated units would hide an infinite one, and the gradient would be NaN.
    model = model_of()
    with pytest.raises(ValueError, match="not finite"):
        fast(model)(th.full((1, 5), np.inf))


@pytest.mark.parametrize("n_envs", [1, 5])
@pytest.mark.parametrize("log_std", [-9.0, -5.0, 1.0])
def test_log_prob_is_that_of_the_action_in_the_buffer(log_std: float, n_envs: int) -> None:
    """Beside a small standard deviation the action's rounding is not small."""
    model: Any = model_of(n_envs=n_envs)
    with th.no_grad():
        model.policy.log_std.fill_(log_std)
        model.policy.action_net.weight.zero_()  # the mean has no rounding of its own
        model.policy.action_net.bias.fill_(0.9)
    observations = observations_of(model, n_envs)
    ours = act(fast(model), observations)
    for observation, (action, _, log_prob) in zip(observations, ours, strict=True):
        with th.no_grad():
            expected = model.policy.evaluate_actions(observation, action)[1]
        th.testing.assert_close(log_prob, expected, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("actions", ["box", "discrete"])
def test_default_type_of_the_process_does_not_matter(actions: str) -> None:
    model = model_of(action_space=ACTIONS[actions], n_envs=5)
    observations = observations_of(model, 5)
    theirs = act(model.policy, observations)
    th.set_default_dtype(th.float64)
    try:
        assert_same(act(fast(model), observations), theirs)
    finally:
        th.set_default_dtype(th.float32)


def fix_std(policy: ActorCriticPolicy, as_buffer: bool) -> None:
    """Take the standard deviation out of the parameters, in one of the usual ways."""
    log_std = policy.log_std.detach().clone() - 1
    del policy.log_std
    if as_buffer:
        policy.register_buffer("log_std", log_std)
    else:
        policy.log_std = log_std  # type: ignore[assignment]


@pytest.mark.parametrize("as_buffer", [True, False])
@pytest.mark.parametrize("n_envs", [1, 5])
def test_standard_deviation_need_not_be_a_parameter(n_envs: int, as_buffer: bool) -> None:
    model = model_of(n_envs=n_envs)
    fix_std(model.policy, as_buffer)
    observations = observations_of(model, n_envs)
    theirs = act(model.policy, observations)
    assert_same(act(fast(model), observations), theirs)


class Subclass(ActorCriticPolicy):
    """SB3's policy under another name."""


def with_hook(model: TRPO) -> None:
    model.policy.action_net.register_forward_hook(lambda module, inputs, output: output)


def with_parametrization(model: TRPO) -> None:
    nn.utils.parametrizations.weight_norm(model.policy.action_net)


def with_own_method(model: TRPO) -> None:
    model.policy.extract_features = model.policy.extract_features  # type: ignore[method-assign]


def with_double_weights(model: TRPO) -> None:
    model.policy.double()


def with_other_layer(model: TRPO) -> None:
    model.policy.mlp_extractor.policy_net.append(nn.LayerNorm(8))


def with_compiled_layer(model: TRPO) -> None:
    model.policy.mlp_extractor.policy_net.compile(backend="eager")


def with_other_class(model: TRPO) -> None:
    model.policy.__class__ = Subclass


def with_shared_std(model: TRPO) -> None:
    share_the_std(model.policy)


def with_own_flattening(model: TRPO) -> None:
    flatten: Any = model.policy.features_extractor.flatten
    flatten.forward = lambda observations: 2 * observations.flatten(1)


def with_own_sampling(model: TRPO) -> None:
    give_distribution_a_method(model.policy)


@pytest.mark.parametrize(
    "change",
    [
        with_hook,
        with_parametrization,
        with_own_method,
        with_double_weights,
        with_other_layer,
        with_compiled_layer,
        with_other_class,
        with_shared_std,
        with_own_flattening,
        with_own_sampling,
        lambda model: append_a_module(model.policy),
        lambda model: parametrize_a_layer(model.policy),
        lambda model: give_layer_a_forward(model.policy),
        lambda model: give_policy_a_method(model.policy),
        lambda model: compile_a_layer(model.policy),
    ],
)
def test_policy_that_is_not_exactly_sb3s_takes_sb3s_pass(change: Callable[[TRPO], None]) -> None:
    model = model_of()
    change(model)
    assert fast_forward(model.policy) is None


def test_patch_of_sb3s_class_is_respected(monkeypatch: Any) -> None:
    model = model_of()
    monkeypatch.setattr(ActorCriticPolicy, "forward", lambda *args: None)
    assert fast_forward(model.policy) is None


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_standard_deviation_may_be_shared(shape: tuple[int, ...], n_envs: int) -> None:
    model = model_of(n_envs=n_envs)
    model.policy.log_std = nn.Parameter(th.full(shape, -0.5))
    model.learn(32 * n_envs)
    observation = observations_of(model, n_envs)[0]
    assert bool(model.policy(observation)[2].isfinite().all())


def test_gsde_takes_sb3s_pass() -> None:
    env = ToyEnv(VECTOR, BOX_ACTIONS, 9)
    model = TRPO("MlpPolicy", env, use_sde=True, n_steps=32, batch_size=32)
    assert fast_forward(model.policy) is None


def test_rollout_with_the_fast_pass_is_the_rollout_without(monkeypatch: Any) -> None:
    buffers = []
    for is_fast in (True, False):
        model = model_of(n_envs=3)
        if not is_fast:
            monkeypatch.setattr("sb3_trpo.trpo.fast_forward", lambda *_: None)
        model.learn(96)
        buffers.append(model.rollout_buffer)
    for name in ("observations", "actions", "values", "log_probs", "rewards"):
        ours, theirs = (getattr(buffer, name) for buffer in buffers)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
