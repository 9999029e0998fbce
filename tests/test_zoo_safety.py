"""No command runs code of a downloaded model: of its zip file, statistics or settings."""

import contextlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch as th
import yaml
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_trpo import TRPO
from tests.hostile import GADGETS, changed, unpack

# As the RL Zoo writes them.
PLAIN = {
    "pairs": (
        "!!python/object/apply:collections.OrderedDict\n- - - gamma\n    - 0.9\n"
        "  - - normalize\n    - true\n  - - n_timesteps\n    - 1000000.0\n"
    ),
    "tuple": "a: !!python/tuple [1, 2]\n",
    "dict": "normalize: dict(norm_obs=True, norm_reward=False)\n",
    "braces": "normalize: \"{'norm_obs': True, 'gamma': -0.99}\"\n",
    "policy": "policy_kwargs: dict(activation_fn=nn.ReLU, net_arch=dict(pi=[256, 256], vf=[64]))\n",
    "folded": "policy_kwargs: >\n  dict(log_std_init=-2,\n  optimizer_class=th.optim.Adam)\n",
    "empty value": "normalize:\npolicy_kwargs: {net_arch: [8]}\n",
    "wrapper": "env_wrapper: sb3_contrib.common.wrappers.TimeFeatureWrapper\n",
    "wrappers": (
        "env_wrapper:\n  - rl_zoo3.wrappers.HistoryWrapper:\n      horizon: 2\n"
        "  - stable_baselines3.common.atari_wrappers.AtariWrapper\n"
    ),
    "empty": "",
}

CODE = {
    "apply": "a: !!python/object/apply:os.mkdir [canary]\n",
    "apply in pairs": (
        "!!python/object/apply:collections.OrderedDict\n- - - a\n"
        "    - !!python/object/apply:os.mkdir [canary]\n"
    ),
    "new": "a: !!python/object/new:os.mkdir [canary]\n",
    "object": "a: !!python/object:pathlib.Path {}\n",
    "name": "a: !!python/name:os.mkdir ''\n",
    "module": "a: !!python/module:antigravity ''\n",
    "own tag": "a: !mkdir canary\n",
    "key": "? !!python/object/apply:os.mkdir [canary]\n: 1\n",
    "anchor": "a: &x !!python/object/apply:os.mkdir [canary]\nb: *x\n",
    "evaluated": "normalize: __import__('os').mkdir('canary')\n",
    "evaluated in dict": "normalize: dict(a=__import__('os').mkdir('canary'))\n",
    "evaluated in pairs": "- - normalize\n  - __import__('os').mkdir('canary')\n",
    "unpacked": "policy_kwargs: dict(**__import__('os').mkdir('canary'))\n",
    "attribute": "policy_kwargs: dict(a=nn.Module.__init__)\n",
    "call": "policy_kwargs: dict(a=nn.Linear(2, 2))\n",
    "comprehension": "monitor_kwargs: '[x for x in ().__class__.__bases__]'\n",
    "lambda": "replay_buffer_kwargs: '(lambda: 1)()'\n",
    "formatted": "normalize: 'f\"{1}\"'\n",
    "walrus": "normalize: '(a := 1)'\n",
    "wrapper": "env_wrapper:\n  - pydoc.pipepager:\n      cmd: mkdir canary\n",
    "wrapper in pairs": "- - env_wrapper\n  - pydoc.pipepager: {cmd: mkdir canary}\n",
    "wrapper that writes": "env_wrapper: {gymnasium.wrappers.RecordVideo: {video_folder: a}}\n",
    "vectorized wrapper": "vec_env_wrapper: pydoc.pipepager\n",
    "callback": "callback:\n  - subprocess.Popen: {args: [mkdir, canary]}\n",
    "policy": "policy: subprocess.Popen\n",
    "damaged": "a: [1\n",
    "no text": "a: \x00\n",
    "deep": "a: " + "[" * 5000,
}


@pytest.mark.parametrize("text", PLAIN.values(), ids=PLAIN)
def test_data_is_let_through(text: str) -> None:
    from sb3_trpo.zoo.settings import find_code

    assert find_code(text) is None


