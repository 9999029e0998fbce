"""Masked updates: TRPO's with all actions allowed, and nothing but the allowed ones otherwise."""

import copy
import inspect
import pickle
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.envs import (
    InvalidActionEnvDiscrete,
    InvalidActionEnvMultiBinary,
    InvalidActionEnvMultiDiscrete,
)
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_trpo import TRPO, MaskableTRPO
from sb3_trpo._read_buffer import read_rollout
from sb3_trpo._surrogate import improvement_and_kl
from sb3_trpo.trpo import ACTOR_UPDATES
from tests import reference
from tests.cases import (
    Case,
    actor_and_batch,
    fisher_of,
    fisher_products,
    move_off_the_start,
    surrogate_of,
    toy_model,
)
from tests.environments import (
    DICT,
    DISCRETE_ACTIONS,
    IMAGE,
    MULTI_BINARY_ACTIONS,
    MULTI_DISCRETE_ACTIONS,
    VECTOR,
    ToyEnv,
    changed,
    collect,
    logged,
    random_masks,
    sizes_of,
    state_of,
)

# The masked distribution normalises the logits once more than the plain one.
ROUNDING = 1e-12


def masked(case: Case, **kwargs: Any) -> Any:
    return toy_model(case, kind=MaskableTRPO, **kwargs)


@pytest.mark.parametrize(
    ("masked_space", "plain_space"),
    [
        (DISCRETE_ACTIONS, DISCRETE_ACTIONS),
        (MULTI_DISCRETE_ACTIONS, MULTI_DISCRETE_ACTIONS),
        (MULTI_BINARY_ACTIONS, spaces.MultiDiscrete([2] * 3)),
    ],
    ids=["discrete", "multi_discrete", "multi_binary"],
)
def test_with_all_actions_allowed_the_update_is_trpos(
    masked_space: spaces.Space[Any], plain_space: spaces.Space[Any]
) -> None:
    settings: dict[str, Any] = {"ent_coef": 0.01, "target_kl": 0.05}
    plain = toy_model(Case("MlpPolicy", VECTOR, plain_space, {}), **settings)
    ours = masked(Case("MlpPolicy", VECTOR, masked_space, {}), **settings)
    move_off_the_start(plain.policy)
    collect(plain)
    ours.policy.load_state_dict(plain.policy.state_dict())
    ours._setup_learn(1)
    buffer, source = ours.rollout_buffer, plain.rollout_buffer
    buffer.reset()
    for name in ("observations", "actions", "values", "log_probs", "advantages", "returns"):
        setattr(buffer, name, getattr(source, name).copy())
    buffer.full = True
    assert buffer.action_masks.all()
    for model in (plain, ours):
        reference.run_in_float64(model.policy)
        np.random.seed(0)
        model.train()
    assert logged(plain)["train/is_line_search_success"] == 1.0
    expected, found = state_of(plain), state_of(ours)
    for name, value in expected.items():
        th.testing.assert_close(found[name], value, rtol=0, atol=ROUNDING)


IDENTITY_ENVS: list[gym.Env[Any, Any]] = [
    InvalidActionEnvDiscrete(dim=20, n_invalid_actions=18),
    InvalidActionEnvMultiDiscrete(dims=[4, 4], n_invalid_actions=5),
    InvalidActionEnvMultiBinary(dims=4, n_invalid_actions=3),
]


def test_bits_count_as_one_dimension_where_no_radius_is_set() -> None:
    """Masked bits are categorical, and sb3-contrib sums their KL divergence."""
    model = toy_model("masked_multi_binary", target_kl=None, cg_damping=None)
    assert (model.target_kl, model.cg_damping) == (0.01, 0.1)


@pytest.mark.parametrize("env", IDENTITY_ENVS, ids=lambda env: type(env).__name__)
def test_masked_identity_tasks_are_solved(env: gym.Env[Any, Any]) -> None:
    model = MaskableTRPO("MlpPolicy", env, n_steps=128, batch_size=64, gamma=0.4, seed=0)
    model.learn(640)
    mean: Any = evaluate_policy(model, model.get_env(), 5)[0]  # type: ignore[arg-type]
    assert mean >= 99


