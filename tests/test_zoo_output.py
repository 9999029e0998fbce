"""What a command does when nobody reads what it prints."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sb3_trpo import TRPO
from sb3_trpo.zoo.errors import user_errors
from sb3_trpo.zoo.interruptions import Interruptions
from sb3_trpo.zoo.output import ENDED, Output, OutputEndedError, watched_outputs

REPOSITORY = Path(__file__).parents[1]
TRAIN = [
    *("train", "--env", "CartPole-v1", "--env-kwargs", "max_episode_steps:50", "--seed", "0"),
    *("--eval-freq", "-1", "-f", "logs", "--hyperparams", "n_envs:1", "n_steps:256"),
]
RUN = Path("logs") / "trpo" / "CartPole-v1_1"


@pytest.fixture(autouse=True)
def not_expendable() -> Iterator[None]:
    """Leave no signal to the next test."""
    Output.is_expendable = False
    yield
    Output.is_expendable = False


def broken_pipe() -> io.TextIOWrapper:
    """Make a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def test_what_cannot_be_written_is_said_once() -> None:
    with broken_pipe() as stream:
        output = Output(stream)
        output.write("some words\n")
        with pytest.raises(OutputEndedError):
            output.flush()
        output.write("others\n")
        output.flush()


def test_what_cannot_be_written_is_dropped_after_a_signal() -> None:
    Output.is_expendable = True
    with broken_pipe() as stream:
        output = Output(stream)
        output.write("some words\n")
        output.flush()


def test_other_errors_of_the_output_are_errors() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        Output(Full()).write("words")


def test_ended_output_is_no_mistake_of_the_user() -> None:
    with pytest.raises(OutputEndedError), user_errors(OSError):
        raise OutputEndedError


def test_streams_are_as_before_and_closed_ones_are_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    before = sys.stderr
    with watched_outputs():
        print("nowhere")
        assert not sys.stdout.isatty()
    assert sys.stdout is None
    assert sys.stderr is before


def start(folder: Path, line: str) -> subprocess.Popen[bytes]:
    """Start a line of a shell in a group of processes of its own, as a terminal does."""
    command = f"{sys.executable} -m sb3_trpo"
    with (folder / "stderr.txt").open("w") as stderr:
        return subprocess.Popen(
            ["bash", "-c", line.replace("sb3-trpo", command)],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )


def status_after(number: int, process: subprocess.Popen[bytes], folder: Path) -> int:
    """Send a signal to all processes of the line once the training has begun."""
    while not list((folder / RUN).glob("checkpoints/*.zip")):
        assert process.poll() is None, (folder / "stderr.txt").read_text()
        time.sleep(0.05)
    os.killpg(process.pid, number)
    return process.wait(timeout=120)


def check_saved(folder: Path) -> None:
    """Check that a run has its model, and a checkpoint of its last step."""
    steps = TRPO.load(folder / RUN / "CartPole-v1.zip", device="cpu").num_timesteps
    assert list((folder / RUN).glob(f"checkpoints/*_{steps}_*.zip"))
    assert "Traceback" not in (folder / "stderr.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["sb3-trpo {} | tee log.txt", "sb3-trpo {} 2>&1 | tee log.txt"])
def test_ctrl_c_saves_the_model_though_the_reader_of_the_output_ends(
    ends: str, tmp_path: Path
) -> None:
    line = ends.format(" ".join([*TRAIN, "-n", "10000000", "--checkpoint-freq", "1024"]))
    process = start(tmp_path, f"set -o pipefail; {line}; exit ${{PIPESTATUS[0]}}")
    # The shell waits for both commands, and then ends by the signal itself.
    assert status_after(signal.SIGINT, process, tmp_path) in (130, -signal.SIGINT)
    check_saved(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no such signal")
def test_closed_terminal_ends_the_training_and_saves_the_model(tmp_path: Path) -> None:
    line = " ".join(["exec sb3-trpo", *TRAIN, "-n", "10000000", "--checkpoint-freq", "1024"])
    process = start(tmp_path, line)
    assert status_after(signal.SIGHUP, process, tmp_path) == 128 + signal.SIGHUP
    check_saved(tmp_path)
    assert "interrupted after" in (tmp_path / "stderr.txt").read_text()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no such signal")
@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_closed_terminal_is_ignored_under_nohup(handler: signal.Handlers) -> None:
    before = signal.signal(signal.SIGHUP, handler)
    try:
        with Interruptions(lambda: None):
            is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert is_ignored is (handler is signal.SIG_IGN)
        assert signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no such signal")
def test_what_a_closing_terminal_sends_is_one_interruption() -> None:
    with Interruptions(lambda: None) as interruptions:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert interruptions.received == signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "status"),
    [
        (f"sb3-trpo {' '.join(TRAIN)} -n 2048 >&-", 0),
        ("sb3-trpo --help | true; exit ${PIPESTATUS[0]}", ENDED),
    ],
)
def test_output_that_is_closed_is_no_error(line: str, status: int, tmp_path: Path) -> None:
    process = start(tmp_path, line)
    assert process.wait(timeout=120) == status
    assert "Traceback" not in (tmp_path / "stderr.txt").read_text()
