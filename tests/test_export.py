"""Export to ONNX."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_trpo import TRPO, MaskableTRPO
from sb3_trpo.export import DeterministicPolicy, export_onnx
from tests.cases import SMALL, move_off_the_start
from tests.environments import (
    BOX_ACTIONS,
    DICT,
    DISCRETE_ACTIONS,
    IMAGE,
    MULTI_BINARY_ACTIONS,
    MULTI_DISCRETE_ACTIONS,
    VECTOR,
    ToyEnv,
    random_masks,
)

SQUASHED: dict[str, Any] = {"use_sde": True, "policy_kwargs": {**SMALL, "squash_output": True}}
CASES: dict[str, tuple[str, spaces.Space[Any], spaces.Space[Any], dict[str, Any]]] = {
    "discrete": ("MlpPolicy", VECTOR, DISCRETE_ACTIONS, {}),
    "box": ("MlpPolicy", VECTOR, BOX_ACTIONS, {}),
    "multi_discrete": ("MlpPolicy", VECTOR, MULTI_DISCRETE_ACTIONS, {}),
    "multi_binary": ("MlpPolicy", VECTOR, MULTI_BINARY_ACTIONS, {}),
    "squashed_gsde": ("MlpPolicy", VECTOR, BOX_ACTIONS, SQUASHED),
    "image": ("CnnPolicy", IMAGE, DISCRETE_ACTIONS, {}),
    "dict": ("MultiInputPolicy", DICT, BOX_ACTIONS, {}),
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in list(CASES)[1:]]


def make_model(case: str) -> TRPO:
    policy, observations, actions, options = CASES[case]
    env = ToyEnv(observations, actions)
    options = {"policy_kwargs": SMALL if policy != "CnnPolicy" else {}} | options
    model = TRPO(policy, env, n_steps=32, batch_size=32, seed=0, **options)
    return model.learn(32)


def sample(space: spaces.Space[Any], count: int) -> Any:
    space.seed(0)
    samples = [space.sample() for _ in range(count)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([each[key] for each in samples]) for key in space}
    return np.stack(samples)


@pytest.mark.parametrize("case", ["discrete", *SLOW])
def test_exported_policy_acts_as_predict_does(case: str, tmp_path: Path) -> None:
    model = make_model(case)
    path = tmp_path / "policy.onnx"
    assert export_onnx(model, path, sample(CASES[case][1], 20)) < 1e-4
    session = onnxruntime.InferenceSession(path)
    observations = sample(CASES[case][1], 7)  # another batch size
    tensors, _ = model.policy.obs_to_tensor(observations)
    feed = tensors if isinstance(tensors, dict) else {"observation": tensors}
    (actions,) = session.run(["action"], {name: value.numpy() for name, value in feed.items()})
    expected, _ = model.predict(observations, deterministic=True)
    np.testing.assert_allclose(actions.reshape(expected.shape), expected, atol=1e-4)


@pytest.mark.parametrize("case", ["box", pytest.param("dict", marks=pytest.mark.slow)])
def test_normalisation_is_part_of_the_exported_policy(case: str, tmp_path: Path) -> None:
    policy, observations, actions, _ = CASES[case]
    keys = ["position"] if case == "dict" else None
    env = VecNormalize(
        DummyVecEnv([lambda: ToyEnv(observations, actions)]), norm_obs_keys=keys, clip_obs=1.0
    )
    model = TRPO(policy, env, n_steps=32, batch_size=32, policy_kwargs=SMALL).learn(64)
    batch = sample(observations, 20)
    assert export_onnx(model, tmp_path / "policy.onnx", batch, env) < 1e-4
    # With that normalisation left out, the same check fails.
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    feed = batch if isinstance(batch, dict) else {"observation": batch}
    (normalized,) = session.run(None, feed)
    assert np.abs(normalized - model.predict(batch, deterministic=True)[0]).max() > 1e-4


@pytest.mark.parametrize(
    ("policy", "observations", "actions"),
    [
        ("MlpPolicy", VECTOR, DISCRETE_ACTIONS),
        *(
            pytest.param("MultiInputPolicy", DICT, actions, marks=pytest.mark.slow)
            for actions in (MULTI_DISCRETE_ACTIONS, MULTI_BINARY_ACTIONS)
        ),
    ],
)
def test_masks_are_an_input_of_an_exported_maskable_policy(
    policy: str, observations: spaces.Space[Any], actions: spaces.Space[Any], tmp_path: Path
) -> None:
    env = ToyEnv(observations, actions)
    model: Any = MaskableTRPO(policy, env, n_steps=32, batch_size=32, policy_kwargs=SMALL)
    move_off_the_start(model.policy)
    path = tmp_path / "policy.onnx"
    assert export_onnx(model, str(path), sample(observations, 20)) == 0  # all of them allowed
    masks = np.stack([random_masks(actions)(step) for step in range(20)])
    batch = sample(observations, 20)
    assert export_onnx(model, path, batch, action_masks=masks) == 0
    tensors, _ = model.policy.obs_to_tensor(batch)
    feed = tensors if isinstance(tensors, dict) else {"observation": tensors}
    session = onnxruntime.InferenceSession(path)
    observed = {name: value.numpy() for name, value in feed.items()}
    free, bound = (
        session.run(None, {**observed, "action_masks": allowed})[0]
        for allowed in (np.ones_like(masks), masks)
    )
    assert (free != bound).any()
    expected, _ = model.predict(batch, deterministic=True, action_masks=masks)
    np.testing.assert_array_equal(bound.reshape(expected.shape), expected)


@pytest.mark.parametrize(("kind", "key"), [(MaskableTRPO, "action_masks"), (TRPO, "action")])
def test_key_that_is_another_inputs_or_outputs_name_is_refused_with_the_remedy(
    kind: type[Any], key: str, tmp_path: Path
) -> None:
    observations = spaces.Dict({key: VECTOR, "other": VECTOR})
    env = ToyEnv(observations, DISCRETE_ACTIONS)
    model = kind("MultiInputPolicy", env, n_steps=32, batch_size=32, policy_kwargs=SMALL)
    with pytest.raises(ValueError, match=f"key '{key}' .* Rename the key"):
        export_onnx(model, tmp_path / "policy.onnx", sample(observations, 4))
    assert not (tmp_path / "policy.onnx").exists()


def test_policy_is_the_same_after_its_export(tmp_path: Path) -> None:
    model = make_model("box")
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    export_onnx(model, tmp_path / "policy.onnx", sample(VECTOR, 4))
    assert all((model.policy.state_dict()[name] == value).all() for name, value in before.items())
    model.learn(32)


def test_export_that_acts_differently_is_refused_and_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("box")
    predict = model.predict
    monkeypatch.setattr(model, "predict", lambda *args, **kw: (predict(*args, **kw)[0] + 0.1, None))
    with pytest.raises(ValueError, match="differ"):
        export_onnx(model, tmp_path / "policy.onnx", sample(VECTOR, 4))
    assert not (tmp_path / "policy.onnx").exists()


def test_recurrent_policy_is_refused(tmp_path: Path) -> None:
    env = ToyEnv(VECTOR, DISCRETE_ACTIONS)
    model = RecurrentPPO("MlpLstmPolicy", env, n_steps=16, batch_size=16)
    with pytest.raises(ValueError, match="recurrent"):
        export_onnx(model, tmp_path / "policy.onnx", sample(VECTOR, 4))


def acts_as_predict(model: Any, batch: Any, normalization: VecNormalize | None = None) -> None:
    """Compare the module that is exported with ``predict``, without an export."""
    tensors, _ = model.policy.obs_to_tensor(batch)
    policy = DeterministicPolicy(model, normalization).eval()
    actions = policy(tensors).numpy(force=True)
    seen = batch if normalization is None else normalization.normalize_obs(batch)
    expected, _ = model.predict(seen, deterministic=True)
    np.testing.assert_allclose(actions.reshape(expected.shape), expected, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_module_acts_as_predict_does(case: str) -> None:
    policy, observations, actions, options = CASES[case]
    options = {"policy_kwargs": SMALL if policy != "CnnPolicy" else {}} | options
    model: Any = TRPO(
        policy, ToyEnv(observations, actions), n_steps=32, batch_size=32, seed=0, **options
    )
    move_off_the_start(model.policy)
    acts_as_predict(model, sample(observations, 20))


def test_action_is_within_the_bounds() -> None:
    model: Any = TRPO("MlpPolicy", ToyEnv(VECTOR, BOX_ACTIONS), n_steps=32, batch_size=32)
    th.nn.init.constant_(model.policy.action_net.bias, 50.0)
    acts_as_predict(model, sample(VECTOR, 5))


@pytest.mark.parametrize("case", ["box", "dict"])
@pytest.mark.parametrize("options", [{}, {"norm_obs": False}], ids=["normalised", "not_normalised"])
def test_module_normalises_as_the_environment_does(case: str, options: dict[str, Any]) -> None:
    policy, observations, actions, _ = CASES[case]
    keys = ["position"] if case == "dict" else None
    env = VecNormalize(
        DummyVecEnv([lambda: ToyEnv(observations, actions)]), norm_obs_keys=keys, epsilon=0.5
    )
    every: Any = env.obs_rms
    for statistics in every.values() if case == "dict" else [every]:
        statistics.mean, statistics.var = np.full(3, 0.3), np.full(3, 0.25)
    env.norm_obs = options.get("norm_obs", True)
    model: Any = TRPO(policy, env, n_steps=32, batch_size=32, policy_kwargs=SMALL)
    move_off_the_start(model.policy)
    acts_as_predict(model, sample(observations, 20), env)
