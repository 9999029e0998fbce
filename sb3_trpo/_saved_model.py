"""
Read a saved model before SB3 does, and hand SB3 a copy that cannot do harm.

The copy has the weights, and the names of the attributes without their pickles; the attributes go
to SB3 as ``custom_objects``. So SB3 never unpickles anything of a file that is not trusted.
"""

import io
import json
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch as th

from sb3_trpo._archive import ModelFile, name_of, read_entries, read_file, write_entries
from sb3_trpo._pickle_tree import printable
from sb3_trpo._saved_attributes import check_rollout, read_attributes
from sb3_trpo._saved_weights import bounded_networks, read_weights

_WEIGHTS = ("policy", "policy.optimizer")
_VARIABLES = ("pytorch_variables", "tensors")  # the latter in old files
_SYSTEM_INFO = "system_info.txt"


@dataclass(frozen=True)
class SavedModel:
    """
    What SB3's ``load`` is given.

    :param file: the file, or a copy of it without pickles
    :param objects: for SB3's ``custom_objects``
    :param weights: state dictionaries; empty for a trusted file
    :param kl_reduction: what target_kl and cg_damping are meant for; ``None`` if this package did
        not make the model's last update
    """

    file: io.BytesIO
    objects: dict[str, Any] | None
    weights: dict[str, dict[str, Any]]
    kl_reduction: str | None


def read_model(
    path: ModelFile,
    kind: type,
    custom_objects: Mapping[str, Any] | None,
    overridden: Collection[str],
    is_trusted: bool,
) -> SavedModel:
    """
    Read the file of a model once.

    :param path: path, or a stream
    :param kind: the algorithm's class
    :param custom_objects: replacements for saved objects, by attribute name
    :param overridden: attributes that the caller sets to something else
    :param is_trusted: whether SB3 may unpickle the file
    :return: what to give SB3
    :raises ValueError: if the file is no model, or, unless it is trusted, is damaged or holds
        something that cannot be loaded safely
    """
    if not isinstance(custom_objects, (dict, type(None))):
        raise ValueError(f"custom_objects has to be a dictionary, but it is {custom_objects!r}.")
    content = read_file(path)
    try:
        entries = read_entries(content, is_trusted)
        saved = _saved_attributes(entries)
    except ValueError as error:
        raise ValueError(
            f"{name_of(path)} is not a model saved with `save`: {error}. Pass the path of its zip "
            f"file."
        ) from error
    if is_trusted:
        return SavedModel(io.BytesIO(content), custom_objects, {}, _kl_reduction(saved))
    try:
        names, variables = _torch_names(kind)
        weights = _read_weights(entries, names, {*_WEIGHTS} & {*names})
        _check_variables(entries, variables)
        attributes = read_attributes(saved, kind, custom_objects or {}, overridden, weights)
    except ValueError as error:
        raise ValueError(f"{name_of(path)} was not loaded: {error}") from error
    return SavedModel(
        _copy(entries, weights, attributes), attributes, weights, _kl_reduction(saved)
    )


def reason_to_refuse(content: io.BytesIO, kind: type) -> str | None:
    """
    Say why ``load`` will not take a model's attributes unless it trusts the file.

    :param content: that was just saved
    :param kind: the algorithm's class
    :return: the reason and the remedies; ``None`` if they will be loaded
    """
    with zipfile.ZipFile(content) as archive:
        saved = _saved_attributes({"data": archive.read("data")})
    try:  # without a learning rate, which any optimizer's state can replace
        read_attributes(saved, kind, {}, {"learning_rate"}, {})
    except ValueError as error:
        return str(error)
    return None


def read_parameters(path: ModelFile, names: Collection[str], is_whole: bool) -> io.BytesIO:
    """
    Read the weights in the file of a model once.

    :param path: path, or a stream
    :param names: of the state dictionaries that the model has
    :param is_whole: whether the file needs to have all of them
    :return: a copy of the file with weights only
    :raises ValueError: if the file is damaged, or holds something else than weights
    """
    try:
        entries = read_entries(read_file(path))
        weights = _read_weights(entries, names, {*names} if is_whole else set())
    except ValueError as error:
        raise ValueError(f"{name_of(path)} was not loaded: {error}") from error
    return write_entries({f"{name}.pth": entries[f"{name}.pth"] for name in weights})


def _saved_attributes(entries: Mapping[str, bytes]) -> dict[str, Any]:
    """Read the attributes; those that are no JSON are there in an encoded form."""
    try:
        saved = json.loads(entries["data"])
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"its attributes cannot be read ({type(error).__name__})") from error
    if not isinstance(saved, dict):
        raise ValueError("its attributes are not named")
    return saved