class SparseActions(gym.Env[Any, Any]):
    """A bandit with 1,000 actions, five of them valid in each of 8 states, one of those right."""

    n, n_states = 1000, 8

    def __init__(self) -> None:
        self.action_space = spaces.Discrete(self.n)
        self.observation_space = spaces.Box(0, 1, (self.n_states,))
        rng = np.random.default_rng(0)
        self.valid = np.stack([rng.choice(self.n, 5, replace=False) for _ in range(self.n_states)])

    def action_masks(self) -> np.ndarray:
        mask: np.ndarray = np.zeros(self.n, dtype=bool)
        mask[self.valid[self.state]] = True
        return mask

    def _observe(self) -> Any:
        self.state = int(self.np_random.integers(self.n_states))
        return np.eye(self.n_states, dtype=np.float32)[self.state]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = float(action == self.valid[self.state, 0])
        self.steps += 1
        return self._observe(), reward, False, self.steps == 20, {}


@pytest.mark.slow
def test_of_a_thousand_actions_the_few_valid_ones_are_enough() -> None:
    best, settings = 20.0, {"n_steps": 256, "gamma": 0.0, "gae_lambda": 0.0, "target_kl": 0.05}
    returns: dict[Any, Any] = {}
    for kind in (MaskableTRPO, TRPO):
        model: Any = kind("MlpPolicy", SparseActions(), seed=0, **settings)  # type: ignore[arg-type]
        model.learn(6 * 256)
        use_masking = kind is MaskableTRPO
        returns[kind], _ = evaluate_policy(model, model.get_env(), 20, use_masking=use_masking)
    assert returns[MaskableTRPO] >= 0.9 * best
    assert returns[TRPO] < 0.2 * best


def collected(space: spaces.Space[Any], masks: Any, observations: Any = VECTOR) -> Any:
    """Collect a rollout in which ``masks(step)`` are in force, and compute in float64."""
    policies = [(VECTOR, "MlpPolicy"), (IMAGE, "CnnPolicy"), (DICT, "MultiInputPolicy")]
    policy = next(name for known, name in policies if known is observations)
    model = masked(Case(policy, observations, space, {}))
    move_off_the_start(model.policy)
    steps = iter(range(10**6))
    for env in model.get_env().envs:
        env.unwrapped.masks = lambda: masks(next(steps))
    collect(model)
    model.policy.set_training_mode(False)
    reference.run_in_float64(model.policy)
    return model


SPACES = [DISCRETE_ACTIONS, MULTI_DISCRETE_ACTIONS, MULTI_BINARY_ACTIONS]
OBSERVATIONS = [VECTOR, IMAGE, DICT]


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_fisher_product_equals_the_hessian_of_the_kl_over_the_allowed_actions(
    space: spaces.Space[Any],
) -> None:
    model = collected(space, random_masks(space))
    actor, batch = actor_and_batch(model)
    sizes = sizes_of(space)
    rows = read_rollout(model.rollout_buffer, model.device, th.float64).masks
    assert rows is not None
    assert not rows.all()

    def log_probs() -> list[th.Tensor]:
        """Softmax over the allowed actions only, written without a distribution class."""
        features = model.policy.extract_features(batch.observations)
        logits = model.policy.action_net(model.policy.mlp_extractor.forward_actor(features))
        blocks = zip(th.split(logits, sizes, 1), th.split(rows, sizes, 1), strict=True)
        return [block.masked_fill(~mask, -np.inf).log_softmax(1) for block, mask in blocks]

    old = [block.detach() for block in log_probs()]
    kl = th.zeros((), dtype=th.float64)
    for new, before in zip(log_probs(), old, strict=True):
        allowed = before.isfinite()
        difference = new.masked_fill(~allowed, 0.0) - before.masked_fill(~allowed, 0.0)
        kl = kl + (new.exp() * difference).sum(1).mean()
    expected = reference.dense_hessian(kl, actor.parameters)
    identity = th.eye(len(expected), dtype=th.float64)
    found = fisher_products(actor, batch.chunks(13), identity).T
    assert expected.abs().max() > 1e-4
    th.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize("observations", OBSERVATIONS, ids=["mlp", "cnn", "multi_input"])
