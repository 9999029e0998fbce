"""The processes of a data-parallel training: sums over all of them, and agreement."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch as th
from torch import distributed as dist

Anything = TypeVar("Anything")


class Processes:
    """A single process: every sum is its own, and everybody agrees."""

    rank = 0
    size = 1

    def mean(self, total: th.Tensor, weight: float) -> th.Tensor:
        """
        Divide the sum over the states of all processes by the sum of their weights.

        :param total: weighted sum over the states of this process, of one shape in all processes
        :param weight: sum of their weights
        :return: the mean, the same in all processes
        """
        return total / weight

    def average(self, sums: th.Tensor) -> None:
        """
        Divide, in place, sums over the states of all processes by the last of them.

        :param sums: vector of this process, of one length in all; the last entry is a sum of
            weights, and is undefined afterwards
        """
        sums[:-1].div_(sums[-1])

    def total(self, number: float) -> float:
        """
        Add a number of every process.

        :param number: of this process
        :return: the sum
        """
        return number

    def all(self, is_true: bool) -> bool:
        """
        Return whether something is true in all processes.

        :param is_true: whether it is true in this one
        """
        return is_true

    def gather(self, item: Anything) -> list[Anything]:
        """
        Collect an object of every process.

        :param item: of this process; it can be pickled
        :return: the objects, by rank
        """
        return [item]

    def before(self, number: int) -> int:
        """
        Add the numbers of the processes with a smaller rank.

        :param number: of this process
        :return: the sum; 0 in the first process
        """
        return sum(self.gather(number)[: self.rank])

    def of_first(self, item: Anything) -> Anything:
        """
        Take an object from the process of rank 0.

        :param item: of this process; it can be pickled
        :return: that of rank 0
        """
        return item

    @contextmanager
    def together(self) -> Iterator[None]:
        """
        Run a block without communication, whose exception ends it in all processes.

        :return: context manager
        :raises RuntimeError: if only other processes raised, naming them and their errors
        """
        yield


ALONE = Processes()


class ProcessGroup(Processes):
    """
    The processes of torch's default process group.

    :param device: of the policy, on which NCCL communicates
    """

    def __init__(self, device: th.device) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._device = device if dist.get_backend() == "nccl" else th.device("cpu")

    def mean(self, total: th.Tensor, weight: float) -> th.Tensor:
        """Add sum and weight in one message, then divide."""
        sums = th.cat([total.flatten(), total.new_tensor([weight])])
        self.average(sums)
        return sums[:-1].reshape(total.shape)

    def average(self, sums: th.Tensor) -> None:
        """Add in one message, then divide."""
        added = self._sum(sums.to(self._device))
        th.div(added[:-1], added[-1], out=added[:-1])
        if added is not sums:
            sums.copy_(added)

    def total(self, number: float) -> float:
        """Add in double precision, exact for integers."""
        return float(self._sum(th.tensor([number], dtype=th.float64, device=self._device)))

    def all(self, is_true: bool) -> bool:
        """Count the processes where it is true."""
        return self.total(is_true) == self.size

    def gather(self, item: Anything) -> list[Anything]:
        """Collect by pickling."""
        items: list[Any] = [None] * self.size
        self._exchange(lambda: dist.all_gather_object(items, item))
        return items

    def of_first(self, item: Anything) -> Anything:
        """Send by pickling."""
        items: list[Anything] = [item]
        self._exchange(lambda: dist.broadcast_object_list(items, 0, device=self._device))
        return items[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Ask after the block whether it raised in any process."""
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        if not self.all(error is None):
            texts = self.gather(None if error is None else f"{type(error).__name__}: {error}")
            raise error or RuntimeError(_in_words(texts))

    def _sum(self, tensor: th.Tensor) -> th.Tensor:
        """Add a tensor of every process, in place."""
        self._exchange(lambda: dist.all_reduce(tensor))
        return tensor

    def _exchange(self, communicate: Callable[[], Any]) -> None:
        """Communicate, and say what a failure means."""
        try:
            communicate()
        except RuntimeError as error:
            raise RuntimeError(
                f"Process {self.rank} of {self.size} lost contact with another process: one has "
                f"ended, or did not answer within the timeout of init_process_group. The cause is "
                f"in the output of the process that ended first. Training can be resumed from the "
                f"latest checkpoint. Torch says: {error}"
            ) from error


def processes_of(data_parallel: bool, device: th.device) -> Processes:
    """
    Return the processes that train a model together.

    :param data_parallel: whether the processes of torch's default group do
    :param device: of the policy
    :return: all processes, or this one alone
    :raises ValueError: if there is no process group
    """
    if not data_parallel:
        return ALONE
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            "data_parallel=True needs a process group, and there is none. Call "
            "torch.distributed.init_process_group('gloo') first ('nccl' on GPUs), in a script that "
            "torchrun starts, or leave data_parallel out to train in one process."
        )
    return ProcessGroup(device)


def _in_words(texts: list[str | None]) -> str:
    """Name the processes that raised."""
    faults = [f"process {rank}: {text}" for rank, text in enumerate(texts) if text is not None]
    return f"Training has ended in all {len(texts)} processes because of {'; '.join(faults)}"
