"""No command runs code of a downloaded model: of its zip file, statistics or settings."""

import contextlib
import shutil
import subprocess
import sys
from collections import OrderedDict
from io import BytesIO
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_trpo import TRPO, resume_training
from sb3_trpo._checkpoint_file import Checkpoint, find_checkpoint
from sb3_trpo.zoo.errors import UsageError
from tests.hostile import GADGETS, changed, unpack

# tqdm says that its rich progress bar is new.
pytestmark = pytest.mark.filterwarnings("ignore:rich is experimental")

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
    "vectorized wrapper": (
        "vec_env_wrapper:\n  - stable_baselines3.common.vec_env.VecFrameStack:\n      n_stack: 2\n"
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
    "mapping as pair": (
        "!!python/object/apply:collections.OrderedDict\n"
        "- - {normalize: 1, \"__import__('os').mkdir('canary')\": 2}\n"
    ),
    "set as pair": (
        "!!python/object/apply:collections.OrderedDict\n"
        "- - !!set {normalize, \"__import__('os').mkdir('canary')\"}\n"
    ),
    "text as pair": "!!python/object/apply:collections.OrderedDict\n- [ab]\n",
    "items of a dict": (
        "!!python/object/apply:collections.OrderedDict\n"
        "dictitems: !!python/object/apply:collections.OrderedDict\n"
        "- - {normalize: 1, \"__import__('os').mkdir('canary')\": 2}\n"
    ),
    "pair as key": "? [normalize, \"__import__('os').mkdir('canary')\"]\n: 1\n",
    "pairs": "!!omap [normalize: \"__import__('os').mkdir('canary')\"]\n",
    "function of torch": "policy_kwargs: dict(features_extractor_class=th.save)\n",
    "module of torch": "policy_kwargs: dict(activation_fn=th.sys.exit)\n",
    "function of a layer's module": "policy_kwargs: dict(activation_fn=nn.Module.eval)\n",
    "bare name": "policy_kwargs: dict(activation_fn=exit)\n",
    "name alone": "normalize: unknown\n",
    "too many processes": "n_envs: 20000\n",
    "as many in hexadecimal": "n_envs: 0x4e20\n",
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
    "vectorized wrapper that writes": (
        "vec_env_wrapper:\n  - stable_baselines3.common.vec_env.VecMonitor: {filename: a}\n"
    ),
    "frames": "frame_stack: 1000000000\n",
    "callback": "callback:\n  - subprocess.Popen: {args: [mkdir, canary]}\n",
    "policy": "policy: subprocess.Popen\n",
    "damaged": "a: [1\n",
    "no text": "a: \x00\n",
    "deep": "a: " + "[" * 5000,
}


def npz(**arrays: Any) -> bytes:
    """Write arrays as NumPy does."""
    file = BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def bomb() -> bytes:
    """Write arrays that are much larger than their file."""
    file = BytesIO()
    results = np.zeros((2, 2_000_000))
    np.savez_compressed(file, timesteps=[1, 2], results=results, ep_lengths=results)
    return file.getvalue()


@pytest.mark.parametrize("text", PLAIN.values(), ids=PLAIN)
def test_data_is_let_through(text: str) -> None:
    from sb3_trpo.zoo.settings import find_code

    assert find_code(text) is None


@pytest.mark.parametrize("text", CODE.values(), ids=CODE)
def test_code_is_found(text: str) -> None:
    from sb3_trpo.zoo.settings import find_code

    found = find_code(text)
    assert found
    assert "Node" not in found


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "zoo_configs").glob("*.yml")), ids=lambda p: p.name
)
def test_every_packaged_configuration_is_data(path: Path) -> None:
    from sb3_trpo.zoo.settings import find_code

    assert find_code(path.read_text()) is None


