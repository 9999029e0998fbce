"""Runs go to the hub and come back, with a folder in place of the hub."""

import shutil
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import huggingface_hub
import numpy as np
import pytest
import yaml
from huggingface_hub.errors import EntryNotFoundError
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo import TRPO
from sb3_trpo.zoo.commands import main


class LocalHub:
    """Stands for the hub's client; repositories are folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        assert exist_ok
        (self.folder / repo_id).mkdir(parents=True, exist_ok=True)
        return f"hub/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)

    def hf_hub_download(self, repo_id: str, filename: str, **_: Any) -> str:
        if not (self.folder / repo_id / filename).is_file():
            raise EntryNotFoundError(f"no {filename} in {repo_id}")
        return str(self.folder / repo_id / filename)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from sb3_trpo.zoo import hub

    client = LocalHub(tmp_path / "hub")
    monkeypatch.setattr(hub, "HfApi", lambda: client)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", client.hf_hub_download)
    monkeypatch.chdir(tmp_path)
    return client.folder / "me" / "trpo-CartPole-v1"


def write_run(normalized: bool) -> tuple[Path, TRPO]:
    """Write what `train` leaves, as far as the hub takes it."""
    run = Path("logs/trpo/CartPole-v1_1")
    (run / "CartPole-v1").mkdir(parents=True)
    env: Any = make_vec_env("CartPole-v1", monitor_dir=str(run))
    if normalized:
        env = VecNormalize(env)
    model = TRPO("MlpPolicy", env, n_steps=32, batch_size=32, seed=0).learn(64)
    model.save(run / "CartPole-v1")
    if normalized:
        env.save(str(run / "CartPole-v1" / "vecnormalize.pkl"))
    env.close()
    (run / "CartPole-v1" / "config.yml").write_text(yaml.dump({"n_steps": 32}))
    (run / "CartPole-v1" / "args.yml").write_text(yaml.dump({"seed": 0, "env_kwargs": {}}))
    results = np.array([[10.0, 20.0]])
    np.savez(run / "evaluations.npz", timesteps=[64], results=results)
    return run, model


@pytest.mark.parametrize("normalized", [True, False])
def test_downloaded_run_is_the_one_that_was_pushed(hub: Path, normalized: bool) -> None:
    from sb3_trpo.zoo.runs import read_run

    run, model = write_run(normalized)
    assert main(["push", "--organization", "me"]) == 0
    assert main(["download", "--organization", "me"]) == 0
    copy = Path("logs/trpo/CartPole-v1_2")
    settings = [path.name for path in (run / "CartPole-v1").iterdir()]
    for name in ["CartPole-v1.zip", "0.monitor.csv", *(f"CartPole-v1/{name}" for name in settings)]:
        assert (copy / name).read_bytes() == (run / name).read_bytes()
    assert read_run(copy).final.tolist() == read_run(run).final.tolist()
    assert (copy / "CartPole-v1" / "vecnormalize.pkl").is_file() == normalized
    loaded = TRPO.load(copy / "CartPole-v1.zip", device="cpu")
    observation = np.ones(4, np.float32)
    assert (
        loaded.predict(observation, deterministic=True)[0]
        == (model.predict(observation, deterministic=True)[0])
    )


def test_pushed_model_has_its_own_statistics(hub: Path) -> None:
    run, model = write_run(normalized=True)
    model.save(run / "best_model")
    (run / "best_model_vecnormalize.pkl").write_bytes(b"of the best model")
    assert main(["push", "--organization", "me", "--load-best"]) == 0
    assert (hub / "vec_normalize.pkl").read_bytes() == b"of the best model"


def test_zoo_reads_what_was_pushed(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUST_REMOTE_CODE", "True")
    from huggingface_sb3 import EnvironmentName
    from rl_zoo3.load_from_hub import download_from_hub

    write_run(normalized=True)
    assert main(["push", "--organization", "me"]) == 0
    download_from_hub("trpo", EnvironmentName("CartPole-v1"), 0, "theirs", "me")
    assert Path("theirs/trpo/CartPole-v1_1/CartPole-v1/vecnormalize.pkl").is_file()


def test_model_card_has_the_result_and_the_metadata_of_the_hub(hub: Path) -> None:
    write_run(normalized=False)
    assert main(["push", "--organization", "me"]) == 0
    _, metadata, text = (hub / "README.md").read_text().split("---\n", 2)
    found = yaml.safe_load(metadata)
    (result,) = found["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == "15.00 +/- 5.00"
    assert found["library_name"] == "stable-baselines3"
    assert "CartPole-v1" in found["tags"]
    assert "--organization me" in text
    assert "n_steps: 32" in text


@pytest.mark.parametrize(
    ("option", "score"),
    [
        ([], "15.00 +/- 5.00"),
        (["--load-best"], "30.00 +/- 10.00"),
        (["--load-checkpoint", "5"], None),
    ],
)
def test_model_card_has_the_score_of_the_model_that_is_pushed(
    option: list[str], score: str | None, hub: Path
) -> None:
    run, model = write_run(normalized=False)
    np.savez(run / "evaluations.npz", timesteps=[32, 64], results=[[20.0, 40.0], [0.0, 1.0]])
    np.savez(run / "final_evaluation.npz", returns=[10.0, 20.0])
    for name in ("best_model", "rl_model_5_steps"):
        model.save(run / name)
    assert main(["push", "--organization", "me", "--repo-name", "mine", *option]) == 0
    text = (hub.parent / "mine" / "README.md").read_text()
    assert ("+/-" in text) == (score is not None)
    assert score is None or text.count(score) == 2
    assert "--organization me --repo-name mine" in text
    assert main(["download", "--organization", "me", "--repo-name", "mine"]) == 0
    assert Path("logs/trpo/CartPole-v1_2/final_evaluation.npz").is_file()


def test_lost_connection_is_no_missing_normalisation(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    write_run(normalized=True)
    assert main(["push", "--organization", "me"]) == 0
    get: Any = huggingface_hub.hf_hub_download

    def lose(repository: str, name: str) -> Any:
        if name == "vec_normalize.pkl":
            raise LocalEntryNotFoundError("no connection")
        return get(repository, name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lose)
    assert main(["download", "--organization", "me"]) == 2
    assert [path.name for path in Path("logs/trpo").iterdir()] == ["CartPole-v1_1"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["push"], "--organization"),
        (["push", "--organization", "me", "--exp-id", "7"], "train one with"),
        (["download", "--organization", "nobody"], "no trpo-CartPole-v1.zip in nobody"),
        (["download", "--organization", "me", "--env", "NoSuch-v1"], "unknown environment"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_run(
    hub: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    message = capsys.readouterr().err
    assert told in message
    assert message.count("\n") == 1
    assert not Path("logs").exists()


METRICS = "train_eval_metrics.zip"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("../outside.csv", "points outside"),
        ("folder/inside.csv", "folder/inside.csv"),
        ("bomb.csv", "inflate"),
        ("", "damaged"),
    ],
)
def test_results_that_are_no_results_are_refused_and_leave_no_run(
    name: str, told: str, hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(normalized=False)
    assert main(["push", "--organization", "me"]) == 0
    if name:
        with ZipFile(hub / METRICS, "a", ZIP_DEFLATED) as archive:
            archive.writestr(name, b"0" * (5 * 2**20 if name == "bomb.csv" else 1))
    else:
        (hub / METRICS).write_bytes(b"PK")
    assert main(["download", "--organization", "me"]) == 2
    message = capsys.readouterr().err
    assert METRICS in message
    assert told in message
    assert message.count("\n") == 1
    assert [path.name for path in Path("logs/trpo").iterdir()] == ["CartPole-v1_1"]
    assert not Path("logs/outside.csv").exists()


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_download_that_fails_leaves_no_run(
    error: BaseException, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(normalized=False)
    assert main(["push", "--organization", "me"]) == 0

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Path, "write_bytes", fail)
    assert main(["download", "--organization", "me"]) in (2, 130)
    assert [path.name for path in Path("logs/trpo").iterdir()] == ["CartPole-v1_1"]


def test_help_says_what_is_run_of_a_download(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["download", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "run no code of what was downloaded" in text
    assert "TRUST_REMOTE_CODE" not in text
