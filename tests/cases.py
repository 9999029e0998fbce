"""
The table of cases: action spaces x policies x features extractors x what users do to policies.

``CASES`` is for ``pytest.mark.parametrize("case", CASES, ids=str)``; :func:`make_model` and
:func:`collected` turn one into a model and into a model with a full rollout buffer.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import distributions as td
from torch import nn

from sb3_trpo import TRPO
from sb3_trpo.actor import Actor, LinearizedActor, read_actor
from sb3_trpo.batch import ActorBatch, Rollout
from sb3_trpo.fisher import FisherProduct
from sb3_trpo.read_buffer import read_rollout
from sb3_trpo.surrogate import Surrogate, surrogate_at
from tests import reference

N_STEPS, N_ENVS = 8, 3

VECTOR = spaces.Box(-1.0, 1.0, (3,))
IMAGE = spaces.Box(0, 255, (1, 8, 8), np.uint8)
DICT = spaces.Dict({"vector": VECTOR, "number": spaces.Discrete(3)})
BOX = spaces.Box(-2.0, 2.0, (2,))
UNIT_BOX = spaces.Box(0.0, 1.0, (2,))
DISCRETE = spaces.Discrete(3)
MULTI_DISCRETE = spaces.MultiDiscrete([2, 3])
MULTI_BINARY = spaces.MultiBinary(3)


class RandomEnv(gym.Env[Any, Any]):
    """Random observations, a reward that depends on the action, episodes of 5 steps."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]):
        self.observation_space = observation_space
        self.action_space = action_space
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self._steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        ended = self._steps % 5 == 0
        reward = float(np.sum(action)) + self.np_random.normal()
        return self.observation_space.sample(), reward, ended, False, {}


