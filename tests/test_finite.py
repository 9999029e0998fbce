"""A number that is not finite is refused where it would be used, and only there."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from sb3_trpo._finite import check_finite, check_observations
from tests.cases import CASES, EVERY, Case, toy_model
from tests.environments import (
    BOX_ACTIONS,
    DICT,
    IMAGE,
    MULTI_BINARY_ACTIONS,
    VECTOR,
    Faulty,
    ToyEnv,
    changed,
    collect,
    state_of,
)

NOT_FINITE = [np.nan, np.inf, -np.inf]
EPISODE = 7  # the toy environment's time limit
FAULTY_ENV = 1


def spoil_vector(value: float) -> Callable[[Any], Any]:
    def spoil(observation: Any) -> Any:
        observation[1] = value
        return observation

    return spoil


def spoil_position(value: float) -> Callable[[Any], Any]:
    def spoil(observation: Any) -> Any:
        observation["position"][2] = value
        return observation

    return spoil


def faulty_envs(
    at: int,
    observation_space: spaces.Space[Any] = VECTOR,
    spoil: Callable[[Any], Any] | None = None,
    reward: float | None = None,
) -> DummyVecEnv:
    """Make three environments of which the middle one returns something bad at one step."""

    def make(index: int) -> Callable[[], Any]:
        def build() -> Any:
            env = ToyEnv(copy.deepcopy(observation_space), BOX_ACTIONS, EPISODE)
            return Faulty(env, at, spoil, reward) if index == FAULTY_ENV else env

        return build

    return DummyVecEnv([make(index) for index in range(3)])


def model_in(env: Any, policy: str = "MlpPolicy") -> Any:
    case = Case(policy, env.observation_space, env.action_space, {})
    return toy_model(case, env=env, n_steps=16, batch_size=48)


def assert_refused(model: Any, what: str, step: int, env: int = FAULTY_ENV) -> None:
    """Check that learning stops with the fault's place, and that nothing has changed before."""
    model.learn(48)  # the optimizer gets a state to lose
    before, optimizer = state_of(model), copy.deepcopy(model.policy.optimizer.state_dict())
    with pytest.raises(ValueError, match=rf"{what} .*\(step, env\) = \({step}, {env}\)"):
        model.learn(48, reset_num_timesteps=False)
    assert not changed(before, state_of(model))
    assert str(optimizer) == str(model.policy.optimizer.state_dict())


# One whole rollout of 16 steps goes before the faulty one.
FIRST = 16


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("step", [1, 6, 15])
def test_observation_that_is_not_finite_is_named(value: float, step: int) -> None:
    env = faulty_envs(FIRST + step, spoil=spoil_vector(value))
    assert_refused(model_in(env), "observation", step)


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("step", [1, 5, 16])
def test_reward_that_is_not_finite_is_named(value: float, step: int) -> None:
    assert_refused(model_in(faulty_envs(FIRST + step, reward=value)), "reward", step)


@pytest.mark.parametrize("value", NOT_FINITE)
def test_part_of_a_dict_observation_is_named(value: float) -> None:
    env = faulty_envs(FIRST + 3, DICT, spoil_position(value))
    assert_refused(model_in(env, "MultiInputPolicy"), "observation 'position'", 3)


def test_observation_after_the_last_step_is_named() -> None:
    env = faulty_envs(FIRST + 16, spoil=spoil_vector(np.nan))
    assert_refused(model_in(env), "observation", 16)


def test_terminal_observation_at_a_time_limit_is_named() -> None:
    step = 5  # the third episode's last
    assert (FIRST + step) % EPISODE == 0
    env = faulty_envs(FIRST + step, spoil=spoil_vector(np.nan))
    assert_refused(model_in(env), "terminal observation", step)


