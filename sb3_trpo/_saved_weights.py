"""Read and check the weights of an untrusted model."""

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch as th
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_trpo._archive import check_entries

# What networks may allocate while they are built, in bytes and calls: this, plus a multiple of what
# the weights in the file take.
_SPARE_BYTES = 64 * 2**20
_BYTES_PER_WEIGHT_BYTE = 8
_SPARE_CALLS = 1_000
# SB3 stores the weights of features extractors up to three times.
_MAX_SHARING = 8
_CALLS_PER_TENSOR = 20


def read_weights(name: str, content: bytes) -> dict[str, Any]:
    """
    Read an entry that ``torch.save`` wrote, with torch's weights-only loader.

    :param name: of the entry, for errors
    :param content: the entry
    :return: a state dictionary
    :raises ValueError: if it is damaged, or holds anything but plain tensors, numbers and text
    """
    _check_inner_archive(name, content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = th.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise ValueError(f"{name} {_reason(error)}") from None
    if not isinstance(state, dict):
        raise ValueError(f"{name} holds a {type(state).__name__} and no state dictionary")
    tensors = list(tensors_of(state))
    if not all(map(_is_plain, tensors)):
        raise ValueError(f"{name} holds a tensor that is sparse, abstract or without its data")
    size = sum(tensor.numel() * tensor.itemsize for tensor in tensors)
    if size > _MAX_SHARING * len(content):  # copies do not share
        raise ValueError(f"{name} holds tensors of {size} bytes in {len(content)} bytes")
    return state


def _check_inner_archive(name: str, content: bytes) -> None:
    """Check torch's format, which is a zip file again; torch would inflate it without limits."""
    try:
        check_entries(content)
    except ValueError as error:
        raise ValueError(f"{name} was not written by torch.save: {error}") from error


def _reason(error: Exception) -> str:
    """Say in one line why torch refused a file; its own message recommends to trust the file."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if found:
        return f"holds {found[1]}, and weights are tensors and numbers"
    return f"is damaged ({type(error).__name__})"


def tensors_of(state: Any, depth: int = 0) -> Iterator[th.Tensor]:
    """
    Iterate over the tensors in nested containers.

    :param state: what torch loaded
    :param depth: how deep this is nested
    :raises ValueError: if it is nested too deeply
    """
    if depth > 6:
        raise ValueError("a state dictionary is nested too deeply")
    if isinstance(state, th.Tensor):
        yield state
    elif isinstance(state, (dict, list, tuple)):
        for each in state.values() if isinstance(state, dict) else state:
            yield from tensors_of(each, depth + 1)


def _is_plain(tensor: th.Tensor) -> bool:
    """Return whether all elements of a tensor are in memory."""
    is_dense = tensor.layout == th.strided and tensor.device.type == "cpu"
    return is_dense and tensor.numel() * tensor.itemsize <= tensor.untyped_storage().nbytes()


@contextmanager
def bounded_networks(weights: Mapping[str, Any]) -> Iterator[None]:
    """
    Refuse to build networks that are much larger than the weights for them.

    :param weights: state dictionaries
    :raises ValueError: within the block, before memory is allocated
    """
    tensors = list(tensors_of(weights))
    size = sum(tensor.numel() * tensor.itemsize for tensor in tensors)
    with _Bounds(
        _SPARE_BYTES + _BYTES_PER_WEIGHT_BYTE * size,
        _SPARE_CALLS + _CALLS_PER_TENSOR * len(tensors),
    ):
        yield


class _Bounds(TorchDispatchMode):  # type: ignore[no-untyped-call] # by torch
    """Count what is allocated in a block."""

    def __init__(self, size: int, calls: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # by torch
        self.bytes, self.calls = size, calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at the size that is asked for, then run the operation."""
        kwargs = kwargs or {}
        sizes = next((each for each in args if _is_size(each)), None)
        if func.overloadpacket in _FACTORIES and sizes is not None:
            self.bytes -= (
                math.prod(sizes) * (kwargs.get("dtype") or th.get_default_dtype()).itemsize
            )
            self.calls -= 1
            if min(self.bytes, self.calls) < 0:
                raise ValueError(
                    "policy_kwargs and the spaces describe networks that are much larger than the "
                    "saved weights"
                )
        return func(*args, **kwargs)


def _is_size(argument: Any) -> bool:
    """Return whether an argument of a torch operation is the size of a tensor."""
    return isinstance(argument, (list, tuple)) and all(isinstance(n, int) for n in argument)


_FACTORIES = {
    getattr(th.ops.aten, name)
    for name in (
        *("empty", "zeros", "ones", "full", "rand", "randn", "empty_strided"),
        *("new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided"),
    )
}


def check_parameters(policy: Any) -> None:
    """
    Check that a policy and its optimizer can be trained on.

    :param policy: with the weights in place
    :raises ValueError: if a parameter is not finite, or the optimizer's state does not fit
    """
    for name, parameter in policy.named_parameters():
        if not th.isfinite(parameter).all():
            raise ValueError(f"the parameter {name} is not finite")
        for key, tensor in policy.optimizer.state.get(parameter, {}).items():
            if isinstance(tensor, th.Tensor) and not _fits(tensor, parameter, policy.optimizer):
                raise ValueError(f"the optimizer's {key} of {name} does not fit, or is not finite")
    for name, buffer in policy.named_buffers():
        if buffer.is_floating_point() and th.isnan(buffer).any():  # masks may be infinite
            raise ValueError(f"the buffer {name} is not finite")
    _check_options(policy.optimizer)


def _check_options(optimizer: Any) -> None:
    """Check that an optimizer's options are of the kind of their defaults."""
    defaults = optimizer.defaults
    for group in optimizer.param_groups:
        wrong = [key for key in defaults if not _is_like(group.get(key), defaults[key])]
        if wrong:
            raise ValueError(f"the optimizer's {wrong[0]} is {str(group.get(wrong[0]))[:40]!r}")


def _fits(tensor: th.Tensor, parameter: th.Tensor, optimizer: th.optim.Optimizer) -> bool:
    """Return whether an entry of an optimizer's state belongs to a parameter."""
    is_free = tensor.dim() == 0 or not type(optimizer).__module__.startswith("torch.optim.adam")
    return (is_free or tensor.shape == parameter.shape) and bool(th.isfinite(tensor).all())


def _is_like(value: Any, default: Any) -> bool:
    """Return whether an option of an optimizer is of the kind of its default."""
    if isinstance(default, (bool, type(None))):
        return isinstance(value, (bool, type(None), str, int, float))
    if isinstance(default, (int, float)):
        is_number = isinstance(value, (int, float)) or getattr(value, "shape", None) == ()
        return is_number and (math.isfinite(value) or value == default)
    if isinstance(default, tuple):
        return (
            isinstance(value, (tuple, list))
            and len(value) == len(default)
            and all(map(_is_like, value, default))
        )
    return True