class LinearExtractor(BaseFeaturesExtractor):
    """A features extractor with parameters for vectors, with layers that have two modes."""

    def __init__(
        self, observation_space: spaces.Box, batch_norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__(observation_space, features_dim=4)
        self.layers = nn.Sequential(nn.Linear(observation_space.shape[0], 4))
        if batch_norm:
            self.layers.append(nn.BatchNorm1d(4))
        self.layers.append(nn.Tanh())
        if dropout:
            self.layers.append(nn.Dropout(dropout))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layers(observations)  # type: ignore[no-any-return]


class TinyCnn(BaseFeaturesExtractor):
    """A convolution small enough for dense Hessians."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=4)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 4), nn.ReLU()
        )

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layers(observations)  # type: ignore[no-any-return]


class ValueProjPolicy(ActorCriticPolicy):
    """An actor and a critic whose parameters have each other's names."""

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        first: Any = nn.Linear(self.mlp_extractor.latent_dim_pi, 3)
        last: Any = nn.Linear(3, int(self.action_net.out_features))  # type: ignore[arg-type]
        self.action_net = nn.Sequential(OrderedDict(value_proj=first, value_net=last))
        critic: Any = nn.Sequential(OrderedDict(policy_proj=self.value_net))
        self.value_net = critic
        self.optimizer = self.optimizer_class(
            self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs
        )  # type: ignore[call-arg]


class BetaDistribution(Distribution):
    """Independent Beta distributions, as a user of SB3 would write them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.distribution: Any = None

    def proba_distribution_net(self, *args: Any, **kwargs: Any) -> nn.Module:
        raise NotImplementedError

    def proba_distribution(self, numbers: th.Tensor) -> "BetaDistribution":
        a, b = nn.functional.softplus(numbers).add(1.0).chunk(2, dim=1)
        self.distribution = td.Beta(a, b)
        return self

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        return th.as_tensor(self.distribution.log_prob(actions).sum(dim=1))

    def entropy(self) -> th.Tensor:
        return th.as_tensor(self.distribution.entropy().sum(dim=1))

    def sample(self) -> th.Tensor:
        return th.as_tensor(self.distribution.sample().clamp(1e-4, 1 - 1e-4))

    def mode(self) -> th.Tensor:
        return th.as_tensor(self.distribution.mean)

    def actions_from_params(self, numbers: th.Tensor, deterministic: bool = False) -> th.Tensor:
        return self.proba_distribution(numbers).get_actions(deterministic)

    def log_prob_from_params(self, numbers: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        actions = self.actions_from_params(numbers)
        return actions, self.log_prob(actions)


class BetaPolicy(ActorCriticPolicy):
    """Beta actions; ``log_std`` stays behind as a parameter that nothing depends on."""

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        n_actions = int(self.action_net.out_features)  # type: ignore[arg-type]
        self.action_net = nn.Linear(self.mlp_extractor.latent_dim_pi, 2 * n_actions)
        self.optimizer = self.optimizer_class(
            self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs
        )  # type: ignore[call-arg]

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
        return BetaDistribution().proba_distribution(self.action_net(latent_pi))


def freeze(*prefixes: str) -> Callable[[ActorCriticPolicy], None]:
    """Make a function that freezes the parameters whose names start so."""

    def apply(policy: ActorCriticPolicy) -> None:
        for name, parameter in policy.named_parameters():
            if name.startswith(prefixes):
                parameter.requires_grad_(False)

    return apply


def _as_it_is(policy: ActorCriticPolicy) -> None:
    """Change nothing."""


@dataclass(frozen=True)
class Case:
    """
    One row of the table.

    :param name: what ``str`` gives
    :param action_space: of the environment
    :param observation_space: of the environment
    :param policy: name or class
    :param policy_kwargs: of the policy, beyond small networks
    :param use_sde: gSDE
    :param prepare: what is done to the policy after construction
    """

    name: str
    action_space: spaces.Space[Any]
    observation_space: spaces.Space[Any] = field(default_factory=lambda: VECTOR)
    policy: str | type[ActorCriticPolicy] = "MlpPolicy"
    policy_kwargs: dict[str, Any] = field(default_factory=dict)
    use_sde: bool = False
    prepare: Callable[[ActorCriticPolicy], None] = _as_it_is

    def __str__(self) -> str:
        return self.name


def _extractor(kind: type[BaseFeaturesExtractor], shared: bool, **kwargs: Any) -> dict[str, Any]:
    """Write the policy's arguments for a features extractor."""
    return {
        "features_extractor_class": kind,
        "features_extractor_kwargs": kwargs,
        "share_features_extractor": shared,
    }


_SHARED = _extractor(LinearExtractor, shared=True)
_SEPARATE = _extractor(LinearExtractor, shared=False)
_FROZEN_NETS = ("mlp_extractor", "action_net")

CASES = (
    Case("box", BOX),
    Case("discrete", DISCRETE),
    Case("multi_discrete", MULTI_DISCRETE),
    Case("multi_binary", MULTI_BINARY),
    Case("box_shared", BOX, policy_kwargs=_SHARED),
    Case("discrete_separate", DISCRETE, policy_kwargs=_SEPARATE),
    Case("gsde", BOX, use_sde=True),
    Case("gsde_shared", BOX, use_sde=True, policy_kwargs=_SHARED),
    Case("gsde_expln", BOX, use_sde=True, policy_kwargs={"use_expln": True, "log_std_init": 0.1}),
    Case("gsde_not_full_std", BOX, use_sde=True, policy_kwargs={"full_std": False}),
    Case("gsde_squashed", BOX, use_sde=True, policy_kwargs={"squash_output": True}),
    Case("cnn_discrete", DISCRETE, IMAGE, "CnnPolicy", _extractor(TinyCnn, shared=True)),
    Case("cnn_box_separate", BOX, IMAGE, "CnnPolicy", _extractor(TinyCnn, shared=False)),
    Case("dict_box", BOX, DICT, "MultiInputPolicy"),
    Case(
        "dict_multi_discrete_separate",
        MULTI_DISCRETE,
        DICT,
        "MultiInputPolicy",
        {"share_features_extractor": False},
    ),
    Case("discrete_observation", MULTI_BINARY, spaces.Discrete(4)),
    Case("multi_discrete_observation", DISCRETE, spaces.MultiDiscrete([2, 3])),
    Case("multi_binary_observation", BOX, spaces.MultiBinary(4)),
    Case("empty_net_arch", BOX, policy_kwargs={"net_arch": []}),
    Case("empty_net_arch_shared", DISCRETE, policy_kwargs={**_SHARED, "net_arch": []}),
    Case(
        "relu_unequal_nets",
        DISCRETE,
        policy_kwargs={"net_arch": {"pi": [6], "vf": [3, 3]}, "activation_fn": nn.ReLU},
    ),
    Case("value_proj", BOX, policy=ValueProjPolicy),
    Case("value_proj_shared", DISCRETE, policy=ValueProjPolicy, policy_kwargs=_SHARED),
    Case("beta", UNIT_BOX, policy=BetaPolicy),
    Case("frozen_layer", BOX, prepare=freeze("mlp_extractor.policy_net.0")),
    Case("frozen_log_std", BOX, prepare=freeze("log_std")),
    Case("only_log_std_trained", BOX, prepare=freeze(*_FROZEN_NETS)),
    Case("frozen_extractor", DISCRETE, policy_kwargs=_SHARED, prepare=freeze("features")),
    Case(
        "batch_norm_shared",
        BOX,
        policy_kwargs=_extractor(LinearExtractor, shared=True, batch_norm=True),
    ),
    Case(
        "batch_norm_separate",
        DISCRETE,
        policy_kwargs=_extractor(LinearExtractor, shared=False, batch_norm=True),
    ),
    Case(
        "dropout_shared",
        DISCRETE,
        policy_kwargs=_extractor(LinearExtractor, shared=True, dropout=0.5),
    ),
    Case(
        "dropout_separate",
        BOX,
        policy_kwargs=_extractor(LinearExtractor, shared=False, dropout=0.5),
    ),
)

BY_NAME = {case.name: case for case in CASES}


def make_model(case: Case | str, n_envs: int = N_ENVS, **kwargs: Any) -> TRPO:
    """
    Build a small, seeded model of a case.

    :param case: row of the table, or its name
    :param n_envs: number of environments
    :param kwargs: of ``TRPO``, over the defaults n_steps=8, batch_size=8, seed=0, device=cpu and
        one hidden layer of 5; ``policy_kwargs`` are merged into the case's
    :return: the model
    """
    case = BY_NAME[case] if isinstance(case, str) else case
    env = DummyVecEnv(
        [lambda: RandomEnv(case.observation_space, case.action_space) for _ in range(n_envs)]
    )
    policy_kwargs = {"net_arch": [5], **case.policy_kwargs, **kwargs.pop("policy_kwargs", {})}
    defaults = {"n_steps": N_STEPS, "batch_size": 8, "seed": 0, "device": "cpu"}
    model = TRPO(
        case.policy,
        env,
        policy_kwargs=policy_kwargs,
        use_sde=case.use_sde,
        **{**defaults, **kwargs},
    )
    case.prepare(model.policy)
    return model


class _Silent(BaseCallback):
    """A callback that does nothing."""

    def _on_step(self) -> bool:
        return True


def collect(model: TRPO) -> None:
    """Fill a model's rollout buffer with a short real rollout, without training."""
    _, callback = model._setup_learn(model.n_steps * model.n_envs, _Silent())
    assert model.env is not None
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)


