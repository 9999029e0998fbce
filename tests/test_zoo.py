"""The ``sb3-trpo`` command. The RL Zoo is imported inside the tests: it patches gymnasium."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest

import sb3_trpo
from sb3_trpo import TRPO
from sb3_trpo.zoo.commands import COMMANDS, main
from sb3_trpo.zoo.errors import BROKEN, UsageError, explain, unknown_environment, user_errors

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def zoo_arguments(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, Any]]:
    """Run ``sb3-trpo train`` up to the point where the RL Zoo would start to train."""

    def run(*options: str) -> tuple[Any, Any]:
        from sb3_trpo.zoo.manager import RunManager

        seen: list[Any] = []
        monkeypatch.setattr(RunManager, "setup_experiment", lambda manager: seen.append(manager))
        monkeypatch.setattr(RunManager, "hyperparameters_optimization", lambda manager: None)
        assert main(["train", *options]) == 0
        return seen[0].args, seen[0]

    return run


def picture(path: Path) -> npt.NDArray[np.float64]:
    from matplotlib.image import imread

    return np.asarray(imread(path), dtype=np.float64)


def write_run(folder: Path, episodes: int) -> None:
    """Write what a run with two environments leaves in its folder."""
    for env in range(2):
        rows = [f"{10 * (i + env)},{5 + i},{i}.0" for i in range(episodes)]
        lines = ['#{"t_start": 0.0, "env_id": "Fake-v0"}', "r,l,t", *rows]
        (folder / f"{env}.monitor.csv").write_text("\n".join(lines) + "\n")
    results = np.arange(15.0).reshape(3, 5)
    np.savez(folder / "evaluations.npz", timesteps=np.array([10, 20, 30]), results=results)


def test_trpo_means_our_class_everywhere_in_the_zoo() -> None:
    from rl_zoo3 import ALGOS, exp_manager

    import sb3_trpo.zoo.register

    assert issubclass(ALGOS["trpo"], sb3_trpo.TRPO)
    assert vars(exp_manager)["ALGOS"] is ALGOS


def test_importing_the_package_does_not_import_the_zoo() -> None:
    code = "import sys, sb3_trpo, sb3_trpo.zoo.commands; sys.exit('rl_zoo3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_training_does_not_import_what_only_comparisons_need() -> None:
    code = "import sys, sb3_trpo.zoo.train; sys.exit('rliable' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_defaults_are_trpo_with_progress_bar(zoo_arguments: Callable[..., Any]) -> None:
    args, _ = zoo_arguments()
    assert (args.algo, args.env, args.progress) == ("trpo", "CartPole-v1", True)


def test_options_of_the_user_win(zoo_arguments: Callable[..., Any]) -> None:
    args, _ = zoo_arguments("--algo", "ppo", "--eval-freq", "77", "--seed", "3")
    assert (args.algo, args.eval_freq, args.seed) == ("ppo", 77, 3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["-n", "50000"], 2500),
        (["-n", "1e3"], 2048),  # one rollout
        (["-n", "1e3", "--algo", "sac", "--env", "Pendulum-v1"], 50),  # has no rollouts
        (["--eval-freq", "77"], 77),
        (["--eval-freq", "-1"], -1),
    ],
)
def test_run_is_evaluated_twenty_times_unless_told_otherwise(
    options: list[str],
    expected: int,
    zoo_arguments: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rl_zoo3.exp_manager import ExperimentManager

    monkeypatch.setattr(ExperimentManager, "create_callbacks", lambda manager: None)
    args, manager = zoo_arguments(*options)
    manager.create_callbacks()
    assert manager.eval_freq == expected
    assert args.eval_freq == expected


def test_command_leaves_no_trace_in_the_zoo(zoo_arguments: Callable[..., Any]) -> None:
    from rl_zoo3 import exp_manager, train

    words = list(sys.argv)
    zoo_arguments()
    assert sys.argv == words
    assert vars(train)["ExperimentManager"] is exp_manager.ExperimentManager


def test_our_configuration_is_used_unless_one_is_given(zoo_arguments: Callable[..., Any]) -> None:
    assert Path(zoo_arguments()[1].config) == REPOSITORY / "zoo_configs" / "trpo.yml"
    assert zoo_arguments("--conf-file", "mine.yml")[1].config == "mine.yml"


def test_algorithm_without_our_configuration_uses_the_zoos(
    zoo_arguments: Callable[..., Any],
) -> None:
    config = Path(zoo_arguments("--algo", "ppo")[1].config)
    assert config.parts[-3:] == ("rl_zoo3", "hyperparams", "ppo.yml")


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_shows_an_example_and_the_commands(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "sb3-trpo train --env CartPole-v1" in text
    assert all(command in text for command in COMMANDS)


def test_help_of_train_shows_examples_and_the_zoos_options(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exit_status:
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert exit_status.value.code == 0
    assert "sb3-trpo train --env CartPole-v1" in text
    assert "--optimize-hyperparameters" in text


@pytest.mark.parametrize(
    ("words", "hints"),
    [
        (["fly"], ["'fly'", "train"]),
        (["train", "--env", "CartPol-v1"], ["CartPol-v1", "CartPole-v1", "CartPole-v0"]),
        (["train", "--env", "mine:A-v1"], ["write --gym-packages mine --env A-v1"]),
        (["train", "--conf-file", "no.yml"], ["No such file or directory: 'no.yml'"]),
        (["train", "--gym-packages", "no_such_package"], ["no_such_package"]),
        (["train", "--hyperparams", "gamma:1-0.1"], ["gamma", "'1-0.1'"]),
        (["train", "--hyperparams", "cg_dampign:0.1"], ["cg_dampign", "names are cg_damping;"]),
        (["train", "--hyperparams", "normalise:True"], ["normalise", "names are normalize"]),
        (["train", "--env-kwargs", "foo:1"], ["foo", "--env-kwargs"]),
        (["train", "--hyperparams", "target_kl=1"], ["name:value", "target_kl:0.02"]),
        (["train", "--conf-file", "model.zip"], ["No module named 'model'"]),
        (["train", "--conf-file", "broken.yml"], ["broken.yml"]),
        (["train", "--hyperparams", "n_timesteps:'many'"], ["many"]),
        (["train", "--seed", "-7"], ["--seed", "-7", "2**32"]),
        (["train", "-n", "1e-3"], ["--n-timesteps", "at least 1", "1e-3"]),
        (["train", "-i", "nowhere.zip"], ["no model 'nowhere.zip'"]),
        (["train", "-i", "model.zip"], ["model.zip is not a model"]),
        (["train", "--track"], ["wandb", "pip install 'sb3_trpo[zoo,wandb]'"]),
        (["train", "--log-folder", "model.zip"], ["Not a directory", "model.zip"]),
        (["train", "--algo", "trpo_mask"], ["trpo_mask", "action_masks"]),
        (["train", "--hyperparams", "learning_rate:-1"], ["learning_rate", "-1"]),
        (["train", "-n", "0"], ["--n-timesteps", "at least 1", "0"]),
        (["train", "--hyperparams", "n_envs:0"], ["n_envs=0", "at least 1"]),
        (["train", "--hyperparams", "n_envs:1.5"], ["n_envs=1.5", "at least 1"]),
        (["train", "--hyperparams", "frame_stack:0"], ["frame_stack=0", "at least 1"]),
        (["train", "--n-eval-envs", "0"], ["--n-eval-envs", "at least 1", "0"]),
        (["train", "--eval-episodes", "0"], ["--eval-episodes", "at least 1", "0"]),
        (["train", "--log-interval", "0"], ["--log-interval", "at least 1", "0"]),
        (["train", "--seeds", "0-1", "--jobs", "0"], ["--jobs", "at least 1", "0"]),
        (["train", "--hyperparams", "cg_damping:-1"], ["cg_damping", "-1"]),
        (["train", "--sed", "1"], ["--sed", "--seed", "--help"]),
        (["train", "--seeds", "a-b"], ["a-b", "0-4"]),
        (["train", "--seeds", "0-1", "--seed=3"], ["--seed", "--seeds"]),
        (["train", "--seeds", "0,1-2,1"], ["--seeds", "1 occurs twice"]),
        (["continue"], ["logs/trpo", "sb3-trpo train --algo trpo --env CartPole-v1"]),
        (["continue", "-i", "nowhere.zip"], ["no model 'nowhere.zip'"]),
        (["continue", "-i", "model.zip"], ["config.yml", "--conf-file"]),
        (["enjoy", "--env", "Pendulum-v1"], ["sb3-trpo train --algo trpo --env Pendulum-v1"]),
        (["enjoy", "--env", "Pendulm-v1"], ["Pendulm-v1", "Pendulum-v1"]),
        (["enjoy", "--algo", "trop"], ["unknown algorithm 'trop'", "names are trpo"]),
        (["record-video"], ["logs/trpo", "sb3-trpo train"]),
        (["plot", "--env", "Pendulum-v1"], ["Pendulum-v1", "sb3-trpo train"]),
        (["compare", "somewhere_1"], ["somewhere_1", "no model 'somewhere.zip'"]),
        (["compare", "a_1", "b_1"], ["a_1, b_1", "finished run"]),
        (["compare"], ["RUN", "sb3-trpo compare --help"]),
        (["plot", "--algo", "trop"], ["unknown algorithm 'trop'", "names are trpo"]),
        (["optimize", "--env", "Pendulm-v1"], ["Pendulm-v1", "Pendulum-v1"]),
        (["optimize", "--algo", "trop"], ["unknown algorithm 'trop'", "names are trpo"]),
        (["optimize", "--storage", "study.db"], ["study.db", "sqlite:///study.db"]),
        (["optimize", "--folder", "model.zip"], ["model.zip"]),
        (["optimize", "--n-trials", "0"], ["--n-trials", "at least 1", "0"]),
        (["export", "--exp-id", "7"], ["CartPole-v1_7", "sb3-trpo train"]),
    ],
    ids=lambda value: " ".join(value),
)
# When a model cannot be built, the Zoo leaves its environments' Monitor files open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_mistake_is_one_sentence_and_status_2(
    words: list[str],
    hints: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.zip").touch()
    (tmp_path / "broken.yml").write_text("a: [")
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(words) == 2
    message = capsys.readouterr().err
    assert message.startswith("sb3-trpo: error: ")
    assert message.count("\n") == 1
    assert all(hint in message for hint in hints)
    assert not list(tmp_path.glob("logs/*/*_1"))


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(UsageError, match="unknown environment 'CartPol-v1'"):
        main(["train", "--env", "CartPol-v1", "--debug"])


@pytest.mark.parametrize(
    ("command", "module", "package", "extras"),
    [
        ("enjoy", "enjoy", "rl_zoo3.enjoy", "zoo"),
        ("record-video", "record_video", "moviepy", "zoo,video"),
    ],
)
def test_missing_extra_is_told_with_the_line_that_installs_it(
    command: str,
    module: str,
    package: str,
    extras: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delitem(sys.modules, f"sb3_trpo.zoo.{module}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    assert main([command]) == 2
    assert f"pip install 'sb3_trpo[{extras}]'" in capsys.readouterr().err


def test_help_without_the_extra_names_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "sb3_trpo.zoo.record_video", raising=False)
    monkeypatch.setitem(sys.modules, "moviepy", None)
    assert main(["record-video", "--help"]) == 0
    out = capsys.readouterr().out
    assert "sb3-trpo record-video: record a trained agent" in out
    assert "pip install 'sb3_trpo[zoo,video]'" in out


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sb3_trpo {sb3_trpo.__version__}\n"


def test_interruption_is_one_line_and_status_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sb3_trpo.zoo.plot

    def interrupt(words: list[str]) -> None:
        raise KeyboardInterrupt(*words)

    monkeypatch.setattr(sb3_trpo.zoo.plot, "plot", interrupt)
    assert main(["plot", "after 2 of 3 runs"]) == 130
    assert main(["plot"]) == 130
    assert capsys.readouterr().err == (
        "sb3-trpo: interrupted after 2 of 3 runs\nsb3-trpo: interrupted\n"
    )


def test_values_and_text_are_read_and_nothing_is_evaluated(
    zoo_arguments: Callable[..., Any],
) -> None:
    expected = {
        "target_kl": "lin_0.01",
        "gamma": 0.9,
        "policy": "MlpPolicy",
        "normalize": True,
        "env_wrapper": ["a.B"],
        "policy_kwargs": "dict(a=nn.Tanh)",  # which the RL Zoo evaluates
        "n_steps": "__import__('os').getpid()",
    }
    words = [
        f"{name}:{value if isinstance(value, str) else repr(value)}"
        for name, value in expected.items()
    ]
    assert zoo_arguments("--hyperparams", *words)[0].hyperparams == expected
    assert zoo_arguments("--hyperparams", "policy:'MlpPolicy'")[0].hyperparams == {
        "policy": "MlpPolicy"
    }


@pytest.mark.parametrize(("text", "steps"), [("1e4", 10_000), ("512", 512), ("1.5e3", 1500)])
def test_steps_are_any_whole_number(
    text: str, steps: int, zoo_arguments: Callable[..., Any]
) -> None:
    assert zoo_arguments("-n", text)[0].n_timesteps == steps


def test_verbose_0_prints_nothing(
    zoo_arguments: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    args, _ = zoo_arguments("--verbose", "0")
    assert capsys.readouterr().out == ""
    assert not args.progress
    zoo_arguments("--verbose", "1")
    assert "Seed: " in capsys.readouterr().out


def test_help_leaves_options_of_off_policy_algorithms_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "replay-buffer" not in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        main([command, "--help"])
    assert exit_status.value.code == 0
    assert f"\n  sb3-trpo {command} " in capsys.readouterr().out


def test_only_the_named_kinds_of_exceptions_become_usage_errors() -> None:
    with pytest.raises(UsageError, match="two lines") as caught, user_errors(ValueError):
        raise ValueError("two\n  lines")
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(TypeError), user_errors(ValueError):
        raise TypeError


@pytest.mark.parametrize("error", [ValueError, TypeError, OSError, KeyError, ImportError])
def test_error_that_nobody_has_called_the_users_keeps_its_traceback(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sb3_trpo.zoo.plot

    def fail(words: list[str]) -> None:
        raise error("a fault of ours")

    monkeypatch.setattr(sb3_trpo.zoo.plot, "plot", fail)
    with pytest.raises(error, match="a fault of ours"):
        main(["plot"])


@pytest.mark.parametrize("algo", ["trpo", "ppo"])
@pytest.mark.parametrize("content", [b"garbage", b"", None], ids=["garbage", "empty", "missing"])
def test_broken_or_missing_file_of_a_model_is_told(
    content: bytes | None, algo: str, tmp_path: Path
) -> None:
    from sb3_trpo.zoo.builder import Builder

    path = tmp_path / "model.zip"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=str(path)):
        Builder(algo).load(path)


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_file_is_told_with_a_remedy(kind: type[Exception]) -> None:
    with pytest.raises(UsageError, match="broken: choose another model"), user_errors(*BROKEN):
        raise kind


def test_model_that_cannot_be_built_is_told() -> None:
    from sb3_trpo.zoo.builder import Builder

    env = gym.make("CartPole-v1")
    with pytest.raises(UsageError, match=r"cg_damping has to be .* -1"):
        Builder("trpo")(env, policy="MlpPolicy", cg_damping=-1, kl_reduction="sum")
    with pytest.raises(UsageError, match=r"--algo trpo_mask needs .* action_masks"):
        Builder("trpo_mask")(TRPO("MlpPolicy", env).get_env(), policy="MlpPolicy")


@pytest.mark.parametrize(
    ("output", "hint"),
    [
        ("no/figure.png", "No such file or directory: 'no/figure.png'"),
        ("no/figure.svg", "No such file or directory: 'no/figure.svg'"),
        ("figure.foo", "'figure.foo' has to end in one of"),
        ("figure", "'figure' has to end in one of"),
    ],
)
def test_figure_that_cannot_be_written_is_told(
    output: str,
    hint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "logs" / "trpo" / "Fake-v0_1"
    run.mkdir(parents=True)
    write_run(run, episodes=3)
    (run / "Fake-v0.zip").touch()
    assert main(["compare", str(run), "--output", output]) == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "enjoy"])
def test_syntax_error_in_the_users_package_keeps_its_traceback(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad_package").mkdir()
    (tmp_path / "bad_package" / "__init__.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SyntaxError) as caught:
        main([command, "--gym-packages", "bad_package"])
    assert str(caught.value.filename).endswith("__init__.py")


def test_message_is_one_line_and_never_empty() -> None:
    assert explain(ValueError("two\n  lines")).startswith("two lines")
    assert explain(AssertionError()).startswith("AssertionError")
    assert explain(KeyError("n_timesteps")).startswith("KeyError: 'n_timesteps'")


def test_missing_package_of_an_environment_is_told_whenever_it_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """CartPole imports what draws it when it draws first: in the middle of a recording."""
    import sb3_trpo.zoo.plot

    def fail(words: list[str]) -> None:
        raise gym.error.DependencyNotInstalled("pip install x")

    monkeypatch.setattr(sb3_trpo.zoo.plot, "plot", fail)
    assert main(["plot"]) == 2
    assert capsys.readouterr().err == "sb3-trpo: error: pip install x\n"


def test_missing_atari_games_are_told_with_the_line_that_installs_them() -> None:
    assert "pip install 'gymnasium[atari]'" in unknown_environment("ALE/NoSuchGame-v5")


def test_environment_without_neighbours_is_told_so() -> None:
    assert "no name is near it" in unknown_environment("zzzzzzzzzzzzzzzz")


def test_episode_ends_at_the_steps_of_all_environments(tmp_path: Path) -> None:
    from sb3_trpo.zoo.runs import training_episodes

    write_run(tmp_path, episodes=3)
    episodes = training_episodes(tmp_path)
    assert episodes["step"].tolist() == [10, 10, 22, 22, 36, 36]
    assert episodes["return"].tolist() == [0, 10, 10, 20, 20, 30]


@pytest.mark.parametrize("episodes", [0, 1, 40])
def test_learning_curve_is_drawn_for_any_number_of_episodes(tmp_path: Path, episodes: int) -> None:
    from sb3_trpo.zoo.learning_curve import draw_learning_curve

    write_run(tmp_path, episodes)
    path = draw_learning_curve(tmp_path, "a title")
    assert path == tmp_path / "learning_curve.png"
    assert picture(path).std() > 0.01


def test_learning_curve_without_evaluations_is_drawn(tmp_path: Path) -> None:
    from sb3_trpo.zoo.learning_curve import draw_learning_curve

    write_run(tmp_path, episodes=20)
    (tmp_path / "evaluations.npz").unlink()
    assert picture(draw_learning_curve(tmp_path, "a title")).std() > 0.01


RAISING_ENV = """
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

