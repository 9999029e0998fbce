"""
The table of cases: every class of the package x spaces x what users do to policies.

``CASES`` has all rows by name; ``BASIC``, ``EVERY`` and ``POLICIES`` name the rows that a test goes
over. :func:`toy_model` turns a row into a model whose updates are tested; :func:`collected` into a
smaller one with a full rollout buffer, for comparisons with dense derivatives.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium as gym
import torch as th
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_trpo import TRPO, MaskableRecurrentTRPO, MaskableTRPO, RecurrentTRPO
from sb3_trpo._actor import Actor, LinearizedActor, read_actor
from sb3_trpo._batch import ActorBatch, Rollout
from sb3_trpo._fisher import FisherProduct
from sb3_trpo._read_buffer import read_rollout
from sb3_trpo._surrogate import Surrogate, surrogate_at
from tests import reference
from tests.environments import (
    BOX_ACTIONS,
    DICT,
    DISCRETE_ACTIONS,
    IMAGE,
    MULTI_BINARY_ACTIONS,
    MULTI_DISCRETE_ACTIONS,
    TINY_IMAGE,
    UNIT_BOX_ACTIONS,
    VECTOR,
    ToyEnv,
    collect,
    random_masks,
)
from tests.policies import (
    BetaPolicy,
    LinearExtractor,
    TinyCnn,
    ValueProjPolicy,
    freeze,
)

SMALL: dict[str, Any] = {"net_arch": [8]}
SMALL_LSTM: dict[str, Any] = {"net_arch": [3], "lstm_hidden_size": 3}


@dataclass(frozen=True)
class Case:
    """
    One kind of policy on one kind of environment.

    :param policy: name or class
    :param observation_space: of the environment
    :param action_space: of the environment
    :param policy_kwargs: of the policy, over small networks
    :param kind: class of the model
    :param masks: whether the allowed actions change at every step
    :param use_sde: gSDE
    :param prepare: what is done to the policy after construction
    """

    policy: str | type[ActorCriticPolicy] = "MlpPolicy"
    observation_space: spaces.Space[Any] = field(default_factory=lambda: VECTOR)
    action_space: spaces.Space[Any] = field(default_factory=lambda: BOX_ACTIONS)
    policy_kwargs: dict[str, Any] = field(default_factory=dict)
    kind: type[Any] = TRPO
    masks: bool = False
    use_sde: bool = False
    prepare: Callable[[ActorCriticPolicy], None] | None = None


def _box(observations: spaces.Space[Any] = VECTOR, **fields: Any) -> Case:
    """Make a case with continuous actions."""
    return Case("MlpPolicy", observations, BOX_ACTIONS, **fields)


def _discrete(observations: spaces.Space[Any] = VECTOR, **fields: Any) -> Case:
    """Make a case with one action of several."""
    return Case("MlpPolicy", observations, DISCRETE_ACTIONS, **fields)


def _lstm(observations: spaces.Space[Any], actions: spaces.Space[Any], **options: Any) -> Case:
    """Make a case with an LSTM, the options being the policy's."""
    policy = "MultiInputLstmPolicy" if observations is DICT else "MlpLstmPolicy"
    return Case(policy, observations, actions, {**SMALL_LSTM, **options}, RecurrentTRPO)


def _masked(case: Case) -> Case:
    """Make the same case with masks."""
    kind = MaskableTRPO if case.kind is TRPO else MaskableRecurrentTRPO
    return replace(case, kind=kind, masks=True)


def _extractor(kind: type[BaseFeaturesExtractor], shared: bool, **kwargs: Any) -> dict[str, Any]:
    """Write the policy's arguments for a features extractor."""
    return {
        "features_extractor_class": kind,
        "features_extractor_kwargs": kwargs,
        "share_features_extractor": shared,
    }


# One row for every kind of action distribution and of observation.
_BASIC: dict[str, Case] = {
    "box": _box(),
    "discrete": _discrete(),
    "multi_discrete": Case("MlpPolicy", VECTOR, MULTI_DISCRETE_ACTIONS),
    "multi_binary": Case("MlpPolicy", VECTOR, MULTI_BINARY_ACTIONS),
    "gsde": _box(use_sde=True),
    "cnn": Case("CnnPolicy", IMAGE, DISCRETE_ACTIONS),
    "dict": Case("MultiInputPolicy", DICT, BOX_ACTIONS),
}

