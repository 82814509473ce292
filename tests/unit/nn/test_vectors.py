"""Vector instructions: what equations compute, and where they write; products against float64."""

import numpy as np
import pytest
import torch

from asr.nn._panels import ROWS, VECTORS, first_columns, four_products, multiply, pack
from asr.nn._vectors import REGISTER, Vector, equations, kernel, scratch, sigmoid, tanh


@equations(inputs=2, outputs=2)
def _squashed(x: Vector, y: Vector) -> tuple[Vector, ...]:
    return sigmoid(x), tanh(y)


@equations(inputs=1, outputs=1)
def _plus_one(x: Vector) -> tuple[Vector, ...]:
    return (x + 1.0,)


@equations(numbers=2, inputs=1, outputs=1)
def _line(slope: Vector, start: Vector, x: Vector) -> tuple[Vector, ...]:
    return (slope * x + start,)


@kernel
def line(size, slope, start, x, x_at):
    _line(size, slope, start, x, x_at, x, x_at)


@kernel
def squashed(size, x, x_at, y, y_at, one, one_at, other, other_at):
    _squashed(size, x, x_at, y, y_at, one, one_at, other, other_at)


@kernel
def plus_one(size, x, x_at):
    _plus_one(size, x, x_at, x, x_at)


@kernel
def by_four(a, a_at, a_row, rows, b, b_at, b_row, depth, c, c_row, c_element):
    four_products(a, a_at, a_row, rows, b, b_at, b_row, depth, c, 0, c_row, c_element)


@pytest.mark.parametrize("size", [0, 1, 7, 15, 16, 17, 31, 40])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_row_is_computed_and_nothing_beside_it(size: int, dtype: type) -> None:
    x = np.full(60, 2.0, dtype)
    plus_one(size, x, 5)
    expected = np.full(60, 2.0)
    expected[5 : 5 + size] = 3
    assert np.array_equal(x, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_are_the_same_for_all_elements(dtype: type) -> None:
    """Whatever their type: as the elements', or another float, or an integer."""
    for slope, start in ((dtype(0.5), dtype(3)), (0.5, np.float32(3)), (0.5, 3)):
        x = np.arange(40, dtype=dtype)
        line(33, slope, start, x, 2)
        expected = np.arange(40.0)
        expected[2:35] = expected[2:35] / 2 + 3
        assert np.array_equal(x, expected)


@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 3e-7), (np.float64, 4e-16)])
def test_squashing_functions(dtype: type, bound: float) -> None:
    """Relative error over all that float32 can tell apart from 0 and 1, and the values beyond."""
    x = np.concatenate((-np.geomspace(1e-30, 80, 4001)[::-1], [0.0], np.geomspace(1e-30, 80, 4001))).astype(dtype)
    one, other = np.empty_like(x), np.empty_like(x)
    squashed(len(x), x, 0, x, 0, one, 0, other, 0)
    exact = torch.from_numpy(x).double()
    assert float(((torch.from_numpy(one) - exact.sigmoid()) / exact.sigmoid()).abs().max()) < bound * 10
    difference = (torch.from_numpy(other) - exact.tanh()).abs()
    assert float((difference / exact.tanh().abs().clamp(min=1e-300)).max()) < bound
    special = np.array([np.nan, np.inf, -np.inf, 1e38, -1e38], dtype)
    one, other = np.empty_like(special), np.empty_like(special)
    squashed(5, special, 0, special, 0, one, 0, other, 0)
    assert np.allclose(one, [np.nan, 1, 0, 1, 0], rtol=0, atol=1e-37, equal_nan=True)
    assert np.array_equal(other, [np.nan, 1, -1, 1, -1], equal_nan=True)


