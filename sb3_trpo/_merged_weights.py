"""
Layers that take their weights out of the graph in evaluation mode.

Low-rank adapters that are merged into what they adapt, blocks with several branches that become one
layer, caches of what is computed from weights: their ``train`` does more than to set a flag, and in
evaluation mode, in which the actor is trained, some of their parameters have no gradient.
"""

import warnings
from collections.abc import Callable, Sequence

import torch as th
from torch import nn

from sb3_trpo._processes import Processes

# Merging weights rounds them.
_RELATIVE, _ABSOLUTE = 1e-3, 1e-5


def has_modes_of_its_own(module: nn.Module) -> bool:
    """
    Return whether a module does something of its own when its mode is set.

    :param module: any module
    """
    return type(module).train is not nn.Module.train


def unmerge(
    policy: nn.Module, evaluate: Callable[[], Sequence[th.Tensor]], processes: Processes
) -> None:
    """
    Put layers whose parameters have a gradient in training mode only into it.

    What is inside such a layer stays in evaluation mode. The policy's next change of mode ends it.

    :param policy: in evaluation mode
    :param evaluate: computes outputs, with a graph
    :param processes: that train the policy together
    """
    for module in [m for m in policy.modules() if m is not policy and has_modes_of_its_own(m)]:
        parameters = [p for p in module.parameters() if p.requires_grad]
        if not processes.all(bool(parameters)):
            continue
        merged = evaluate()
        _set_own_mode(module)
        unmerged = evaluate()
        more = _n_reached(unmerged, parameters) > _n_reached(merged, parameters)
        is_needed = any(processes.gather(more))
        is_same = processes.all(_are_same(merged, unmerged) and _are_equal(unmerged, evaluate()))
        if is_needed and not is_same:
            warnings.warn(
                f"Some parameters of the policy's {type(module).__name__} are not trained: they "
                f"have an effect in training mode only, where its outputs are random, or others "
                f"than in evaluation mode. TRPO trains what evaluation mode computes.",
                stacklevel=2,
            )
        if not (is_needed and is_same):
            module.train(False)


def _set_own_mode(module: nn.Module) -> None:
    """Set the training mode of a module, and leave what is inside in evaluation mode."""
    module.train(True)
    for inner in module.modules():
        if inner is not module and not has_modes_of_its_own(inner):
            inner.training = False


def _n_reached(outputs: Sequence[th.Tensor], parameters: Sequence[nn.Parameter]) -> int:
    """Count the parameters for which outputs have a gradient."""
    attached = [z.sum() for z in outputs if z.requires_grad]
    if not attached:
        return 0
    slopes = th.autograd.grad(attached, parameters, allow_unused=True)
    return sum(slope is not None for slope in slopes)


def _are_same(some: Sequence[th.Tensor], others: Sequence[th.Tensor]) -> bool:
    pairs = zip(some, others, strict=True)
    return all(th.allclose(a, b, _RELATIVE, _ABSOLUTE) for a, b in pairs)


def _are_equal(some: Sequence[th.Tensor], others: Sequence[th.Tensor]) -> bool:
    return all(th.equal(a, b) for a, b in zip(some, others, strict=True))
