"""
Files that attack or break whoever loads them.

``GADGETS`` are pickles that make a folder, the canary, when they are loaded; ``FILES`` are whole
models with such pickles, bombs, damage and nonsense in them.
"""

import base64
import copy
import copyreg
import functools
import io
import json
import math
import operator
import os
import pickle
import runpy
import struct
import warnings
import zipfile
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import LinearSchedule
from torch import nn

Entries = dict[str, bytes]


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


class Armed(nn.Module):
    """A layer that runs code when it is made or unpickled, in a module that is imported."""

    def __init__(self, canary: str = "") -> None:
        super().__init__()
        self.canary = canary

    def __setstate__(self, state: Any) -> None:
        os.mkdir(state["canary"])


class ArmedSpace(spaces.Discrete):
    """A space that runs code when it is unpickled."""

    def __init__(self, canary: str) -> None:
        super().__init__(2)
        self.canary = canary

    def __setstate__(self, state: Any) -> None:
        os.mkdir(dict(state)["canary"])


class ArmedKey:
    """A key that runs code when it is hashed."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return ArmedKey, (self.canary,), {"is_armed": True}

    def __hash__(self) -> int:
        if vars(self).get("is_armed"):
            os.mkdir(self.canary)
        return 0


def _text(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def _dotted(canary: str) -> bytes:
    """Reach a function through another module's attributes."""
    return b"\x80\x04" + _text("pathlib") + _text("os.mkdir") + b"\x93" + _text(canary) + b"\x85R."


def _getattr(canary: str) -> bytes:
    """Call what a call returns."""
    module = b"cimportlib\nimport_module\n" + _text("os") + b"\x85R"
    function = b"cbuiltins\ngetattr\n" + module + _text("mkdir") + b"\x86R"
    return b"\x80\x04" + function + _text(canary) + b"\x85R."


def _extension(canary: str) -> bytes:
    """Name a function by a number."""
    if ("os", "mkdir") not in copyreg._extension_registry:  # type: ignore[attr-defined]
        copyreg.add_extension("os", "mkdir", 241)
    return b"\x80\x04\x82\xf1" + _text(canary) + b"\x85R."


def _by_value(canary: str) -> bytes:
    data: bytes = cloudpickle.dumps(Call(lambda: os.mkdir(canary)))
    return data


def _object_array(canary: str) -> bytes:
    array = np.empty(1, dtype=object)
    array[0] = Call(os.mkdir, canary)
    return pickle.dumps(array)


def _storage(canary: str) -> bytes:
    """Load a torch file within a pickle, without torch's restrictions."""
    load: Any = vars(th.storage)["_load_from_bytes"]
    inner = io.BytesIO()
    th.save(Call(os.mkdir, canary), inner)
    return pickle.dumps(Call(load, inner.getvalue()))


def _memoised(canary: str) -> bytes:
    """Refer to a function twice, the second time from the memo."""
    name = b"cos\nmkdir\nq\x05"
    return b"\x80\x04(" + name + b"0h\x05" + _text(canary) + b"\x85Rt."


def _program(canary: str) -> bytes:
    script = Path(canary).with_suffix(".py")
    script.write_text(f"import os; os.mkdir({canary!r})")
    return pickle.dumps(Call(runpy.run_path, str(script)))


def _setstate(canary: str) -> bytes:
    return pickle.dumps(Armed(canary))


