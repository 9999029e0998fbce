"""The tools around training, SB3's own and others', work with the real thing."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import HParam, configure
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.results_plotter import X_TIMESTEPS, ts2xy
from stable_baselines3.common.vec_env import (
    VecEnv,
    VecEnvWrapper,
    VecNormalize,
    VecVideoRecorder,
    sync_envs_normalization,
)
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)
from torch import nn

from sb3_trpo import TRPO
from tests.cases import CASES, toy_envs, toy_model
from tests.environments import VECTOR, ToyEnv, changed, changed_actor, state_of

EPISODE_LENGTH = 7


class RampEnv(ToyEnv):
    """A reward of 1 at every step: every episode returns its length."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, *rest = super().step(action)
        return observation, 1.0, *rest


def own_stream(kind: type[ToyEnv]) -> ToyEnv:
    """Make an environment that shares its random observations with no other."""
    return kind(copy.deepcopy(VECTOR))


def monitored(kind: type[ToyEnv] = RampEnv, n_envs: int = 2, **kwargs: Any) -> VecEnv:
    return make_vec_env(partial(own_stream, kind), n_envs, seed=0, **kwargs)


class TestEvaluation:
    def test_evaluations_are_written_with_their_timesteps_and_returns(self, tmp_path: Path) -> None:
        callback = EvalCallback(
            monitored(n_envs=1), eval_freq=32, n_eval_episodes=3, log_path=str(tmp_path), verbose=0
        )
        toy_model(env=monitored()).learn(128, callback=callback)
        with np.load(tmp_path / "evaluations.npz") as saved:
            assert saved["timesteps"].tolist() == [64, 128]
            assert saved["results"].tolist() == [[EPISODE_LENGTH] * 3] * 2

    def test_normalisation_of_the_evaluation_is_that_of_the_training(self, tmp_path: Path) -> None:
        eval_env: Any = VecNormalize(monitored(ToyEnv, 1), training=False, norm_reward=False)
        env: Any = VecNormalize(monitored(ToyEnv))
        callback = EvalCallback(
            eval_env, eval_freq=32, best_model_save_path=str(tmp_path), verbose=0
        )
        toy_model(env=env).learn(64, callback=callback)
        assert eval_env.obs_rms.count > 60
        np.testing.assert_array_equal(eval_env.obs_rms.mean, env.obs_rms.mean)
        best = TRPO.load(tmp_path / "best_model", device="cpu")
        assert best.num_timesteps == 64

    def test_evaluation_between_two_updates_does_not_change_the_training(self) -> None:
        states = []
        for eval_freq in (8, -1):
            eval_env = VecNormalize(monitored(ToyEnv, 1), training=False, norm_reward=False)
            model = toy_model(env=VecNormalize(monitored(ToyEnv)))
            model.learn(192, callback=EvalCallback(eval_env, eval_freq=eval_freq, verbose=0))
            states.append(state_of(model))
        assert not changed(*states)

    @pytest.mark.parametrize("case", ["box", "discrete", "dict", "cnn"])
    def test_evaluate_policy_is_the_plain_loop(self, case: str) -> None:
        model = toy_model(case).learn(64)

        def env() -> VecEnv:
            envs = toy_envs(CASES[case], 1)
            envs.seed(3)
            return envs

        returns, lengths = evaluate_policy(
            model, env(), n_eval_episodes=2, return_episode_rewards=True, warn=False
        )
        assert lengths == [EPISODE_LENGTH] * 2
        by_hand = env()
        observation = by_hand.reset()
        rewards = []
        for _ in range(2 * EPISODE_LENGTH):
            action, _ = model.predict(observation, deterministic=True)
            observation, reward, _, _ = by_hand.step(action)
            rewards.append(float(reward[0]))
        np.testing.assert_allclose(returns, np.reshape(rewards, (2, -1)).sum(1), rtol=1e-5)


class TestStopping:
    def test_on_a_reward_threshold(self) -> None:
        stop = StopTrainingOnRewardThreshold(EPISODE_LENGTH - 1.0, verbose=0)
        callback = EvalCallback(monitored(n_envs=1), None, stop, eval_freq=40, verbose=0)
        model = toy_model(env=monitored()).learn(640, callback=callback)
        assert (model.num_timesteps, model._n_updates) == (80, 1)

    def test_without_improvement(self) -> None:
        stop = StopTrainingOnNoModelImprovement(max_no_improvement_evals=1, min_evals=1, verbose=0)
        callback = EvalCallback(
            monitored(n_envs=1), callback_after_eval=stop, eval_freq=32, verbose=0
        )
        model = toy_model(env=monitored()).learn(6400, callback=callback)
        assert model.num_timesteps == 3 * 64  # the first is the best, the third one too many

    def test_on_a_number_of_episodes(self) -> None:
        callback = StopTrainingOnMaxEpisodes(max_episodes=6, verbose=0)
        model = toy_model(env=monitored()).learn(6400, callback=callback)
        assert model.num_timesteps == 2 * 6 * EPISODE_LENGTH


