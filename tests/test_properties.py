"""
Whatever is accepted trains, with every invariant holding; whatever is not is refused by name.

Hypothesis draws spaces, networks, environments and arguments; ``--hypothesis-profile thorough``
draws many more of them.
"""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_trpo import TRPO, MaskableRecurrentTRPO, MaskableTRPO, RecurrentTRPO
from sb3_trpo._hyperparameters import RANGES
from sb3_trpo.trpo import ACTOR_UPDATES
from tests.environments import ToyEnv, all_finite, changed, critic_only, logged, state_of

# Rounding of a mean in single precision.
ROUNDING = 1e-3

SHAPES = st.lists(st.integers(1, 3), min_size=1, max_size=2).map(tuple)
WIDTHS = st.lists(st.integers(1, 5), max_size=2)


@st.composite
def boxes(draw: Any) -> spaces.Box:
    """Draw vectors and arrays of numbers, with and without bounds."""
    low, high = draw(
        st.sampled_from([(-1, 1), (-0.4, 0.4), (0, 1e6), (-np.inf, np.inf), (-1, np.inf)])
    )
    return spaces.Box(low, high, draw(SHAPES), draw(st.sampled_from([np.float32, np.float64])))


COUNTS = st.lists(st.integers(1, 4), min_size=1, max_size=3)
# SB3 does not support Discrete spaces that start elsewhere than at 0.
DISCRETE: st.SearchStrategy[Any] = st.one_of(
    st.builds(spaces.Discrete, st.integers(1, 5)),
    st.builds(spaces.MultiDiscrete, COUNTS),
    st.builds(spaces.MultiBinary, st.integers(1, 4)),
)
VECTORS: st.SearchStrategy[Any] = st.one_of(boxes(), DISCRETE)
OBSERVATIONS = st.one_of(
    VECTORS, st.dictionaries(st.sampled_from("abc"), VECTORS, min_size=1).map(spaces.Dict)
)


@st.composite
def policy_kwargs(draw: Any) -> dict[str, Any]:
    """Draw networks."""
    return {
        "net_arch": draw(st.one_of(WIDTHS, st.fixed_dictionaries({"pi": WIDTHS, "vf": WIDTHS}))),
        "activation_fn": draw(st.sampled_from([th.nn.Tanh, th.nn.ReLU, th.nn.Mish, th.nn.GELU])),
        "ortho_init": draw(st.booleans()),
    }


NUMBERS = st.floats(0, 1, allow_subnormal=False)
ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "learning_rate": st.sampled_from([0.0, 1e-3, 1.0, "lin_0.01"]),
    "n_steps": st.integers(1, 9),
    "batch_size": st.integers(1, 12),
    "gamma": NUMBERS,
    "gae_lambda": NUMBERS,
    "cg_max_steps": st.integers(1, 12),
    "cg_damping": st.one_of(st.none(), st.sampled_from([0.0, 1e-6, 0.1, 10.0, "lin_0.1"])),
    "line_search_shrinking_factor": st.floats(0.1, 0.9),
    "line_search_max_iter": st.integers(1, 6),
    "n_critic_updates": st.integers(0, 3),
    "use_sde": st.booleans(),
    "sde_sample_freq": st.integers(-1, 3),
    "normalize_advantage": st.booleans(),
    "target_kl": st.one_of(st.none(), st.sampled_from([0.0, 1e-6, 0.01, 1.0, "lin_0.02"])),
    "sub_sampling_factor": st.integers(1, 4),
    "seed": st.integers(0, 9),
    "kl_reduction": st.sampled_from(["sum", "mean"]),
    "ent_coef": st.sampled_from([-0.1, 0.0, 0.01, 1.0]),
    "fisher_sub_sampling_factor": st.integers(1, 3),
    "cg_residual_tol": st.sampled_from([0.0, 1e-5, 0.5]),
    "damped_step_size": st.booleans(),
    "line_search_accept_ratio": st.sampled_from([0.0, 0.1, 0.9]),
    "max_states_per_chunk": st.one_of(st.none(), st.integers(1, 9)),
}


class Rewarding(ToyEnv):
    """ToyEnv with rewards of any size."""

    reward_scale = 1.0

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, self.reward_scale * reward, *rest


@st.composite
def environments(draw: Any, actions: st.SearchStrategy[Any]) -> Any:
    """Draw a vectorised environment."""
    observation_space, action_space = draw(OBSERVATIONS), draw(actions)
    event(f"{type(observation_space).__name__} -> {type(action_space).__name__}")
    episode_length = draw(st.integers(1, 12))
    scale = draw(st.sampled_from([0.0, 1e-6, 1.0, 1e6, 1e18]))

    def make() -> gym.Env[Any, Any]:
        env = Rewarding(observation_space, action_space, episode_length)
        env.reward_scale = scale
        return env

    env: Any = DummyVecEnv([make] * draw(st.integers(1, 3)))
    # VecNormalize takes numbers only.
    is_numeric = isinstance(observation_space, spaces.Box)
    return VecNormalize(env, norm_obs=is_numeric) if draw(st.booleans()) else env


