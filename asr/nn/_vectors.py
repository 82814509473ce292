"""Vector instructions for numba's functions: equations over rows, and products of matrices with few rows.

numba leaves it to LLVM to find vector instructions in a loop, which it does where few arrays can overlap, and never
for a product whose sums stay in registers. Here they are said outright:

* `equations` makes a function on `Vector`s into one that numba's functions call for rows of numbers: it loads LANES
  of each argument, computes, stores LANES of each result, and so on along the row.
* `multiply` gives the product of rows with a matrix that `pack` has laid out in panels of some columns. Sums of up to
  ROWS rows and a panel stay in registers while the inner index runs from first to last: so each is added up in that
  order, and what a row gives does not depend on how many rows there are, nor on its place among them.

* `four_products` gives the products of rows with four rows of a matrix that lies as it is, for a few outputs of many.
  It adds up each in a fixed order too, another one.

A number takes the whole register width that the processor has; all work on any that LLVM knows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import Parameter, Signature
from itertools import chain
from typing import Any

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from asr.compiled import compiled

kernel = partial(compiled, fastmath={"contract"})

FEATURES = get_host_cpu_features()
REGISTER = 64 if FEATURES.get("avx512f") else 32 if FEATURES.get("avx2") else 16  # bytes
ROWS = 4 if REGISTER == 32 else 8  # AVX2 has 16 registers, AVX-512 and ARM have 32
VECTORS = 3  # of a panel's row: ROWS * VECTORS sums, a panel's row and one number fit the registers
INDEX = ir.IntType(64)


class Vector:
    """LANES numbers in a register, while a function is being compiled; operators emit instructions."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def _other(self, x: Vector | float) -> Any:
        return x.value if isinstance(x, Vector) else ir.Constant(self.value.type, [float(x)] * self.value.type.count)

    def _emit(self, name: str, left: Any, right: Any) -> Vector:
        flags = ("contract",)  # a product and a sum may become one instruction
        return Vector(self.builder, getattr(self.builder, name)(left, right, flags=flags))

    def __add__(self, x: Vector | float) -> Vector:
        return self._emit("fadd", self.value, self._other(x))

    def __sub__(self, x: Vector | float) -> Vector:
        return self._emit("fsub", self.value, self._other(x))

    def __mul__(self, x: Vector | float) -> Vector:
        return self._emit("fmul", self.value, self._other(x))

    def __truediv__(self, x: Vector | float) -> Vector:
        return self._emit("fdiv", self.value, self._other(x))

    def __radd__(self, x: float) -> Vector:
        return self + x

    def __rmul__(self, x: float) -> Vector:
        return self * x

    def __rsub__(self, x: float) -> Vector:
        return self._emit("fsub", self._other(x), self.value)

    def __rtruediv__(self, x: float) -> Vector:
        return self._emit("fdiv", self._other(x), self.value)

    def __neg__(self) -> Vector:
        return Vector(self.builder, self.builder.fneg(self.value))

    def where(self, sign: str, bound: Vector | float, yes: Vector | float, no: Vector | float) -> Vector:
        """`yes` where `self sign bound` holds; not for NaN."""
        holds = self.builder.fcmp_ordered(sign, self.value, self._other(bound))
        return Vector(self.builder, self.builder.select(holds, self._other(yes), self._other(no)))

    def call(self, name: str) -> Vector:
        """One of LLVM's functions of one number."""
        kind = self.value.type
        full = f"llvm.{name}.v{kind.count}f{8 * _size(kind.element)}"
        function = cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(kind, [kind]), full)
        return Vector(self.builder, self.builder.call(function, [self.value]))

    @property
    def single(self) -> bool:
        """Whether the numbers are float32."""
        return isinstance(self.value.type.element, ir.FloatType)


def sigmoid(x: Vector) -> Vector:
    """1 / (1 + e^-x)."""
    return 1.0 / (1.0 + exp(-x))


def tanh(x: Vector) -> Vector:
    """Within some units of the last digit; near 0 by its series (Cephes' tanhf), so that small values keep theirs."""
    if not x.single:
        return x.call("tanh")
    s = x * x
    y = ((((s * -5.70498872745e-3 + 2.06390887954e-2) * s - 5.37397155531e-2) * s + 1.33314422036e-1) * s) + (
        -3.33332819422e-1
    )
    near = y * s * x + x
    size = x.call("fabs")
    far = 1.0 - 2.0 / (exp(size + size) + 1.0)
    far = x.where("<", 0.0, -far, far)
    return size.where("<=", 0.625, near, far)  # NaN goes far and stays NaN


