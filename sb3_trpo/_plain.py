"""
Recognise what is exactly SB3's own, so that faster code can replace it.

Only exact types are recognised, without hooks, parametrizations or compilation, so nothing a user
added to a network is skipped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import cast

import torch as th
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, MlpExtractor
from torch import nn

from sb3_trpo._class_methods import ClassMethods
from sb3_trpo._distributions import Head, head_of

Weights = Sequence[tuple[th.Tensor, th.Tensor]]

# Elementwise, without parameters or randomness.
_ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.Tanh,
    nn.ReLU,
    nn.ELU,
    nn.LeakyReLU,
    nn.SiLU,
    nn.GELU,
    nn.Sigmoid,
    nn.Softplus,
)


@dataclass(frozen=True, eq=False)
class Mlp:
    """
    A chain of linear layers.

    :param layers: at least one, each with a bias
    :param activations: what follows each layer; ``None`` where nothing does
    """

    layers: tuple[nn.Linear, ...]
    activations: tuple[nn.Module | None, ...]

    @property
    def weights(self) -> Weights:
        """Return weight and bias of every layer, detached."""
        return [(layer.weight.detach(), layer.bias.detach()) for layer in self.layers]

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """Return all weights and biases in the order of the layers."""
        pairs = [(layer.weight, layer.bias) for layer in self.layers]
        return tuple(cast(nn.Parameter, tensor) for pair in pairs for tensor in pair)


def read_mlp(trunk: nn.Module, head: nn.Module) -> Mlp | None:
    """
    Recognise a multi-layer perceptron.

    :param trunk: hidden layers
    :param head: last layer
    :return: the chain; ``None`` if it is anything else, two layers with the same weights included
    """
    if type(trunk) is not nn.Sequential or not all(map(is_plain, [trunk, *trunk, head])):
        return None
    layers: list[nn.Linear] = []
    activations: list[nn.Module | None] = []
    for module in [*trunk, head]:
        if type(module) is nn.Linear and module.bias is not None:
            layers.append(module)
            activations.append(None)
        elif type(module) in _ACTIVATIONS and layers and activations[-1] is None:
            activations[-1] = module
        else:
            return None
    mlp = Mlp(tuple(layers), tuple(activations))
    return mlp if len(set(map(id, mlp.parameters))) == len(mlp.parameters) else None


def is_plain(module: nn.Module) -> bool:
    """
    Return whether calling a module runs its class's ``forward`` and nothing else.

    :param module: without its children
    :return: whether it has no hook, no method of its own and no compiled form, and no hook waits
        for the gradient of a parameter
    """
    # A copy of a policy that was taken during a rollout has its class's method as an attribute.
    forward = vars(module).get("forward", MethodType(type(module).forward, module))
    is_own = isinstance(forward, MethodType) and forward.__func__ is type(module).forward
    hooks = (
        *(module._forward_hooks, module._forward_pre_hooks),
        *(module._backward_hooks, module._backward_pre_hooks),
        *map(_has_gradient_hooks, module.parameters(recurse=False)),
    )
    return is_own and not any(hooks) and module._compiled_call_impl is None


def _has_gradient_hooks(parameter: nn.Parameter) -> bool:
    """Return whether something changes or watches a parameter's gradient."""
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


_FEED_FORWARD = (ActorCriticPolicy, MultiInputActorCriticPolicy)
_RECURRENT = (RecurrentActorCriticPolicy, RecurrentMultiInputActorCriticPolicy)

# What closed forms stand in for, as it was imported: a later patch of a class is noticed.
_FLOW = ("get_distribution", "predict_values", "extract_features", "_get_action_dist_from_latent")
_RECURRENT_FLOW = (*_FLOW, "_process_sequence")
_SB3S_FORWARD = ActorCriticPolicy.forward
_AS_IMPORTED = ClassMethods(
    {
        **dict.fromkeys(_FEED_FORWARD, _FLOW),
        **dict.fromkeys(_RECURRENT, _RECURRENT_FLOW),
        MlpExtractor: ("forward", "forward_actor", "forward_critic"),
        **dict.fromkeys((FlattenExtractor, CombinedExtractor, nn.Flatten), ("forward",)),
        **dict.fromkeys((nn.Linear, nn.LSTM, *_ACTIVATIONS), ("forward",)),
    }
)


