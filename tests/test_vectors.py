import pytest
import torch as th

from sb3_trpo._vectors import flatten, unflatten

SHAPES = [[(2, 3), (4,), ()], [(1,)], [(2, 0), (3,)], [(2, 3, 4, 5)]]


@pytest.mark.parametrize("shapes", SHAPES)
def test_unflatten_undoes_flatten(shapes: list[tuple[int, ...]]) -> None:
    tensors = [th.randn(shape) for shape in shapes]
    again = unflatten(flatten(tensors), tensors)
    assert all(th.equal(a, b) for a, b in zip(tensors, again, strict=True))


def test_flatten_keeps_the_order_of_rows() -> None:
    matrix = th.arange(6.0).reshape(2, 3)
    assert flatten([matrix, th.tensor([6.0])]).tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_a_transposed_tensor_is_read_by_its_rows_and_not_by_its_memory() -> None:
    matrix = th.arange(6.0).reshape(2, 3).T
    (again,) = unflatten(flatten([matrix]), [matrix])
    assert th.equal(again, matrix)


def test_parts_share_the_memory_of_the_vector() -> None:
    vector = th.zeros(3)
    unflatten(vector, [th.zeros(1), th.zeros(2)])[1].fill_(1)
    assert vector.tolist() == [0, 1, 1]


@pytest.mark.parametrize("size", [4, 6])
def test_a_vector_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(RuntimeError):
        unflatten(th.zeros(size), [th.zeros(5)])