class TestCheckpoints:
    def test_checkpoint_continues_with_its_normalisation(self, tmp_path: Path) -> None:
        callback = CheckpointCallback(32, str(tmp_path), save_vecnormalize=True)
        env = VecNormalize(monitored(ToyEnv))
        toy_model(env=env).learn(128, callback=callback)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "rl_model_128_steps.zip",
            "rl_model_64_steps.zip",
            "rl_model_vecnormalize_128_steps.pkl",
            "rl_model_vecnormalize_64_steps.pkl",
        ]
        statistics = str(tmp_path / "rl_model_vecnormalize_64_steps.pkl")
        resumed_env = VecNormalize.load(statistics, monitored(ToyEnv))
        model = TRPO.load(tmp_path / "rl_model_64_steps", env=resumed_env, device="cpu")
        before = state_of(model)
        model.learn(64, reset_num_timesteps=False)
        assert model.num_timesteps == 128
        assert changed_actor(before, state_of(model))

    def test_checkpoint_in_the_middle_of_a_rollout_does_not_change_the_training(
        self, tmp_path: Path
    ) -> None:
        callback = CheckpointCallback(5, str(tmp_path))
        saving, plain = toy_model().learn(128, callback=callback), toy_model().learn(128)
        assert len(list(tmp_path.iterdir())) == 64 // 5
        assert not changed(state_of(saving), state_of(plain))


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_callbacks_of_a_list_all_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    seen: list[int] = []

    def watch(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        seen.append(int(variables["n_steps"]))
        return True

    every = EveryNTimesteps(n_steps=64, callback=CheckpointCallback(1, str(tmp_path)))
    model = toy_model()
    model.learn(128, callback=[every, ProgressBarCallback()])
    model.learn(64, callback=watch)
    assert "128/128" in "".join(capsys.readouterr())
    assert len(list(tmp_path.iterdir())) == 2
    assert seen == list(range(32))


class HParamCallback(BaseCallback):
    """Hyperparameters and metrics for TensorBoard's HPARAMS tab, as SB3's guide shows."""

    def _on_training_start(self) -> None:
        names = ("target_kl", "cg_damping")
        values = {name: getattr(self.model, name) for name in names}
        metrics = {"train/kl_divergence_loss": 0.0, "rollout/ep_rew_mean": 0.0}
        self.logger.record(
            "hparams", HParam(values, metrics), exclude=("stdout", "log", "json", "csv")
        )

    def _on_step(self) -> bool:
        return True


def test_hyperparameters_and_metrics_are_in_tensorboards_files(tmp_path: Path) -> None:
    model = toy_model(env=monitored(), target_kl=0.02, tensorboard_log=str(tmp_path))
    model.learn(192, callback=HParamCallback())
    events = EventAccumulator(str(tmp_path / "TRPO_1")).Reload()
    tags = events.Tags()["scalars"]
    assert {"train/kl_divergence_loss", "rollout/ep_rew_mean", "time/fps"} <= set(tags)
    assert [e.value for e in events.Scalars("rollout/ep_rew_mean")] == [EPISODE_LENGTH] * 3
    plugin = events.summary_metadata["_hparams_/session_start_info"].plugin_data
    assert b"target_kl" in plugin.content
    assert b"cg_damping" in plugin.content


def test_log_is_written_in_every_format(tmp_path: Path) -> None:
    model = toy_model(env=monitored())
    model.set_logger(configure(str(tmp_path), ["csv", "json", "log"]))
    model.learn(192)
    model.logger.close()
    columns = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    assert {"train/kl_divergence_loss", "train/actor_update", "train/n_updates"} <= set(columns)
    assert "train/backtracks" in (tmp_path / "progress.json").read_text()
    assert "kl_divergence_loss" in (tmp_path / "log.txt").read_text()


def test_monitor_files_hold_every_episode(tmp_path: Path) -> None:
    env = monitored(monitor_dir=str(tmp_path))
    toy_model(env=env).learn(128)
    env.close()
    results = load_results(str(tmp_path))
    assert results["l"].tolist() == results["r"].tolist() == [EPISODE_LENGTH] * (128 // 14 * 2)
    steps, returns = ts2xy(results, X_TIMESTEPS)
    assert (steps[-1], returns[-1]) == (EPISODE_LENGTH * len(results), EPISODE_LENGTH)


def test_synchronised_statistics_give_the_same_observations() -> None:
    env = VecNormalize(monitored(ToyEnv))
    model = toy_model(env=env).learn(128)
    other = VecNormalize(monitored(ToyEnv), training=False)
    sync_envs_normalization(model.get_env(), other)
    observation = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(other.normalize_obs(observation), env.normalize_obs(observation))


class RenderingEnv(RampEnv):
    """Frames that brighten with the steps of an episode."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (so in gymnasium)
    render_mode = "rgb_array"

    def render(self) -> Any:
        return np.full((32, 32, 3), 30 * self.step_in_episode, np.uint8)


@pytest.mark.slow
def test_video_of_the_training_is_recorded(tmp_path: Path) -> None:
    video = VecVideoRecorder(
        monitored(RenderingEnv), str(tmp_path), lambda step: step == 8, video_length=16
    )
    model = toy_model(env=video).learn(64)
    video.close()
    assert model._n_updates == 1
    (path,) = tmp_path.glob("*.mp4")
    assert path.stat().st_size > 500


def test_environment_passes_sb3s_check_after_it_was_trained_in() -> None:
    env = ToyEnv(action_space=spaces.Box(-1.0, 1.0, (3,)))
    check_env(env)
    toy_model(env=env).learn(64)
    check_env(env)
    assert env.step.__func__ is ToyEnv.step  # type: ignore[attr-defined]


@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    callbacks = pytest.importorskip("wandb.integration.sb3")
    monkeypatch.setenv("WANDB_SILENT", "true")
    plain = toy_model().learn(192)
    with wandb.init(mode="offline", dir=tmp_path, project="sb3_trpo", sync_tensorboard=True) as run:
        model = toy_model(tensorboard_log=str(tmp_path / "tb"))
        model.learn(192, callback=callbacks.WandbCallback(model_save_path=str(tmp_path / "model")))
    assert run.config["algo"] == "TRPO"
    assert run.config["cg_max_steps"] == 15
    assert TRPO.load(tmp_path / "model" / "model.zip", device="cpu").num_timesteps == 192
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert not changed(state_of(plain), state_of(model))


Discriminator = Callable[[npt.NDArray[Any], npt.NDArray[Any]], npt.NDArray[Any]]


class Relabelled(VecEnvWrapper):
    """
    Rewards given by a network that is trained meanwhile, as adversarial imitation has them.

    :param venv: wrapped
    :param reward: (observations, actions) -> rewards
    """

    def __init__(self, venv: VecEnv, reward: Discriminator) -> None:
        super().__init__(venv)
        self.reward = reward

    def reset(self) -> Any:
        self.observations = self.venv.reset()
        return self.observations

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        self.actions = actions
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        observations, _, dones, infos = self.venv.step_wait()
        assert isinstance(self.observations, np.ndarray)
        rewards = self.reward(self.observations, self.actions)
        self.observations = observations
        return observations, rewards, dones, infos


def discriminator(network: nn.Module) -> Discriminator:
    def reward(observations: npt.NDArray[Any], actions: npt.NDArray[Any]) -> npt.NDArray[Any]:
        inputs = th.as_tensor(np.concatenate([observations, actions], 1), dtype=th.float32)
        with th.no_grad():
            scores: npt.NDArray[Any] = nn.functional.softplus(network(inputs))[:, 0].numpy()
        return scores

    return reward


@pytest.mark.slow
def test_adversarial_imitation_learns_the_relabelled_reward() -> None:
    """Short calls of `learn`, `set_env` between them, the reward's network trained in between."""
    expert = np.array([0.5, -0.5, 0.25], np.float32)
    network = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = th.optim.Adam(network.parameters(), lr=0.02)
    venv = monitored()
    model = toy_model(env=venv, n_steps=128, target_kl=0.05)

    def distance() -> float:
        observations = np.random.default_rng(0).uniform(-1, 1, (256, 3)).astype(np.float32)
        actions, _ = model.predict(observations, deterministic=True)
        return float(np.abs(actions - expert).mean())

    at_first = distance()
    for rounds in range(1, 26):
        model.set_env(Relabelled(venv, discriminator(network)))
        model.learn(256, reset_num_timesteps=False)
        assert (model.num_timesteps, model._n_updates) == (256 * rounds, rounds)
        buffer = model.rollout_buffer
        assert not np.any(buffer.rewards == 1.0)  # none of the environment's own
        fake = th.as_tensor(
            np.concatenate([buffer.observations, buffer.actions], -1).reshape(-1, 6)
        )
        real = th.cat([fake[:, :3], th.as_tensor(expert) + 0.1 * th.randn(256, 3)], 1)
        for _ in range(10):
            loss = nn.functional.softplus(-network(real)) + nn.functional.softplus(network(fake))
            optimizer.zero_grad()
            loss.mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert distance() < 0.25 * at_first
    episodes = [info["r"] for info in model.ep_info_buffer]
    assert set(episodes) == {EPISODE_LENGTH}  # Monitor, underneath, still has them