def test_an_update_respects_radius_and_masks(
    space: spaces.Space[Any], observations: spaces.Space[Any]
) -> None:
    model = collected(space, random_masks(space), observations)
    buffer = model.rollout_buffer
    masks = buffer.action_masks.copy().reshape(-1, sum(sizes_of(space)))
    before = state_of(model)
    model.train()
    assert logged(model)["train/is_line_search_success"] == 1.0
    assert 0 < logged(model)["train/kl_divergence_loss"] <= model.target_kl
    assert changed(before, state_of(model))
    actions = buffer.actions.reshape(len(masks), -1).astype(int)
    sizes = sizes_of(space)
    columns = actions + np.cumsum([0, *sizes[:-1]])
    assert np.take_along_axis(masks, columns, axis=1).all()


def test_a_state_with_one_allowed_action_contributes_exactly_nothing() -> None:
    def masks(step: int) -> Any:
        return np.eye(4, dtype=bool)[step % 4]

    model = collected(DISCRETE_ACTIONS, masks)
    actor, batch = actor_and_batch(model)
    surrogate = surrogate_of(actor, (batch,), ent_coef=0.1)
    assert surrogate.entropy == 0.0
    assert not surrogate.gradient.any()
    assert not fisher_of(actor, (batch,))(th.randn_like(surrogate.gradient)).any()
    with th.no_grad():
        for parameter in actor.parameters:
            parameter.add_(th.randn_like(parameter))
    assert improvement_and_kl(actor, surrogate.old, ent_coef=0.1) == (0.0, 0.0)


def test_a_state_with_no_allowed_action_is_an_error_at_its_step() -> None:
    def masks(step: int) -> np.ndarray:
        return np.full(5, step != 9) | (np.arange(5) > 2)  # of step 4, environment 1

    model = masked(Case("MlpPolicy", VECTOR, MULTI_DISCRETE_ACTIONS, {}))
    before, steps = state_of(model), iter(range(100))
    for env in model.get_env().envs:
        env.unwrapped.masks = lambda: masks(next(steps))
    with pytest.raises(ValueError, match=r"\(4, 1\) allows no value of action dimension 0"):
        model.learn(64)
    assert not changed(before, state_of(model))
    assert not model.policy._forward_pre_hooks


def test_masks_of_thousands_of_actions_pass_the_distributions_validation() -> None:
    """Torch checks that probabilities add up to 1 within 1e-6, which float32 has to keep."""
    n = 10_000

    class Many(gym.Env[Any, Any]):
        observation_space, action_space = VECTOR, spaces.Discrete(n)

        def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=kwargs.get("seed"))
            return self.observation_space.sample(), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return self.observation_space.sample(), float(action % 7), False, False, {}

        def action_masks(self) -> Any:
            return self.np_random.random(n) < 0.9

    assert th.distributions.Distribution._validate_args
    model: Any = MaskableTRPO("MlpPolicy", Many(), n_steps=32, batch_size=32, seed=0)
    model.policy.action_net.weight.data.mul_(300)
    model.learn(64)
    assert ACTOR_UPDATES[logged(model)["train/actor_update"]] == "accepted"


def test_an_environment_without_masks_is_refused_unless_told_otherwise() -> None:
    class NoMasks(gym.Wrapper[Any, Any, Any, Any]):
        def get_wrapper_attr(self, name: str) -> Any:
            if name == "action_masks":
                raise AttributeError(name)
            return super().get_wrapper_attr(name)

        def has_wrapper_attr(self, name: str) -> bool:
            return name != "action_masks" and super().has_wrapper_attr(name)

    env = NoMasks(InvalidActionEnvDiscrete(dim=4, n_invalid_actions=0))
    model = MaskableTRPO("MlpPolicy", env, n_steps=16, batch_size=16)
    with pytest.raises(ValueError, match="ActionMasker"):
        model.learn(16)
    model.learn(16, use_masking=False)
    masker = ActionMasker(env, lambda env: np.ones(4, dtype=bool))
    MaskableTRPO("MlpPolicy", masker, n_steps=16, batch_size=16).learn(16)


def test_box_actions_and_gsde_are_refused() -> None:
    with pytest.raises(AssertionError, match="Box"):
        MaskableTRPO("MlpPolicy", "Pendulum-v1")
    with pytest.raises(ValueError, match="gSDE"):
        MaskableTRPO("MlpPolicy", IDENTITY_ENVS[0], use_sde=True)


