"""Whole-sequence updates of LSTM policies against the twin that steps state by state."""

import copy
import json
import zipfile
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.buffers import RecurrentRolloutBuffer
from stable_baselines3.common.envs import IdentityEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from sb3_trpo import TRPO, RecurrentTRPO
from sb3_trpo._batch import SequenceBatch
from sb3_trpo._sequences import Sequences
from tests import reference, stepped
from tests.cases import (
    CASES,
    SMALL_LSTM,
    Case,
    actor_and_batch,
    copy_rollout,
    move_off_the_start,
    rollout_of,
    surrogate_of,
    toy_model,
)
from tests.environments import (
    DISCRETE_ACTIONS,
    IMAGE,
    VECTOR,
    all_finite,
    changed,
    collect,
    logged,
    state_of,
)
from tests.policies import TinyCnn

CRITICS: dict[str, dict[str, Any]] = {
    "separate": {},
    "shared": {"shared_lstm": True, "enable_critic_lstm": False},
    "none": {"enable_critic_lstm": False},
}
SMALL_IMAGE = spaces.Box(0, 255, (1, 8, 8), np.uint8)
LSTM = {
    name: CASES[f"lstm_{name}"]
    for name in ("box", "discrete", "multi_discrete", "multi_binary", "gsde", "dict")
}

# Sums over some twenty states through an LSTM, in float64.
ROUNDING = 1e-10


