"""The settings beside a model are checked before the RL Zoo reads them, which runs code in them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from sb3_trpo.zoo.errors import UsageError

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
    "damaged": "a: [1\n",
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


def test_what_the_zoo_saved_is_data(tmp_path: Path) -> None:
    from collections import OrderedDict

    from sb3_trpo.zoo.settings import find_code

    assert find_code(yaml.dump(OrderedDict(env="CartPole-v1", env_kwargs=None, seed=3))) is None


@pytest.mark.parametrize("name", ["config.yml", "args.yml"])
@pytest.mark.parametrize("command", ["enjoy", "export", "continue", "record-video"])
def test_commands_refuse_code_in_settings(
    command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from sb3_trpo import TRPO
    from sb3_trpo.zoo.commands import main

    run = tmp_path / "logs" / "trpo" / "CartPole-v1_1"
    (run / "CartPole-v1").mkdir(parents=True)
    TRPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32).save(run / "CartPole-v1")
    (run / "CartPole-v1" / name).write_text(CODE["apply"])
    monkeypatch.chdir(tmp_path)
    assert main([command, "--env", "CartPole-v1"]) == 2
    assert "would run code" in capsys.readouterr().err
    assert not Path("canary").exists()


def test_trust_lets_a_file_of_ones_own_run(tmp_path: Path) -> None:
    from argparse import Namespace

    from sb3_trpo import TRPO
    from sb3_trpo.zoo.choice import find_model

    run = tmp_path / "trpo" / "CartPole-v1_1"
    (run / "CartPole-v1").mkdir(parents=True)
    TRPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32).save(run / "CartPole-v1")
    (run / "CartPole-v1" / "config.yml").write_text(CODE["apply"])
    choice = Namespace(
        algo="trpo",
        env="CartPole-v1",
        folder=str(tmp_path),
        gym_packages=[],
        exp_id=1,
        load_best=False,
        load_checkpoint=None,
        load_last_checkpoint=False,
        trust_checkpoint=True,
    )
    assert find_model(choice) == run / "CartPole-v1.zip"
    choice.trust_checkpoint = False
    with pytest.raises(UsageError, match="--trust-checkpoint"):
        find_model(choice)
