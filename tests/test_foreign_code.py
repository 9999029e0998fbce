"""Code that works with PPO, A2C and sb3_contrib.TRPO works here, or is refused by name."""

import copy
import dataclasses
import pickle
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import torch as th
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.distributions import (
    CategoricalDistribution,
    DiagGaussianDistribution,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    FlattenExtractor,
    MlpExtractor,
)
from torch import distributions as td
from torch import nn

from sb3_trpo import TRPO, RecurrentTRPO
from sb3_trpo._twice_differentiable import twice_differentiable
from tests.cases import CASES, toy_model
from tests.environments import ToyEnv, changed, changed_actor, collect, state_of

KINDS = {"TRPO": TRPO, "PPO": PPO, "A2C": A2C, "sb3_contrib.TRPO": sb3_contrib.TRPO}
by_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def make(kind: type[Any], env: Any = "CartPole-v1", **options: Any) -> Any:
    if kind is not A2C:
        options["batch_size"] = 32
    return kind("MlpPolicy", env, n_steps=32, seed=1, device="cpu", **options)


class TestBufferThatIsNotFull:
    def test_fewer_steps_are_refused_before_one_is_taken(self) -> None:
        model = make(TRPO).learn(32)
        before, steps = state_of(model), model.num_timesteps
        for n_steps in (16, 64):
            model.n_steps = n_steps
            with pytest.raises(ValueError, match=rf"n_steps={n_steps}.*32 steps.*load"):
                model.learn(64, reset_num_timesteps=False)
        assert not changed(before, state_of(model))
        assert model.num_timesteps == steps

    @pytest.mark.parametrize("case", ["box", "lstm_box", "masked_discrete"])
    def test_a_rollout_that_is_not_complete_is_not_trained_on(self, case: str) -> None:
        model = toy_model(case)
        collect(model)
        model.rollout_buffer.reset()
        before = state_of(model)
        with pytest.raises(ValueError, match="0 of 32 steps"):
            model.train()
        assert not changed(before, state_of(model))


class CompiledFunction(BaseFeaturesExtractor):
    """A compiled function that no module shows, and that keeps what its backward needs."""

    def __init__(self, space: Any) -> None:
        super().__init__(space, 8)
        self.weights = nn.ParameterList([th.randn(4, 32) * 0.5, th.randn(32, 8) * 0.3])
        self.compiled = [th.compile(self.plain, backend="aot_eager")]

    def plain(self, x: th.Tensor, first: th.Tensor, second: th.Tensor) -> th.Tensor:
        return th.tanh(th.tanh(x @ first) @ second)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        compiled: th.Tensor = self.compiled[0](observations, *self.weights)
        return compiled


def test_compiled_functions_train() -> None:
    model = make(TRPO, policy_kwargs={"features_extractor_class": CompiledFunction})
    before = state_of(model)
    model.learn(32)
    assert changed_actor(before, state_of(model))


class Delegating:
    """What SB3 needs of an optimizer, and nothing else."""

    def __init__(self, inner: th.optim.Optimizer) -> None:
        self.inner = inner
        self.param_groups = inner.param_groups
        self.steps = 0

    def zero_grad(self) -> None:
        self.inner.zero_grad()

    def step(self) -> None:
        self.inner.step()
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])
        self.steps = state["steps"]


@pytest.mark.parametrize("lr", [1e-3, np.inf])
@by_kind
def test_wrapped_optimizers_step(kind: type[Any], lr: float) -> None:
    model = make(kind)
    wrapper = Delegating(model.policy.optimizer)
    model.policy.optimizer = wrapper
    before = state_of(model)
    if lr == np.inf:  # the fit is undone, as with any optimizer
        if kind is not TRPO:
            return
        model.policy.value_net.weight.register_hook(lambda gradient: gradient * np.inf)
        with pytest.warns(UserWarning, match="not finite"):
            model.learn(32)
        assert wrapper.steps == 0
        assert not wrapper.inner.state_dict()["state"]
        return
    model.learn(32)
    assert wrapper.steps > 0
    assert changed(before, state_of(model))


