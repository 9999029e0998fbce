"""The processes of a data-parallel training: sums over all of them, and agreement."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, TypeVar

import torch as th
from torch import distributed as dist

if dist.is_available():
    # Its functions keep the group that there is when they are imported as their default argument,
    # and dynamo imports them with a training's first step. Imported here, mostly before there is
    # one, they do not keep its threads alive beyond its end, when these may abort the exit.
    import torch.distributed.nn.functional

Anything = TypeVar("Anything")

# Seconds to wait for the other processes to notice that one is lost. They notice at once, unless
# they are collecting a rollout.
NOTICING = 2.0


class OtherProcessError(RuntimeError):
    """Training has ended in this process because of an exception in another one."""


class LostContactError(RuntimeError):
    """Another process has ended, or did not answer within the process group's timeout."""


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

    def together(self) -> AbstractContextManager[None]:
        """
        Run a block without communication, whose exception or interruption ends it in all processes.

        :return: context manager
        :raises OtherProcessError: if only other processes raised, naming them and their errors
        :raises KeyboardInterrupt: if only other processes raised, and nothing but this
        """
        return nullcontext()

    def is_first_to(self, act: str) -> bool:
        """
        Return whether no other process has asked the same, however few of them are left.

        :param act: what only one process should do
        """
        return True


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
        error: BaseException | None = None
        try:
            yield
        except (Exception, KeyboardInterrupt) as raised:
            error = raised
        if not self.all(error is None):
            faults = self.gather(_fault(error))
            if error is None:
                raise _error_of_others(faults)
            note = f"This happened in process {self.rank} of {self.size}, and ended all."
            add_note(error, note)
            raise error

    def is_first_to(self, act: str) -> bool:
        """Count in the group's store, which outlives connections between processes."""
        try:
            return bool(self._store().add(f"sb3_trpo/{act}", 1) == 1)
        except RuntimeError:  # the store ended together with the process that had it
            return True

    def _sum(self, tensor: th.Tensor) -> th.Tensor:
        """Add a tensor of every process, in place."""
        self._exchange(lambda: dist.all_reduce(tensor))
        return tensor

    def _exchange(self, communicate: Callable[[], Any]) -> None:
        """Communicate, and say what a failure means."""
        try:
            communicate()
        except RuntimeError as error:
            raise LostContactError(
                f"Process {self.rank} of {self.size} has lost contact: {self._lost()}. Training "
                f"can be resumed from the latest checkpoint. Torch says: {error}"
            ) from error

    def _lost(self) -> str:
        """Name the processes that do not report that they have lost contact, too."""
        store = self._store()
        keys = [f"sb3_trpo/lost_contact/{rank}" for rank in range(self.size)]
        with suppress(RuntimeError):
            store.set(keys[self.rank], "")
            time.sleep(NOTICING)
            missing = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
            names = f"process {', '.join(missing)} has" if missing else "a connection has"
            return f"{names} ended, or did not answer within the timeout of the process group"
        return "the process that held the group's store, usually process 0, has ended"

    @staticmethod
    def _store() -> Any:
        """Return the group's key-value store."""
        return dist.distributed_c10d._get_default_store()


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


# The class of an interruption, and words for any exception.
Fault = tuple[type[KeyboardInterrupt] | None, str]


def _fault(error: BaseException | None) -> Fault | None:
    """Describe an exception to the other processes."""
    if error is None:
        return None
    kind = type(error) if isinstance(error, KeyboardInterrupt) else None
    return kind, " ".join([f"{type(error).__name__}: {error}", *_notes(error)])


def add_note(error: BaseException, note: str) -> None:
    """
    Add a note to an exception, if it takes attributes.

    :param error: the exception
    :param note: which Python prints below it, from 3.11 on
    """
    with suppress(Exception):
        # The attribute that `add_note` writes, which Python 3.10 does not have.
        error.__notes__ = [*_notes(error), note]


def _notes(error: BaseException) -> list[str]:
    """List the notes of an exception."""
    return list(getattr(error, "__notes__", []))


def _error_of_others(faults: list[Fault | None]) -> BaseException:
    """Make the exception of a process that did not raise itself."""
    raised = [(rank, fault) for rank, fault in enumerate(faults) if fault is not None]
    interrupts = [kind for _, (kind, _) in raised if kind is not None]
    if len(interrupts) == len(raised):
        return interrupts[0]()
    names = "; ".join(f"process {rank}: {text}" for rank, (kind, text) in raised if kind is None)
    return OtherProcessError(
        f"Training has ended in all {len(faults)} processes because of {names}"
    )
