"""Products of rows with matrices, in vector instructions, for numba's functions.

`multiply` gives the product of rows with a matrix that `pack` has laid out in panels of a few registers' columns. Sums
of up to ROWS rows and a panel stay in registers while the inner index runs from first to last: so each is formed in
that order, and what a row gives does not depend on how many rows there are, nor on its place among them.

`four_products` gives the products of rows with four rows of a matrix that lies as it is, for a few outputs of many. It
forms each sum in a fixed order too, another one.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from asr.nn._vectors import INDEX, REGISTER, by_lanes, index, kernel, llvm_type, load, size_of, splat, write

ROWS = 4 if REGISTER == 32 else 8  # AVX2 has 16 registers, AVX-512 and ARM have 32
VECTORS = 3  # of a panel's row: ROWS * VECTORS sums, a panel's row and one number fit the registers


def _panel(vectors: int) -> Any:
    """Make the product of any number of rows with a panel of so many registers, added to c's values if `add` is not 0.

    Called with a, the place of its first element, the distances of rows and of a row's elements; how many rows; b and
    the place of the panel's first row; how many elements of a row; c, a place, the distance of its rows; `add`.
    """

    def definition(
        _context: Any, a: Any, a_at: Any, a_row: Any, a_element: Any, rows: Any, b: Any, b_at: Any, depth: Any,
        c: Any, c_at: Any, c_row: Any, add: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            a, a_at, a_row, a_element, rows, b, b_at, depth, c, c_at, c_row, add = arguments
            a, b, c = (
                builder.gep(context.make_array(signature.args[which])(context, builder, array).data, [at])
                for which, array, at in ((0, a, a_at), (5, b, b_at), (8, c, c_at))
            )
            element = llvm_type(signature.args[8].dtype)
            kind = ir.VectorType(element, REGISTER // size_of(element))

            def block(first: Any, number: int) -> None:
                a_rows, c_rows = (
                    [builder.gep(data, [builder.mul(distance, builder.add(first, index(i)))]) for i in range(number)]
                    for data, distance in ((a, a_row), (c, c_row))
                )
                _rank_one_updates(builder, kind, a_rows, a_element, b, depth, c_rows, vectors, add)

            _blocks(builder, rows, ROWS, block)
            return context.get_dummy_value()

        kinds = (a, a_at, a_row, a_element, rows, b, b_at, depth, c, c_at, c_row, add)
        return types.void(*kinds), generate

    return intrinsic(definition)


def _rank_one_updates(
    builder: Any, kind: Any, a_rows: list[Any], a_element: Any, b: Any, depth: Any, c_rows: list[Any],
    vectors: int, add: Any,
) -> None:  # fmt: skip
    """Emit c = a b or c += a b: for each k, every row's element k times b's row k; the sums stay in registers."""
    lanes = kind.count
    name = f"llvm.fmuladd.v{lanes}f{8 * size_of(kind.element)}"
    add_product = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
    start, loop, end = builder.block, *map(builder.append_basic_block, ("rank_one", "end"))
    builder.branch(loop)
    builder.position_at_end(loop)
    k, offset = builder.phi(INDEX), builder.phi(INDEX)  # offset: of element k
    sums = [[builder.phi(kind) for _ in range(vectors)] for _ in a_rows]
    b_row = builder.gep(b, [builder.mul(k, index(vectors * lanes))])
    b_now = [
        builder.load(builder.gep(b_row, [index(v * lanes)]), align=size_of(kind.element), typ=kind)
        for v in range(vectors)
    ]
    results = []
    for row, row_sums in zip(a_rows, sums, strict=True):
        factor = splat(builder, builder.load(builder.gep(row, [offset]), typ=kind.element), kind)
        results.append([builder.call(add_product, [factor, x, y]) for x, y in zip(b_now, row_sums, strict=True)])
    k_next = builder.add(k, index(1))
    following = [k_next, builder.add(offset, a_element), *chain.from_iterable(results)]
    for phi, value in zip([k, offset, *chain.from_iterable(sums)], following, strict=True):
        phi.add_incoming(ir.Constant(phi.type, 0 if phi.type == INDEX else None), start)
        phi.add_incoming(value, loop)
    builder.cbranch(builder.icmp_signed("<", k_next, depth), loop, end)
    builder.position_at_end(end)

    def put(adding: bool) -> None:
        for row, row_results in zip(c_rows, results, strict=True):
            for v, result in enumerate(row_results):
                place = builder.gep(row, [index(v * lanes)])
                if adding:
                    result = builder.fadd(result, builder.load(place, align=size_of(kind.element), typ=kind))
                write(builder, result, place)

    with builder.if_else(builder.icmp_signed("!=", add, index(0))) as (then, otherwise):
        with then:
            put(adding=True)
        with otherwise:
            put(adding=False)


_one, _two, _three = map(_panel, (1, 2, 3))


@kernel
def multiply(a, a_at, a_row, a_element, rows, b, depth, start, end, c, c_at, c_row, add):
    """Compute c = a b, or c += a b if `add` is 1, for the inner index from `start` to `end`.

    Element k of row i of a is a[a_at + i * a_row + (k - start) * a_element]; b is packed and has `depth` rows; row i
    of c begins at c[c_at + i * c_row] and has the columns of b and the zeros that they are filled up with.
    """
    lanes = REGISTER // b.itemsize
    columns, width, length = len(b) // depth, VECTORS * lanes, end - start
    whole = columns - columns % width
    for column in range(0, whole, width):
        b_at = column * depth + start * width
        _three(a, a_at, a_row, a_element, rows, b, b_at, length, c, c_at + column, c_row, add)
    rest = columns - whole
    b_at = whole * depth + start * rest
    if rest == 2 * lanes:
        _two(a, a_at, a_row, a_element, rows, b, b_at, length, c, c_at + whole, c_row, add)
    elif rest == lanes:
        _one(a, a_at, a_row, a_element, rows, b, b_at, length, c, c_at + whole, c_row, add)


def _four_products(
    _context: Any, a: Any, a_at: Any, a_row: Any, rows: Any, b: Any, b_at: Any, b_row: Any, depth: Any,
    c: Any, c_at: Any, c_row: Any, c_element: Any,
) -> Any:  # fmt: skip
    """Compute c = a b^T for four rows of b that lie as they are, for a few outputs of many.

    Element k of row i of a is a[a_at + i * a_row + k], of b likewise, for k from 0 to `depth`; what row i gives for row
    j goes to c[c_at + i * c_row + j * c_element]. A sum has LANES parts, each of every LANES-th product.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, a_at, a_row, rows, b, b_at, b_row, depth, c, c_at, c_row, c_element = arguments
        a, b, c = (
            builder.gep(context.make_array(signature.args[which])(context, builder, array).data, [at])
            for which, array, at in ((0, a, a_at), (4, b, b_at), (8, c, c_at))
        )
        dtype = signature.args[8].dtype
        b_rows = [builder.gep(b, [builder.mul(b_row, index(j))]) for j in range(4)]

        def block(first: Any, number: int) -> None:
            items = [builder.add(first, index(i)) for i in range(number)]
            a_rows = [builder.gep(a, [builder.mul(a_row, item)]) for item in items]
            sums = _dot_products(builder, dtype, a_rows, b_rows, depth)
            for item, row_sums in zip(items, sums, strict=True):
                for j, value in enumerate(row_sums):
                    at = builder.add(builder.mul(c_row, item), builder.mul(c_element, index(j)))
                    builder.store(value, builder.gep(c, [at]))

        _blocks(builder, rows, ROWS // 2, block)
        return context.get_dummy_value()

    kinds = (a, a_at, a_row, rows, b, b_at, b_row, depth, c, c_at, c_row, c_element)
    return types.void(*kinds), generate


four_products: Any = intrinsic(_four_products)


def _dot_products(builder: Any, dtype: Any, a_rows: list[Any], b_rows: list[Any], depth: Any) -> list[list[Any]]:
    """Emit the sums over `depth` elements of the products of each row of a with each of b."""
    element = llvm_type(dtype)
    lanes = REGISTER // size_of(element)
    kind = ir.VectorType(element, lanes)
    name = f"llvm.fmuladd.v{lanes}f{8 * size_of(element)}"
    add_product = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
    # Memory for the sums, which LLVM keeps in registers.
    sums = [[cgutils.alloca_once_value(builder, ir.Constant(kind, None)) for _ in b_rows] for _ in a_rows]
    for place in chain.from_iterable(sums):
        builder.store(ir.Constant(kind, None), place)

    def add(at: Any, mask: Any) -> None:
        a_now, b_now = (
            [load(builder, dtype, builder.gep(row, [at]), element, lanes, mask) for row in rows]
            for rows in (a_rows, b_rows)
        )
        for x, row_sums in zip(a_now, sums, strict=True):
            for y, place in zip(b_now, row_sums, strict=True):
                builder.store(builder.call(add_product, [x, y, builder.load(place, typ=kind)]), place)

    by_lanes(builder, depth, lanes, add)
    return [[_sum_of_lanes(builder, builder.load(place, typ=kind)) for place in row_sums] for row_sums in sums]


def _sum_of_lanes(builder: Any, value: Any) -> Any:
    """Half by half."""
    numbers = ir.IntType(32)
    half = value.type.count // 2
    while half:
        left, right = (
            ir.Constant(ir.VectorType(numbers, half), list(range(first, first + half))) for first in (0, half)
        )
        nothing = ir.Constant(value.type, ir.Undefined)
        value = builder.fadd(*(builder.shuffle_vector(value, nothing, lanes) for lanes in (left, right)))
        half //= 2
    return builder.extract_element(value, ir.Constant(numbers, 0))


def _blocks(builder: Any, rows: Any, largest: int, block: Callable[[Any, int], None]) -> None:
    """Emit `block(first, number)` for `largest` rows at a time, the rest as the sum of powers of two that it is."""
    whole = builder.sdiv(rows, index(largest))
    with cgutils.for_range(builder, whole) as blocks:
        block(builder.mul(blocks.index, index(largest)), largest)
    number = largest // 2
    while number:
        with builder.if_then(builder.icmp_signed("!=", builder.and_(rows, index(number)), index(0))):
            block(builder.and_(rows, index(-2 * number)), number)
        number //= 2


def pack(matrix: Float[Tensor, "*K D N"]) -> Float[Tensor, "*K P"]:
    """Lay out matrices for `multiply`: panels of VECTORS registers of columns, the last one as narrow as can be."""
    lanes = REGISTER // matrix.element_size()
    matrix = F.pad(matrix, (0, -matrix.shape[-1] % lanes))
    width = VECTORS * lanes
    whole = matrix.shape[-1] - matrix.shape[-1] % width
    packed = matrix.new_empty(*matrix.shape[:-2], matrix.shape[-2] * matrix.shape[-1])
    panels, rest = packed.split((matrix.shape[-2] * whole, packed.shape[-1] - matrix.shape[-2] * whole), -1)
    by_panel = matrix[..., :whole].unflatten(-1, (-1, width)).transpose(-3, -2)
    panels.view(by_panel.shape).copy_(by_panel)
    rest.view(*matrix.shape[:-1], -1).copy_(matrix[..., whole:])
    return packed


def first_columns(packed: Float[Tensor, "P"], depth: int, columns: int) -> Float[Tensor, "_"]:
    """Of a packed matrix with `depth` rows the first columns, and the others of their last panel."""
    width = VECTORS * (REGISTER // packed.element_size())
    return packed[: -(-columns // width) * width * depth]