LOG2_E, LN2_HIGH, LN2_LOW = 1.4426950408889634, 0.693359375, -2.12194440e-4  # the last two's sum is ln 2
ROUNDER = 1.5 * 2**23  # x + this - this is x, rounded; the sum's lowest bits are the integer


def exp(x: Vector) -> Vector:
    """Cephes' expf, clamped where float32 ends; NaN stays NaN. The library's for float64."""
    if not x.single:
        return x.call("exp")
    x = x.where("<", -87.0, -87.0, x)
    x = x.where(">", 88.0, 88.0, x)
    rounded = x * LOG2_E + ROUNDER
    n = rounded - ROUNDER
    x = x - n * LN2_HIGH
    x = x - n * LN2_LOW
    y = x * 1.9875691e-4 + 1.3981999e-3
    for coefficient in (8.3334519e-3, 4.1665796e-2, 1.6666666e-1, 0.5):
        y = y * x + coefficient
    y = y * (x * x) + x + 1.0
    builder, kind = x.builder, x.value.type
    whole = ir.VectorType(ir.IntType(32), kind.count)
    bits = builder.shl(builder.bitcast(rounded.value, whole), _repeated(whole, 23))
    power = builder.bitcast(builder.add(bits, _repeated(whole, 0x3F800000)), kind)
    return y * Vector(builder, power)


