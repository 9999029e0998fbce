"""Run a policy without the kernels that have no second derivative."""

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch as th
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


class _Switches:
    """
    Settings of torch, which are the whole process's.

    Of several threads, the last one to leave restores what the first one found.
    """

    def __init__(self) -> None:
        self._lock, self._users, self._changes = threading.Lock(), 0, ExitStack()

    def enter(self, is_recurrent: bool) -> None:
        """
        Turn off what has no second derivative.

        :param is_recurrent: whether that includes cuDNN
        """
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._changes.enter_context(sdpa_kernel(SDPBackend.MATH))
                self._changes.enter_context(_without_fast_path())
                if "torch._dynamo" in sys.modules:  # functions are hidden in what calls them
                    self._changes.enter_context(th.compiler.set_stance("force_eager"))
            if is_recurrent and th.backends.cudnn.enabled:
                self._changes.enter_context(_without_cudnn())

    def leave(self) -> None:
        """Turn everything on again, unless another thread needs it off."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._changes.close()


_SWITCHES = _Switches()


@contextmanager
def twice_differentiable(policy: nn.Module) -> Iterator[None]:
    """
    Run a policy without the kernels that have no second derivative.

    These are cuDNN's recurrent layers, fused attention, torch's fast path of transformers in
    evaluation mode, and compiled code.

    :param policy: any policy
    :return: context manager
    """
    is_recurrent = any(isinstance(module, nn.RNNBase) for module in policy.modules())
    try:
        _SWITCHES.enter(is_recurrent)
        yield
    finally:
        _SWITCHES.leave()


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Turn torch's fast path of transformers off."""
    before = th.backends.mha.get_fastpath_enabled()
    th.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        th.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """Turn cuDNN off; it is on."""
    th.backends.cudnn.enabled = False
    try:
        yield
    finally:
        th.backends.cudnn.enabled = True
