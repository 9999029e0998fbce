"""Check that the settings beside a model are data, since the RL Zoo runs what is code in them."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch as th
import yaml
from torch import nn

from sb3_trpo.zoo.errors import UsageError

FILES = ("config.yml", "args.yml")
PLAIN_TAG = "tag:yaml.org,2002:"
ORDERED_DICT, TUPLE = "python/object/apply:collections.OrderedDict", "python/tuple"
PLAIN_TAGS = {
    f"{PLAIN_TAG}{name}"
    for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge", ORDERED_DICT, TUPLE)
}
# Name of a run's folder; the RL Zoo's -uuid adds one behind the number.
NUMBERED = re.compile(r"(.+)_(\d+)(?:_[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})?")
# Environments of an untrusted run: each may be a process.
MOST_ENVS = 256
# Values of a file of settings.
MOST_VALUES = 100_000
# Wrappers that write no files.
WRAPPERS = re.compile(
    r"(rl_zoo3\.wrappers|sb3_trpo\.zoo\.atari|stable_baselines3\.common\.atari_wrappers"
    r"|(sb3_contrib\.common|gymnasium)\.wrappers(\.[a-z_]+)?)\.(?!RecordVideo)[A-Z]\w*"
    r"|stable_baselines3\.common\.vec_env(\.[a-z_]+)?\.Vec(FrameStack|Normalize|TransposeImage"
    r"|CheckNan|ExtractDictObs)"
)


def check_settings(folder: Path, is_trusted: bool) -> None:
    """Check the settings of a run, which may have been downloaded with its model.

    :param folder: the run's folder of hyperparameters; it may be missing
    :param is_trusted: whether they may run code
    :raises UsageError: if a file there is damaged, or would run code when the RL Zoo reads it
    """
    for path in (folder / name for name in FILES if (folder / name).is_file()):
        values = read_mapping(path)
        if not isinstance(values.get("env_kwargs"), dict | None):
            raise UsageError(f"env_kwargs in {path} has to name values: restore the file")
        code = None if is_trusted else find_code(path.read_bytes())
        if code:
            raise UsageError(
                f"{path} would run code: {code}: --trust-checkpoint allows it for a run of your own"
            )


def env_of(run: Path) -> str:
    """Name the environment of a run, as it occurs in folder names.

    :param run: the run's folder
    :return: the folder's name without the run's number
    """
    name = run.resolve().name
    numbered = NUMBERED.fullmatch(name)
    return numbered[1] if numbered else name.rpartition("_")[0]


def settings_of(run: Path) -> Path:
    """Name the folder of a run's settings.

    :param run: the run's folder
    :return: the folder, which may be missing
    """
    return run / env_of(run)


def read_arguments(settings: Path) -> dict[str, Any]:
    """Read the arguments that a run was started with.

    :param settings: the run's folder of hyperparameters
    :return: as of :func:`read_mapping`
    :raises UsageError: as :func:`read_mapping` does
    """
    return read_mapping(settings / "args.yml")


def read_mapping(path: Path) -> dict[str, Any]:
    """Read the hyperparameters or the arguments that the RL Zoo saved, and run no code of the file.

    :param path: of the YAML file
    :return: values by their names; empty if there is no file, or nothing in it
    :raises UsageError: if it is damaged
    """
    try:
        content = path.read_bytes() if path.is_file() else b""
        if _size_of(yaml.compose(content, ArgumentsLoader), {}) > MOST_VALUES:
            raise ValueError("it refers to the same values again and again")
        return dict(yaml.load(content, ArgumentsLoader) or {})
    except (yaml.YAMLError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise UsageError(
            f"{path} is damaged: it does not name values ({type(error).__name__}): restore the "
            f"file, or choose another run"
        ) from error


def _size_of(node: yaml.Node | None, sizes: dict[int, int]) -> int:
    """Count the values of a node, those that it refers to each time: a message would write them."""
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in sizes:
        parts = [
            each for part in node.value for each in (part if isinstance(part, tuple) else [part])
        ]
        sizes[id(node)] = 1 + sum(_size_of(part, sizes) for part in parts)
    return sizes[id(node)]


class ArgumentsLoader(yaml.SafeLoader):
    """Reads the containers that the RL Zoo writes, without running code from the file."""


def _container(loader: yaml.SafeLoader, kind: str, node: yaml.Node) -> Any:
    """Read the pairs of an ``OrderedDict``, or a tuple; anything else is left out."""
    if not isinstance(node, yaml.SequenceNode):
        return None
    values = loader.construct_sequence(node, deep=True)
    return tuple(values) if kind == "tuple" else values[0]


ArgumentsLoader.add_multi_constructor("tag:yaml.org,2002:python/", _container)


def find_code(text: str | bytes) -> str | None:
    """Find what the RL Zoo would run.

    :param text: a YAML file
    :return: the code, shortened; None if everything is data
    """
    try:
        nodes = list(nodes_of(yaml.compose(text, yaml.SafeLoader)))
    except (yaml.YAMLError, RecursionError) as error:
        return f"it is damaged ({type(error).__name__})"
    tags = [node.tag[:80] for node in nodes if not is_plain(node)]
    values = [
        f"{key}: {' '.join(scalars_in(value))[:80]}"
        for key, value in pairs_of(nodes)
        if key in RULES and not RULES[key](value)
    ]
    return next(iter([*tags, *values]), None)


def is_plain(node: yaml.Node) -> bool:
    """Return whether a node of YAML is data in a form whose keys and values :func:`pairs_of` finds.

    :param node: any node
    :return: whether it is a scalar, a list, a mapping with scalars as keys, or an ``OrderedDict``
        or a tuple as the RL Zoo writes it
    """
    if node.tag not in PLAIN_TAGS:
        return False
    if node.tag == f"{PLAIN_TAG}{ORDERED_DICT}":
        lists = node.value if isinstance(node, yaml.SequenceNode) else []
        return len(lists) == 1 and all(map(is_pair, lists[0].value))
    if isinstance(node, yaml.MappingNode):
        return all(isinstance(key, yaml.ScalarNode) for key, _ in node.value)
    return node.tag != f"{PLAIN_TAG}{TUPLE}" or isinstance(node, yaml.SequenceNode)


def is_pair(node: Any) -> bool:
    """Return whether a node is a list of a scalar and a value.

    :param node: what stands for a pair of an ``OrderedDict``
    """
    is_list = isinstance(node, yaml.SequenceNode) and len(node.value) == 2
    return is_list and isinstance(node.value[0], yaml.ScalarNode)


def nodes_of(root: yaml.Node | None) -> Iterator[yaml.Node]:
    """Iterate over all nodes, each once however often it is referred to.

    :param root: the uppermost node
    """
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            waiting += [each for pair in node.value for each in pair]


def scalars_in(node: yaml.Node) -> list[str]:
    """List the words of a node.

    :param node: any node
    :return: names and values, in no order
    """
    return [each.value for each in nodes_of(node) if isinstance(each, yaml.ScalarNode)]


def pairs_of(nodes: list[yaml.Node]) -> Iterator[tuple[str, yaml.Node]]:
    """Iterate over keys and values.

    Any list of two values counts as a pair: the RL Zoo writes its settings as a list of pairs.

    :param nodes: all nodes
    """
    for node in nodes:
        pairs = node.value if isinstance(node, yaml.MappingNode) else [node.value]
        for pair in pairs:
            if len(pair) == 2 and isinstance(pair[0], yaml.ScalarNode):
                yield pair[0].value, pair[1]


def is_evaluable(value: yaml.Node) -> bool:
    """Return whether a value that the RL Zoo evaluates, if it is text, is data.

    :param value: of one of these keys
    :return: whether it is no text, or text that :func:`is_data` lets through
    """
    return value.tag != f"{PLAIN_TAG}str" or is_data(value.value)


def are_wrappers(value: yaml.Node) -> bool:
    """Return whether a value names only wrappers that are known to do nothing else.

    :param value: a name, a name with arguments, or a list of these
    :return: whether all names are known
    """
    if isinstance(value, yaml.SequenceNode):
        return all(map(are_wrappers, value.value))
    names = [key for key, _ in value.value] if isinstance(value, yaml.MappingNode) else [value]
    return is_empty(value) or all(WRAPPERS.fullmatch(str(name.value)) for name in names)


def are_few(value: yaml.Node) -> bool:
    """Return whether a number of environments or frames can be had without trust.

    :param value: of ``n_envs`` or ``frame_stack``
    :return: whether it is no number, which the RL Zoo refuses, or small enough
    """
    numbers = f"{PLAIN_TAG}int", f"{PLAIN_TAG}float"
    return value.tag not in numbers or yaml.safe_load(yaml.serialize(value)) <= MOST_ENVS


def is_empty(value: yaml.Node) -> bool:
    """Return whether there is no value.

    :param value: a node
    :return: whether it is null
    """
    return value.tag == f"{PLAIN_TAG}null"


# What the RL Zoo evaluates, or imports and calls, and when that is harmless.
RULES: dict[str, Callable[[yaml.Node], bool]] = {
    **dict.fromkeys(("normalize", "policy_kwargs", "monitor_kwargs"), is_evaluable),
    **dict.fromkeys(("replay_buffer_class", "replay_buffer_kwargs"), is_evaluable),
    **dict.fromkeys(("env_wrapper", "vec_env_wrapper"), are_wrappers),
    "callback": is_empty,
    **dict.fromkeys(("n_envs", "frame_stack"), are_few),
    "policy": lambda value: "." not in str(value.value),
}


def is_data(text: str) -> bool:
    """Return whether an expression only describes values and names classes without side effects.

    SB3 calls some of what ``policy_kwargs`` names.

    :param text: Python
    :return: whether it has nothing but literals, ``dict(...)``, and names of layers and optimizers
        like ``nn.ReLU``
    """
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return _is_data(tree.body)


def _is_data(node: ast.AST) -> bool:
    """Return whether a part of an expression is data."""
    if isinstance(node, ast.Call):
        is_dict = isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args
        return is_dict and all(_is_data(keyword.value) for keyword in node.keywords)
    if isinstance(node, ast.Attribute):
        return _is_class_of_torch(ast.unparse(node))
    if isinstance(node, ast.Name):
        return node.id in NAMES
    kinds = (ast.Dict, ast.List, ast.Tuple, ast.UnaryOp, ast.Constant, ast.USub, ast.UAdd, ast.Load)
    return isinstance(node, kinds) and all(map(_is_data, ast.iter_child_nodes(node)))


def _is_class_of_torch(name: str) -> bool:
    """Return whether a dotted name is that of one of torch's layers or optimizers."""
    module, _, attribute = name.rpartition(".")
    if module not in CLASSES:
        return False
    owner, base = CLASSES[module]
    found = vars(owner).get(attribute)
    return isinstance(found, type) and issubclass(found, base)


# Classes that the RL Zoo's own files name without a module.
NAMES = ("HerReplayBuffer", "RMSpropTFLike")
# Modules of torch as these files name them, and which of their classes may be named.
CLASSES: dict[str, tuple[Any, type]] = {
    **dict.fromkeys(("nn", "th.nn", "torch.nn"), (nn, nn.Module)),
    **dict.fromkeys(("th.optim", "torch.optim"), (th.optim, th.optim.Optimizer)),
}
