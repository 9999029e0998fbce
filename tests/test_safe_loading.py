"""No file can run code, exhaust the memory or end in an unclear error when it is loaded."""

import contextlib
import pickle
import resource
import time
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from sb3_trpo import TRPO
from tests.cases import CASES, toy_envs, toy_model
from tests.hostile import FILES, GADGETS, REBUILT, Entries, changed, unpack

# A runaway takes minutes. None takes more than half a second on an idle machine.
SECONDS = 3.0
MEGABYTES = 200


@pytest.fixture(scope="module")
def entries() -> Entries:
    file = BytesIO()
    toy_model("box").learn(64).save(file)
    return unpack(file.getvalue())


@pytest.fixture
def canary(tmp_path: Path) -> str:
    return str(tmp_path / "canary")


def peak() -> float:
    """Return the largest memory of the process so far, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def refusal(load: Callable[[], Any]) -> str:
    """Check that a file is refused quickly and within little memory, and return the message."""
    memory, start = peak(), time.process_time()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*kl_reduction")
        with pytest.raises(ValueError, match=r".{20}") as error:
            load()
    assert time.process_time() - start < SECONDS
    assert peak() - memory < MEGABYTES
    return str(error.value)


@pytest.mark.parametrize("name", GADGETS)
def test_every_gadget_would_make_the_canary(name: str, canary: str) -> None:
    data = GADGETS[name](canary)
    with contextlib.suppress(Exception):  # many fail once the code has run
        pickle.loads(data)
    assert Path(canary).exists()


def test_the_documentation_says_how_many_there_are() -> None:
    page = (Path(__file__).parents[1] / "docs" / "pages" / "safety.md").read_text()
    assert f"{len(FILES)} hostile and damaged models" in page
    assert f"the {len(GADGETS)} kinds of code" in page
    assert len(FILES) >= 60


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_or_damaged_file_is_refused(
    name: str, entries: Entries, canary: str, tmp_path: Path
) -> None:
    content = FILES[name](entries, canary)
    path = tmp_path / "model.zip"
    path.write_bytes(content)
    message = refusal(lambda: TRPO.load(path, toy_envs(CASES["box"], 2), device="cpu"))
    assert not Path(canary).exists()
    assert "model.zip" in message
    assert len(message) < 700
    refusal(lambda: TRPO.load(BytesIO(content), device="cpu"))
    assert not Path(canary).exists()


def test_a_trusted_file_may_run_code(entries: Entries, canary: str) -> None:
    content = FILES["in my_attribute"](entries, canary)
    TRPO.load(BytesIO(content), device="cpu", trust_checkpoint=True)
    assert Path(canary).exists()


@pytest.mark.parametrize("gadget", ["os.mkdir", "by value"])
@pytest.mark.parametrize("name", REBUILT)
def test_what_can_be_made_anew_is_left_out(
    name: str, gadget: str, entries: Entries, canary: str
) -> None:
    content = changed(entries, **{name: GADGETS[gadget](canary)})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The statistics of past episodes are left out")
        loaded = TRPO.load(BytesIO(content), toy_envs(CASES["box"], 2), device="cpu")
    assert not Path(canary).exists()
    loaded.learn(64, reset_num_timesteps=False)
    assert (loaded.num_timesteps, loaded._n_updates) == (128, 2)


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in FILES if "policy.pth" in name or "in the optimizer" in name),
        *("optimizer of text", "optimizer without parameters", "deflated weights", "traversal"),
    ],
)
def test_parameters_are_not_taken_from_such_a_file(
    name: str, entries: Entries, canary: str
) -> None:
    model = toy_model("box")
    content: Any = BytesIO(FILES[name](entries, canary))
    refusal(lambda: model.set_parameters(content))
    assert not Path(canary).exists()


def test_parameters_are_read_from_path_and_stream(entries: Entries, tmp_path: Path) -> None:
    model = toy_model("box").learn(64)
    model.save(tmp_path / "model.zip")
    before = model.get_parameters()["policy"]
    for source in (str(tmp_path / "model"), BytesIO((tmp_path / "model.zip").read_bytes())):
        other = toy_model("box", seed=3)
        other.set_parameters(source)
        after = other.get_parameters()["policy"]
        assert all((before[key] == after[key]).all() for key in before)


def test_the_message_names_attribute_and_remedy(entries: Entries, canary: str) -> None:
    message = refusal(
        lambda: TRPO.load(BytesIO(changed(entries, target_kl=GADGETS["os.mkdir"](canary))))
    )
    for part in ("'target_kl'", "posix.mkdir", "custom_objects", "trust_checkpoint=True"):
        assert part in message


def test_code_by_value_gets_one_line(entries: Entries, canary: str) -> None:
    message = refusal(
        lambda: TRPO.load(BytesIO(changed(entries, target_kl=GADGETS["by value"](canary))))
    )
    assert "code pickled by value" in message
    assert "\n" not in message


def test_a_custom_object_takes_the_place_of_what_is_refused(entries: Entries, canary: str) -> None:
    content = changed(entries, target_kl=GADGETS["os.mkdir"](canary))
    loaded = TRPO.load(BytesIO(content), device="cpu", custom_objects={"target_kl": 0.02})
    assert loaded.target_kl == 0.02
    assert (
        TRPO.load(BytesIO(content), device="cpu", target_kl=0.03, cg_damping=0.1).target_kl == 0.03
    )
    assert not Path(canary).exists()


def test_a_class_of_a_module_that_is_not_imported_is_refused(entries: Entries) -> None:
    content = changed(entries, policy_class=b"\x80\x04cantigravity\nPolicy\n.")
    assert "has not imported" in refusal(lambda: TRPO.load(BytesIO(content)))
    import sys

    assert "antigravity" not in sys.modules
