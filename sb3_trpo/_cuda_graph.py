"""
A Fisher product as one launch on a GPU.

The product of a small network is some fifty kernels of a few microseconds. Launching them takes
longer than running them, and all products of one solve run the same kernels on the same memory.
"""

from collections.abc import Callable

import torch as th

# Libraries allocate their workspaces in the first runs, which a graph must not contain.
_WARM_UPS = 2


def as_cuda_graph(
    product: Callable[[th.Tensor], th.Tensor], like: th.Tensor
) -> Callable[[th.Tensor], th.Tensor]:
    """
    Record the kernels of a function once and replay them in every call.

    :param product: function of one tensor that neither waits for the GPU nor uses autograd; it is
        run a few times
    :param like: a tensor as ``product`` takes it, on a GPU
    :return: the same function; every call overwrites the result of the one before

    Source: PyTorch documentation, CUDA semantics, section "CUDA Graphs".
    """
    vector = th.zeros_like(like)
    stream = th.cuda.Stream()  # type: ignore[no-untyped-call] # torch has no annotation
    stream.wait_stream(th.cuda.current_stream())
    with th.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            product(vector)
    th.cuda.current_stream().wait_stream(stream)
    graph = th.cuda.CUDAGraph()
    with th.cuda.graph(graph):
        result = product(vector)

    def replay(argument: th.Tensor) -> th.Tensor:
        vector.copy_(argument)
        graph.replay()
        return result

    return replay