class Raising(CartPoleEnv):
    def step(self, action):
        raise ValueError("a fault of this environment")

gym.register("Raising-v0", entry_point=Raising)
"""


def run_command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m sb3_trpo`` as a user of a clone or of an installed package would."""
    return run_module(folder, "sb3_trpo", *words)


def run_module(folder: Path, module: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a module in a process of its own."""
    python_path = os.pathsep.join([str(REPOSITORY), str(folder)])
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
# tqdm says that its rich progress bar is new.
@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_whole_life_of_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> str:
        assert main(list(words)) == 0
        return capsys.readouterr().out

    runs = tmp_path / "logs" / "trpo"
    short = ["-n", "1024", "--eval-freq", "512", "--env-kwargs", "max_episode_steps:50"]
    done = run_command(tmp_path, "train", *short, "--seed", "0", "--hyperparams", "normalize:True")
    assert done.returncode == 0, done.stderr
    final = r"Final evaluation: mean return [0-9.]+ \+/- [0-9.]+ over 20"
    assert re.search(final, done.stdout)
    assert "Picture: logs/trpo/CartPole-v1_1/trust_region.png" in done.stdout
    for name in ("CartPole-v1.zip", "progress.csv", "learning_curve.png", "trust_region.png"):
        assert (runs / "CartPole-v1_1" / name).stat().st_size > 100

    # One command in a process of its own is enough: its start takes longer than what it does.
    monkeypatch.chdir(tmp_path)

    # The run was normalised, which our configuration does not say.
    out = run("continue", *short)
    assert "Loading pretrained agent" in out
    assert "Loading saved VecNormalize stats" in out
    assert (runs / "CartPole-v1_2" / "CartPole-v1.zip").is_file()

    out = run("train", "--seeds", "0-1", "--jobs", "2", *short)
    assert "2 of 2 runs: seed " in out
    assert (runs / "runs_3_to_4_CartPole-v1.png").is_file()
    assert (runs / "CartPole-v1_4" / "CartPole-v1.zip").is_file()

    out = run("enjoy", "--no-render", "-n", "600")
    assert "Mean reward:" in out

    search = ["--n-timesteps", "512", "--n-trials", "2", "--jobs", "2", "--seed", "0"]
    out = run("optimize", *search)
    assert "Best of 2 trials" in out
    best = runs / "best_CartPole-v1.yml"
    assert best.read_text() in out
    assert (runs / "study_CartPole-v1.png").is_file()

    run("train", "--conf-file", str(best), "-n", "512", "--eval-freq", "-1")
    run("record-video", "-n", "2e1")
    assert list(runs.glob("CartPole-v1_5/videos/*.mp4"))
    run("plot")
    assert picture(tmp_path / "training.png").std() > 0.05
    run("compare", *(str(runs / f"CartPole-v1_{number}") for number in (1, 2)))
    assert picture(tmp_path / "comparison.png").std() > 0.05
    out = run("export", "--exp-id", "2")
    assert (runs / "CartPole-v1_2" / "CartPole-v1.onnx").stat().st_size > 1000
    assert "Largest difference to predict" in out


def without_torch(folder: Path, does: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the program with a torch that does something when it is imported."""
    (folder / "torch.py").write_text(does)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(REPOSITORY)])}
    command = [sys.executable, "-m", "sb3_trpo", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_interruption_while_torch_is_imported_is_one_line_and_status_130(tmp_path: Path) -> None:
    done = without_torch(tmp_path, "raise KeyboardInterrupt", "train")
    assert (done.returncode, done.stderr) == (130, "sb3-trpo: interrupted\n")


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_what_needs_no_torch_does_not_wait_for_it(words: list[str], tmp_path: Path) -> None:
    done = without_torch(tmp_path, "raise AssertionError", *words)
    assert (done.returncode, done.stderr) == (0, "")


def interrupt(folder: Path, seen: str, *words: str) -> tuple[int, str]:
    """Interrupt a command once it has printed something, as Ctrl-C in a terminal does."""
    command = subprocess.Popen(
        [sys.executable, "-um", "sb3_trpo", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert command.stdout is not None
    for line in command.stdout:
        if seen in line:
            break
    os.killpg(command.pid, signal.SIGINT)
    _, message = command.communicate(timeout=120)
    return command.returncode, message


@pytest.mark.slow
def test_interrupted_training_saves_its_model(tmp_path: Path) -> None:
    status, message = interrupt(
        tmp_path, "time_elapsed", "train", "-n", "1e6", "--eval-freq", "-1", "--log-interval", "1"
    )
    assert status == 130, message
    assert re.search(r"interrupted after \d+ of 1000000 steps; the model is saved in", message)
    assert "Traceback" not in message
    assert (tmp_path / "logs" / "trpo" / "CartPole-v1_1" / "CartPole-v1.zip").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "seen", "told"),
    [
        (["train", "--seeds", "0-3", "-n", "1e6"], "Training seeds", "after 0 of 4 runs"),
        (["optimize", "--n-timesteps", "1e6"], "Study", "with 0 finished trials"),
    ],
)
def test_interrupted_processes_end_at_once(
    words: list[str], seen: str, told: str, tmp_path: Path
) -> None:
    status, message = interrupt(tmp_path, seen, *words, "--jobs", "2")
    assert status == 130, message
    assert f"sb3-trpo: interrupted {told}" in message
    assert "Traceback" not in message


MASKED_ENV = """
import gymnasium as gym
import numpy as np

class Masked(gym.Env):
    \"""Two of five actions are allowed, and worth nothing and 1; others end it all.\"""
    observation_space, action_space = gym.spaces.Box(0, 1, (5,)), gym.spaces.Discrete(5)

    def _observe(self):
        self.allowed = self.np_random.choice(5, 2, replace=False)
        return np.eye(5, dtype=np.float32)[self.allowed[0]]

    def action_masks(self):
        return np.isin(np.arange(5), self.allowed)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action):
        assert action in self.allowed, f"{action} is not in {self.allowed}"
        self.steps += 1
        reward = float(action == self.allowed[0])
        return self._observe(), reward, False, self.steps == 20, {}

gym.register("Masked-v0", entry_point=Masked)
"""


@pytest.mark.slow
# tqdm says that its rich progress bar is new.
@pytest.mark.filterwarnings("ignore:rich is experimental")
@pytest.mark.parametrize("algo", ["trpo_mask", "trpo_mask_lstm"])
def test_whole_life_of_a_masked_model(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "masked_env.py").write_text(MASKED_ENV)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    chosen = ["--algo", algo, "--env", "Masked-v0", "--gym-packages", "masked_env"]

    def run(command: str, *words: str, status: int = 0) -> str:
        assert main([command, *chosen, *words]) == status
        said = capsys.readouterr()
        return said.err if status else said.out

    # Its assertion ends a command that takes a forbidden action.
    short = ["-n", "1024", "--eval-freq", "512", "--seed", "0"]
    out = run("train", *short)
    assert "Final evaluation: mean return" in out
    runs = tmp_path / "logs" / algo
    assert (runs / "Masked-v0_1" / "trust_region.png").stat().st_size > 100

    out = run("enjoy", "--no-render", "-n", "100", "--stochastic")
    assert "Mean reward:" in out

    if algo == "trpo_mask":  # for the sake of time, the rest is for the harder algorithm alone
        assert "Largest difference to predict" in run("export")
        return
    assert "A recurrent policy cannot be exported" in run("export", status=2)

    out = run("continue", *short)
    assert "Loading pretrained agent" in out
    assert (runs / "Masked-v0_2" / "Masked-v0.zip").is_file()

    out = run("optimize", "--n-timesteps", "512", "--n-trials", "1", "--jobs", "1", "--seed", "0")
    assert "Best of 1 trials" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [[], ["--conf-file", str(REPOSITORY / "zoo_configs" / "trpo.yml")]],
    ids=["zoo", "ours"],
)
def test_training_script_of_the_zoo_trains_our_class(config: list[str], tmp_path: Path) -> None:
    words = ["--algo", "trpo", "--gym-packages", "sb3_trpo.zoo.register", "-n", "1024", *config]
    done = run_module(tmp_path, "rl_zoo3.train", *words)
    assert done.returncode == 0, done.stderr
    assert ("kl_reduction='mean'" in done.stderr) is not bool(config)
    model = TRPO.load(tmp_path / "logs" / "trpo" / "CartPole-v1_1" / "CartPole-v1.zip")
    assert model.kl_reduction == "mean"


@pytest.mark.slow
def test_mistake_in_a_real_shell_has_status_2_and_no_traceback(tmp_path: Path) -> None:
    done = run_command(tmp_path, "train", "--env", "CartPol-v1")
    assert done.returncode == 2
    assert "nearest names are CartPole-v1" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_error_of_the_users_environment_keeps_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "raising_env.py").write_text(RAISING_ENV)
    done = run_command(tmp_path, "train", "--env", "Raising-v0", "--gym-packages", "raising_env")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "raising_env.py" in done.stderr
    assert "a fault of this environment" in done.stderr