def _is_plain_policy(policy: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """
    Return whether a policy is exactly of a kind and nothing in its data flow was replaced.

    :param policy: any policy
    :param kinds: classes
    :return: whether its networks see nothing but the flattened observation: ``MlpPolicy``, or
        ``MultiInputPolicy`` without images
    """
    return (
        type(policy) in kinds
        and not {*_RECURRENT_FLOW} & vars(policy).keys()
        and _AS_IMPORTED.are_untouched()
        and not any(map(_has_gradient_hooks, policy.parameters(recurse=False)))
        and not has_global_hooks()
        and len({parameter.dtype for parameter in policy.parameters()}) == 1
        and type(policy.mlp_extractor) is MlpExtractor
        and is_plain(policy.mlp_extractor)
        and not {"forward_actor", "forward_critic"} & vars(policy.mlp_extractor).keys()
        and all(map(_only_flattens, _features_extractors(policy)))
    )


def _features_extractors(policy: nn.Module) -> list[nn.Module]:
    """List those for acting, for the actor and for the critic; SB3 makes one of them serve all."""
    kinds = ("features_extractor", "pi_features_extractor", "vf_features_extractor")
    return [cast(nn.Module, getattr(policy, kind)) for kind in kinds]


def _only_flattens(extractor: nn.Module) -> bool:
    """Return whether a features extractor has nothing to learn and nothing added to it."""
    kinds = (FlattenExtractor, CombinedExtractor, nn.Flatten, nn.ModuleDict)
    return is_plain(extractor) and all(type(module) in kinds for module in extractor.modules())


def has_global_hooks() -> bool:
    """
    Return whether every module of the process has a hook, as some profilers set them.

    :return: whether a call of a module runs more than the module
    """
    kinds = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    return any(getattr(nn.modules.module, f"_global_{kind}") for kind in kinds)


@dataclass(frozen=True, eq=False)
class PlainPolicy:
    """
    The parts of SB3's ``MlpPolicy``, or of its ``MultiInputPolicy`` without images.

    :param actor: from features to means or logits; ``None`` if it is no plain network
    :param critic: from features to the value; ``None`` if it is no plain network
    :param head: how the distribution reads the actor's output; ``None`` if that is not enough
        to know the distribution, as with gSDE
    :param acts_plainly: whether every module and ``forward`` are as SB3 has them
    """

    actor: Mlp | None
    critic: Mlp | None
    head: Head | None
    acts_plainly: bool


def read_plain(policy: ActorCriticPolicy) -> PlainPolicy | None:
    """
    Recognise a policy that is exactly SB3's.

    The one place that decides whether closed forms may stand in for a policy's own code.

    :param policy: any policy
    :return: its parts; ``None`` if anything in its data flow is not as SB3 builds it
    """
    if not _is_plain_policy(policy, _FEED_FORWARD):
        return None
    networks = policy.mlp_extractor
    return PlainPolicy(
        read_mlp(networks.policy_net, policy.action_net),
        read_mlp(networks.value_net, policy.value_net),
        head_of(policy),
        type(policy).forward is _SB3S_FORWARD and all(map(is_plain, policy.modules())),
    )


@dataclass(frozen=True, eq=False)
class PlainRecurrent:
    """
    The actor of sb3-contrib's ``MlpLstmPolicy``, or of its ``MultiInputLstmPolicy`` without images.

    :param lstm: from features to the network's input
    :param mlp: to means or logits
    :param head: how the distribution reads them
    """

    lstm: nn.LSTM
    mlp: Mlp
    head: Head


def read_plain_recurrent(policy: ActorCriticPolicy) -> PlainRecurrent | None:
    """
    Recognise a policy with an LSTM that is exactly sb3-contrib's.

    :param policy: any policy
    :return: its actor; ``None`` if anything in its data flow is not as sb3-contrib builds it
    """
    if not _is_plain_policy(policy, _RECURRENT):
        return None
    lstm = cast(nn.LSTM, policy.lstm_actor)
    mlp, head = read_mlp(policy.mlp_extractor.policy_net, policy.action_net), head_of(policy)
    if not _is_plain_lstm(lstm) or mlp is None or head is None:
        return None
    parameters = [*lstm.parameters(), *mlp.parameters]
    is_shared = len(set(map(id, parameters))) < len(parameters)
    return None if is_shared else PlainRecurrent(lstm, mlp, head)


def _is_plain_lstm(lstm: nn.Module) -> bool:
    """Return whether a layer is torch's LSTM, one-way, with biases, without projection, dropout."""
    return (
        type(lstm) is nn.LSTM
        and is_plain(lstm)
        and lstm.bias
        and not (lstm.bidirectional or lstm.batch_first or lstm.proj_size or lstm.dropout)
    )
