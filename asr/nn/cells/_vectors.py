"""Vector instructions for numba's functions: equations over rows, and products of matrices with few rows.

numba leaves it to LLVM to find vector instructions in a loop, which it does where few arrays can overlap, and never
for a product whose sums stay in registers. Here they are said outright:

* `equations` makes a function on `Vector`s into one that numba's functions call for rows of numbers: it loads LANES
  of each argument, computes, stores LANES of each result, and so on along the row.
* `multiply` gives the product of a few rows with a matrix that `pack` has laid out in panels of PANEL columns. Sums of
  up to ROWS rows and a panel stay in registers while the inner index runs from first to last, so what a row gives
  does not depend on how many rows there are, nor on its place among them.

A number takes the whole register width that the processor has; both work on any that LLVM knows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import Parameter, Signature
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
PANEL = VECTORS * REGISTER  # bytes of a panel's row
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
    return 1.0 / (1.0 + _exp(-x))


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
    far = 1.0 - 2.0 / (_exp(size + size) + 1.0)
    far = x.where("<", 0.0, -far, far)
    return size.where("<=", 0.625, near, far)  # NaN goes far and stays NaN


LOG2_E, LN2_HIGH, LN2_LOW = 1.4426950408889634, 0.693359375, -2.12194440e-4  # the last two's sum is ln 2
ROUNDER = 1.5 * 2**23  # x + this - this is x, rounded; the sum's lowest bits are the integer


def _exp(x: Vector) -> Vector:
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


def equations(*, inputs: int, outputs: int) -> Callable[[Callable[..., Any]], Any]:
    """Make a function of `inputs` Vectors that gives `outputs` of them callable from numba's functions.

    There it takes the number of elements, then for each argument and each result a one-dimensional contiguous array
    and the place of the row's first element in it. Results may take the place of arguments. Arrays are float32 or
    float64, or bfloat16 as its bits in uint16; all is computed in float64 if one of them is, else in float32.
    """

    def make(function: Callable[..., Any]) -> Any:
        number = inputs + outputs

        def definition(_context: Any, count: Any, *places: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                _row_loop(context, builder, signature.args, arguments, function, inputs)
                return context.get_dummy_value()

            return types.void(count, *places), generate

        names = ["context", "count"] + [f"{kind}_{i}" for i in range(number) for kind in ("array", "at")]
        parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        definition.__signature__ = Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
        definition.__name__ = function.__name__
        return intrinsic(definition)

    return make


def _row_loop(
    context: Any, builder: Any, kinds: Any, arguments: Any, function: Callable[..., Any], inputs: int
) -> None:
    """For j = 0, LANES, ...: results[j : j + LANES] = function(arguments[j : j + LANES]); the last ones by a mask."""
    count, *rest = arguments
    arrays = [
        (kind.dtype, builder.gep(context.make_array(kind)(context, builder, value).data, [at]))
        for kind, value, at in zip(kinds[1::2], rest[::2], rest[1::2], strict=True)
    ]
    kind = _llvm(types.float64 if any(dtype == types.float64 for dtype, _ in arrays) else types.float32)
    lanes = REGISTER // _size(kind)
    whole = builder.sub(count, builder.srem(count, ir.Constant(INDEX, lanes)))

    def body(at: Any, mask: Any) -> None:
        places = [(dtype, builder.gep(data, [at])) for dtype, data in arrays]
        loaded = [Vector(builder, _load(builder, dtype, place, kind, lanes, mask)) for dtype, place in places[:inputs]]
        results = function(*loaded)
        for (dtype, place), result in zip(places[inputs:], results, strict=True):
            _store(builder, dtype, place, result.value, mask)

    with cgutils.for_range_slice(builder, ir.Constant(INDEX, 0), whole, ir.Constant(INDEX, lanes)) as (at, _):
        body(at, None)
    remain = builder.sub(count, whole)
    with builder.if_then(builder.icmp_signed(">", remain, ir.Constant(INDEX, 0))):
        numbers = ir.VectorType(ir.IntType(32), lanes)
        limit = _splat(builder, builder.trunc(remain, ir.IntType(32)), numbers)
        body(whole, builder.icmp_signed("<", ir.Constant(numbers, list(range(lanes))), limit))


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


def _rank_one_updates(rows: int) -> Any:
    """Make c = a b for `rows` rows and one panel: called with (array, place, distance of rows) of a, of b, depth, c."""

    def definition(
        _context: Any, a: Any, a_at: Any, a_row: Any, b: Any, b_at: Any, depth: Any, c: Any, c_at: Any, c_row: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            a, a_at, a_row, b, b_at, depth, c, c_at, c_row = arguments
            kinds = signature.args
            kind = _llvm(kinds[6].dtype)
            lanes = REGISTER // _size(kind)
            vector = ir.VectorType(kind, lanes)

            def place(index: int, array: Any, at: Any) -> Any:
                return builder.gep(context.make_array(kinds[index])(context, builder, array).data, [at])

            def after(number: int) -> Any:
                return ir.Constant(INDEX, number)

            name = f"llvm.fmuladd.v{lanes}f{8 * _size(kind)}"
            add_product = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
            a_rows = [place(0, a, builder.add(a_at, builder.mul(a_row, after(row)))) for row in range(rows)]
            b = place(3, b, b_at)
            before = builder.block
            loop, done = builder.append_basic_block("rank_one"), builder.append_basic_block("done")
            builder.branch(loop)
            builder.position_at_end(loop)
            k = builder.phi(INDEX)
            sums = [[builder.phi(vector) for _ in range(VECTORS)] for _ in range(rows)]
            b_row = builder.gep(b, [builder.mul(k, after(VECTORS * lanes))])
            b_now = [
                builder.load(builder.gep(b_row, [after(v * lanes)]), align=_size(kind), typ=vector)
                for v in range(VECTORS)
            ]
            results = []
            for row, row_sums in zip(a_rows, sums, strict=True):
                factor = _splat(builder, builder.load(builder.gep(row, [k]), typ=kind), vector)
                results.append(
                    [builder.call(add_product, [factor, x, y]) for x, y in zip(b_now, row_sums, strict=True)]
                )
            k_next = builder.add(k, after(1))
            k.add_incoming(after(0), before)
            k.add_incoming(k_next, loop)
            for row_sums, row_results in zip(sums, results, strict=True):
                for total, result in zip(row_sums, row_results, strict=True):
                    total.add_incoming(ir.Constant(vector, None), before)
                    total.add_incoming(result, loop)
            builder.cbranch(builder.icmp_signed("<", k_next, depth), loop, done)
            builder.position_at_end(done)
            for row, row_results in enumerate(results):
                c_place = place(6, c, builder.add(c_at, builder.mul(c_row, after(row))))
                for v, result in enumerate(row_results):
                    _write(builder, result, builder.gep(c_place, [after(v * lanes)]))
            return context.get_dummy_value()

        return types.void(a, a_at, a_row, b, b_at, depth, c, c_at, c_row), generate

    return intrinsic(definition)


_most, _four, _two, _one = map(_rank_one_updates, (ROWS, 4, 2, 1))


@kernel
def multiply(a, a_at, a_row, rows, b, depth, c, c_row):
    """Compute c = a b, b packed. Row i of a is the `depth` numbers from a[a_at + i * a_row], of c from c[i * c_row]."""
    width = PANEL // b.itemsize
    size = depth * width
    for panel in range(len(b) // size):
        b_at, c_at, row = panel * size, panel * width, 0
        while rows - row >= ROWS:
            _most(a, a_at + row * a_row, a_row, b, b_at, depth, c, c_at + row * c_row, c_row)
            row += ROWS
        if rows - row >= 4:
            _four(a, a_at + row * a_row, a_row, b, b_at, depth, c, c_at + row * c_row, c_row)
            row += 4
        if rows - row >= 2:
            _two(a, a_at + row * a_row, a_row, b, b_at, depth, c, c_at + row * c_row, c_row)
            row += 2
        if rows - row >= 1:
            _one(a, a_at + row * a_row, a_row, b, b_at, depth, c, c_at + row * c_row, c_row)


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


def pack(matrix: Float[Tensor, "*K D N"]) -> Float[Tensor, "*K P"]:
    """Lay out matrices for `multiply`: panel after panel of PANEL bytes of columns, the last one filled with zeros."""
    width = PANEL // matrix.element_size()
    padded = F.pad(matrix, (0, -matrix.shape[-1] % width))
    return padded.unflatten(-1, (-1, width)).transpose(-3, -2).flatten(-3)


def _write(builder: Any, value: Any, place: Any) -> None:
    """Store LANES elements, which need not be aligned."""
    builder.store(value, builder.bitcast(place, value.type.as_pointer()), align=_size(value.type.element))


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    """The same number in all lanes."""
    nothing = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(nothing, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(ir.IntType(32), kind.count), None))


def _repeated(kind: Any, value: int) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _llvm(dtype: Any) -> Any:
    """An element as it lies in memory."""
    return {types.float32: ir.FloatType(), types.float64: ir.DoubleType(), types.uint16: ir.IntType(16)}[dtype]


def _size(kind: Any) -> int:
    """Bytes."""
    return {"float": 4, "double": 8, "i16": 2, "i32": 4}[str(kind)]