@pytest.mark.parametrize("text", CODE.values(), ids=CODE)
def test_code_is_found(text: str) -> None:
    from sb3_trpo.zoo.settings import find_code

    assert find_code(text)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "zoo_configs").glob("*.yml")), ids=lambda p: p.name
)
def test_every_packaged_configuration_is_data(path: Path) -> None:
    from sb3_trpo.zoo.settings import find_code

    assert find_code(path.read_text()) is None


def test_what_the_zoo_saved_is_data() -> None:
    from sb3_trpo.zoo.settings import find_code

    assert find_code(yaml.dump(OrderedDict(env="CartPole-v1", env_kwargs=None, seed=3))) is None


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a run of CartPole with normalised observations, and return its folder."""
    folder = tmp_path / "logs" / "trpo" / "CartPole-v1_1"
    settings = folder / "CartPole-v1"
    settings.mkdir(parents=True)
    env = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    TRPO("MlpPolicy", env, n_steps=32, batch_size=32).save(settings)
    env.save(str(settings / "vecnormalize.pkl"))
    values = {"normalize": True, "policy": "MlpPolicy", "n_timesteps": 32, "n_steps": 32}
    (settings / "config.yml").write_text(yaml.dump({**values, "batch_size": 32}))
    monkeypatch.chdir(tmp_path)
    return folder


def attack(run: Path, name: str) -> None:
    """Write a pickle that makes the canary, or YAML that does, into a file of a run."""
    path = run / name
    gadget = GADGETS["os.mkdir"](str(Path("canary").absolute()))
    if path.suffix == ".zip":
        path.write_bytes(changed(unpack(path.read_bytes()), target_kl=gadget))
    elif path.suffix == ".pkl":
        path.write_bytes(gadget)
    else:
        path.write_text(CODE["apply"])


COMMANDS = {
    "enjoy": ["--no-render", "--n-timesteps", "5"],
    "export": [],
    "record-video": ["--n-timesteps", "5"],
    "continue": ["--n-timesteps", "32", "--eval-freq", "-1"],
}
ATTACKED = {
    "CartPole-v1.zip": "target_kl",
    "CartPole-v1/vecnormalize.pkl": r"mkdir",
    "CartPole-v1/config.yml": "would run code",
    "CartPole-v1/args.yml": "would run code",
}


# A command that ends with an error leaves the closing of its monitor files to the process's end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ATTACKED)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_code_of_a_file(command: str, name: str, run: Path, capsys: Any) -> None:
    from sb3_trpo.zoo.commands import main

    attack(run, name)
    assert main([command, "--env", "CartPole-v1", *COMMANDS[command]]) == 2
    assert ATTACKED[name] in capsys.readouterr().err
    assert not Path("canary").exists()


@pytest.mark.parametrize("name", ["CartPole-v1.zip", "CartPole-v1/vecnormalize.pkl"])
def test_trust_lets_a_file_run_code(name: str, run: Path) -> None:
    from sb3_trpo.zoo.commands import main

    attack(run, name)
    words = ["enjoy", "--env", "CartPole-v1", *COMMANDS["enjoy"], "--trust-checkpoint"]
    with contextlib.suppress(Exception):  # the code's result is no model
        main(words)
    assert Path("canary").exists()


def test_harmless_files_are_played(run: Path, capsys: Any) -> None:
    from sb3_trpo.zoo.commands import main

    assert main(["enjoy", "--env", "CartPole-v1", *COMMANDS["enjoy"]]) == 0
    assert "Loading running average" in capsys.readouterr().out


def test_a_key_of_the_settings_does_not_become_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sb3_trpo.zoo.entry import entry_text

    monkeypatch.chdir(tmp_path)
    key = "a=__import__('os').mkdir('canary'), b"
    settings = {"policy_kwargs": OrderedDict({key: th.nn.ReLU})}
    text = yaml.safe_load(entry_text("CartPole-v1", settings))["CartPole-v1"]["policy_kwargs"]
    # As the RL Zoo does.
    assert eval(text, {"nn": th.nn}) == {key: th.nn.ReLU}
    assert not Path("canary").exists()