def check_update(model: Any, before: dict[str, th.Tensor]) -> None:
    """Check what holds after every update."""
    log = {key: value for key, value in logged(model).items() if key.startswith("train/")}
    outcome = ACTOR_UPDATES[log["train/actor_update"]]
    assert all_finite(model)
    # A constant return has no explained variance, and a fit that is undone may have any loss.
    finite = log.keys() - {"train/explained_variance", "train/value_loss"}
    assert all(math.isfinite(log[key]) for key in finite), log
    assert 0 <= log["train/kl_divergence_loss"] <= log["train/target_kl"] * (1 + ROUNDING)
    moved = {name for name in changed(before, state_of(model)) if not critic_only(name)}
    if outcome == "accepted":
        assert log["train/actual_improvement"] > 0
    else:
        assert not moved, outcome
        assert log["train/actual_improvement"] == 0


def has_multi_discrete(space: spaces.Space[Any]) -> bool:
    """Return whether an observation has a MultiDiscrete part."""
    parts = space.values() if isinstance(space, spaces.Dict) else [space]
    return any(isinstance(part, spaces.MultiDiscrete) for part in parts)


KINDS: dict[Any, tuple[str, st.SearchStrategy[Any]]] = {
    TRPO: ("", st.one_of(boxes(), DISCRETE)),
    MaskableTRPO: ("", DISCRETE),
    RecurrentTRPO: ("Lstm", st.one_of(boxes(), DISCRETE)),
    MaskableRecurrentTRPO: ("Lstm", DISCRETE),
}
REFUSALS = (ValueError, AssertionError)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", KINDS)
@settings(suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_is_accepted_trains_within_the_invariants(kind: Any, data: st.DataObject) -> None:
    memory, actions = KINDS[kind]
    env = data.draw(environments(actions), "env")
    arguments = data.draw(st.fixed_dictionaries({}, optional=ARGUMENTS), "arguments")
    networks = data.draw(policy_kwargs(), "policy_kwargs")
    if kind is not TRPO:
        arguments.pop("use_sde", None)
    if memory:
        # sb3-contrib's recurrent policies do not take such observations.
        assume(not has_multi_discrete(env.observation_space))
        networks = {**networks, "lstm_hidden_size": 3}
    family = "MultiInput" if isinstance(env.observation_space, spaces.Dict) else "Mlp"
    arguments = {"n_steps": 6, "batch_size": 4, "n_critic_updates": 1, "seed": 0, **arguments}
    refusal, policy = "", f"{family}{memory}Policy"
    try:
        model = kind(policy, env, policy_kwargs=networks, device="cpu", **arguments)
    except REFUSALS as error:
        refusal = str(error)
    if refusal:
        names = (*arguments, "gSDE", "action space", "n_envs")
        assert any(name in refusal for name in names), refusal
        return
    for k in (1, 2):
        before = state_of(model)
        model.learn(model.n_steps * model.n_envs, reset_num_timesteps=k == 1)
        check_update(model, before)


ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.lists(st.integers(), max_size=2),
    st.integers(-3, 9).map(np.int64),
    st.floats(width=32).map(np.float32),
    st.just(np.array([1, 2])),
    st.sampled_from([object(), int, TRPO, len, lambda _: None, lambda: 1.0]),
)
# More of these is more work, not a mistake; and text names a folder to write to.
LARGEST = 16
WORK = {"n_steps", "n_critic_updates", "line_search_max_iter", "cg_max_steps"}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@settings(suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(sorted(RANGES.keys() - {"tensorboard_log", "verbose"})), value=ODD)
def test_an_odd_argument_works_or_is_refused_by_name(name: str, value: Any) -> None:
    assume(not (name in WORK and isinstance(value, int) and value > LARGEST))
    arguments = {"n_steps": 6, "batch_size": 4, "n_critic_updates": 1, name: value}
    env = DummyVecEnv([ToyEnv])
    refusal, before = "", {}
    try:
        model = TRPO("MlpPolicy", env, **arguments)
        before = state_of(model)
        model.learn(12)
    except REFUSALS as error:
        refusal = str(error)
    assert not refusal or name in refusal
    if before:
        assert all_finite(model)
        assert not (refusal and changed(before, state_of(model)))
