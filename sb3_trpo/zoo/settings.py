"""Check that the settings beside a model are data, since the RL Zoo runs what is code in them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import yaml

from sb3_trpo.zoo.errors import UsageError

FILES = ("config.yml", "args.yml")
# The RL Zoo evaluates the text that it finds under these.
EVALUATED = (
    *("normalize", "policy_kwargs", "monitor_kwargs", "replay_buffer_class"),
    "replay_buffer_kwargs",
)
PLAIN_TAG = "tag:yaml.org,2002:"
PYTHON_TAGS = ("python/object/apply:collections.OrderedDict", "python/tuple")


def check_settings(folder: Path) -> None:
    """Check the settings of a run, which may have been downloaded with its model.

    :param folder: the run's folder of hyperparameters; it may be missing
    :raises UsageError: if a file there would run code when the RL Zoo reads it
    """
    for name in FILES:
        path = folder / name
        if path.is_file() and (code := find_code(path.read_text())):
            raise UsageError(
                f"{path} would run code: {code}: --trust-checkpoint allows it for a run of your own"
            )


def find_code(text: str) -> str | None:
    """Find what the RL Zoo would run.

    :param text: a YAML file
    :return: the code, shortened; None if everything is data
    """
    try:
        nodes = list(nodes_of(yaml.compose(text, yaml.SafeLoader)))
    except (yaml.YAMLError, RecursionError) as error:
        return f"it is damaged ({type(error).__name__})"
    for node in nodes:
        tag = node.tag.removeprefix(PLAIN_TAG)
        if not node.tag.startswith(PLAIN_TAG) or (
            tag.startswith("python") and tag not in PYTHON_TAGS
        ):
            return node.tag[:80]
    for key, value in pairs_of(nodes):
        if key in EVALUATED and not is_data(value):
            return f"{key}: {value[:80]}"
    return None


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


def pairs_of(nodes: list[yaml.Node]) -> Iterator[tuple[str, str]]:
    """Iterate over the keys that have text as their value.

    :param nodes: all nodes; a mapping, or a list of pairs as the RL Zoo writes it
    """
    for node in nodes:
        pairs = node.value if isinstance(node, yaml.MappingNode) else [node.value]
        for pair in pairs:
            is_text = len(pair) == 2 and all(isinstance(each, yaml.ScalarNode) for each in pair)
            if is_text and pair[1].tag == f"{PLAIN_TAG}str":
                yield pair[0].value, pair[1].value


def is_data(text: str) -> bool:
    """Return whether an expression only describes values and names classes of torch.

    :param text: Python
    :return: whether it has nothing but literals, ``dict(...)`` and names like ``nn.ReLU``
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
        return not node.attr.startswith("_") and _is_module(node.value)
    if isinstance(node, ast.Name):
        return True  # a name alone runs nothing
    kinds = (ast.Dict, ast.List, ast.Tuple, ast.UnaryOp, ast.Constant, ast.USub, ast.UAdd, ast.Load)
    return isinstance(node, kinds) and all(map(_is_data, ast.iter_child_nodes(node)))


def _is_module(node: ast.AST) -> bool:
    """Return whether an expression is ``nn``, ``th`` or ``torch``, or a module in them."""
    if isinstance(node, ast.Attribute):
        return not node.attr.startswith("_") and _is_module(node.value)
    return isinstance(node, ast.Name) and node.id in ("nn", "th", "torch")