def test_values_that_refer_to_values_are_bounded(tmp_path: Path) -> None:
    from sb3_trpo.zoo.settings import read_mapping

    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    path = tmp_path / "args.yml"
    path.write_text("\n".join(lines[:3]))
    assert read_mapping(path)["a1"] == [["x"] * 10] * 10
    path.write_text("\n".join(lines))
    with pytest.raises(UsageError, match=r"args\.yml is damaged"):
        read_mapping(path)
    path.write_text("a: &a [*a]")
    with pytest.raises(UsageError, match=r"args\.yml is damaged"):
        read_mapping(path)


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


def test_missing_hyperparameters_of_a_run_are_named(interrupted: Path, capsys: Any) -> None:
    from sb3_trpo.zoo.commands import main

    (interrupted / "CartPole-v1" / "config.yml").unlink()
    assert main(["train", "--resume", str(interrupted)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "config.yml, the run's hyperparameters, is missing" in line


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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run with a checkpoint, as far as --resume reads it, and return its logs."""
    from sb3_trpo.zoo.commands import main

    folder = tmp_path_factory.mktemp("trained") / "logs"
    words = ["-n", "64", "--hyperparams", "n_steps:32", "n_envs:1", "batch_size:32"]
    options = ["--checkpoint-freq", "32", "--verbose", "0", "--eval-freq", "32"]
    place = ["--env", "CartPole-v1", "--log-folder", str(folder)]
    assert main(["train", *place, *words, *options]) == 0
    return folder


@pytest.fixture
def interrupted(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the trained run, and return its folder."""
    shutil.copytree(trained, tmp_path / "logs")
    monkeypatch.chdir(tmp_path)
    return Path("logs/trpo/CartPole-v1_1")


def rewrite(run: Path, gadget: bytes | None = None, **state: Any) -> None:
    """Change the newest checkpoint of a run: its state, and its model's code."""
    from sb3_trpo._checkpoint_file import Checkpoint, find_checkpoint

    found = find_checkpoint(run / "checkpoints")
    model = found.checkpoint.model
    if gadget is not None:
        model = changed(unpack(model), target_kl=gadget)
    found.path.write_bytes(Checkpoint(model, found.checkpoint.state | state).to_bytes())


def rewrite_arguments(run: Path, words: list[str], **changes: Any) -> None:
    """Change the stored options of a run, and the stored command line."""
    from sb3_trpo.zoo.settings import read_mapping

    path = run / "CartPole-v1" / "args.yml"
    stored = read_mapping(path)
    path.write_text(yaml.dump(stored | changes | {"words": [*stored["words"], *words]}))


# What the owner of a run's folder may write into its args.yml.
# What follows from it, and what the message says.
STORED: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "trust": (["--trust-checkpoint"], {"trust_checkpoint": True}, "mkdir"),
    "package": (["--gym-packages", "armed"], {"gym_packages": ["armed"]}, "repeat --gym-packages"),
    "configuration": (["--conf-file", "armed"], {"conf_file": "armed"}, "mkdir"),
    "hyperparameter": (
        ["--hyperparams", "normalize:__import__('os').mkdir('canary')"],
        {},
        "started with normalize: __import__",
    ),
    "function": (
        ["--hyperparams", "policy_kwargs:dict(features_extractor_class=th.save)"],
        {},
        "started with policy_kwargs: dict",
    ),
    "other algorithm": (["--algo", "ppo"], {"algo": "ppo"}, "started with --algo ppo"),
    "model": (["-i", "logs/trpo/CartPole-v1_1/armed.zip"], {}, "started with -i logs"),
    "many evaluations": (["--n-eval-envs", "20000"], {}, "started with --n-eval-envs 20000"),
    "many threads": (["--num-threads", "0x4e20"], {}, "started with --num-threads 0x4e20"),
    "many environments": (["--hyperparams", "n_envs:20000"], {}, "started with n_envs: 20000"),
}


# A command that ends with an error leaves the closing of its monitor files to the process's end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("name", STORED)
def test_no_stored_option_makes_a_resumed_run_run_code(
    name: str, interrupted: Path, capsys: Any
) -> None:
    from sb3_trpo.zoo.commands import main

    Path("armed.py").write_text("import os\nos.mkdir('canary')\nhyperparams = {}\n")
    rewrite(interrupted, GADGETS["os.mkdir"](str(Path("canary").absolute())))
    (interrupted / "armed.zip").write_bytes((interrupted / "CartPole-v1.zip").read_bytes())
    attack(interrupted, "armed.zip")
    words, changes, message = STORED[name]
    rewrite_arguments(interrupted, words, **changes)
    assert main(["train", "--resume", str(interrupted)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("canary").exists()


def test_trust_on_the_command_line_lets_a_checkpoint_run_code(interrupted: Path) -> None:
    from sb3_trpo.zoo.commands import main

    rewrite(interrupted, GADGETS["os.mkdir"](str(Path("canary").absolute())))
    with contextlib.suppress(Exception):  # the code's result is no model
        main(["train", "--resume", str(interrupted), "--trust-checkpoint"])
    assert Path("canary").exists()


def test_a_resumed_run_is_one_of_ours(interrupted: Path, capsys: Any) -> None:
    from sb3_trpo.zoo.commands import main

    rewrite_arguments(interrupted, ["--algo", "ppo"])
    assert main(["train", "--resume", str(interrupted), "--trust-checkpoint"]) == 2
    assert "not of 'ppo'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["progress.csv", "CartPole-v1.zip", "CartPole-v1/link"])
def test_a_resumed_run_writes_through_no_link(name: str, interrupted: Path, capsys: Any) -> None:
    from sb3_trpo.zoo.commands import main

    victim = Path("victim.txt").absolute()
    victim.write_text("precious")
    (interrupted / name).unlink(missing_ok=True)
    (interrupted / name).symlink_to(victim)
    assert main(["train", "--resume", str(interrupted)]) == 2
    assert "is a symbolic link" in capsys.readouterr().err
    assert victim.read_text() == "precious"


def test_an_untouched_run_is_resumed_and_logs_where_its_user_says(
    interrupted: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sb3_trpo import checkpoint
    from sb3_trpo.zoo.commands import main

    folders: list[Any] = []

    def load(*arguments: Any, **options: Any) -> TRPO:
        model = checkpoint.load_training(*arguments, **options)
        folders.append(model.tensorboard_log)
        return model

    monkeypatch.setattr("sb3_trpo.zoo.resume.load_training", load)
    file = BytesIO()
    TRPO.load(interrupted / "CartPole-v1.zip", tensorboard_log="theirs").save(file)
    found = find_checkpoint(interrupted / "checkpoints")
    found.path.write_bytes(Checkpoint(file.getvalue(), found.checkpoint.state).to_bytes())
    assert main(["train", "--resume", str(interrupted)]) == 0  # which was trained with --verbose 0
    assert "Resuming from" in capsys.readouterr().out
    assert folders == [None]
    assert not Path("theirs").exists()


def test_a_run_that_is_training_is_not_resumed_beside_it(interrupted: Path, capsys: Any) -> None:
    from sb3_trpo.zoo.commands import main
    from sb3_trpo.zoo.lock import LOCK, lock_run

    hold = f"from filelock import FileLock; lock = FileLock({str(interrupted / LOCK)!r}); "
    wait = "lock.acquire(); print(flush=True); input()"
    logs = {path: path.read_bytes() for path in interrupted.glob("*.csv")}
    command = [sys.executable, "-c", hold + wait]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert main(["train", "--resume", str(interrupted)]) == 2
        assert "another process is training in" in capsys.readouterr().err
        assert logs == {path: path.read_bytes() for path in interrupted.glob("*.csv")}
        other.kill()
    assert main(["train", "--resume", str(interrupted), "--verbose", "0"]) == 0
    lock_run(interrupted).release()


def test_a_runs_checkpoint_is_resumed_in_python(interrupted: Path) -> None:
    venv = make_vec_env("CartPole-v1")
    model = resume_training(interrupted / "checkpoints", venv)
    assert type(model) is TRPO
    assert model.num_timesteps == 64


MALFORMED: dict[str, tuple[str, bytes]] = {
    "no archive": ("evaluations.npz", b"PK damaged"),
    "no arrays": ("evaluations.npz", npz(timesteps=[1])),
    "empty arrays": ("evaluations.npz", npz(timesteps=[], results=[], ep_lengths=[])),
    "text": ("evaluations.npz", npz(timesteps=["a"], results=[["b"]], ep_lengths=[[1]])),
    "objects": (
        "evaluations.npz",
        npz(timesteps=[1], results=np.array([[None]]), ep_lengths=[[1]]),
    ),
    "scalars": ("evaluations.npz", npz(timesteps=1, results=2, ep_lengths=3)),
    "bomb": ("evaluations.npz", bomb()),
    "no final archive": ("final_evaluation.npz", b""),
    "no returns": ("final_evaluation.npz", npz(other=[1])),
    "damaged arguments": ("CartPole-v1/args.yml", b"a: [1\n"),
    "binary arguments": ("CartPole-v1/args.yml", b"\xff\x00\x01"),
    "arguments in a list": ("CartPole-v1/args.yml", b"- 1\n- 2\n"),
    "empty pairs": ("CartPole-v1/args.yml", b"!!python/object/apply:collections.OrderedDict []\n"),
    "arguments without names": ("CartPole-v1/args.yml", b"3\n"),
    "number as the environment's arguments": (
        "CartPole-v1/args.yml",
        b"env_kwargs: 3\nwords: []\nenv: a\n",
    ),
    "damaged settings": ("CartPole-v1/config.yml", b"a: [1\n"),
    "settings in a list": ("CartPole-v1/config.yml", b"- 1\n- 2\n"),
    "settings without names": ("CartPole-v1/config.yml", b"3\n"),
    "number as arguments": ("CartPole-v1/config.yml", b"env_kwargs: 3\nnormalize: false\n"),
}
EVALUATIONS = "evaluations.npz"
# The commands that read a file; `compare` makes no environment.
READ = {
    "evaluations.npz": ("compare",),
    "final_evaluation.npz": ("compare",),
    "CartPole-v1/args.yml": ("compare", "resume", "enjoy", "continue"),
    "CartPole-v1/config.yml": ("resume", "enjoy", "continue", "export"),
}


# A command that ends with an error leaves the closing of its monitor files to the process's end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(
    ("command", "name"),
    [
        (command, name)
        for name, (file, _) in MALFORMED.items()
        for command in READ[file]
        if (command, name) != ("compare", "number as the environment's arguments")
    ],
)
def test_malformed_files_of_a_run_are_named_in_one_line(
    command: str, name: str, interrupted: Path, capsys: Any
) -> None:
    from sb3_trpo.zoo.commands import main

    file, content = MALFORMED[name]
    (interrupted / file).write_bytes(content)
    if command == "resume":
        words = ["train", "--resume", str(interrupted)]
    elif command == "compare":
        words = ["compare", str(interrupted)]
    else:
        words = [command, "--env", "CartPole-v1", *COMMANDS[command]]
    capsys.readouterr()
    assert main(words) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert file in message
    assert "would run code" not in message


DAMAGED = [name for name, (file, _) in MALFORMED.items() if file == EVALUATIONS]


@pytest.mark.parametrize("name", DAMAGED)
def test_a_run_is_resumed_without_evaluations_that_are_damaged(
    name: str, interrupted: Path
) -> None:
    from sb3_trpo.zoo.commands import main

    (interrupted / EVALUATIONS).write_bytes(MALFORMED[name][1])
    with pytest.warns(UserWarning, match=r"evaluations start anew.*evaluations\.npz"):
        assert main(["train", "--resume", str(interrupted)]) == 0
    assert (interrupted / f"{EVALUATIONS}.damaged").read_bytes() == MALFORMED[name][1]


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