def test_terminal_dict_observation_is_named() -> None:
    env = faulty_envs(FIRST + 5, DICT, spoil_position(np.nan))
    assert_refused(model_in(env, "MultiInputPolicy"), "terminal observation 'position'", 5)


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the normalisation's own statistics
def test_first_observation_is_named(value: float, normalize: bool) -> None:
    env: Any = faulty_envs(0, spoil=spoil_vector(value))
    model = model_in(VecNormalize(env) if normalize else env)
    before = state_of(model)
    with pytest.raises(ValueError, match=rf"observation .*\(0, {FAULTY_ENV}\)"):
        model.learn(48)
    assert not changed(before, state_of(model))


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_normalisation_does_not_hide_an_observation(value: float) -> None:
    env = VecNormalize(faulty_envs(FIRST + 3, spoil=spoil_vector(value)))
    assert_refused(model_in(env), "observation", 3)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinity_that_a_normalisation_clips_is_read_by_nobody(value: float) -> None:
    env = VecNormalize(faulty_envs(FIRST + 3, spoil=spoil_vector(value)), training=False)
    model = model_in(env)
    model.learn(96)
    assert model._n_updates == 2


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_normalisation_does_not_hide_a_reward(value: float, training: bool) -> None:
    env = VecNormalize(faulty_envs(FIRST + 3, reward=value), training=training)
    assert_refused(model_in(env), "reward", 3)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_normalisation_does_not_hide_a_terminal_observation() -> None:
    env = VecNormalize(faulty_envs(FIRST + 5, spoil=spoil_vector(np.nan)), training=False)
    assert_refused(model_in(env), "terminal observation", 5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_normalisation_under_a_frame_stack_does_not_hide_an_observation() -> None:
    env = VecNormalize(faulty_envs(FIRST + 3, spoil=spoil_vector(np.inf)))
    assert_refused(model_in(VecFrameStack(env, 2)), "observation", 3)


def test_learning_goes_on_after_the_environment_was_corrected() -> None:
    model = model_in(faulty_envs(5, reward=np.nan))
    with pytest.raises(ValueError, match="reward"):
        model.learn(48)
    model.learn(48)
    assert model._n_updates == 1


@pytest.mark.parametrize(
    "space",
    [IMAGE, spaces.Discrete(5), spaces.MultiDiscrete([3, 4]), MULTI_BINARY_ACTIONS],
    ids=lambda space: type(space).__name__,
)
def test_integer_observations_pass(space: spaces.Space[Any]) -> None:
    case = Case("CnnPolicy" if space is IMAGE else "MlpPolicy", space, BOX_ACTIONS, {})
    model = toy_model(case)
    before = state_of(model)
    model.learn(64)
    assert changed(before, state_of(model))


def test_double_precision_observations_pass_and_are_checked() -> None:
    space = spaces.Box(-1.0, 1.0, (3,), dtype=np.float64)
    env = faulty_envs(FIRST + 3, space, spoil_vector(np.nan))
    assert_refused(model_in(env), "observation", 3)


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize(
    ("array", "named"),
    [
        ("values", "value"),
        ("log_probs", "log-probability"),
        ("advantages", "advantage"),
        ("returns", "return"),
    ],
)
def test_number_in_the_buffer_that_is_not_finite_is_named_before_anything_changes(
    value: float, array: str, named: str
) -> None:
    model = toy_model()
    collect(model)
    getattr(model.rollout_buffer, array)[5, 1] = value
    before = state_of(model)
    with pytest.raises(ValueError, match=rf"The {named} of \(step, env\) = \(5, 1\)"):
        model.train()
    assert not changed(before, state_of(model))
    assert model._n_updates == 0


class OneRewardEnv(ToyEnv):
    """Reward 1 at every step."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = super().step(action)
        self.last = np.array(observation)
        return observation, 1.0, terminated, truncated, info


def test_time_limit_bootstraps_with_the_last_states_own_value() -> None:
    # Mistake: the next episode's first value at a time limit, or none.
    env = OneRewardEnv(episode_length=4)
    case = Case("MlpPolicy", env.observation_space, env.action_space, {})
    model = toy_model(case, env=env, n_steps=8, batch_size=8, gamma=0.9)
    with th.no_grad():
        model.policy.value_net.bias.fill_(10.0)
    terminal: list[Any] = []
    get_env = model.get_env()
    original = get_env.step_wait

    def step_wait() -> Any:
        result = original()
        terminal.extend(info["terminal_observation"] for info in result[3] if result[2][0])
        return result

    get_env.step_wait = step_wait
    collect(model)
    values = [model.policy.predict_values(th.as_tensor(o)[None]).item() for o in terminal]
    assert len(values) == 2
    rewards = model.rollout_buffer.rewards.flatten()
    for row, value in zip([3, 7], values, strict=True):
        assert rewards[row] == pytest.approx(1 + 0.9 * value, rel=1e-5)
    assert np.delete(rewards, [3, 7]).tolist() == [1.0] * 6


@pytest.mark.parametrize("case", EVERY)
def test_time_limits_at_one_step_are_bootstrapped_as_one_after_the_other(case: str) -> None:
    model = toy_model(case, n_envs=4)
    collect(model)
    space: Any = model.observation_space
    ended = (0, 1, 3)
    infos: list[dict[str, Any]] = [{} for _ in range(4)]
    for env in ended:
        infos[env] = {"TimeLimit.truncated": True, "terminal_observation": space.sample()}
    infos[2] = {"terminal_observation": space.sample()}  # an end that is no time limit

    def bootstrapped(envs: tuple[int, ...]) -> np.ndarray:
        dones = np.isin(np.arange(4), envs)
        states = model._last_lstm_states
        rewards: np.ndarray = model._bootstrapped(np.ones(4, np.float32), dones, infos, states, 1)
        return rewards

    together = bootstrapped((0, 1, 2, 3))
    for env in ended:
        alone = bootstrapped((env,))
        assert alone[env] != 1.0
        assert together[env] == pytest.approx(alone[env], rel=1e-5)
        assert (np.delete(alone, env) == 1.0).all()
    assert together[2] == 1.0


@pytest.mark.parametrize("kind", [np.int64, np.float32])
def test_rewards_of_the_environment_are_not_written_into(kind: type) -> None:
    # Mistake: the value is added in place, which integers round and a read-only array refuses.
    env = faulty_envs(10**9)
    step = env.step

    def read_only(actions: Any) -> Any:
        observations, rewards, dones, infos = step(actions)
        rewards = np.ones_like(rewards, dtype=kind)
        rewards.flags.writeable = False
        return observations, rewards, dones, infos

    vars(env)["step"] = read_only
    model = model_in(env)
    collect(model)
    rewards = model.rollout_buffer.rewards
    truncated = np.zeros(len(rewards), dtype=bool)
    truncated[EPISODE - 1 :: EPISODE] = True
    assert (rewards[~truncated] == 1.0).all()
    assert (np.abs(rewards[truncated] - np.round(rewards[truncated])) > 1e-4).all()


def test_a_terminal_observation_may_have_an_axis_of_its_own() -> None:
    # Mistake: those of one step are stacked before they have the shape of the space.
    class Wrapped(ToyEnv):
        def step(self, action: Any) -> Any:
            observation, *rest = super().step(action)
            return (np.asarray(observation)[None], *rest)

    env = DummyVecEnv([lambda: Wrapped(VECTOR, BOX_ACTIONS, EPISODE)] * 3)
    model = model_in(env)
    model.learn(48)
    assert model._n_updates >= 1


def test_rewards_may_be_a_list() -> None:
    env = faulty_envs(10**9)
    step = env.step

    def with_list(actions: Any) -> Any:
        observations, rewards, dones, infos = step(actions)
        return observations, rewards.tolist(), dones, infos

    vars(env)["step"] = with_list
    model = model_in(env)
    model.learn(48)
    assert model._n_updates == 1


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the normalisation's own statistics
def test_refused_step_leaves_the_normalisations_statistics_as_they_were(value: float) -> None:
    env = VecNormalize(faulty_envs(FIRST + 1, spoil=spoil_vector(value)))
    model = model_in(env)
    model.learn(48)
    before = copy.deepcopy(vars(env.obs_rms))
    with pytest.raises(ValueError, match="observation"):
        model.learn(48, reset_num_timesteps=False)
    for name, statistic in vars(env.obs_rms).items():
        np.testing.assert_array_equal(statistic, before[name])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_refused_reset_leaves_the_normalisations_statistics_as_they_were() -> None:
    env = VecNormalize(faulty_envs(0, spoil=spoil_vector(np.nan)))
    before = copy.deepcopy([vars(env.obs_rms), vars(env.ret_rms)])
    with pytest.raises(ValueError, match="observation"):
        model_in(env).learn(48)
    np.testing.assert_equal([vars(env.obs_rms), vars(env.ret_rms)], before)


def test_ratio_is_one_at_the_old_parameters_under_running_normalisation() -> None:
    # Mistake: statistics updated between the old log-probabilities and the surrogate.
    env = VecNormalize(DummyVecEnv([ToyEnv, ToyEnv]))
    model = toy_model(CASES["box"], env=env)
    for _ in range(3):
        collect(model)
        samples = next(copy.deepcopy(model.rollout_buffer).get(None))
        with th.no_grad():
            distribution = model.policy.get_distribution(samples.observations)
            ratio = th.exp(distribution.log_prob(samples.actions) - samples.old_log_prob)
        th.testing.assert_close(ratio, th.ones_like(ratio), rtol=0, atol=1e-4)
        model.train()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_number_of_any_precision_that_is_not_finite_is_refused(dtype: Any) -> None:
    check_observations(np.full((2, 3), 6e4, dtype), step=0)
    for value in NOT_FINITE:
        with pytest.raises(ValueError, match="not finite"):
            check_observations(np.array([[0.0, value]], dtype), step=0)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_training_continues_under_normalisation_after_the_reward_was_corrected() -> None:
    model = model_in(VecNormalize(faulty_envs(5, reward=np.nan)))
    with pytest.raises(ValueError, match="reward"):
        model.learn(48)
    model.learn(48)
    assert model._n_updates == 1


def test_rewards_of_objects_are_checked() -> None:
    with pytest.raises(ValueError, match="reward is not finite"):
        check_finite("reward", np.array([0.0, np.nan], dtype=object), step=1)


def test_tensors_of_observations_are_checked() -> None:
    with pytest.raises(ValueError, match="observation is not finite"):
        check_observations(th.tensor([[0.0, np.nan]]), step=1)  # type: ignore[arg-type]