def equations(*, inputs: int, outputs: int, numbers: int = 0) -> Callable[[Callable[..., Any]], Any]:
    """Make a function of `numbers` + `inputs` Vectors that gives `outputs` of them callable from numba's functions.

    There it takes how many elements there are, the numbers that are the same for all elements, then for each argument
    and each result a one-dimensional contiguous array and the place of the row's first element in it. Results may take
    the place of arguments. Arrays are float32 or float64, or bfloat16 as its bits in uint16; all is computed in float64
    if one of them is, else in float32.
    """

    def make(function: Callable[..., Any]) -> Any:
        def definition(_context: Any, count: Any, *rest: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                _row_loop(context, builder, signature.args, arguments, function, numbers, inputs)
                return context.get_dummy_value()

            return types.void(count, *rest), generate

        names = ["context", "count", *(f"number_{i}" for i in range(numbers))]
        names += [f"{kind}_{i}" for i in range(inputs + outputs) for kind in ("array", "at")]
        parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        definition.__signature__ = Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
        definition.__name__ = function.__name__
        return intrinsic(definition)

    return make


def _row_loop(
    context: Any, builder: Any, kinds: Any, arguments: Any, function: Callable[..., Any], numbers: int, inputs: int
) -> None:
    """For j = 0, LANES, ...: results[j : j + LANES] = function(arguments[j : j + LANES]); the last ones by a mask."""
    count, places = arguments[0], arguments[1 + numbers :]
    arrays = [
        (kind.dtype, builder.gep(context.make_array(kind)(context, builder, value).data, [at]))
        for kind, value, at in zip(kinds[1 + numbers :: 2], places[::2], places[1::2], strict=True)
    ]
    number_type = types.float64 if any(dtype == types.float64 for dtype, _ in arrays) else types.float32
    kind = _llvm(number_type)
    lanes = REGISTER // _size(kind)
    same = [
        _splat(builder, context.cast(builder, value, given, number_type), ir.VectorType(kind, lanes))
        for value, given in zip(arguments[1 : 1 + numbers], kinds[1 : 1 + numbers], strict=True)
    ]

    def body(at: Any, mask: Any) -> None:
        places = [(dtype, builder.gep(data, [at])) for dtype, data in arrays]
        loaded = [Vector(builder, _load(builder, dtype, place, kind, lanes, mask)) for dtype, place in places[:inputs]]
        results = function(*(Vector(builder, value) for value in same), *loaded)
        for (dtype, place), result in zip(places[inputs:], results, strict=True):
            _store(builder, dtype, place, result.value, mask)

    _by_lanes(builder, count, lanes, body)


def _by_lanes(builder: Any, count: Any, lanes: int, body: Callable[[Any, Any], None]) -> None:
    """Emit `body(at, mask)` for at = 0, `lanes`, ..: without a mask, but for what remains at the end."""
    whole = builder.sub(count, builder.srem(count, _index(lanes)))
    with cgutils.for_range_slice(builder, _index(0), whole, _index(lanes)) as (at, _):
        body(at, None)
    remain = builder.sub(count, whole)
    with builder.if_then(builder.icmp_signed(">", remain, _index(0))):
        indices = ir.VectorType(ir.IntType(32), lanes)
        limit = _splat(builder, builder.trunc(remain, ir.IntType(32)), indices)
        body(whole, builder.icmp_signed("<", ir.Constant(indices, list(range(lanes))), limit))


def _load(builder: Any, dtype: Any, place: Any, kind: Any, lanes: int, mask: Any) -> Any:
    """LANES elements as numbers of LLVM's type `kind`."""
    stored = ir.VectorType(_llvm(dtype), lanes)
    if mask is None:
        value = builder.load(place, align=_size(stored.element), typ=stored)
    else:
        value = _masked(builder, "load", stored, [place], mask)
    if dtype == types.uint16:  # bfloat16's bits are a float32's upper half
        bits = ir.VectorType(ir.IntType(32), lanes)
        value = builder.shl(builder.zext(value, bits), _repeated(bits, 16))
        value = builder.bitcast(value, ir.VectorType(ir.FloatType(), lanes))
    number = ir.VectorType(kind, lanes)
    return value if value.type == number else builder.fpext(value, number)


def _store(builder: Any, dtype: Any, place: Any, value: Any, mask: Any) -> None:
    """Write LANES numbers as elements, bfloat16 rounded to even."""
    lanes = value.type.count
    stored = ir.VectorType(_llvm(dtype), lanes)
    if dtype != types.float64 and value.type.element == ir.DoubleType():
        value = builder.fptrunc(value, ir.VectorType(ir.FloatType(), lanes))
    if dtype == types.uint16:
        bits = ir.VectorType(ir.IntType(32), lanes)
        is_number = builder.fcmp_ordered("ord", value, value)
        raw = builder.bitcast(value, bits)
        odd = builder.and_(builder.lshr(raw, _repeated(bits, 16)), _repeated(bits, 1))
        raw = builder.lshr(builder.add(raw, builder.add(odd, _repeated(bits, 0x7FFF))), _repeated(bits, 16))
        value = builder.trunc(builder.select(is_number, raw, _repeated(bits, 0x7FC0)), stored)
    if mask is None:
        _write(builder, value, place)
    else:
        _masked(builder, "store", stored, [value, place], mask)


def _masked(builder: Any, verb: str, kind: Any, values: list[Any], mask: Any) -> Any:
    """LLVM's masked load or store; loaded lanes outside the mask hold 0."""
    element = _size(kind.element)
    name = f"llvm.masked.{verb}.v{kind.count}{'i' if isinstance(kind.element, ir.IntType) else 'f'}{8 * element}.p0"
    last = [ir.Constant(kind, None)] if verb == "load" else []
    arguments = [*values, ir.Constant(ir.IntType(32), element), mask, *last]
    result = kind if verb == "load" else ir.VoidType()
    function_type = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)


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
                builder.gep(context.make_array(signature.args[index])(context, builder, array).data, [at])
                for index, array, at in ((0, a, a_at), (5, b, b_at), (8, c, c_at))
            )
            kind = ir.VectorType(_llvm(signature.args[8].dtype), REGISTER // _size(_llvm(signature.args[8].dtype)))

            def block(first: Any, number: int) -> None:
                a_rows, c_rows = (
                    [builder.gep(data, [builder.mul(distance, builder.add(first, _index(i)))]) for i in range(number)]
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
    name = f"llvm.fmuladd.v{lanes}f{8 * _size(kind.element)}"
    add_product = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
    start, loop, end = builder.block, *map(builder.append_basic_block, ("rank_one", "end"))
    builder.branch(loop)
    builder.position_at_end(loop)
    k, offset = builder.phi(INDEX), builder.phi(INDEX)  # offset: of element k
    sums = [[builder.phi(kind) for _ in range(vectors)] for _ in a_rows]
    b_row = builder.gep(b, [builder.mul(k, _index(vectors * lanes))])
    b_now = [
        builder.load(builder.gep(b_row, [_index(v * lanes)]), align=_size(kind.element), typ=kind)
        for v in range(vectors)
    ]
    results = []
    for row, row_sums in zip(a_rows, sums, strict=True):
        factor = _splat(builder, builder.load(builder.gep(row, [offset]), typ=kind.element), kind)
        results.append([builder.call(add_product, [factor, x, y]) for x, y in zip(b_now, row_sums, strict=True)])
    k_next = builder.add(k, _index(1))
    following = [k_next, builder.add(offset, a_element), *chain.from_iterable(results)]
    for phi, value in zip([k, offset, *chain.from_iterable(sums)], following, strict=True):
        phi.add_incoming(ir.Constant(phi.type, 0 if phi.type == INDEX else None), start)
        phi.add_incoming(value, loop)
    builder.cbranch(builder.icmp_signed("<", k_next, depth), loop, end)
    builder.position_at_end(end)

    def put(adding: bool) -> None:
        for row, row_results in zip(c_rows, results, strict=True):
            for v, result in enumerate(row_results):
                place = builder.gep(row, [_index(v * lanes)])
                if adding:
                    result = builder.fadd(result, builder.load(place, align=_size(kind.element), typ=kind))
                _write(builder, result, place)

    with builder.if_else(builder.icmp_signed("!=", add, _index(0))) as (then, otherwise):
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
            builder.gep(context.make_array(signature.args[index])(context, builder, array).data, [at])
            for index, array, at in ((0, a, a_at), (4, b, b_at), (8, c, c_at))
        )
        dtype = signature.args[8].dtype
        b_rows = [builder.gep(b, [builder.mul(b_row, _index(j))]) for j in range(4)]

        def block(first: Any, number: int) -> None:
            items = [builder.add(first, _index(i)) for i in range(number)]
            a_rows = [builder.gep(a, [builder.mul(a_row, item)]) for item in items]
            sums = _dot_products(builder, dtype, a_rows, b_rows, depth)
            for item, row_sums in zip(items, sums, strict=True):
                for j, value in enumerate(row_sums):
                    at = builder.add(builder.mul(c_row, item), builder.mul(c_element, _index(j)))
                    builder.store(value, builder.gep(c, [at]))

        _blocks(builder, rows, ROWS // 2, block)
        return context.get_dummy_value()

    kinds = (a, a_at, a_row, rows, b, b_at, b_row, depth, c, c_at, c_row, c_element)
    return types.void(*kinds), generate


four_products: Any = intrinsic(_four_products)


def _dot_products(builder: Any, dtype: Any, a_rows: list[Any], b_rows: list[Any], depth: Any) -> list[list[Any]]:
    """Emit the sums over `depth` elements of the products of each row of a with each of b."""
    element = _llvm(dtype)
    lanes = REGISTER // _size(element)
    kind = ir.VectorType(element, lanes)
    name = f"llvm.fmuladd.v{lanes}f{8 * _size(element)}"
    add_product = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
    # Memory for the sums, which LLVM keeps in registers.
    sums = [[cgutils.alloca_once_value(builder, ir.Constant(kind, None)) for _ in b_rows] for _ in a_rows]
    for place in chain.from_iterable(sums):
        builder.store(ir.Constant(kind, None), place)

    def add(at: Any, mask: Any) -> None:
        a_now, b_now = (
            [_load(builder, dtype, builder.gep(row, [at]), element, lanes, mask) for row in rows]
            for rows in (a_rows, b_rows)
        )
        for x, row_sums in zip(a_now, sums, strict=True):
            for y, place in zip(b_now, row_sums, strict=True):
                builder.store(builder.call(add_product, [x, y, builder.load(place, typ=kind)]), place)

    _by_lanes(builder, depth, lanes, add)
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
    whole = builder.sdiv(rows, _index(largest))
    with cgutils.for_range(builder, whole) as blocks:
        block(builder.mul(blocks.index, _index(largest)), largest)
    number = largest // 2
    while number:
        with builder.if_then(builder.icmp_signed("!=", builder.and_(rows, _index(number)), _index(0))):
            block(builder.and_(rows, _index(-2 * number)), number)
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


@kernel
def scratch(rows, size, like):
    """Memory for `rows` rows of zeros, and their distance.

    Rows begin with a cache line, and rows of any size on different ones of a cache's sets: where rows of 512 numbers
    stand side by side, all of them share two sets, which hold fewer lines than an equation reads.
    """
    line = 64 // like.itemsize
    lines = -(-size // line)
    distance = (lines + (5 - lines) % 8) * line
    memory = np.zeros(rows * distance + line, like.dtype)
    start = -(memory.ctypes.data // like.itemsize) % line
    return memory[start : start + rows * distance], distance


def _write(builder: Any, value: Any, place: Any) -> None:
    """Store LANES elements, which need not be aligned."""
    builder.store(value, builder.bitcast(place, value.type.as_pointer()), align=_size(value.type.element))


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    """The same number in all lanes."""
    nothing = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(nothing, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(ir.IntType(32), kind.count), None))


def _index(value: int) -> Any:
    return ir.Constant(INDEX, value)


def _repeated(kind: Any, value: int) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _llvm(dtype: Any) -> Any:
    """An element as it lies in memory."""
    return {types.float32: ir.FloatType(), types.float64: ir.DoubleType(), types.uint16: ir.IntType(16)}[dtype]


def _size(kind: Any) -> int:
    """Bytes."""
    return {"float": 4, "double": 8, "i16": 2, "i32": 4}[str(kind)]
