"""Read a zip file in memory, within limits that are checked before anything is inflated."""

import io
import pathlib
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from stable_baselines3.common.save_util import open_path

ModelFile = str | pathlib.Path | io.BufferedIOBase

# An entry may be larger than this only if it is not much larger than its compressed form.
_SMALL = 4 * 2**20
_MAX_RATIO = 20
_MAX_ENTRIES = 10_000
_ENCRYPTED = 0x1


def read_file(path: ModelFile) -> bytes:
    """
    Read a model's file.

    :param path: path (with or without its suffix), or a stream, of which the rest is read, or all
        if it stands at its end, as after writing
    :return: its content
    """
    if not isinstance(path, (str, pathlib.Path)):
        return path.read() or _read_again(path)
    with open_path(path, "r", suffix="zip") as file:
        return file.read()


def _read_again(stream: io.BufferedIOBase) -> bytes:
    """Read a stream from its start, if it can go back."""
    if not stream.seekable():
        return b""
    stream.seek(0)
    return stream.read()


def name_of(path: ModelFile) -> str:
    """
    Name a file in an error.

    :param path: path, or a stream
    :return: the path, or the stream's name if it has one
    """
    is_path = isinstance(path, (str, pathlib.Path))
    return str(path if is_path else getattr(path, "name", "the stream"))


def read_entries(content: bytes, is_trusted: bool = False) -> dict[str, bytes]:
    """
    Read all entries of a zip file.

    :param content: the file
    :param is_trusted: whether there are no limits
    :return: the entries by their names
    :raises ValueError: if the file is damaged, or an entry is encrypted, has a name that leaves the
        archive, occurs twice, or is so large that it is a bomb
    """
    with _opened(content, is_trusted) as archive:
        return {info.filename: _read(archive, info) for info in archive.infolist()}


def check_entries(content: bytes) -> None:
    """
    Check a zip file as :func:`read_entries` does, by its table of contents alone.

    :param content: the file
    :raises ValueError: if :func:`read_entries` would refuse the table of contents
    """
    with _opened(content, is_trusted=False):
        pass


@contextmanager
def _opened(content: bytes, is_trusted: bool) -> Iterator[zipfile.ZipFile]:
    """Open a zip file; its table of contents is harmless unless it is trusted."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if not is_trusted:
                _check(archive.infolist(), len(content))
            yield archive
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"it is no zip file, or a damaged one ({error})") from error


def write_entries(entries: dict[str, bytes]) -> io.BytesIO:
    """
    Write a zip file into memory.

    :param entries: content by name
    :return: the file, at its start
    """
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    file.seek(0)
    return file


def _check(infos: list[zipfile.ZipInfo], size: int) -> None:
    """Refuse an archive by its table of contents."""
    names = [info.filename for info in infos]
    if len(names) > _MAX_ENTRIES:
        raise ValueError(f"it has {len(names)} entries, and a model has at most {_MAX_ENTRIES}")
    if len(set(names)) < len(names):
        raise ValueError("an entry occurs twice in it")
    for info in infos:
        _check_entry(info)
    total = sum(info.file_size for info in infos)
    if total > _SMALL + _MAX_RATIO * size:  # entries may share their compressed data
        raise ValueError(f"it would inflate from {size} to {total} bytes")


def _check_entry(info: zipfile.ZipInfo) -> None:
    """Refuse an entry that is hidden, unreadable or a bomb."""
    name = info.filename
    if name.startswith("/") or "\\" in name or ":" in name or ".." in pathlib.PurePath(name).parts:
        raise ValueError(f"its entry {name[:80]!r} points outside of it")
    if info.flag_bits & _ENCRYPTED:
        raise ValueError(f"its entry {name[:80]!r} is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"its entry {name[:80]!r} is compressed in an unusual way")
    if info.file_size > max(_SMALL, _MAX_RATIO * info.compress_size):
        raise ValueError(
            f"its entry {name[:80]!r} would inflate from {info.compress_size} to {info.file_size} "
            f"bytes"
        )


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Read an entry, no more of it than its header promises; its checksum is verified."""
    with archive.open(info) as entry:
        content = entry.read(info.file_size)
        if len(content) < info.file_size or entry.read(1):
            raise ValueError(f"its entry {info.filename[:80]!r} is not of the length it claims")
    return content