_LSTM: dict[str, Case] = {
    "box": _lstm(VECTOR, BOX_ACTIONS),
    "discrete": _lstm(VECTOR, DISCRETE_ACTIONS),
    "multi_discrete": _lstm(VECTOR, MULTI_DISCRETE_ACTIONS),
    "multi_binary": _lstm(VECTOR, MULTI_BINARY_ACTIONS),
    "dict": _lstm(DICT, BOX_ACTIONS),
    "gsde": replace(_lstm(VECTOR, BOX_ACTIONS), use_sde=True),
    "two_layers": _lstm(VECTOR, BOX_ACTIONS, n_lstm_layers=2),
    "shared": _lstm(VECTOR, BOX_ACTIONS, shared_lstm=True, enable_critic_lstm=False),
    "no_critic_lstm": _lstm(VECTOR, BOX_ACTIONS, enable_critic_lstm=False),
}
_MASKABLE = ("discrete", "multi_discrete", "multi_binary")

# The other classes of the package.
_VARIANTS: dict[str, Case] = {
    **{f"masked_{name}": _masked(_BASIC[name]) for name in (*_MASKABLE, "cnn")},
    "masked_dict": _masked(Case("MultiInputPolicy", DICT, DISCRETE_ACTIONS)),
    **{f"lstm_{name}": case for name, case in _LSTM.items()},
    **{f"masked_lstm_{name}": _masked(_LSTM[name]) for name in _MASKABLE},
    "masked_lstm_dict": _masked(_lstm(DICT, DISCRETE_ACTIONS)),
}

_SHARED = _extractor(LinearExtractor, shared=True)
_SEPARATE = _extractor(LinearExtractor, shared=False)

# What users do to the policies of TRPO; small enough for dense Hessians.
_CUSTOM: dict[str, Case] = {
    "box_shared": _box(policy_kwargs=_SHARED),
    "discrete_separate": _discrete(policy_kwargs=_SEPARATE),
    "gsde_shared": _box(use_sde=True, policy_kwargs=_SHARED),
    "gsde_expln": _box(use_sde=True, policy_kwargs={"use_expln": True, "log_std_init": 0.1}),
    "gsde_not_full_std": _box(use_sde=True, policy_kwargs={"full_std": False}),
    "gsde_squashed": _box(use_sde=True, policy_kwargs={"squash_output": True}),
    "cnn_discrete": Case(
        "CnnPolicy", TINY_IMAGE, DISCRETE_ACTIONS, _extractor(TinyCnn, shared=True)
    ),
    "cnn_box_separate": Case(
        "CnnPolicy", TINY_IMAGE, BOX_ACTIONS, _extractor(TinyCnn, shared=False)
    ),
    "dict_box": Case("MultiInputPolicy", DICT, BOX_ACTIONS),
    "dict_multi_discrete_separate": Case(
        "MultiInputPolicy", DICT, MULTI_DISCRETE_ACTIONS, {"share_features_extractor": False}
    ),
    "discrete_observation": Case("MlpPolicy", spaces.Discrete(4), MULTI_BINARY_ACTIONS),
    "multi_discrete_observation": _discrete(spaces.MultiDiscrete([2, 3])),
    "multi_binary_observation": _box(spaces.MultiBinary(4)),
    "empty_net_arch": _box(policy_kwargs={"net_arch": []}),
    "empty_net_arch_shared": _discrete(policy_kwargs={**_SHARED, "net_arch": []}),
    "relu_unequal_nets": _discrete(
        policy_kwargs={"net_arch": {"pi": [6], "vf": [3, 3]}, "activation_fn": nn.ReLU}
    ),
    "value_proj": Case(ValueProjPolicy),
    "value_proj_shared": Case(ValueProjPolicy, VECTOR, DISCRETE_ACTIONS, _SHARED),
    "beta": Case(BetaPolicy, VECTOR, UNIT_BOX_ACTIONS),
    "frozen_layer": _box(prepare=freeze("mlp_extractor.policy_net.0")),
    "frozen_log_std": _box(prepare=freeze("log_std")),
    "only_log_std_trained": _box(prepare=freeze("mlp_extractor", "action_net")),
    "frozen_extractor": _discrete(policy_kwargs=_SHARED, prepare=freeze("features")),
    "batch_norm_shared": _box(
        policy_kwargs=_extractor(LinearExtractor, shared=True, batch_norm=True)
    ),
    "batch_norm_separate": _discrete(
        policy_kwargs=_extractor(LinearExtractor, shared=False, batch_norm=True)
    ),
    "dropout_shared": _discrete(
        policy_kwargs=_extractor(LinearExtractor, shared=True, dropout=0.5)
    ),
    "dropout_separate": _box(policy_kwargs=_extractor(LinearExtractor, shared=False, dropout=0.5)),
}

