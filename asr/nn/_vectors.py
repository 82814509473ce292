"""Vector instructions for numba's functions: equations over rows of numbers.

numba leaves it to LLVM to find vector instructions in a loop, which it does where few arrays can overlap. Here they are
said outright: `equations` makes a function on `Vector`s into one that numba's functions call for rows. It loads as many
numbers of each argument as fit a register of this processor, computes, stores as many of each result, and so on along
the row. What an element gives does not depend on its place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import Parameter, Signature
from typing import Any

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba.core import cgutils, types
from numba.extending import intrinsic

from asr.compiled import compiled

kernel = partial(compiled, fastmath={"contract"})

FEATURES = get_host_cpu_features()
REGISTER = 64 if FEATURES.get("avx512f") else 32 if FEATURES.get("avx2") else 16  # bytes
INDEX = ir.IntType(64)


class Vector:
    """Numbers in a register, while a function is being compiled; operators emit instructions."""

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
        full = f"llvm.{name}.v{kind.count}f{8 * size_of(kind.element)}"
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
    """For j = 0, n, 2 n, ...: results[j : j + n] = function(arguments[j : j + n]); the last ones by a mask."""
    count, places = arguments[0], arguments[1 + numbers :]
    arrays = [
        (kind.dtype, builder.gep(context.make_array(kind)(context, builder, value).data, [at]))
        for kind, value, at in zip(kinds[1 + numbers :: 2], places[::2], places[1::2], strict=True)
    ]
    number_type = types.float64 if any(dtype == types.float64 for dtype, _ in arrays) else types.float32
    kind = llvm_type(number_type)
    lanes = REGISTER // size_of(kind)
    same = [
        splat(builder, context.cast(builder, value, given, number_type), ir.VectorType(kind, lanes))
        for value, given in zip(arguments[1 : 1 + numbers], kinds[1 : 1 + numbers], strict=True)
    ]

    def body(at: Any, mask: Any) -> None:
        places = [(dtype, builder.gep(data, [at])) for dtype, data in arrays]
        loaded = [Vector(builder, load(builder, dtype, place, kind, lanes, mask)) for dtype, place in places[:inputs]]
        results = function(*(Vector(builder, value) for value in same), *loaded)
        for (dtype, place), result in zip(places[inputs:], results, strict=True):
            _store(builder, dtype, place, result.value, mask)

    by_lanes(builder, count, lanes, body)


def by_lanes(builder: Any, count: Any, lanes: int, body: Callable[[Any, Any], None]) -> None:
    """Emit `body(at, mask)` for at = 0, `lanes`, ..: without a mask, but for what remains at the end."""
    whole = builder.sub(count, builder.srem(count, index(lanes)))
    with cgutils.for_range_slice(builder, index(0), whole, index(lanes)) as (at, _):
        body(at, None)
    remain = builder.sub(count, whole)
    with builder.if_then(builder.icmp_signed(">", remain, index(0))):
        indices = ir.VectorType(ir.IntType(32), lanes)
        limit = splat(builder, builder.trunc(remain, ir.IntType(32)), indices)
        body(whole, builder.icmp_signed("<", ir.Constant(indices, list(range(lanes))), limit))


def load(builder: Any, dtype: Any, place: Any, kind: Any, lanes: int, mask: Any) -> Any:
    """`lanes` elements as numbers of LLVM's type `kind`."""
    stored = ir.VectorType(llvm_type(dtype), lanes)
    if mask is None:
        value = builder.load(place, align=size_of(stored.element), typ=stored)
    else:
        value = _masked(builder, "load", stored, [place], mask)
    if dtype == types.uint16:  # bfloat16's bits are a float32's upper half
        bits = ir.VectorType(ir.IntType(32), lanes)
        value = builder.shl(builder.zext(value, bits), _repeated(bits, 16))
        value = builder.bitcast(value, ir.VectorType(ir.FloatType(), lanes))
    number = ir.VectorType(kind, lanes)
    return value if value.type == number else builder.fpext(value, number)


def _store(builder: Any, dtype: Any, place: Any, value: Any, mask: Any) -> None:
    """Write numbers as elements, bfloat16 rounded to even."""
    lanes = value.type.count
    stored = ir.VectorType(llvm_type(dtype), lanes)
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
        write(builder, value, place)
    else:
        _masked(builder, "store", stored, [value, place], mask)


def _masked(builder: Any, verb: str, kind: Any, values: list[Any], mask: Any) -> Any:
    """LLVM's masked load or store; loaded lanes outside the mask hold 0."""
    element = size_of(kind.element)
    name = f"llvm.masked.{verb}.v{kind.count}{'i' if isinstance(kind.element, ir.IntType) else 'f'}{8 * element}.p0"
    last = [ir.Constant(kind, None)] if verb == "load" else []
    arguments = [*values, ir.Constant(ir.IntType(32), element), mask, *last]
    result = kind if verb == "load" else ir.VoidType()
    function_type = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)


@equations(inputs=1, outputs=1)
def copy_row(x: Vector) -> tuple[Vector, ...]:
    """Copy a row."""
    return (x,)


@equations(inputs=2, outputs=1)
def add_rows(x: Vector, y: Vector) -> tuple[Vector, ...]:
    """Add two rows."""
    return (x + y,)


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


def write(builder: Any, value: Any, place: Any) -> None:
    """Store elements, which need not be aligned."""
    builder.store(value, builder.bitcast(place, value.type.as_pointer()), align=size_of(value.type.element))


def splat(builder: Any, value: Any, kind: Any) -> Any:
    """The same number in all lanes."""
    nothing = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(nothing, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(ir.IntType(32), kind.count), None))


def index(value: int) -> Any:
    return ir.Constant(INDEX, value)


def _repeated(kind: Any, value: int) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def llvm_type(dtype: Any) -> Any:
    """An element as it lies in memory."""
    return {types.float32: ir.FloatType(), types.float64: ir.DoubleType(), types.uint16: ir.IntType(16)}[dtype]


def size_of(kind: Any) -> int:
    """Bytes."""
    return {"float": 4, "double": 8, "i16": 2, "i32": 4}[str(kind)]