def collected(case: Case | str, float64: bool = False, **kwargs: Any) -> TRPO:
    """
    Build a model with a full rollout buffer whose networks are not at their initialisation.

    The action layer starts 100 times smaller than the others, which would hide mistakes; all
    parameters and running statistics are moved by seeded noise first.

    :param case: row of the table, or its name
    :param float64: whether the policy computes in float64 from the update on
    :param kwargs: of :func:`make_model`
    :return: the model; ``model.train()`` may be called once
    """
    model = make_model(case, **kwargs)
    move_off_the_start(model.policy)
    collect(model)
    model.policy.set_training_mode(False)
    if float64:
        reference.run_in_float64(model.policy)
    return model


def move_off_the_start(policy: ActorCriticPolicy, scale: float = 0.3) -> None:
    """Move all parameters and running statistics by noise that depends on the seed only."""
    generator = th.Generator().manual_seed(1)
    with th.no_grad():
        for tensor in [*policy.parameters(), *policy.buffers()]:
            if tensor.is_floating_point() and tensor.layout is th.strided:
                tensor.add_(scale * th.rand(tensor.shape, generator=generator))


def rollout_of(model: TRPO) -> Rollout:
    """Read the rollout buffer in the policy's precision."""
    dtype = next(model.policy.parameters()).dtype
    return read_rollout(model.rollout_buffer, model.device, dtype)


def actor_and_batch(model: TRPO, kl_reduction: str = "sum") -> tuple[Actor, ActorBatch]:
    """Read the actor and its normalised batch from a collected model, as ``train`` does."""
    batch = rollout_of(model).actor_batch.normalized()
    return read_actor(model.policy, batch, kl_reduction), batch


def data_of(
    batch: ActorBatch,
) -> tuple[th.Tensor | dict[str, th.Tensor], th.Tensor, th.Tensor, th.Tensor]:
    """List a batch's content in the order of :func:`tests.reference.surrogate`."""
    return batch.observations, batch.actions, batch.old_log_prob, batch.advantages


def surrogate_of(actor: Actor, chunks: Sequence[ActorBatch], ent_coef: float = 0.0) -> Surrogate:
    """Evaluate the objective as ``train`` does."""
    return surrogate_at(LinearizedActor(actor, chunks), chunks, ent_coef)


def fisher_of(actor: Actor, chunks: Sequence[ActorBatch], damping: float = 0.0) -> FisherProduct:
    """Make the Fisher product as ``train`` does."""
    return FisherProduct(LinearizedActor(actor, chunks), chunks, damping)