def _kl_reduction(saved: Mapping[str, Any]) -> str | None:
    """
    Read what the target_kl and cg_damping of a saved model are meant for.

    sb3-contrib hands our attributes on when it loads, trains and saves a model of ours, but it does
    not count its updates in ``_last_own_update``.
    """
    own = saved.get("_last_own_update")
    is_ours = isinstance(own, int) and own == saved.get("_n_updates")
    return str(saved.get("kl_reduction")) if is_ours else None


def _torch_names(kind: Any) -> tuple[Collection[str], Collection[str]]:
    """Ask a class which state dictionaries and tensors its models save, apart from attributes."""
    try:
        names: tuple[Collection[str], Collection[str]]
        names = kind._get_torch_save_params(object.__new__(kind))
    except AttributeError:  # they depend on the object, which is not there yet
        return _WEIGHTS, ()
    return names


def _read_weights(
    entries: Mapping[str, bytes], names: Collection[str], needed: set[str]
) -> dict[str, dict[str, Any]]:
    """Read and check the state dictionaries of policy, optimizer and what a subclass adds."""
    found = {name.removesuffix(".pth") for name in entries if name.endswith(".pth")}
    found -= {*_VARIABLES}
    if not needed <= found <= {*_WEIGHTS, *names}:
        raise ValueError(
            f"it holds weights of {sorted(found)[:9]}, and needs {sorted({*_WEIGHTS, *names})}"
        )
    weights = {name: read_weights(f"{name}.pth", entries[f"{name}.pth"]) for name in sorted(found)}
    if not all(isinstance(key, str) for key in weights.get("policy", ())):
        raise ValueError("policy.pth has parameters without names")
    if "policy.optimizer" in weights:
        _check_optimizer(weights["policy.optimizer"])
    return weights


def _check_variables(entries: Mapping[str, bytes], names: Collection[str]) -> None:
    """Refuse single tensors that are not plain, or that the class does not have."""
    for entry in (f"{name}.pth" for name in _VARIABLES if f"{name}.pth" in entries):
        for name, value in read_weights(entry, entries[entry]).items():
            if name not in names or not isinstance(value, th.Tensor | None):
                raise ValueError(
                    f"{entry} holds {printable(str(name)[:40])!r}, a {type(value).__name__}, and "
                    f"the class has the tensors {sorted(names)}. Load it with the class that saved "
                    f"it or, if you made this file yourself, pass trust_checkpoint=True"
                )


def _check_optimizer(state: Mapping[str, Any]) -> None:
    """Refuse what is no state dictionary of an optimizer."""
    groups, states = state.get("param_groups"), state.get("state")
    if not (isinstance(states, dict) and isinstance(groups, list) and groups):
        raise ValueError("policy.optimizer.pth is not the state of an optimizer")
    if not all(isinstance(group, dict) and "lr" in group for group in groups):
        raise ValueError("policy.optimizer.pth has parameters without options")


def _copy(
    entries: Mapping[str, bytes], weights: Collection[str], attributes: Collection[str]
) -> io.BytesIO:
    """Write a file with the weights, and with names of attributes that SB3 finds elsewhere."""
    names = [f"{each}.pth" for each in (*weights, *_VARIABLES)]
    kept = {name: entries[name] for name in names if name in entries}
    text = entries.get(_SYSTEM_INFO, b"").decode(errors="replace")
    # It may be printed, and a terminal takes commands.
    kept[_SYSTEM_INFO] = "\n".join(map(printable, text.splitlines())).encode()
    kept["data"] = json.dumps(dict.fromkeys(attributes)).encode()
    return write_entries(kept)


@contextmanager
def fitting(
    path: ModelFile, model: SavedModel, env: Any, overridden: Mapping[str, Any]
) -> Iterator[None]:
    """
    Check, while SB3 builds a model, that the parts of its file fit together.

    :param path: of the file, for errors
    :param model: what was read
    :param env: the environment; may be missing
    :param overridden: attributes that the caller sets to something else
    :raises ValueError: within the block, if memory for something much larger than the file is
        asked for, or SB3 fails
    """
    attributes: dict[str, Any] = {**(model.objects or {}), **overridden}
    try:
        check_rollout(attributes, getattr(env, "num_envs", 1) if env else attributes["n_envs"])
        with bounded_networks(model.weights):
            yield
    except ValueError as error:
        raise ValueError(f"{name_of(path)} was not loaded: {_short(error)}") from error
    except _MISFITS as error:
        kind = type(error).__name__
        raise ValueError(
            f"{name_of(path)} was not loaded, since its parts do not fit: {kind}: {_short(error)}"
        ) from error


def _short(error: Exception) -> str:
    """Shorten a message that may list all parameters, by names that are in the file."""
    message = printable(" ".join(str(error).split()))
    return message if len(message) < 400 else f"{message[:400]}..."


# What SB3 and policies raise when weights, hyperparameters and classes do not belong together.
_MISFITS = (
    *(TypeError, AttributeError, LookupError, ArithmeticError, AssertionError, RuntimeError),
    MemoryError,
)