GADGETS: dict[str, Callable[[str], bytes]] = {
    "os.mkdir": lambda canary: pickle.dumps(Call(os.mkdir, canary)),
    "protocol 2": lambda canary: pickle.dumps(Call(os.mkdir, canary), protocol=2),
    "exec": lambda canary: pickle.dumps(Call(exec, f"import os; os.mkdir({canary!r})")),
    "eval": lambda canary: pickle.dumps(Call(eval, f"__import__('os').mkdir({canary!r})")),
    "system": lambda canary: pickle.dumps(Call(os.system, f"mkdir {canary}")),
    "runpy": _program,
    "getattr": _getattr,
    "dotted name": _dotted,
    "extension": _extension,
    "memo": _memoised,
    "INST": lambda canary: f"(S{canary!r}\nios\nmkdir\n.".encode(),
    "OBJ": lambda canary: b"\x80\x04(cos\nmkdir\n" + _text(canary) + b"o.",
    "partial": lambda canary: pickle.dumps(Call(functools.partial(os.mkdir, canary))),
    "methodcaller": lambda canary: pickle.dumps(Call(operator.methodcaller("mkdir"), Path(canary))),
    "map": lambda canary: pickle.dumps(Call(list, Call(map, os.mkdir, [canary]))),
    "deque of a map": lambda canary: pickle.dumps(Call(deque, Call(map, os.mkdir, [canary]))),
    "set of a map": lambda canary: pickle.dumps(Call(set, Call(map, os.mkdir, [canary]))),
    "dict of a map": lambda canary: pickle.dumps(Call(OrderedDict, Call(map, os.mkdir, [canary]))),
    "object array": _object_array,
    "torch within": _storage,
    "by value": _by_value,
    "__setstate__": _setstate,
    "__setstate__ of a space": lambda canary: pickle.dumps(ArmedSpace(canary)),
    "__hash__": lambda canary: pickle.dumps({ArmedKey(canary): 1}),
    "nested": lambda canary: pickle.dumps([{"a": ({"b": [Call(os.mkdir, canary)]},)}]),
    "in a schedule": lambda canary: pickle.dumps(
        LinearSchedule(Call(os.mkdir, canary), 0.0, 1.0)  # type: ignore[arg-type]
    ),
}


def pack(entries: Entries, **options: Any) -> bytes:
    """Write a zip file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def unpack(content: bytes) -> Entries:
    """Read a zip file."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def changed(entries: Entries, **attributes: Any) -> bytes:
    """Write a model with other attributes: bytes are pickles, anything else is JSON."""
    data = json.loads(entries["data"])
    for name, value in attributes.items():
        if isinstance(value, bytes):
            value = {":type:": "", ":serialized:": base64.b64encode(value).decode()}
        data[name] = value
    return pack({**entries, "data": json.dumps(data).encode()})


def without(entries: Entries, *names: str) -> bytes:
    """Write a model without some attributes."""
    data = json.loads(entries["data"])
    return pack(
        {**entries, "data": json.dumps({k: v for k, v in data.items() if k not in names}).encode()}
    )


def weights(entries: Entries, name: str, change: Callable[[Any], Any]) -> bytes:
    """Write a model with other weights."""
    state = th.load(io.BytesIO(entries[f"{name}.pth"]), weights_only=True)
    file = io.BytesIO()
    th.save(change(state), file)
    return pack({**entries, f"{name}.pth": file.getvalue()})


def _first(change: Callable[[th.Tensor], Any]) -> Callable[[Any], Any]:
    """Change the first tensor of a state dictionary."""

    def apply(state: Any) -> Any:
        name = next(iter(state))
        return {**state, name: change(state[name])}

    return apply


