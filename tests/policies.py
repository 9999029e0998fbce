"""Features extractors and policies that users write, and what they do to a policy."""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import distributions as td
from torch import nn


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


class OwnOptimizer(th.optim.SGD):
    """An optimizer of a module that is no part of torch, with an option that has no bound."""

    def __init__(self, params: Any, lr: float = 1e-3, largest_step: float = math.inf) -> None:
        super().__init__(params, lr=lr, momentum=0.9)
        for group in (self.defaults, *self.param_groups):
            group["largest_step"] = largest_step


def freeze(*prefixes: str) -> Callable[[ActorCriticPolicy], None]:
    """Make a function that freezes the parameters whose names start so."""

    def apply(policy: ActorCriticPolicy) -> None:
        for name, parameter in policy.named_parameters():
            if name.startswith(prefixes):
                parameter.requires_grad_(False)

    return apply