def recurrent(case: str | Case, options: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    settings = {"n_steps": 12, "batch_size": 8, **kwargs}
    policy_kwargs = {**SMALL_LSTM, **(options or {})}
    chosen = LSTM[case] if isinstance(case, str) else case
    return toy_model(chosen, kind=RecurrentTRPO, policy_kwargs=policy_kwargs, **settings)


def collected(
    case: str | Case, options: dict[str, Any] | None = None, float64: bool = True, **kwargs: Any
) -> Any:
    return stepped.collected(recurrent(case, options, **kwargs), float64)


def sequences_by_hand(model: Any) -> list[list[int]]:
    starts = model.rollout_buffer.episode_starts
    found: list[list[int]] = []
    for step, env in stepped.states_of(model):
        if step == 0 or starts[step, env]:
            found.append([])
        found[-1].append(step * model.n_envs + env)
    return found


def test_sequences_are_the_parts_of_episodes_in_the_rollout() -> None:
    model = collected("box")
    sequences = rollout_of(model).actor_sequences
    assert sequences is not None
    pairs = zip(sequences.rows.tolist(), sequences.lengths.tolist(), strict=True)
    found = [rows[:length] for rows, length in pairs]
    assert sorted(found) == sorted(sequences_by_hand(model))
    lengths = [len(rows) for rows in found]
    assert lengths == sorted(lengths, reverse=True)
    assert min(lengths) < max(lengths)  # or there would be no padding to get wrong


@pytest.mark.parametrize("case", LSTM)
def test_whole_padded_sequences_are_evaluated_as_the_states_one_by_one(case: str) -> None:
    model = collected(case)
    actor, batch = actor_and_batch(model)
    assert isinstance(batch, SequenceBatch)
    distribution = actor.distribution(batch)
    family, inner = distribution.family, stepped.distributions(model)
    states = [family.outputs(b if case == "multi_discrete" else b[0]) for b in inner]
    order = {row: i for i, row in enumerate(r for rows in sequences_by_hand(model) for r in rows)}
    where = ~batch.sequences.is_padding
    rows = batch.sequences.rows.flatten()[where].tolist()
    for k, output in enumerate(distribution.outputs):
        expected = th.cat([states[order[row]][k] for row in rows])
        th.testing.assert_close(output[where], expected, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("size", [1, 10, 30])
@pytest.mark.parametrize("case", ["box", "discrete", "dict"])
def test_chunks_are_whole_sequences(case: str, size: int) -> None:
    _, batch = actor_and_batch(collected(case))
    chunks = batch.chunks(size)
    rows = [row for chunk in chunks for row in chunk.sequences.rows[:, 0].tolist()]  # type: ignore[attr-defined]
    assert rows == batch.sequences.rows[:, 0].tolist()  # type: ignore[attr-defined]
    assert sum(chunk.weight_sum for chunk in chunks) == batch.weight_sum == 24


def test_padding_has_no_influence() -> None:
    model = collected("box")
    _, batch = actor_and_batch(model)
    padding = batch.sequences.is_padding  # type: ignore[attr-defined]
    spoilt = batch.weigh(th.where(padding, th.inf, 1.0).double())
    assert float(spoilt.sum()) == batch.weight_sum
    advantages = batch.advantages[~padding]
    assert float(advantages.mean()) == pytest.approx(0, abs=1e-12)
    assert float(advantages.std()) == pytest.approx(1, abs=1e-6)


def test_the_initial_state_of_a_sequence_is_the_rollouts_and_zero_where_an_episode_starts() -> None:
    model = collected("discrete")
    buffer = model.rollout_buffer
    _, batch = actor_and_batch(model)
    _, (hidden, _), starts = batch.inputs
    assert not starts.any()
    assert not hidden.requires_grad
    for n, row in enumerate(batch.sequences.rows[:, 0].tolist()):  # type: ignore[attr-defined]
        step, env = divmod(row, model.n_envs)
        kept = th.as_tensor(buffer.hidden_states_pi[step, :, env]).double()
        is_start = bool(buffer.episode_starts[step, env])
        assert th.equal(hidden[:, n], th.zeros_like(kept) if is_start else kept)
        assert kept.any()


def shut(lstm: nn.LSTM) -> None:
    """Take the memory from an LSTM: no recurrent weights, and a forget gate that is closed."""
    size = lstm.hidden_size
    with th.no_grad():
        for name, parameter in lstm.named_parameters():
            if name.startswith("weight_hh"):
                parameter.zero_()
            if name.startswith("bias_ih"):
                parameter[size : 2 * size] = -1000.0


class GatesExtractor(nn.Module):
    """One step of an LSTM that remembers nothing, as a feed-forward layer."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, features: th.Tensor) -> th.Tensor:
        lstm: Any = self.lstm
        gates: th.Tensor = features @ lstm.weight_ih_l0.T + lstm.bias_ih_l0 + lstm.bias_hh_l0
        i, _, g, o = gates.chunk(4, dim=1)
        return o.sigmoid() * (i.sigmoid() * g.tanh()).tanh()


def forgetful(case: str) -> Any:
    """Collect a rollout of a policy whose LSTM remembers nothing and never will."""
    model = recurrent(case, {"enable_critic_lstm": False}, n_critic_updates=0, target_kl=0.05)
    move_off_the_start(model.policy)
    shut(model.policy.lstm_actor)
    for name, parameter in model.policy.lstm_actor.named_parameters():
        parameter.requires_grad_("hh" not in name)
    collect(model)
    return model


def feed_forward_twin(case: str, model: Any) -> Any:
    """Copy its layers and its rollout into a feed-forward model."""
    space = Case("MlpPolicy", VECTOR, LSTM[case].action_space, {})
    settings: dict[str, Any] = {
        "n_steps": 12,
        "batch_size": 24,
        "n_critic_updates": 0,
    }
    twin = toy_model(space, target_kl=0.05, policy_kwargs={"net_arch": [3]}, **settings)
    collect(twin)
    policy = twin.policy
    for name in ("mlp_extractor", "action_net", *(["log_std"] if case == "box" else [])):
        setattr(policy, name, copy.deepcopy(getattr(model.policy, name)))
    gates = GatesExtractor(copy.deepcopy(model.policy.lstm_actor))
    extractor = nn.Sequential(policy.features_extractor, gates)
    policy.features_extractor = policy.pi_features_extractor = extractor
    for name in ("observations", "actions", "values", "log_probs", "advantages", "returns"):
        setattr(twin.rollout_buffer, name, getattr(model.rollout_buffer, name).copy())
    return twin


def compute_in_float64(model: Any) -> None:
    """Convert; the observations are converted after they were flattened."""
    model.policy.double()
    flatten = next(m for m in model.policy.modules() if isinstance(m, nn.Flatten))
    flatten.register_forward_pre_hook(lambda _, args: (args[0].double(),))


@pytest.mark.parametrize("case", ["box", "discrete"])
def test_without_memory_outputs_and_update_are_the_feed_forward_twins(case: str) -> None:
    model = forgetful(case)
    twin = feed_forward_twin(case, model)
    compute_in_float64(model)
    compute_in_float64(twin)
    (actor, batch), (plain, plain_batch) = actor_and_batch(model), actor_and_batch(twin)
    with th.no_grad():
        ours, theirs = actor.distribution(batch).outputs, plain.distribution(plain_batch).outputs
    rows = batch.sequences.rows.flatten()  # type: ignore[attr-defined]
    for z, expected in zip(ours, theirs, strict=True):
        th.testing.assert_close(z, expected[rows], rtol=1e-12, atol=1e-12)
    model.train()
    twin.train()
    assert logged(model)["train/is_line_search_success"] == 1.0
    for key in ("kl_divergence_loss", "policy_objective", "actual_improvement", "grad_norm"):
        expected_value = logged(twin)[f"train/{key}"]
        assert logged(model)[f"train/{key}"] == pytest.approx(expected_value, rel=1e-8)
    found, expected_state = state_of(model), state_of(twin)
    for name in ("action_net.weight", "mlp_extractor.policy_net.0.weight", "weight_ih_l0"):
        mine = next(value for key, value in found.items() if key.endswith(name))
        other = next(v for k, v in expected_state.items() if k.endswith(name) and "pi_" not in k)
        th.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("case", LSTM)
def test_updates_stay_in_the_trust_region_and_move_actor_and_critic(case: str, critic: str) -> None:
    model = recurrent(case, CRITICS[critic], n_steps=32)
    for _ in range(2):
        collect(model)
        before = state_of(model)
        model.train()
        log = logged(model)
        assert log["train/is_line_search_success"] == 1.0, log["train/actor_update"]
        assert 0 < log["train/kl_divergence_loss"] <= 0.01
        assert log["train/actual_improvement"] > 0
        moved = changed(before, state_of(model))
        assert {"lstm_actor.weight_hh_l0", "lstm_actor.weight_ih_l0"} <= moved
        assert "value_net.weight" in moved
        assert ("lstm_critic.weight_hh_l0" in moved) == (critic == "separate")
        assert ("critic.weight" in moved) == (critic == "none")
    assert all_finite(model)


@pytest.mark.parametrize("critic", CRITICS)
def test_the_critic_is_fitted_to_the_returns_of_whole_sequences(critic: str) -> None:
    model = collected("discrete", CRITICS[critic], n_critic_updates=1, target_kl=0.0)
    model.batch_size = 10**6  # one minibatch: its loss is that of all states
    buffer = model.rollout_buffer
    with th.no_grad():
        errors = []
        for step, env in stepped.states_of(model):
            if step == 0 or buffer.episode_starts[step, env]:
                arrays = buffer.hidden_states_vf, buffer.cell_states_vf
                memory = [th.as_tensor(a[step, :, env : env + 1]).double() for a in arrays]
                if buffer.episode_starts[step, env]:
                    memory = [th.zeros_like(m) for m in memory]
                first = step
            observations = th.as_tensor(buffer.observations[first : step + 1, env])
            starts = th.zeros(len(observations))
            values = model.policy.predict_values(observations, tuple(memory), starts)
            errors.append(float(values[-1]) - buffer.returns[step, env])
    model.train()
    assert logged(model)["train/value_loss"] == pytest.approx(np.mean(np.square(errors)), rel=1e-6)


@pytest.mark.parametrize("factor", [2, 7, 10**3])
def test_sub_samples_are_whole_sequences_and_never_empty(factor: int) -> None:
    model = collected("box")
    _, batch = actor_and_batch(model)
    seen: set[int] = set()
    n = len(batch.sequences.lengths)  # type: ignore[attr-defined]
    for offset in range(min(factor, n)):
        some = batch.every(factor, offset)
        rows = some.sequences.rows[:, 0].tolist()  # type: ignore[attr-defined]
        assert rows
        assert not seen & set(rows)
        seen |= set(rows)
    assert len(seen) == n
    assert batch.every(1, 3) is batch


def test_sub_sampling_factors_train() -> None:
    model = recurrent("box", sub_sampling_factor=2, fisher_sub_sampling_factor=2, n_steps=32)
    model.learn(128)
    assert logged(model)["train/is_line_search_success"] == 1.0


def test_images_train() -> None:
    options = {"features_extractor_class": TinyCnn}
    case = Case("CnnLstmPolicy", SMALL_IMAGE, DISCRETE_ACTIONS, {})
    model = recurrent(case, options)
    model.learn(48)
    assert logged(model)["train/is_line_search_success"] == 1.0
    recurrent(Case("CnnLstmPolicy", IMAGE, DISCRETE_ACTIONS, {}), n_steps=4, batch_size=4).learn(8)


def test_normalised_observations_train() -> None:
    env = VecNormalize(DummyVecEnv([lambda: IdentityBox()] * 2))
    model = RecurrentTRPO("MlpLstmPolicy", env, n_steps=16, batch_size=16, policy_kwargs=SMALL_LSTM)
    model.learn(64)
    assert all_finite(model)


class IdentityBox(IdentityEnv[Any]):
    """Reward for the action that the observation shows."""

    def __init__(self) -> None:
        space = spaces.Discrete(3)
        super().__init__(space=space, ep_length=10)
        self.observation_space = spaces.Box(0, 1, (3,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        state, info = super().reset(seed=seed, options=options)
        return np.eye(3, dtype=np.float32)[state], info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        state, *rest = super().step(action)
        return (np.eye(3, dtype=np.float32)[state], *rest)


def test_squashed_actions_and_policies_without_lstm_are_refused() -> None:
    with pytest.raises(ValueError, match="squash_output"):
        recurrent("gsde", {"squash_output": True})
    policy: Any = TRPO.policy_aliases["MlpPolicy"]
    with pytest.raises(ValueError, match="RecurrentActorCriticPolicy"):
        RecurrentTRPO(policy, "CartPole-v1")


def test_a_number_that_is_not_finite_is_refused_with_its_place() -> None:
    model = collected("box", float64=False)
    before = state_of(model)
    model.rollout_buffer.advantages[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"\(3, 1\)"):
        model.train()
    assert not changed(before, state_of(model))


def test_api_is_recurrent_ppos() -> None:
    assert RecurrentTRPO.policy_aliases == RecurrentPPO.policy_aliases
    assert RecurrentTRPO.collect_rollouts is TRPO.collect_rollouts
    assert RecurrentTRPO.train is TRPO.train


def test_predict_takes_and_returns_states() -> None:
    model = recurrent("discrete", n_steps=8)
    env = model.get_env()
    observations = env.reset()
    starts = np.ones(2, dtype=bool)
    action, states = model.predict(observations, episode_start=starts, deterministic=True)
    assert states[0].shape == (1, 2, 3)
    move_off_the_start(model.policy)
    _, after = model.predict(observations, state=states, episode_start=np.zeros(2, dtype=bool))
    assert not np.allclose(after[0], states[0])
    again, reset = model.predict(observations, state=after, episode_start=starts)
    _, first = model.predict(observations, state=None, episode_start=starts)
    np.testing.assert_allclose(reset[0], first[0], atol=1e-6)
    assert action.shape == again.shape == (2,)
    evaluate_policy(model, env, 2, warn=False)


def test_saved_and_loaded_it_goes_on_as_before(tmp_path: Any) -> None:
    model = recurrent("box").learn(24)
    model.save(tmp_path / "model")
    env = model.get_env()
    loaded: Any = RecurrentTRPO.load(tmp_path / "model", env, device="cpu")
    assert not changed(state_of(model), state_of(loaded))
    assert loaded.rollout_buffer.hidden_states_pi.shape == (12, 1, 2, 3)
    loaded.learn(48, reset_num_timesteps=False)
    assert logged(loaded)["train/n_updates"] == 3
    wider = DummyVecEnv([env.envs[0].unwrapped.__class__] * 4)
    RecurrentTRPO.load(tmp_path / "model", wider, device="cpu").learn(48)


def test_the_lstm_starts_at_zero_and_its_states_are_not_saved(tmp_path: Any) -> None:
    def memory(model: Any) -> th.Tensor:
        states = model._last_lstm_states
        return th.stack([*states.pi, *states.vf])

    model = recurrent("box")
    assert not memory(model).any()
    model.learn(24).save(tmp_path / "model")
    assert memory(model).any()
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert "_last_lstm_states" not in json.loads(archive.read("data"))
    loaded = RecurrentTRPO.load(tmp_path / "model", model.get_env(), device="cpu")
    assert not memory(loaded).any()


def test_reading_a_buffer_after_its_get_gives_the_same_sequences() -> None:
    model, twin = collected("box"), recurrent("box")
    reference.run_in_float64(twin.policy)
    copy_rollout(model, twin)
    next(twin.rollout_buffer.get(None))
    values = []
    for m in (model, twin):
        actor, batch = actor_and_batch(m)
        values.append(surrogate_of(actor, (batch,)).gradient)
    th.testing.assert_close(values[0], values[1], rtol=ROUNDING, atol=ROUNDING)


class Recall(gym.Env[Any, Any]):
    """A cue at the first step, a choice ``delay`` steps later; nothing else is seen between."""

    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(-1, 1, (2,))

    def __init__(self, delay: int = 20) -> None:
        self.delay = delay

    def _observe(self) -> np.ndarray:
        cue = self.cue if self.steps == 0 else 0.0
        return np.array([cue, float(self.steps == self.delay)], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.cue = 0, float(self.np_random.choice([-1.0, 1.0]))
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        done = self.steps == self.delay
        reward = float(done and (action == 1) == (self.cue > 0))
        self.steps += 1
        return self._observe(), reward, done, False, {}


# With these values all of 50 seeds learn. Only the last action of twenty-one matters: a short
# `gae_lambda` keeps the reward from the others, of which one seed in four learns nothing but noise.
RECALL: dict[str, Any] = {
    "n_steps": 42,
    "batch_size": 336,
    "gamma": 1.0,
    "gae_lambda": 0.5,
    "target_kl": 0.03,
    "cg_damping": 0.1,
    "n_critic_updates": 4,
    "learning_rate": 0.01,
    "device": "cpu",
}
RECALL_STEPS = 30 * 42 * 32
RECALL_LSTM = {"lstm_hidden_size": 16, "net_arch": [], "ortho_init": False}


def open_forget_gates(policy: Any) -> None:
    """
    Let an LSTM remember from the start.

    A gate that starts half open has forgotten a cue after twenty steps, 0.5^20, and most seeds get
    no gradient to learn from. With a bias of 3 half of it is left.
    """
    size = policy.lstm_actor.hidden_size
    with th.no_grad():
        for lstm in (policy.lstm_actor, policy.lstm_critic):
            lstm.bias_ih_l0[size : 2 * size] += 3.0


# Where nothing is left to learn, ten updates in a row may find no improvement.
nothing_left_to_learn = pytest.mark.filterwarnings("ignore:The last 10 updates")


@nothing_left_to_learn
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_cue_is_remembered_for_twenty_steps(seed: int) -> None:
    env = DummyVecEnv([Recall] * 32)
    model = RecurrentTRPO("MlpLstmPolicy", env, policy_kwargs=RECALL_LSTM, seed=seed, **RECALL)
    open_forget_gates(model.policy)
    model.learn(RECALL_STEPS)
    success, _ = evaluate_policy(model, env, 100, warn=False)
    assert float(success) >= 0.95  # type: ignore[arg-type]


@nothing_left_to_learn
@pytest.mark.slow
def test_a_cue_is_not_remembered_without_an_lstm() -> None:
    env = DummyVecEnv([Recall] * 32)
    plain = TRPO("MlpPolicy", env, seed=1, **RECALL).learn(RECALL_STEPS)
    chance, _ = evaluate_policy(plain, env, 200, warn=False)
    assert 0.35 <= float(chance) <= 0.65  # type: ignore[arg-type]


def test_one_long_sequence_does_not_pad_the_short_ones_to_its_length() -> None:
    lengths = th.tensor([40, 6, 5, 5, 4])
    rows = th.arange(5)[:, None].expand(5, 40)
    sequences = Sequences(rows, lengths, (th.zeros(5, 1, 1), th.zeros(5, 1, 1)))
    zeros = th.zeros(200)
    batch = SequenceBatch(th.zeros(5, 3), zeros, zeros, zeros, (5, 1), sequences=sequences)
    chunks = batch.chunks(1000)
    assert [len(chunk) for chunk in chunks] == [40, 4 * 6]
    assert sum(chunk.weight_sum for chunk in chunks) == 60
    assert batch.select(slice(1, None)).chunks(1000)[0].weight_sum == 20


class NormalizingExtractor(FlattenExtractor):
    def __init__(self, observation_space: Any) -> None:
        super().__init__(observation_space)
        self.norm = nn.BatchNorm1d(self.features_dim)


def test_batch_normalisation_is_refused() -> None:
    options = {"features_extractor_class": NormalizingExtractor}
    with pytest.raises(ValueError, match="LayerNorm"):
        RecurrentTRPO("MlpLstmPolicy", "CartPole-v1", policy_kwargs=options)


class OwnBuffer(RecurrentRolloutBuffer):
    def get(self, batch_size: int | None = None) -> Any:
        return super().get(batch_size)


def test_buffer_with_a_get_of_its_own_is_refused() -> None:
    with pytest.raises(ValueError, match="OwnBuffer"):
        RecurrentTRPO("MlpLstmPolicy", "CartPole-v1", rollout_buffer_class=OwnBuffer)