CASES: dict[str, Case] = {**_BASIC, **_VARIANTS, **_CUSTOM}

# Names of the rows: one per distribution and observation; every class; every policy of TRPO that
# is small.
BASIC = tuple(_BASIC)
EVERY = (*_BASIC, *_VARIANTS)
POLICIES = (*(name for name in _BASIC if name not in ("cnn", "dict")), *_CUSTOM)


def toy_envs(case: Case, n_envs: int = 1) -> DummyVecEnv:
    """
    Make the environments of a case, each with a random stream of its own.

    :param case: of the table
    :param n_envs: number of environments
    :return: vectorized environment
    """
    steps: Iterator[int] = iter(range(10**6))
    masks = random_masks(case.action_space) if case.masks else None

    def make() -> gym.Env[Any, Any]:
        env = ToyEnv(copy.deepcopy(case.observation_space), copy.deepcopy(case.action_space))
        env.masks = None if masks is None else lambda: masks(next(steps))
        return env

    return DummyVecEnv([make] * n_envs)


def toy_model(
    case: Case | str = "box", n_envs: int = 2, kind: type[Any] | None = None, **kwargs: Any
) -> Any:
    """
    Make a small model.

    :param case: row of the table, or its name
    :param n_envs: number of environments
    :param kind: class of the model, if not the case's
    :param kwargs: of the model; ``policy_kwargs`` are merged into the case's
    :return: the model, seeded, on the CPU
    """
    case = CASES[case] if isinstance(case, str) else case
    kind = kind or case.kind
    settings: dict[str, Any] = {
        "n_steps": 32,
        "batch_size": 32,
        "n_critic_updates": 2,
        "target_kl": 0.01,
        "cg_damping": 0.1,
        "seed": 1,
        "device": "cpu",
        **({"use_sde": True} if case.use_sde else {}),
        **({"kl_reduction": "sum"} if issubclass(kind, TRPO) else {}),
        **kwargs,
        "policy_kwargs": {**SMALL, **case.policy_kwargs, **kwargs.get("policy_kwargs", {})},
    }
    env = settings.pop("env", None) or toy_envs(case, n_envs)
    model = kind(case.policy, env, **settings)
    if case.prepare is not None:
        case.prepare(model.policy)
    return model


def collected(case: Case | str, float64: bool = False, **kwargs: Any) -> Any:
    """
    Build a tiny model with a full rollout buffer whose networks are not at their initialisation.

    The action layer starts 100 times smaller than the others, which would hide mistakes; all
    parameters and running statistics are moved by seeded noise first.

    :param case: row of the table, or its name
    :param float64: whether the policy computes in float64 from the update on
    :param kwargs: of :func:`toy_model`
    :return: the model; ``model.train()`` may be called once
    """
    case = CASES[case] if isinstance(case, str) else case
    tiny = {"n_envs": 3, "n_steps": 8, "batch_size": 8, "n_critic_updates": 10, "seed": 0}
    options = {"net_arch": [5], **case.policy_kwargs, **kwargs.pop("policy_kwargs", {})}
    model = toy_model(case, **{**tiny, **kwargs}, policy_kwargs=options)
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


def fisher_products(
    actor: Actor, chunks: Sequence[ActorBatch], vectors: th.Tensor, damping: float = 0.0
) -> th.Tensor:
    """Multiply each row by the Fisher matrix, as ``train`` does."""
    fisher = fisher_of(actor, chunks, damping)
    return th.stack([fisher(vector).clone() for vector in vectors])


def random_vectors(actor: Actor, number: int = 5) -> th.Tensor:
    """
    Draw vectors to multiply with a Fisher matrix.

    A wrong entry of the matrix shows in the product with any of them.

    :param actor: whose parameters they are as long as
    :param number: of vectors
    :return: shape (number, parameters), rows of length one, float64
    """
    size = sum(parameter.numel() for parameter in actor.parameters)
    return nn.functional.normalize(th.randn(number, size, dtype=th.float64))


def copy_rollout(source: OnPolicyAlgorithm, target: OnPolicyAlgorithm) -> None:
    """
    Give a model the parameters and the rollout of another one.

    :param source: has collected a rollout
    :param target: with the same networks and sizes
    """
    target.policy.load_state_dict(source.policy.state_dict())
    target.rollout_buffer = copy.deepcopy(source.rollout_buffer)
    target._setup_learn(1)
