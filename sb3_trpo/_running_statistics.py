"""
Layers that change their own buffers in training mode.

Batch normalisation, spectral normalisation and layers that normalise by what they have seen: during
an update they are in evaluation mode, and afterwards a pass over the rollout refreshes them. A part
that the policy's own ``train`` leaves in evaluation mode, as a pretrained one, stays in it.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch as th
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from sb3_trpo._processes import Processes


def modules_in_training(policy: nn.Module) -> set[nn.Module]:
    """
    List the modules that are in training mode while a policy is.

    :param policy: any policy; its mode is the same afterwards
    :return: all modules but those that it pins to evaluation mode
    """
    was_training = policy.training
    policy.train(True)
    found = {module for module in policy.modules() if module.training}
    policy.train(was_training)
    return found


@contextmanager
def training_mode(policy: nn.Module, modules: Collection[nn.Module]) -> Iterator[None]:
    """
    Put modules, and not what is inside them, into training mode for the duration of a block.

    :param policy: in evaluation mode
    :param modules: of the policy; those that it pins to evaluation mode stay in it
    :return: context manager
    """
    trained = modules_in_training(policy).intersection(modules)
    for module in trained:
        module.training = True
    try:
        yield
    finally:
        for module in trained:
            module.training = False


def has_running_statistics(module: nn.Module) -> bool:
    """
    Return whether a module is batch normalisation that remembers what it has seen.

    :param module: any module
    """
    return isinstance(module, _NormBase) and module.track_running_stats


class Buffers:
    """
    The buffers of some modules, to see which of them change.

    :param policy: any policy
    :param modules: of the policy; those that it pins to evaluation mode are left out
    """

    def __init__(self, policy: nn.Module, modules: Collection[nn.Module]) -> None:
        # In an order that all processes have.
        owners = [m for m in policy.modules() if _buffers_of(m) and m in modules]
        in_training = modules_in_training(policy) if owners else set()
        self.owners = [owner for owner in owners if owner in in_training]
        self._before = list(map(_versions_of, self.owners))

    @th.no_grad()
    def average(self, processes: Processes) -> bool:
        """
        Give those that have changed the same numbers in all processes: their average.

        :param processes: that have the same modules
        :return: whether any has changed in any process
        """
        if not self.owners:
            return False
        changed = set[int]().union(*processes.gather(self.changed()))
        for position in sorted(changed) if processes.size > 1 else ():
            for buffer in _buffers_of(self.owners[position]):
                if buffer.is_floating_point() and buffer.layout is th.strided:
                    buffer.copy_(processes.mean(buffer, 1.0))
        return bool(changed)

    def changed(self) -> set[int]:
        """
        Find the owners whose buffers were replaced or written into, in this process.

        :return: their positions in ``owners``
        """
        return {
            position
            for position, owner in enumerate(self.owners)
            # torch writes into some running statistics without counting it.
            if has_running_statistics(owner) or _versions_of(owner) != self._before[position]
        }


def _buffers_of(module: nn.Module) -> list[th.Tensor]:
    return list(module.buffers(recurse=False))


def _versions_of(module: nn.Module) -> list[tuple[int, int]]:
    return [(id(buffer), buffer._version) for buffer in _buffers_of(module)]