def test_api_is_maskable_ppos() -> None:
    assert MaskableTRPO.policy_aliases == MaskablePPO.policy_aliases
    assert MaskableTRPO.predict is MaskablePPO.predict
    for name in ("learn", "collect_rollouts"):
        ours, theirs = (
            list(inspect.signature(getattr(kind, name)).parameters)
            for kind in (MaskableTRPO, MaskablePPO)
        )
        assert ours == theirs


def test_predict_takes_masks_for_one_and_for_several_environments() -> None:
    model = MaskableTRPO("MlpPolicy", IDENTITY_ENVS[0], n_steps=16, batch_size=16, seed=0)
    observation = np.zeros(3, dtype=int)
    for action in range(3):
        mask = np.eye(20, dtype=bool)[action]
        assert model.predict(np.array(0), action_masks=mask)[0] == action
        many, state = model.predict(observation, action_masks=np.stack([mask] * 3))
        assert (many == action).all()
        assert state is None


@pytest.mark.slow
def test_masks_come_from_environments_in_processes_of_their_own() -> None:
    env = SubprocVecEnv([lambda: InvalidActionEnvDiscrete(dim=6, n_invalid_actions=3)] * 2)
    try:
        MaskableTRPO("MlpPolicy", env, n_steps=16, batch_size=32).learn(32)
    finally:
        env.close()


def test_a_callbacks_own_calls_of_the_policy_do_not_touch_the_rollouts_masks() -> None:
    env = DummyVecEnv([lambda: InvalidActionEnvDiscrete(dim=6, n_invalid_actions=3)])
    kept: list[np.ndarray] = []
    expected: list[np.ndarray] = []
    for seen, with_callback in ((kept, True), (expected, False)):
        model: Any = MaskableTRPO("MlpPolicy", env, n_steps=8, batch_size=8, seed=3)

        def act(local: Any, _: Any, model: Any = model, use: bool = with_callback) -> bool:
            if use:
                state = th.get_rng_state()
                model.policy(th.as_tensor(local["new_obs"]))
                th.set_rng_state(state)
            return True

        model.learn(8, callback=act)
        seen.append(model.rollout_buffer.action_masks)
    assert np.array_equal(kept[0], expected[0])


class CallsThePolicy(BaseCallback):
    """Calls and copies the policy wherever a callback can."""

    def _call(self) -> None:
        with th.no_grad():
            self.model.policy(th.as_tensor(cast(Any, self.model)._last_obs))

    def _on_rollout_start(self) -> None:
        self._call()

    def _on_step(self) -> bool:
        self._call()
        opponent = copy.deepcopy(self.model.policy)
        pickle.loads(pickle.dumps(opponent)).predict(np.zeros(1, dtype=np.int64))
        return True

    def _on_rollout_end(self) -> None:
        self._call()


def test_callbacks_may_call_and_copy_the_policy_at_any_time() -> None:
    env = InvalidActionEnvDiscrete(dim=20, n_invalid_actions=18)
    model = MaskableTRPO("MlpPolicy", env, n_steps=32, batch_size=32, seed=0)
    model.learn(32, callback=CallsThePolicy())
    buffer: Any = model.rollout_buffer
    actions = buffer.actions.reshape(-1).astype(int)
    assert buffer.action_masks.reshape(len(actions), -1)[np.arange(len(actions)), actions].all()


class WrongWidth(ToyEnv):
    """Returns one value too many."""

    def action_masks(self) -> np.ndarray:
        return np.ones(4, dtype=bool)


def test_masks_of_a_wrong_width_are_named() -> None:
    env = WrongWidth(action_space=spaces.Discrete(3))
    model = MaskableTRPO("MlpPolicy", env, n_steps=8, batch_size=8)
    with pytest.raises(ValueError, match=r"4 values .* has 3"):
        model.learn(8)


def test_buffer_without_masks_is_refused_at_construction() -> None:
    env = ToyEnv(action_space=spaces.Discrete(3))
    with pytest.raises(ValueError, match="cannot fill a RolloutBuffer"):
        MaskableTRPO("MlpPolicy", env, n_steps=128, rollout_buffer_class=RolloutBuffer)
