"""A flat vector, and the tuple of parameter-shaped tensors that it stands for."""

import math
from collections.abc import Sequence

import torch as th


def flatten(tensors: Sequence[th.Tensor]) -> th.Tensor:
    """
    Join tensors into one flat vector.

    :param tensors: tensors of any shape, of one dtype and device, in the order of the result; one
        may be sparse, as an embedding's gradient
    :return: vector of shape ``(P,)``, P being the total number of elements
    """
    dense = (tensor.to_dense() if tensor.is_sparse else tensor for tensor in tensors)
    return th.cat([tensor.reshape(-1) for tensor in dense])


def unflatten(vector: th.Tensor, like: Sequence[th.Tensor]) -> tuple[th.Tensor, ...]:
    """
    Cut a flat vector into views with the shapes of the given tensors.

    :param vector: vector of shape ``(P,)``
    :param like: tensors with P elements in total; only their shapes are used
    :return: one view of ``vector`` per tensor
    """
    parts = th.split(vector, [tensor.numel() for tensor in like])
    return tuple(part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True))


def is_finite(tensor: th.Tensor) -> bool:
    """
    Return whether all numbers are finite; their sum is not if one is not, and is cheaper.

    :param tensor: of any shape
    """
    return math.isfinite(float(tensor.sum())) or bool(tensor.isfinite().all())
