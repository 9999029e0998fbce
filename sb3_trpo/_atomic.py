"""Write files so that a reader finds the old one or the new one, never a part."""

import os
import pathlib
import shutil
import time
import warnings
from contextlib import suppress

TEMPORARY = ".tmp"
_RECENT = 600.0  # seconds since the last write


def write_atomically(path: pathlib.Path, content: bytes) -> None:
    """
    Write a file that takes its place only when all of it is on the disk.

    The content goes to a temporary file in the same folder, which is flushed to the disk and then
    renamed. After an error or an interruption the file at ``path`` is as before. The new file has
    the permissions of the one that it replaces.

    :param path: of the file; a symbolic link is followed
    :param content: what to write
    :raises OSError: if the file cannot be written
    """
    target = pathlib.Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            with suppress(OSError):  # there is none yet
                shutil.copymode(target, temporary)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename = str(path)  # what the caller knows
        raise
    _sync_folder(target.parent)


def is_being_written(temporary: pathlib.Path) -> bool:
    """
    Return whether the process that writes a temporary file may be alive.

    :param temporary: of :func:`write_atomically`
    :return: whether it is; always so for a recent file, whose process may be on another host, and
        on Windows, where nobody can be asked without harm
    """
    try:
        if abs(time.time() - temporary.stat().st_mtime) < _RECENT:
            return True
        pid = int(temporary.name.removesuffix(TEMPORARY).rpartition(".")[2])
        if os.name != "nt":
            os.kill(pid, 0)  # sends nothing
    except (FileNotFoundError, ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:  # of another user
        pass
    return True


def saving_path(path: pathlib.Path) -> pathlib.Path:
    """
    Choose the path at which SB3 saves, and make its folder.

    :param path: that the user gave
    :return: the path, with ``.zip`` if it has no suffix; if it is a folder, one beside it
    :raises ValueError: if it can only be a folder
    :raises OSError: if the folder cannot be made
    """
    if path.name in ("", ".."):
        raise ValueError(f"{str(path)!r} is a folder. Pass the path of a file in it.")
    if not path.suffix:
        path = path.with_name(f"{path.name}.zip")
    if path.is_dir():
        warnings.warn(f"{path} is a folder. Saving to {path}_2 instead.", stacklevel=3)
        path = path.with_name(f"{path.name}_2.zip")
    if not path.parent.exists():
        warnings.warn(f"The folder {path.parent} does not exist. Making it.", stacklevel=3)
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _sync_folder(folder: pathlib.Path) -> None:
    """Flush a renaming to the disk, where the system has a way to do that."""
    with suppress(OSError):  # Windows cannot open a folder, some file systems cannot flush one
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
