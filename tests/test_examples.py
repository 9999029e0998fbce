"""Every example runs, briefly, as it stands."""

import runpy
import sys
from pathlib import Path

import matplotlib as mpl
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

# Script, its arguments, what it needs beyond the package, and the files that it leaves.
RUNS = [
    ("quick_start", ["2048"], [], ["trpo_cartpole.zip"]),
    (
        "mujoco_hopper",
        ["2048"],
        ["mujoco", "matplotlib"],
        ["hopper/model.zip", "hopper/returns.png"],
    ),
    ("image_observations", ["64"], ["ale_py", "cv2"], ["trpo_pong.zip"]),
    ("dict_observations", ["512"], [], []),
    ("custom_features_extractor", ["2048"], [], []),
    ("custom_environment", ["2048"], [], []),
    ("parallel_environments", ["2048", "2"], [], []),
    ("optuna_search", ["1024", "2"], ["optuna"], []),
    ("swap_sb3_contrib", ["2048"], [], ["contrib.zip"]),
    ("load_and_export", ["2048"], ["onnxruntime", "onnxscript"], ["trpo_cartpole.onnx"]),
]


def test_every_example_is_run_and_is_short() -> None:
    scripts = {path.stem: path.read_text().splitlines() for path in EXAMPLES.glob("*.py")}
    assert scripts.keys() == {name for name, *_ in RUNS}
    assert [name for name, lines in scripts.items() if len(lines) >= 40] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "needs", "files"), RUNS, ids=[run[0] for run in RUNS]
)
def test_example_runs_to_its_end(
    name: str,
    arguments: list[str],
    needs: list[str],
    files: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in needs:
        pytest.importorskip(module)
    mpl.use("agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert [file for file in files if not Path(file).stat().st_size] == []
