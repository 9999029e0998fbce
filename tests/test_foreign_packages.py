"""
Packages that bring their own environments or train SB3's learners take ours as they take PPO.

The extra ``foreign`` installs PettingZoo and SuperSuit; CONTRIBUTING.md says how to add the others.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import sb3_contrib
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor

import sb3_trpo
from tests.environments import all_finite, changed, state_of

LEARNERS: dict[str, type[Any]] = {
    "ppo": PPO,
    "contrib": sb3_contrib.TRPO,
    "ours": sb3_trpo.TRPO,
}
by_learner = pytest.mark.parametrize("learner", LEARNERS.values(), ids=LEARNERS)

# These packages use what Gymnasium, NumPy and torch have deprecated.
pytestmark = pytest.mark.filterwarnings("ignore")


def needed(package: str) -> Any:
    return pytest.importorskip(package, reason=f"{package} is not installed", exc_type=ImportError)


def check_that_it_learns(learner: type[Any], env: VecEnv) -> None:
    model = learner("MlpPolicy", env, n_steps=32, batch_size=64, device="cpu")
    before = state_of(model)
    model.learn(256)
    assert model.num_timesteps == 256
    assert changed(before, state_of(model))
    assert all_finite(model)


def demonstrations() -> Any:
    from imitation.data import rollout
    from imitation.data.wrappers import RolloutInfoWrapper

    env = make_vec_env("CartPole-v1", 2, seed=0, wrapper_class=RolloutInfoWrapper)
    expert = PPO("MlpPolicy", env, n_steps=64, seed=0, device="cpu")
    enough = rollout.make_sample_until(min_timesteps=300)
    return rollout.rollout(expert, env, enough, rng=np.random.default_rng(0))


@by_learner
@pytest.mark.parametrize("algorithm", ["gail", "airl"])
def test_adversarial_imitation_trains_the_learner_as_its_generator(
    algorithm: str, learner: type[Any], tmp_path: Path
) -> None:
    needed("imitation")
    from imitation.algorithms.adversarial.airl import AIRL
    from imitation.algorithms.adversarial.gail import GAIL
    from imitation.rewards.reward_nets import BasicShapedRewardNet
    from imitation.util import logger

    env = make_vec_env("CartPole-v1", 2, seed=0)
    generator = learner("MlpPolicy", env, n_steps=64, batch_size=64, seed=0, device="cpu")
    before = state_of(generator)
    trainer: Any = {"gail": GAIL, "airl": AIRL}[algorithm](
        demonstrations=demonstrations(),
        demo_batch_size=64,
        venv=env,
        gen_algo=generator,
        reward_net=BasicShapedRewardNet(env.observation_space, env.action_space),
        allow_variable_horizon=True,
        custom_logger=logger.configure(tmp_path, ["csv"]),
    )
    trainer.train(256)
    trainer.logger.close()
    assert changed(before, state_of(generator))
    assert all_finite(generator)


class EnvPoolAdapter(VecEnvWrapper):
    """EnvPool's batched environment in SB3's form; EnvPool resets at the step after the last."""

    def __init__(self, venv: Any) -> None:
        super().__init__(venv, venv.observation_space, venv.action_space)

    def reset(self) -> Any:
        observations, _ = self.venv.reset()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        # EnvPool's `step` has Gymnasium's five results.
        observations, rewards, terminated, truncated, _ = self.venv.step(self.actions)  # type: ignore[misc]
        dones = np.logical_or(terminated, truncated)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(dones):
            infos[i]["terminal_observation"] = observations[i].copy()
            infos[i]["TimeLimit.truncated"] = bool(truncated[i])
            observations[i] = self.venv.reset(np.array([i]))[0][0]  # type: ignore[call-arg, index]
        return observations, rewards, dones, infos


@by_learner
def test_envpool_behind_an_adapter(learner: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # Its list of environments needs large files of data; the classic ones do without.
    monkeypatch.setitem(sys.modules, "envpool.entry", ModuleType("envpool.entry"))
    envpool = needed("envpool")
    needed("envpool.classic_control.registration")
    pool = envpool.make("CartPole-v1", env_type="gymnasium", num_envs=4, num_threads=1, seed=0)
    check_that_it_learns(learner, VecMonitor(EnvPoolAdapter(pool)))


def two_agents() -> Any:
    """Make a PettingZoo environment of two agents that are paid for action 1."""
    from pettingzoo import ParallelEnv

    names = ["a", "b"]

    class TwoAgents(ParallelEnv):  # type: ignore[misc]
        metadata: ClassVar[dict[str, Any]] = {"name": "two_agents_v0"}
        render_mode = None
        possible_agents = names
        observation_spaces = dict.fromkeys(names, spaces.Box(-1.0, 1.0, (3,)))
        action_spaces = dict.fromkeys(names, spaces.Discrete(2))

        def observation_space(self, agent: str) -> Any:
            return self.observation_spaces[agent]

        def action_space(self, agent: str) -> Any:
            return self.action_spaces[agent]

        def _observe(self) -> dict[str, Any]:
            return {name: self.rng.uniform(-1, 1, 3).astype(np.float32) for name in names}

        def reset(self, seed: int | None = None, options: Any = None) -> Any:
            self.rng = np.random.default_rng(seed)
            self.agents, self.steps = list(names), 0
            return self._observe(), {name: {} for name in names}

        def step(self, actions: dict[str, int]) -> Any:
            self.steps += 1
            ended = self.steps == 10
            self.agents = [] if ended else self.agents
            rewards = {name: float(actions[name]) for name in names}
            ends, cuts = dict.fromkeys(names, ended), dict.fromkeys(names, False)
            return self._observe(), rewards, ends, cuts, {name: {} for name in names}

    return TwoAgents()


@by_learner
def test_agents_of_pettingzoo_share_a_policy_through_supersuit(learner: type[Any]) -> None:
    needed("pettingzoo")
    supersuit = needed("supersuit")
    vec_env = supersuit.pettingzoo_env_to_vec_env_v1(two_agents())
    env = supersuit.concat_vec_envs_v1(vec_env, 2, base_class="stable_baselines3")
    check_that_it_learns(learner, env)