class ReadsDistribution(BaseCallback):
    """Compares the distribution that the policy holds with the actions' log-probabilities."""

    def _on_step(self) -> bool:
        distribution: Any = self.model.policy.action_dist
        actions = th.as_tensor(self.locals["actions"])
        if isinstance(self.model.action_space, spaces.Discrete):
            actions = actions.flatten()
        np.testing.assert_allclose(
            distribution.log_prob(actions).numpy(), self.locals["log_probs"].numpy(), atol=1e-5
        )
        self.model.predict(self.model.observation_space.sample())  # the next step forgets it
        return True


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "multi_discrete", "multi_binary"])
@by_kind
def test_callbacks_may_read_the_policys_distribution(kind: Any, env: str) -> None:
    space = CASES[env].action_space if env in CASES else None
    model = make(kind, ToyEnv(action_space=space) if space else env)
    for callback in (ReadsDistribution(), [CallbackList([ReadsDistribution()])]):
        model.learn(64, callback)


def test_functions_as_callbacks_may_read_it_too() -> None:
    model = make(TRPO)
    held: list[Any] = []
    model.learn(32, lambda *_: held.append(model.policy.action_dist.distribution) is None)  # type: ignore[func-returns-value]
    assert len(set(map(id, held))) == 32


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_distributions_can_be_copied_pickled_and_compared(env: str) -> None:
    model = make(TRPO, env)
    seen: list[Any] = []

    def look(*_: Any) -> bool:
        held = model.policy.action_dist
        ways: dict[str, Any] = {
            "deep": lambda: copy.deepcopy(held).distribution,
            "shallow": lambda: copy.copy(held.distribution),
            "pickle": lambda: pickle.loads(pickle.dumps(held)).distribution,
            "policy": lambda: copy.deepcopy(model.policy).action_dist.distribution,
            "divergence": lambda: td.kl_divergence(held.distribution, held.distribution),
            "text": lambda: repr(held.distribution),
        }
        seen.append(list(ways.values())[len(seen) % len(ways)]())
        assert isinstance(held.distribution, td.Distribution)
        assert not held.distribution.entropy().requires_grad
        return True

    model.learn(32, look)
    kinds = {"CartPole-v1": td.Categorical, "Pendulum-v1": td.Normal}
    for way in (0, 1, 2, 3):
        assert seen[way].entropy().shape[0] == 1
        assert type(seen[way]) is kinds[env]
        assert not th.equal(seen[way].entropy(), seen[way + 6].entropy()) or env == "Pendulum-v1"
    assert float(seen[4].sum()) == 0
    assert seen[5].startswith(kinds[env].__name__)


class Replaces(BaseCallback):
    """Puts another policy in the model's place, which always takes the same action."""

    def _on_step(self) -> bool:
        if self.n_calls == 10:
            policy: Any = copy.deepcopy(self.model.policy)
            with th.no_grad():
                policy.action_net.bias.copy_(th.tensor([100.0, -100.0]))
            self.model.policy = policy
        return self.n_calls < 30


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Mish])
@by_kind
def test_a_policy_that_is_replaced_acts_at_once(kind: Any, activation: Any) -> None:
    model = make(kind, policy_kwargs={"activation_fn": activation})
    model.learn(32, Replaces())
    assert not model.rollout_buffer.actions[10:29].any()
    assert model.rollout_buffer.actions[:10].any()


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    """An exception that takes no notes."""

    code: int


class FailingEnv(gym.Wrapper[Any, Any, Any, Any]):
    def step(self, action: Any) -> Any:
        raise FrozenError(3)


@pytest.mark.parametrize("place", ["callback", "environment", "reset"])
@by_kind
def test_exceptions_that_refuse_notes_are_raised_as_they_are(kind: Any, place: str) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise FrozenError(3)

    env = gym.make("CartPole-v1")
    model = make(kind, FailingEnv(env) if place == "environment" else env)
    if place == "reset":
        model.env.reset = fail
    with pytest.raises(FrozenError) as caught:
        model.learn(32, fail if place == "callback" else None)
    assert caught.value.code == 3


@pytest.fixture
def strict_numpy() -> Iterator[None]:
    with np.errstate(all="raise"):
        yield


@pytest.mark.usefixtures("strict_numpy")
@pytest.mark.parametrize("n_envs", [1, 4])
@by_kind
def test_a_saturated_policy_acts_where_numpy_is_strict(kind: Any, n_envs: int) -> None:
    model = make(kind, make_vec_env("CartPole-v1", n_envs))
    with th.no_grad():
        model.policy.action_net.weight.zero_()
        model.policy.action_net.bias.copy_(th.tensor([0.0, -100.0]))
    seen: list[Any] = []
    model.learn(32 * n_envs, lambda *_: seen.append(np.geterr()) is None)  # type: ignore[func-returns-value]
    assert {*map(str, seen)} == {str(np.geterr())}


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Mish])
@pytest.mark.parametrize("kind", [TRPO, PPO, sb3_contrib.TRPO])
def test_hooks_after_a_gradient_is_accumulated_are_called(kind: Any, activation: Any) -> None:
    model = make(kind, policy_kwargs={"activation_fn": activation})
    calls: list[float] = []
    weight = model.policy.value_net.weight
    weight.register_post_accumulate_grad_hook(lambda p: calls.append(float(p.grad.norm())))
    model.learn(32)
    assert len(calls) == 10  # epochs of one minibatch
    assert min(calls) > 0


