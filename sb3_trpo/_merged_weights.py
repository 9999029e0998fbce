"""
Layers that take their weights out of the graph in evaluation mode.

Low-rank adapters that are merged into what they adapt, blocks with several branches that become one
layer, caches of what is computed from weights: their ``train`` does more than to set a flag, and in
evaluation mode, in which the actor is trained, some of their parameters have no gradient. Nor are
their weights to be saved, or replaced, while they are merged.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch as th
from torch import nn

from sb3_trpo._processes import Processes

# Merging weights rounds them.
_RELATIVE, _ABSOLUTE = 1e-3, 1e-5


class _Evaluation(NamedTuple):
    """What a policy computes, and gradients by the positions of the parameters that have one."""

    outputs: list[th.Tensor]
    slopes: dict[int, th.Tensor]


def has_modes_of_its_own(module: nn.Module) -> bool:
    """
    Return whether a module does something of its own when its mode is set.

    :param module: any module
    """
    return type(module).train is not nn.Module.train


@contextmanager
def weights_apart(policy: Any) -> Iterator[None]:
    """
    Take merged weights apart for the duration of a block that reads or replaces them.

    :param policy: any policy; it has the same mode afterwards
    :return: context manager
    """
    may_be_merged = not policy.training and any(map(has_modes_of_its_own, policy.modules()))
    if may_be_merged:
        policy.set_training_mode(True)
    try:
        yield
    finally:
        if may_be_merged:
            policy.set_training_mode(False)


def unmerge(
    policy: nn.Module,
    evaluate: Callable[[Any], Sequence[th.Tensor]],
    few: Any,
    chunks: Iterable[Any],
    processes: Processes,
) -> None:
    """
    Put layers whose parameters have a gradient in training mode only into it.

    Layers that compute something else there, or something random, stay in evaluation mode, and a
    warning names their parameters. What is inside a layer stays in it, too, unless it merges
    weights itself. The policy's next change of mode ends it.

    :param policy: in evaluation mode
    :param evaluate: computes all outputs of the policy at some states, with a graph
    :param few: some states
    :param chunks: all states; they are evaluated if parts of a layer run for none of the few
    :param processes: that train the policy together
    """
    candidates = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    positions = {id(parameter): position for position, parameter in enumerate(candidates)}
    settled: set[nn.Module] = set()
    refused: set[int] = set()

    def slopes_of(states: Iterable[Any]) -> _Evaluation:
        return _evaluation(candidates, map(evaluate, states))

    for module in list(policy.modules()):
        own = {positions[id(p)] for p in module.parameters() if p.requires_grad}
        if module in settled or not own or not has_modes_of_its_own(module):
            continue
        merged, apart, again = _try(module, lambda: slopes_of([few]))
        if not processes.all(apart.slopes.keys() >= own):
            merged, apart, again = _try(module, lambda: slopes_of(chunks))
        gained = apart.slopes.keys() - merged.slopes.keys()
        is_sound = _are_close(apart.outputs, merged.outputs) and _are_close(
            [*apart.outputs, *apart.slopes.values()], [*again.outputs, *again.slopes.values()]
        )
        is_helpful, is_sound = any(processes.gather(bool(gained))), processes.all(is_sound)
        if is_helpful and is_sound:
            settled.update(module.modules())
            continue
        module.train(False)
        if is_helpful:
            refused |= gained
    if refused:
        _warn_of(policy, [candidates[p] for p in refused - slopes_of(chunks).slopes.keys()])


def _try(
    module: nn.Module, evaluate: Callable[[], _Evaluation]
) -> tuple[_Evaluation, _Evaluation, _Evaluation]:
    """Evaluate before, and twice after, a module is put into training mode, where it is left."""
    module.train(False)
    merged = evaluate()
    buffers = [
        (owner, name, buffer, buffer.clone())
        for owner in module.modules()
        for name, buffer in owner.named_buffers(recurse=False)
    ]
    _set_own_mode(module)
    apart, again = evaluate(), evaluate()
    with th.no_grad():
        for owner, name, buffer, content in buffers:
            owner._buffers[name] = buffer.copy_(content)
    return merged, apart, again


def _set_own_mode(module: nn.Module) -> None:
    """Set the training mode of a module, and leave what is inside in evaluation mode."""
    module.train(True)
    for inner in module.modules():
        if inner is not module and not has_modes_of_its_own(inner):
            inner.training = False


def _evaluation(
    candidates: Sequence[nn.Parameter], outputs_of_chunks: Iterable[Sequence[th.Tensor]]
) -> _Evaluation:
    """Collect the outputs at some states, and the gradients of their sum."""
    everything: list[th.Tensor] = []
    total: dict[int, th.Tensor] = {}
    for outputs in outputs_of_chunks:
        everything += [z.detach() for z in outputs]
        attached = [z.sum() for z in outputs if z.requires_grad]
        slopes = th.autograd.grad(attached, candidates, allow_unused=True) if attached else ()
        for position, slope in enumerate(slopes):
            if slope is not None:
                total[position] = total[position] + slope if position in total else slope
    return _Evaluation(everything, dict(sorted(total.items())))


def _are_close(some: Sequence[th.Tensor], others: Sequence[th.Tensor]) -> bool:
    """Return whether tensors are the same to rounding."""
    return len(some) == len(others) and all(
        a.shape == b.shape and th.allclose(a, b, _RELATIVE, _ABSOLUTE)
        for a, b in zip(some, others, strict=True)
    )


def _warn_of(policy: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
    """Name parameters that evaluation mode takes no notice of."""
    untrained = set(map(id, parameters))
    names = [name for name, parameter in policy.named_parameters() if id(parameter) in untrained]
    if names:
        warnings.warn(
            f"Parameters of the policy are not trained: {', '.join(names)}. They have an effect in "
            f"training mode only, where the policy's outputs are random, or others than in "
            f"evaluation mode. TRPO trains what evaluation mode computes.",
            stacklevel=2,
        )
