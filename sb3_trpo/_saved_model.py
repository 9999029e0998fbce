"""Reading of saved models before SB3 does."""

import io
import json
import pathlib
import zipfile

from stable_baselines3.common.save_util import open_path

ModelFile = str | pathlib.Path | io.BufferedIOBase


def rewindable(path: ModelFile) -> ModelFile:
    """
    Make sure that a model file can be read twice.

    :param path: path, or a stream
    :return: the path, or a copy of what is left of the stream
    """
    return path if isinstance(path, (str, pathlib.Path)) else io.BytesIO(path.read())


def saved_kl_reduction(path: ModelFile) -> str | None:
    """
    Read what the target_kl and cg_damping of a saved model are meant for.

    sb3-contrib hands our attributes on when it loads, trains and saves a model of ours, but it does
    not count its updates in ``_last_own_update``. Nothing is unpickled.

    :param path: path (with or without its suffix) or stream that can be rewound
    :return: its ``kl_reduction``; ``None`` if this package did not make its last update
    :raises ValueError: if the file is no model saved by SB3
    """
    attributes = _saved_attributes(path)
    own = attributes.get("_last_own_update")
    is_ours = own is not None and own == attributes.get("_n_updates")
    return str(attributes["kl_reduction"]) if is_ours else None


def _saved_attributes(path: ModelFile) -> dict[str, object]:
    """Read the attributes that are plain JSON; others are there in an encoded form."""
    file = open_path(path, "r", suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            return dict(json.loads(archive.read("data")))
    except (zipfile.BadZipFile, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not a model saved with `save`: {error}. Pass the path of its zip file."
        ) from error
    finally:
        if isinstance(path, (str, pathlib.Path)):
            file.close()
