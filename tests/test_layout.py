"""The package's layers: who may import whom."""

import ast
from collections.abc import Collection
from pathlib import Path

import pytest

import sb3_trpo

ROOT = Path(sb3_trpo.__file__).parent

# Lowest layer first. Within a layer, a module imports only modules that stand before it; those of
# a set import none of each other. `zoo` stands for all modules of the subpackage.
LAYERS: tuple[Collection[str], ...] = (
    (
        "_vectors",
        "_conjugate_gradient",
        "_cuda_graph",
        "_processes",
        "_state_mean",
        "_class_methods",
    ),
    (
        "_sequences",
        "_distributions",
        "_batch",
        "_read_buffer",
        "_plain",
        "_mlp",
        "_linearization",
        "_layerwise",
        "_recurrence",
        "_merged_weights",
        "_running_statistics",
        "_twice_differentiable",
        "_actor",
    ),
    {"_surrogate", "_fisher", "_trust_region", "_critic"},
    (
        "_atomic",
        "_hyperparameters",
        "_environment",
        "_interrupts",
        "_finite",
        "_data_parallel",
        "_rollout_forward",
        "rollout_buffer",
        "_pickle_tree",
        "_safe_pickle",
        "_archive",
        "_saved_weights",
        "_saved_attributes",
        "_saved_model",
        "_vec_normalize",
        "trpo",
        "maskable",
        "recurrent",
        "maskable_recurrent",
        "_plain_data",
        "_random_states",
        "_environment_state",
        "_state_check",
        "_training_state",
        "_checkpoint_file",
        "checkpoint",
        "evaluation",
        "export",
        "__init__",
    ),
    ("zoo", "__main__"),
)
UPDATE = LAYERS[2]
PLACES = {
    name: (layer, 0 if isinstance(names, set) else position)
    for layer, names in enumerate(LAYERS)
    for position, name in enumerate(names)
}

FILES = sorted(ROOT.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0]


def imported_names(source: str) -> set[str]:
    """List the dotted names that a source imports, everywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_imports(source: str) -> set[str]:
    """List the package's modules that a source imports; the package itself is `__init__`."""
    own = set()
    for name in imported_names(source):
        first, _, rest = name.partition(".")
        if first == "sb3_trpo":
            module = rest.partition(".")[0]
            own.add(module if module in PLACES else "__init__")
    return own


def is_downward(importer: str, imported: str) -> bool:
    return importer == imported == "zoo" or PLACES[imported] < PLACES[importer]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downward_only(path: Path) -> None:
    importer = module_of(path)
    assert importer in PLACES, f"{importer} has no layer: add it to LAYERS in this file"
    upward = {name for name in own_imports(path.read_text()) if not is_downward(importer, name)}
    assert not upward, f"{importer} imports {sorted(upward)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_zoo_imports_the_rl_zoo(path: Path) -> None:
    imported = {name.partition(".")[0] for name in imported_names(path.read_text())}
    assert module_of(path) == "zoo" or "rl_zoo3" not in imported


@pytest.mark.parametrize("module", sorted(LAYERS[0]))
def test_the_lowest_layer_knows_tensors_only(module: str) -> None:
    imported = {
        name.partition(".")[0] for name in imported_names((ROOT / f"{module}.py").read_text())
    }
    standard = {"collections", "contextlib", "dataclasses", "enum", "math", "time", "typing"}
    assert imported <= standard | {"torch", "sb3_trpo"}


def test_only_one_file_knows_the_distribution_classes() -> None:
    others = ("stable_baselines3.common.distributions", "sb3_contrib", "torch.distributions")
    knowing = {
        module_of(path)
        for path in FILES
        for name in imported_names(path.read_text())
        if name.startswith(others) and "distributions" in name
    }
    assert knowing == {"_distributions"}


def test_the_modules_of_the_update_never_import_each_other() -> None:
    for module in UPDATE:
        imported = own_imports((ROOT / f"{module}.py").read_text())
        assert imported.isdisjoint(UPDATE), module


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("_vectors", "from sb3_trpo._batch import ActorBatch"),
        ("_surrogate", "from sb3_trpo._fisher import FisherProduct"),
        ("_batch", "from sb3_trpo import _actor"),
        ("_critic", "def f():\n    import sb3_trpo.trpo"),
        ("trpo", "from sb3_trpo import TRPO"),
        ("trpo", "from sb3_trpo.zoo import train"),
    ],
)
def test_an_upward_or_sideways_import_is_noticed(importer: str, source: str) -> None:
    assert not all(is_downward(importer, name) for name in own_imports(source))