def test_bfloat16_is_widened_and_rounded_to_even() -> None:
    values = torch.cat((torch.randn(1000), torch.tensor([1.00390625, 1.01171875, float("inf"), 0.0]))).bfloat16()
    got = values.clone()
    plus_one(len(values), got.view(torch.uint16).numpy(), 0)
    assert torch.equal(got, (values.float() + 1).bfloat16())
    broken = torch.full((3,), float("nan")).bfloat16()
    plus_one(3, broken.view(torch.uint16).numpy(), 0)
    assert broken.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("depth", "columns"), [(1, 1), (5, 47), (64, 20), (40, 48), (200, 131)])
def test_products(dtype: torch.dtype, depth: int, columns: int) -> None:
    """Of 1 to 19 rows that stand apart; a row's bits do not depend on how many there are."""
    matrix = torch.randn(depth, columns, dtype=dtype)
    packed = pack(matrix).numpy()
    width = REGISTER // matrix.element_size()
    assert len(packed) == depth * -(-columns // width) * width
    a = torch.randn(19, depth + 3, dtype=dtype)
    distance = len(packed) // depth + 2
    results = []
    for rows in range(1, 20):
        c = np.full(rows * distance, 7.0, packed.dtype)
        multiply(a.flatten().numpy(), 2, depth + 3, 1, rows, packed, depth, 0, depth, c, 0, distance, 0)
        c = torch.from_numpy(c).view(rows, distance)
        assert bool((c[:, -2:] == 7).all())
        results.append(c[:, :columns])
    expected = a[:, 2 : 2 + depth].double() @ matrix.double()
    assert float((results[-1] - expected).abs().max()) < torch.finfo(dtype).eps * 4 * depth**0.5 * 4
    assert ROWS < 19
    for result in results:
        assert torch.equal(result, results[-1][: len(result)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("depth", [1, 15, 16, 50, 200])
def test_products_with_four_rows(dtype: torch.dtype, depth: int) -> None:
    """Of 1 to 9 rows; all stand apart; a row's bits do not depend on how many there are."""
    a, b = torch.randn(9, depth + 3, dtype=dtype), torch.randn(4, depth + 5, dtype=dtype)
    expected = a[:, 2 : 2 + depth].double() @ b[:, 1 : 1 + depth].double().T
    results = []
    for rows in range(1, 10):
        c = torch.full((rows, 5, 2), 7.0, dtype=dtype)
        arrays = (tensor.flatten().numpy() for tensor in (a, b, c))
        left, right, out = arrays
        by_four(left, 2, depth + 3, rows, right, 1, depth + 5, depth, out, 10, 2)
        assert bool((c[:, 4] == 7).all())
        assert bool((c[..., 1] == 7).all())
        results.append(c[:, :4, 0])
    assert float((results[-1] - expected).abs().max()) < torch.finfo(dtype).eps * 4 * depth**0.5 * 4
    for result in results:
        assert torch.equal(result, results[-1][: len(result)])


@pytest.mark.parametrize("columns", [1, 48, 49, 100, 131])
def test_first_columns_of_a_packed_matrix(columns: int) -> None:
    matrix, a = torch.randn(7, 131), torch.randn(2, 7)
    packed = first_columns(pack(matrix), 7, columns).numpy()
    distance = len(packed) // 7
    assert columns <= distance < columns + VECTORS * REGISTER // 4
    c = np.zeros(2 * distance, np.float32)
    multiply(a.flatten().numpy(), 0, 7, 1, 2, packed, 7, 0, 7, c, 0, distance, 0)
    assert np.allclose(c.reshape(2, -1)[:, :columns], a @ matrix[:, :columns], rtol=0, atol=1e-5)


def test_rows_of_scratch_do_not_meet() -> None:
    for size in (1, 16, 100, 512):
        memory, distance = scratch(7, size, np.empty(0, np.float32))
        assert distance >= size
        assert len(memory) == 7 * distance
        assert memory.ctypes.data % 64 == 0
        assert not memory.any()
        sets = {row * distance * 4 // 64 % 8 for row in range(7)}
        assert len(sets) == 7
