"""
Layers that change their own buffers in training mode.

Batch normalisation, spectral normalisation and layers that normalise by what they have seen: during
an update they are in evaluation mode, and afterwards a pass over the rollout refreshes them. A part
that the policy's own ``set_training_mode`` or ``train`` leaves in evaluation mode, as a pretrained
one, stays in it.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch as th
from stable_baselines3.common.policies import BasePolicy
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from sb3_trpo._merged_weights import has_modes_of_its_own
from sb3_trpo._processes import Processes


def modules_in_training(policy: BasePolicy) -> set[nn.Module]:
    """
    List the modules that are in training mode while a policy is.

    :param policy: any policy; its mode is the same afterwards
    :return: all modules but those that it pins to evaluation mode
    """
    before = {module: module.training for module in policy.modules()}
    policy.set_training_mode(True)
    found = {module for module in before if module.training}
    policy.set_training_mode(before[policy])
    for module, was_training in before.items():
        if has_modes_of_its_own(module) and module.training != was_training:
            module.train(was_training)
    for module, was_training in before.items():
        module.training = was_training
    return found


@contextmanager
def training_mode(modules: Collection[nn.Module]) -> Iterator[None]:
    """
    Put modules, and not what else is inside them, into training mode for the duration of a block.

    :param modules: in evaluation mode
    :return: context manager
    """
    listed = set(modules)
    told = [m for m in listed if has_modes_of_its_own(m) and listed.issuperset(m.modules())]
    _set_mode(modules, told, True)
    try:
        yield
    finally:
        _set_mode(modules, told, False)


def _set_mode(modules: Iterable[nn.Module], told: Iterable[nn.Module], is_training: bool) -> None:
    """Set the flags of some modules, and call ``train`` of those that do more than that in it."""
    for module in told:  # first: it may look at its flag
        module.train(is_training)
    for module in modules:
        module.training = is_training


def has_running_statistics(module: nn.Module) -> bool:
    """
    Return whether a module is batch normalisation that remembers what it has seen.

    :param module: any module
    """
    return isinstance(module, _NormBase) and module.track_running_stats


def uses_the_minibatch(module: nn.Module, is_in_training: bool) -> bool:
    """
    Return whether a module normalises by what is in the minibatch with a state.

    :param module: any module
    :param is_in_training: whether it is in training mode; in evaluation mode, batch normalisation
        uses its running statistics if it has some
    """
    return isinstance(module, _NormBase) and (is_in_training or not module.track_running_stats)


class Buffers:
    """
    The buffers of some modules, to see which of them change.

    :param policy: any policy
    :param modules: of the policy; those that it pins to evaluation mode are left out
    """

    def __init__(self, policy: BasePolicy, modules: Collection[nn.Module]) -> None:
        # In an order that all processes have.
        owners = [m for m in policy.modules() if _named(m) and m in modules]
        in_training = modules_in_training(policy) if owners else set()
        self.owners = [owner for owner in owners if owner in in_training]
        # The buffers themselves, as a layer may replace them, and how often they were written into.
        self._before = [
            {name: (buffer, buffer._version) for name, buffer in _named(owner)}
            for owner in self.owners
        ]

    def current(self) -> list[th.Tensor]:
        """Return the buffers that the modules have now."""
        return [buffer for owner in self.owners for _, buffer in _named(owner)]

    def moved(self) -> list[th.Tensor]:
        """Return the buffers that were replaced or written into; others may hold infinities."""
        pairs = zip(self.owners, self._before, strict=True)
        return [buffer for pair in pairs for buffer in _moved(*pair)]

    @th.no_grad()
    def restore(self, values: Sequence[th.Tensor]) -> None:
        """
        Put back the buffers that were there.

        :param values: copies of :meth:`current`, made at the start
        """
        copies = iter(values)
        for owner, before in zip(self.owners, self._before, strict=True):
            for name, (buffer, _) in before.items():
                owner._buffers[name] = buffer.copy_(next(copies))

    @th.no_grad()
    def average(self, processes: Processes) -> bool:
        """
        Give those that have changed the same numbers in all processes: their average.

        :param processes: that have the same modules
        :return: whether any has changed in any process
        """
        if not self.owners:
            return False
        changed = set[int]().union(*processes.gather(self._changed()))
        for position in sorted(changed) if processes.size > 1 else ():
            for _, buffer in _named(self.owners[position]):
                if buffer.layout is th.strided and buffer.dtype is not th.bool:
                    mean = processes.mean(buffer.cpu().double(), 1.0)
                    buffer.copy_(mean if buffer.is_floating_point() else mean.round())
        return bool(changed)

    def _changed(self) -> set[int]:
        """List the positions of the owners whose buffers were replaced or written into."""
        pairs = enumerate(zip(self.owners, self._before, strict=True))
        return {position for position, pair in pairs if _moved(*pair)}


def _named(module: nn.Module) -> list[tuple[str, th.Tensor]]:
    return list(module.named_buffers(recurse=False))


def _moved(owner: nn.Module, before: Mapping[str, tuple[th.Tensor, int]]) -> list[th.Tensor]:
    """List the buffers of a module that are not as they were."""
    # torch writes into some running statistics without counting it.
    is_uncounted = has_running_statistics(owner)
    return [
        buffer
        for name, buffer in _named(owner)
        if is_uncounted
        or name not in before
        or buffer is not before[name][0]
        or buffer._version != before[name][1]
    ]
