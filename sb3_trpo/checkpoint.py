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


def saved_attributes(path: ModelFile) -> frozenset[str]:
    """
    List the attributes of the model in a file, without unpickling anything.

    :param path: path (with or without its suffix) or rewindable stream; a stream is left at its
        start
    :return: names of the attributes
    :raises ValueError: if the file is no model saved by SB3
    """
    file = open_path(path, "r", suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            return frozenset(json.loads(archive.read("data")))
    except (zipfile.BadZipFile, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not a model saved with `save`: {error}. Pass the path of its zip file."
        ) from error
    finally:
        if isinstance(path, (str, pathlib.Path)):
            file.close()
        else:
            file.seek(0)