def _of_optimizer(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Change what an optimizer keeps of its first parameter."""

    def apply(state: Any) -> Any:
        index = next(iter(state["state"]))
        first = {key: change(value) for key, value in state["state"][index].items()}
        return {**state, "state": {**state["state"], index: first}}

    return apply


def _option(**options: Any) -> Callable[[Any], Any]:
    """Change the options of an optimizer."""
    return lambda state: {**state, "param_groups": [{**state["param_groups"][0], **options}]}


def _deflated_weights(entries: Entries) -> bytes:
    """Hide a bomb in torch's own archive."""
    inner = unpack(entries["policy.pth"])
    inner |= {next(name for name in inner if name.endswith("data/0")): bytes(200 * 2**20)}
    return pack({**entries, "policy.pth": pack(inner, compression=zipfile.ZIP_DEFLATED)})


def _with_header(content: bytes, signature: bytes, offset: int, value: bytes) -> bytes:
    """Change a field of all headers of one kind in a zip file."""
    parts = content.split(signature)
    changed_parts = [part[:offset] + value + part[offset + len(value) :] for part in parts[1:]]
    return signature.join([parts[0], *changed_parts])


def _lying(entries: Entries) -> bytes:
    """Let an entry inflate to much more than its header says."""
    content = pack({**entries, "data": bytes(300 * 2**20)}, compression=zipfile.ZIP_DEFLATED)
    small = struct.pack("<I", 1000)
    return _with_header(content, b"PK\x01\x02", 20, small)


def _overlapping(entries: Entries) -> bytes:
    """List one entry many times, under different names, without repeating its data."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**entries, "notes": bytes(4 * 2**20)}.items():
            archive.writestr(name, content)
        last = archive.infolist()[-1]
        for number in range(1000):
            other = copy.copy(last)
            other.filename = other.orig_filename = f"{number:05}"
            archive.filelist.append(other)
    return file.getvalue()


def _twice(entries: Entries) -> bytes:
    file = io.BytesIO(pack(entries))
    with zipfile.ZipFile(file, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("data", entries["data"])
    return file.getvalue()


def _cut(entries: Entries, place: float) -> bytes:
    content = pack(entries)
    return content[: int(place * len(content))]


def _flipped(entries: Entries, place: float) -> bytes:
    content = bytearray(pack(entries))
    content[int(place * len(content))] ^= 0x10
    return bytes(content)


def _doubling(levels: int) -> bytes:
    """Describe a list of lists that doubles at each level."""
    nested: Any = [1]
    for _ in range(levels):
        nested = [nested, nested]
    return pickle.dumps(nested)


def _shared_array() -> bytes:
    """Refer to a megabyte ten thousand times."""
    array = np.zeros(2**17)
    return pickle.dumps([array] * 10_000)


def _old_space(canary: str) -> bytes:
    """Describe a space of gym with code among its bounds."""
    space = spaces.Box(-1, 1, (3,))
    space.low = Call(os.mkdir, canary)  # type: ignore[assignment]
    return (
        pickle.dumps(space)
        .replace(b"gymnasium.spaces.box", b"gym.spaces.box")
        .replace(b"\x8c\x14gym.spaces.box", b"\x8c\x0egym.spaces.box")
    )


def _space(**state: Any) -> bytes:
    space = spaces.Box(-1, 1, (3,))
    vars(space).update(state)
    return pickle.dumps(space)


File = Callable[[Entries, str], bytes]

# Attributes that cannot be left out, each with a gadget.
_FIELDS = (
    *("policy_class", "policy_kwargs", "observation_space", "action_space", "learning_rate"),
    *("target_kl", "cg_damping", "n_steps", "batch_size", "gamma", "seed", "verbose"),
    *("rollout_buffer_class", "rollout_buffer_kwargs", "tensorboard_log", "use_sde", "n_envs"),
    *("kl_reduction", "my_attribute", "num_timesteps"),
)

_NUMBERS: dict[str, dict[str, Any]] = {
    "n_steps of 10**12": {"n_steps": 10**12},
    "n_steps of 10**400": {"n_steps": 10**400},
    "n_steps as text": {"n_steps": "2048"},
    "n_steps as a list": {"n_steps": [32]},
    "n_steps negative": {"n_steps": -1},
    "n_steps NaN": {"n_steps": float("nan")},
    "n_envs of 10**9": {"n_envs": 10**9},
    "n_envs as text": {"n_envs": "2"},
    "n_envs missing a value": {"n_envs": None},
    "batch_size as text": {"batch_size": "all"},
    "gamma infinite": {"gamma": float("inf")},
    "seed too large": {"seed": 2**40},
    "seed as text": {"seed": "zero"},
    "verbose as text": {"verbose": "yes"},
    "use_sde as text": {"use_sde": "yes"},
    "learning_rate as text": {"learning_rate": "fast"},
    "learning_rate NaN": {"learning_rate": float("nan")},
    "target_kl as a list": {"target_kl": [0.01]},
    "num_timesteps negative": {"num_timesteps": -5},
    "kl_reduction unknown": {"kl_reduction": "max"},
    "tensorboard_log elsewhere": {"tensorboard_log": "s3://bucket/logs"},
    "wide network": {"policy_kwargs": {"net_arch": [10**6, 10**6]}},
    "deep network": {"policy_kwargs": {"net_arch": [1] * 10**5}},
    "huge layer": {"policy_kwargs": {"net_arch": [10**12]}},
    "layers as text": {"policy_kwargs": {"net_arch": "large"}},
    "policy_kwargs as a list": {"policy_kwargs": [1]},
    "policy_kwargs unknown": {"policy_kwargs": {"nonsense": 1}},
    "buffer arguments": {"rollout_buffer_kwargs": {"nonsense": 1}},
    "buffer of another size": {"rollout_buffer_kwargs": {"n_envs": 10**7}},
    "activation as text": {"policy_kwargs": {"activation_fn": "os.system"}},
    "shared layers": {"policy_kwargs": {"net_arch": [8, {"pi": [8], "vf": [8]}]}},
    "method": {"_setup_model": 1},
    "constant": {"policy_aliases": {}},
    "double underscore": {"__class__": 1},
}

_CLASSES: dict[str, dict[str, Any]] = {
    "policy_class is a layer": {"policy_class": nn.ReLU},
    "policy_class is a space": {"policy_class": spaces.Box},
    "policy_class is a function": {"policy_class": os.mkdir},
    "compiler": {"policy_class": th.fx.GraphModule},
    "extractor is armed": {
        "policy_kwargs": {"features_extractor_class": Armed, "features_extractor_kwargs": {}}
    },
    "extractor is abstract": {"policy_kwargs": {"features_extractor_class": BaseFeaturesExtractor}},
    "optimizer is a layer": {"policy_kwargs": {"optimizer_class": nn.Linear}},
    "buffer is a layer": {"rollout_buffer_class": nn.Linear},
    "activation is a space": {"policy_kwargs": {"activation_fn": spaces.Box}},
    "spaces swapped for text": {"observation_space": "Box"},
    "space of 10**9 actions": {"action_space": spaces.Discrete(10**9)},
    "space of 10**9 bits": {"observation_space": spaces.MultiBinary(10**9)},
    "space of other size": {"observation_space": spaces.Box(-1, 1, (7,))},
    "nested spaces": {"observation_space": spaces.Dict(a=spaces.Dict(b=spaces.Discrete(2)))},
    "structured array": {"target_kl": np.zeros(2, dtype=[("a", "O")])},
    "dates": {"target_kl": np.zeros(2, dtype="M8[s]")},
    "subclass of arrays": {"target_kl": np.ma.masked_array([1.0])},
    "layer": {"policy_kwargs": {"net": nn.Linear(2, 2)}},
    "negative schedule": {"target_kl": LinearSchedule(-1.0, 0.0, 1.0)},
}


def _gadget(name: str, field: str) -> File:
    return lambda entries, canary: changed(entries, **{field: GADGETS[name](canary)})


def _json(values: dict[str, Any]) -> File:
    return lambda entries, _: changed(entries, **values)


def _pickled(values: dict[str, Any]) -> File:
    pickles = {name: cloudpickle.dumps(value) for name, value in values.items()}
    return lambda entries, _: changed(entries, **pickles)


def _damaged(damage: Callable[[Entries, float], bytes], place: float) -> File:
    return lambda entries, _: damage(entries, place)


FILES: dict[str, File] = {
    **{f"gadget {name}": _gadget(name, "target_kl") for name in GADGETS},
    **{f"in {field}": _gadget("os.mkdir", field) for field in _FIELDS},
    **{name: _json(values) for name, values in _NUMBERS.items()},
    **{name: _pickled(values) for name, values in _CLASSES.items()},
    **{f"cut at {place}": _damaged(_cut, place) for place in (0.1, 0.5, 0.99)},
    **{f"flipped at {place}": _damaged(_flipped, place) for place in (0.03, 0.2, 0.4, 0.6, 0.75)},
    "in policy.pth": lambda e, canary: weights(
        e, "policy", _first(lambda _: Call(os.mkdir, canary))
    ),
    "in the optimizer": lambda e, canary: weights(
        e, "policy.optimizer", _of_optimizer(lambda _: Call(os.mkdir, canary))
    ),
    "in the optimizer's options": lambda e, canary: weights(
        e, "policy.optimizer", _option(lr=Call(os.mkdir, canary))
    ),
    "policy.pth is a pickle": lambda e, canary: pack(
        {**e, "policy.pth": GADGETS["os.mkdir"](canary)}
    ),
    "policy.pth is a list": lambda e, _: weights(e, "policy", lambda state: [1]),
    "policy.pth is empty": lambda e, _: pack({**e, "policy.pth": b""}),
    "policy.pth is missing": lambda e, _: pack({k: v for k, v in e.items() if k != "policy.pth"}),
    "policy.pth is truncated": lambda e, _: pack({**e, "policy.pth": e["policy.pth"][:900]}),
    "other weights": lambda e, _: pack({**e, "env.close.pth": e["policy.pth"]}),
    "weights of other names": lambda e, _: weights(
        e, "policy", lambda state: {f"x{name}": value for name, value in state.items()}
    ),
    "weights without names": lambda e, _: weights(e, "policy", lambda state: {1: th.ones(1)}),
    "weights of other shapes": lambda e, _: weights(e, "policy", _first(lambda w: w.repeat(2, 2))),
    "weights that are no tensors": lambda e, _: weights(e, "policy", _first(lambda w: "text")),
    "weights NaN": lambda e, _: weights(e, "policy", _first(lambda w: w * th.nan)),
    "weights sparse": lambda e, _: weights(e, "policy", _first(lambda w: w.to_sparse())),
    "weights without data": lambda e, _: weights(e, "policy", _first(lambda w: w.to("meta"))),
    "weights expanded": lambda e, _: weights(
        e, "policy", _first(lambda w: th.ones(1).expand(10**6, 10**6))
    ),
    "optimizer of other shapes": lambda e, _: weights(
        e, "policy.optimizer", _of_optimizer(lambda _: th.ones(7))
    ),
    "optimizer NaN": lambda e, _: weights(
        e, "policy.optimizer", _of_optimizer(lambda value: value * th.nan)
    ),
    "optimizer without parameters": lambda e, _: weights(
        e, "policy.optimizer", lambda state: {**state, "param_groups": []}
    ),
    "optimizer of text": lambda e, _: weights(
        e, "policy.optimizer", lambda state: {**state, "state": "text"}
    ),
    "optimizer's option is text": lambda e, _: weights(e, "policy.optimizer", _option(eps="no")),
    "optimizer's option is infinite": lambda e, _: weights(
        e, "policy.optimizer", _option(eps=math.inf)
    ),
    "optimizer's betas": lambda e, _: weights(e, "policy.optimizer", _option(betas=(0.9,))),
    "deep weights": lambda e, _: weights(e, "policy", _first(lambda w: [[[[[[[[w]]]]]]]])),
    "weights shared": lambda e, _: weights(
        e, "policy.optimizer", lambda state: {**state, "more": [th.zeros(10**6)] * 10**4}
    ),
    "deflated weights": lambda e, _: _deflated_weights(e),
    "bomb": lambda e, _: pack({**e, "data": bytes(2**28)}, compression=zipfile.ZIP_DEFLATED),
    "bomb beside the model": lambda e, _: pack(
        {**e, "notes.txt": bytes(2**28)}, compression=zipfile.ZIP_DEFLATED
    ),
    "overlapping entries": lambda e, _: _overlapping(e),
    "lying header": lambda e, _: _lying(e),
    "lzma": lambda e, _: pack(e, compression=zipfile.ZIP_LZMA),
    "encrypted": lambda e, _: _with_header(pack(e), b"PK\x01\x02", 4, b"\x01"),
    "entry twice": lambda e, _: _twice(e),
    "many entries": lambda e, _: pack({**e, **{f"{n}": b"" for n in range(10_001)}}),
    "traversal": lambda e, _: pack({**e, "../../outside": b""}),
    "traversal of weights": lambda e, _: pack({**e, "../policy.pth": e["policy.pth"]}),
    "absolute path": lambda e, _: pack({**e, "/etc/outside": b""}),
    "drive": lambda e, _: pack({**e, "C:outside": b""}),
    "no zip": lambda e, _: b"no zip file",
    "empty": lambda e, _: b"",
    "empty zip": lambda e, _: pack({}),
    "data is no JSON": lambda e, _: pack({**e, "data": b"{"}),
    "data is a list": lambda e, _: pack({**e, "data": b"[]"}),
    "data is no text": lambda e, _: pack({**e, "data": b"\xff\xfe\xfa"}),
    "data is deep": lambda e, _: pack({**e, "data": b"[" * 10**6}),
    "data is missing": lambda e, _: pack({k: v for k, v in e.items() if k != "data"}),
    "without policy_class": lambda e, _: without(e, "policy_class"),
    "without observation_space": lambda e, _: without(e, "observation_space"),
    "pickle is no base64": lambda e, _: changed(e, target_kl={":serialized:": "%%%"}),
    "pickle is a number": lambda e, _: changed(e, target_kl={":serialized:": 5}),
    "pickle is empty": lambda e, _: changed(e, target_kl=b""),
    "pickle is cut": lambda e, _: changed(e, target_kl=pickle.dumps([1, 2])[:-3]),
    "pickle without stack": lambda e, _: changed(e, target_kl=b"\x80\x04R."),
    "pickle of opcodes": lambda e, _: changed(e, target_kl=bytes(range(256))),
    "persistent id": lambda e, _: changed(e, target_kl=b"\x80\x04K\x01Q."),
    "doubling lists": lambda e, _: changed(e, target_kl=_doubling(28)),
    "doubling lists, deeper": lambda e, _: changed(e, target_kl=_doubling(100)),
    "shared array": lambda e, _: changed(e, target_kl=_shared_array()),
    "itself": lambda e, _: changed(e, target_kl=b"\x80\x04]\x94h\x00a."),
    "deep list": lambda e, _: changed(
        e, target_kl=b"\x80\x04" + b"]" * 10**5 + b"a" * 99_999 + b"."
    ),
    "deep tuple as key": lambda e, _: changed(
        e, target_kl=b"\x80\x04})" + b"\x85" * 10**5 + b"K\x01s."
    ),
    "huge number": lambda e, _: changed(e, target_kl=pickle.dumps(1 << 10**7)),
    "bytes of 10**18": lambda e, _: changed(
        e, target_kl=b"\x80\x04\x8e" + struct.pack("<Q", 10**18) + b"x."
    ),
    "bytearray of 10**10": lambda e, _: changed(
        e, target_kl=b"\x80\x05\x96" + struct.pack("<Q", 10**10) + b"x."
    ),
    "memo of 2**32": lambda e, _: changed(e, target_kl=b"\x80\x04]r\xff\xff\xff\xff."),
    "array of 10**12": lambda e, _: changed(
        e, target_kl=pickle.dumps(np.zeros(3), 4).replace(b"K\x03\x85", b"J\xff\xff\xff\x7f\x85")
    ),
    "old space": lambda e, canary: changed(e, observation_space=_old_space(canary)),
    "space of other shape": lambda e, _: changed(e, observation_space=_space(_shape=(4,))),
    "space without bounds": lambda e, _: changed(e, observation_space=_space(low=None)),
    "space of objects": lambda e, _: changed(e, observation_space=_space(dtype=np.dtype("O"))),
    "space with NaN": lambda e, _: changed(
        e, observation_space=_space(low=np.full(3, np.nan, np.float32))
    ),
}

# Attributes that `learn` makes anew: whatever is there, the model loads without it.
REBUILT = (
    *("lr_schedule", "ep_info_buffer", "ep_success_buffer", "_last_obs", "_last_episode_starts"),
    *("_last_original_obs", "start_time", "action_noise", "env", "eval_env", "rollout_buffer"),
    *("clip_range", "_logger", "_custom_logger", "_vec_normalize_env", "policy", "device"),
)
