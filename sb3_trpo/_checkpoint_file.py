"""
Files of checkpoints: how they are written, verified and found.

A file is a zip of the model, as ``save`` writes it, and of plain data. Its comment is the SHA-256
of all bytes before it.
"""

import hashlib
import io
import os
import pathlib
import uuid
import zipfile
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sb3_trpo._atomic import TEMPORARY, is_being_written, write_atomically
from sb3_trpo._plain_data import plain_dumps, plain_loads
from sb3_trpo._state_check import check_state

PATTERN = "checkpoint_*_steps_*.zip"
_MODEL, _STATE = "model.zip", "state"
_DIGEST = 64  # hexadecimal digits of SHA-256
_FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """
    What a file holds.

    :param model: the model's zip file
    :param state: everything else, as plain data
    """

    model: bytes
    state: dict[str, Any]

    def to_bytes(self) -> bytes:
        """Return the content of the file."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(_MODEL, self.model)
            archive.writestr(_STATE, plain_dumps({"format": _FORMAT, **self.state}))
            archive.comment = b"0" * _DIGEST
        content = buffer.getvalue()[:-_DIGEST]
        return content + _digest(content)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def new_run() -> str:
    """
    Name a training, so that those that share a folder know their own files.

    :return: a name that no other training has
    """
    return uuid.uuid4().hex[:8]


def path_in(folder: pathlib.Path, num_timesteps: int, run: str) -> pathlib.Path:
    """
    Name a checkpoint.

    :param folder: of the checkpoints
    :param num_timesteps: of the model
    :param run: from :func:`new_run`
    :return: its path
    """
    return folder / f"checkpoint_{num_timesteps}_steps_{run}.zip"


def write_checkpoint(path: pathlib.Path, content: bytes) -> None:
    """
    Write a checkpoint and read it back.

    :param path: of the file
    :param content: from :meth:`Checkpoint.to_bytes`
    :raises OSError: if it cannot be written, or is not there afterwards as it was written; a file
        that was at ``path`` before is left as it was in the first case
    """
    write_atomically(path, content)
    if path.read_bytes() != content:
        path.unlink()
        raise OSError(f"{path} did not contain what was written to it")


def remove_older(newest: pathlib.Path, keep: int, runs: Collection[str]) -> None:
    """
    Remove all but some of a training's checkpoints; those of other trainings stay.

    :param newest: is kept
    :param keep: how many to keep
    :param runs: the training, and those that it continues
    """
    # Names are compared, not searched for: a name from a file might be a pattern.
    found = [path for path in newest.parent.glob(PATTERN) if path.stem.rpartition("_")[2] in runs]
    others = [path for path in found if path != newest]
    others.sort(key=_last_change, reverse=True)
    for path in others[keep - 1 :]:
        path.unlink(missing_ok=True)


def _last_change(path: pathlib.Path) -> int:
    """Return when a file was written last; 0 if it has been removed meanwhile."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def remove_temporary(folder: pathlib.Path) -> None:
    """
    Remove what processes left that were killed while they wrote a checkpoint.

    :param folder: of the checkpoints
    """
    for path in folder.glob(f".{PATTERN}.*{TEMPORARY}"):
        if not is_being_written(path):
            with suppress(OSError):
                path.unlink()


def read_checkpoint(path: pathlib.Path) -> Checkpoint:
    """
    Read and verify a checkpoint. Nothing in it is run; the model is not loaded.

    :param path: of the file
    :return: its content
    :raises ValueError: if it is not whole
    """
    return parse_checkpoint(path.read_bytes())


def parse_checkpoint(content: bytes) -> Checkpoint:
    """
    Verify the content of a checkpoint.

    :param content: from :meth:`Checkpoint.to_bytes`
    :return: what it holds
    :raises ValueError: if it is not whole, or what it says of its training makes no sense
    """
    if _digest(content[:-_DIGEST]) != content[-_DIGEST:]:
        raise ValueError("its checksum is wrong: it is damaged, or not a checkpoint")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            model, state = (_stored(archive, name) for name in (_MODEL, _STATE))
    except (zipfile.BadZipFile, KeyError, NotImplementedError) as error:
        raise ValueError(f"it is not a checkpoint: {error}") from error
    values = plain_loads(state)
    version = values.get("format") if isinstance(values, dict) else None
    if not isinstance(version, int) or version != _FORMAT:
        raise ValueError("it is not a checkpoint of this version of sb3_trpo")
    check_state(values)
    return Checkpoint(model, values)


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read an entry that is not compressed, and so no larger than the file."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError("it is not a checkpoint: an entry is compressed")
    return archive.read(name)


@dataclass(frozen=True)
class Found:
    """
    The checkpoint to resume from.

    :param path: of the file
    :param checkpoint: its content
    :param skipped: files that are not whole, and why
    """

    path: pathlib.Path
    checkpoint: Checkpoint
    skipped: dict[pathlib.Path, str]


def find_checkpoint(path: str | os.PathLike[str]) -> Found:
    """
    Find a checkpoint.

    :param path: a file, or a folder, of which the newest checkpoint that is whole is taken
    :return: the checkpoint
    :raises ValueError: if there is none
    """
    path = pathlib.Path(path)
    paths = sorted(path.glob(PATTERN)) if path.is_dir() else [path]
    times: dict[pathlib.Path, int] = {}
    skipped: dict[pathlib.Path, str] = {}
    for candidate in paths:  # one in memory at a time
        try:
            times[candidate] = read_checkpoint(candidate).state["saved_at"]
        except (ValueError, OSError) as error:
            skipped[candidate] = str(error)
    if not times:
        reasons = "".join(f"; {name}: {reason}" for name, reason in skipped.items())
        raise ValueError(
            f"There is no checkpoint to resume from in {path}{reasons}. Pass a file that "
            f"TrainingCheckpoint wrote, or its folder."
        )
    newest = max(times, key=lambda name: times[name])
    return Found(newest, read_checkpoint(newest), skipped)
