"""The hyperparameters that are shipped. The RL Zoo is imported inside the tests."""

import inspect
import warnings
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import sb3_contrib
import yaml

from sb3_trpo import TRPO
from tests.environments import BOX_ACTIONS, VECTOR, ToyEnv

CONFIGS = sorted((Path(__file__).parents[1] / "zoo_configs").glob("*.yml"))
ENTRIES = {path.stem: yaml.safe_load(path.read_text()) for path in CONFIGS}
OURS = ENTRIES["trpo"]

# Entries whose values are our own; all others of the RL Zoo's file have the Zoo's.
TUNED = {
    "CartPole-v1",
    "Acrobot-v1",
    "Pendulum-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "BipedalWalker-v3",
    "LunarLander-v3",
    "LunarLanderContinuous-v3",
    *("Ant-v4", "HalfCheetah-v4", "Hopper-v4", "Humanoid-v4", "Swimmer-v4", "Walker2d-v4"),
}
# Entries that are not the name of an environment, and environments that they are for.
EXAMPLES = {
    "default": ["FrozenLake-v1"],
    "atari": ["PongNoFrameskip-v4", "ALE/Pong-v5"],
}
TRUST_REGION = ("target_kl", "cg_damping")


def environments_of(entry: str) -> list[str]:
    return EXAMPLES.get(entry, [entry])


def require(env: str, with_images: bool) -> None:
    """Skip the test, naming the environment, if it is not installed."""
    import rl_zoo3.import_envs  # noqa: F401 (registers Atari and others)

    if with_images and find_spec("cv2") is None:
        pytest.skip(f"{env} needs OpenCV, which is not installed")
    if env not in gym.envs.registry:
        pytest.skip(f"{env} is not installed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # importing Box2D crashes where warnings are errors
            gym.make(env).close()
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        pytest.skip(f"{env} is not installed: {error}")


def zoo_entries() -> dict[str, dict[str, Any]]:
    import rl_zoo3

    folder = Path(next(iter(rl_zoo3.__path__)))
    entries: dict[str, dict[str, Any]] = yaml.safe_load(
        (folder / "hyperparams" / "trpo.yml").read_text()
    )
    return entries


@pytest.mark.parametrize("algo", ENTRIES)
def test_every_entry_says_what_its_kl_means(algo: str) -> None:
    entries = ENTRIES[algo]
    assert "default" in entries
    assert [name for name, values in entries.items() if "kl_reduction" not in values] == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_no_entry_leaves_the_trust_region_to_a_default(path: Path) -> None:
    entries = yaml.safe_load(path.read_text())
    assert [name for name, values in entries.items() if not values.keys() >= {*TRUST_REGION}] == []


def test_every_environment_of_the_zoo_has_an_entry() -> None:
    assert zoo_entries().keys() - OURS.keys() == set()


def test_entries_that_are_not_tuned_have_the_zoos_numbers_and_what_they_mean() -> None:
    defaults = inspect.signature(sb3_contrib.TRPO).parameters
    meaning = {name: defaults[name].default for name in TRUST_REGION} | {"kl_reduction": "mean"}
    for name, values in zoo_entries().items():
        if name not in TUNED:
            assert OURS[name] == meaning | values, name


def test_no_environment_of_gymnasium_falls_to_the_default_by_accident() -> None:
    families = ("classic_control", "box2d", "mujoco")
    removed = ("-v2", "-v3")  # MuJoCo environments that only say that they are gone
    names = [
        name
        for name, spec in gym.envs.registry.items()
        for family in families
        if f"gymnasium.envs.{family}" in str(spec.entry_point)
        and not (family == "mujoco" and name.endswith(removed))
    ]
    assert len(names) > 30
    assert set(names) - OURS.keys() == set()


def test_new_versions_of_mujoco_have_the_values_of_the_old() -> None:
    old = [name for name in OURS if name.endswith("-v4")]
    assert len(old) == 11
    for name in old:
        assert OURS[name.replace("-v4", "-v5")] == OURS[name]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is out of date")  # CartPole-v0 and MuJoCo's v4
@pytest.mark.parametrize(
    ("algo", "entry", "env"),
    [
        (algo, entry, env)
        for algo, entries in ENTRIES.items()
        for entry in entries
        for env in environments_of(entry)
    ],
)
def test_entry_builds_its_model(algo: str, entry: str, env: str, tmp_path: Path) -> None:
    from rl_zoo3.exp_manager import ExperimentManager

    import sb3_trpo.zoo.register  # noqa: F401 (imported for its effect)

    require(env, with_images="env_wrapper" in ENTRIES[algo][entry])
    config = next(path for path in CONFIGS if path.stem == algo)
    manager = ExperimentManager(
        Namespace(), algo, env, str(tmp_path), eval_freq=-1, verbose=0, config=str(config)
    )
    built = manager.setup_experiment()
    assert built is not None
    model, given = built
    assert isinstance(model, TRPO)
    assert dict(given) == ENTRIES[algo][entry]
    assert model.kl_reduction == given["kl_reduction"]
    if model.policy_class.__name__.endswith("CnnPolicy"):
        assert model.policy.pi_features_extractor is not model.policy.vf_features_extractor
    env_of_model = model.get_env()
    assert env_of_model is not None
    env_of_model.close()


@pytest.mark.parametrize("name", EXAMPLES["atari"])
def test_step_of_an_atari_game_is_four_frames_under_either_name(name: str) -> None:
    require(name, with_images=True)
    from sb3_trpo.zoo.atari import AtariFrames

    env = AtariFrames(gym.make(name))
    env.reset(seed=0)
    ale = vars(env.unwrapped)["ale"]
    before = ale.getFrameNumber()
    env.step(env.action_space.sample())
    assert ale.getFrameNumber() == before + 4
    env.close()


def test_atari_game_without_a_registered_name_is_refused() -> None:
    from sb3_trpo.zoo.atari import AtariFrames

    with pytest.raises(ValueError, match="does not say how many frames it skips"):
        AtariFrames(ToyEnv(VECTOR, BOX_ACTIONS, 9))