class Fourier(BaseFeaturesExtractor):
    """Complex weights."""

    def __init__(self, space: Any) -> None:
        super().__init__(space, 8)
        self.spectral = nn.Parameter(th.randn(8, 3, dtype=th.cfloat) * 0.3)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        spectrum: th.Tensor = th.fft.rfft(observations, dim=1) @ self.spectral.T
        return spectrum.abs()


def test_complex_weights_of_the_actor_are_refused_by_name() -> None:
    options = {"features_extractor_class": Fourier, "share_features_extractor": False}
    model = make(TRPO, policy_kwargs=options)
    before = state_of(model)
    with pytest.raises(ValueError, match=r"features_extractor\.spectral.*complex.*view_as_real"):
        model.learn(32)
    assert not changed(before, state_of(model))


def test_complex_weights_of_the_critic_train() -> None:
    options = {"features_extractor_class": Fourier, "share_features_extractor": False}
    model = make(TRPO, policy_kwargs=options)
    model.policy.pi_features_extractor = nn.Sequential(nn.Flatten(), nn.Linear(4, 8))
    before = state_of(model)
    model.learn(32)
    assert "vf_features_extractor.spectral" in changed(before, state_of(model))


@pytest.mark.parametrize("name", ["hessian_vector_product", "_compute_actor_grad"])
def test_overridden_parts_of_contribs_update_are_refused(name: str) -> None:
    kind: Any = type("Mine", (TRPO,), {name: lambda self: None})
    with pytest.raises(ValueError, match=f"Mine.*{name}.*sb3_contrib"):
        make(kind)


def test_actions_that_the_buffer_rounds_are_named() -> None:
    class Rounding(gym.Env[Any, Any]):
        observation_space = spaces.Box(-1, 1, (2,), np.float32)
        action_space = spaces.Box(-3, 3, (2,), np.int32)

        def reset(self, **_: Any) -> Any:
            return np.zeros(2, np.float32), {}

        def step(self, action: Any) -> Any:
            return np.zeros(2, np.float32), 1.0, False, False, {}

    with pytest.warns(UserWarning, match="int32"):
        make(TRPO, Rounding()).learn(32)


class OneBatchNorm(BaseFeaturesExtractor):
    def __init__(self, space: Any) -> None:
        super().__init__(space, 8)
        self.layer, self.norm = nn.Linear(4, 8), nn.BatchNorm1d(8)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        normalized: th.Tensor = self.norm(self.layer(observations))
        return normalized


class Pins(BasePolicy):
    """Pins layers where SB3's documentation has the switch, and not in ``train``."""

    def set_training_mode(self, mode: bool) -> None:
        super().set_training_mode(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()


class Pinning(Pins, ActorCriticPolicy):
    pass


class RecurrentPinning(Pins, RecurrentActorCriticPolicy):
    pass


@by_kind
@pytest.mark.parametrize("is_shared", [True, False])
def test_layers_that_set_training_mode_pins_stay_as_they_are(
    kind: type[Any], is_shared: bool
) -> None:
    options = {"features_extractor_class": OneBatchNorm, "share_features_extractor": is_shared}
    size = {} if kind is A2C else {"batch_size": 32}
    model = kind(Pinning, "CartPole-v1", n_steps=32, policy_kwargs=options, device="cpu", **size)
    before = copy.deepcopy(dict(model.policy.named_buffers()))
    model.learn(64)
    assert before
    for name, buffer in model.policy.named_buffers():
        assert th.equal(buffer, before[name]), name


def test_pinned_batch_normalisation_goes_with_an_lstm() -> None:
    options = {"features_extractor_class": OneBatchNorm}
    RecurrentTRPO(RecurrentPinning, "CartPole-v1", n_steps=32, batch_size=32, policy_kwargs=options)


class Summary(DiagGaussianDistribution):
    """Has one entropy for all states, which is all that PPO's loss reads of it."""

    def __init__(self, summary: Any) -> None:
        super().__init__(1)
        self.summary = summary

    def entropy(self) -> Any:
        return self.summary(super().entropy())


class Summarized(ActorCriticPolicy):
    def __init__(self, *arguments: Any, summary: Any, **options: Any) -> None:
        self.summary = summary
        super().__init__(*arguments, **options)

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_dist = Summary(self.summary)

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
        distribution: Any = self.action_dist
        return distribution.proba_distribution(self.action_net(latent_pi), self.log_std)


@pytest.mark.parametrize(
    "summary",
    [
        th.mean,
        lambda entropy: entropy.mean().reshape(1),
        lambda entropy: float(entropy.detach().mean()),
    ],
    ids=["scalar", "vector", "number"],
)
def test_entropy_of_all_states_together_is_that_of_each(summary: Any) -> None:
    def trained(summary: Any) -> Any:
        options = {"summary": summary}
        model = TRPO(
            Summarized, "Pendulum-v1", n_steps=32, batch_size=32, seed=1, policy_kwargs=options
        )
        return model.learn(64)

    by_state, together = trained(lambda entropy: entropy), trained(summary)
    logged, expected = (
        model.logger.name_to_value["train/entropy"] for model in (together, by_state)
    )
    assert logged == pytest.approx(expected, rel=1e-5)
    assert not changed(state_of(by_state), state_of(together))


class Bare(ActorCriticPolicy):
    """Implements the interface and has none of SB3's parts."""

    def __init__(
        self, observation_space: Any, action_space: Any, lr_schedule: Any, **_: Any
    ) -> None:
        BasePolicy.__init__(self, observation_space, action_space)
        self.actor = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
        self.critic = nn.Linear(4, 1)
        self.optimizer = th.optim.Adam(self.parameters(), lr=lr_schedule(1))

    def get_distribution(self, obs: Any) -> Any:
        return CategoricalDistribution(2).proba_distribution(self.actor(obs.float()))

    def predict_values(self, obs: Any) -> th.Tensor:
        values: th.Tensor = self.critic(obs.float())
        return values

    def forward(self, obs: th.Tensor, deterministic: bool = False) -> Any:
        distribution = self.get_distribution(obs)
        actions = distribution.get_actions(deterministic)
        return actions, self.predict_values(obs), distribution.log_prob(actions)

    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> Any:
        distribution = self.get_distribution(obs)
        return self.predict_values(obs), distribution.log_prob(actions), distribution.entropy()

    def _predict(self, observation: Any, deterministic: bool = False) -> th.Tensor:
        actions: th.Tensor = self.get_distribution(observation).get_actions(deterministic)
        return actions


@by_kind
def test_a_policy_without_the_parts_of_sb3s_trains(kind: type[Any]) -> None:
    size = {} if kind is A2C else {"batch_size": 32}
    model = kind(Bare, "CartPole-v1", n_steps=32, device="cpu", **size)
    before = copy.deepcopy(model.policy.state_dict())
    model.learn(64)
    for name, value in model.policy.state_dict().items():
        assert not th.equal(value, before[name]), name


def test_trainings_in_threads_leave_the_switches_of_torch_as_they_were() -> None:
    def switches() -> tuple[bool, ...]:
        return (
            th.backends.cudnn.enabled,
            th.backends.mha.get_fastpath_enabled(),
            th._C._get_flash_sdp_enabled(),
        )

    before, inside = switches(), []
    policies = [toy_model(name).policy for name in ("box", "lstm_box")]
    first, second = map(twice_differentiable, policies)
    first.__enter__()
    second.__enter__()
    inside.append(switches())
    first.__exit__(None, None, None)
    inside.append(switches())  # the other thread still needs them
    second.__exit__(None, None, None)
    assert inside == [(False, False, False)] * 2
    assert switches() == before == (True, True, True)


def constant(method: Any) -> Any:
    """Wrap a method so that it returns zeros in place of its tensor."""

    def zeros(*arguments: Any) -> Any:
        return method(*arguments) * 0

    return zeros


@by_kind
@pytest.mark.parametrize(
    ("owner", "name", "array"),
    [
        (DiagGaussianDistribution, "sample", "actions"),
        (MlpExtractor, "forward_critic", "values"),
        (FlattenExtractor, "forward", "values"),
        (nn.Tanh, "forward", "values"),
    ],
)
def test_methods_that_are_replaced_in_a_class_are_called(
    owner: Any, name: str, array: str, kind: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(kind, "Pendulum-v1", policy_kwargs={"net_arch": [8]})
    monkeypatch.setattr(owner, name, constant(getattr(owner, name)))
    model.learn(32)
    assert np.ptp(getattr(model.rollout_buffer, array)) == 0
