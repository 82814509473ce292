"""Time loops with full recurrent matrices as Triton kernels for NVIDIA's GPUs; `asr.nn.cells.full_on_gpu` calls them.

A layer is one launch forward and one backward, as in Persistent RNNs (Diamos et al. 2016): the programs share out the
units, and each runs all frames, reading the whole state that the others have written and writing its own units of the
next one. Before a program reads, all have to have written: they count up a number in memory and wait until it says
so. For that all of them have to run at once; there are no more than the GPU has multiprocessors, and they are
launched together or not at all.

States are exchanged in the type E of the products, which is autocast's or float32; what a program carries of its own
units, and all sums, are float32. Where float32 is to be whole (`asr.nn.precision`), a factor is split in two that the
matrix units take as they are, and three of the four partial products are added up: an error of 2^-20. Else it is TF32,
by the setting that cuDNN's recurrences go by.

Letters: K chains, S frames, B items, H units, G gates.
"""

# ruff: noqa: RUF005
# Triton cannot unpack within a tuple.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false
# Its types know neither launch options, such as num_stages, nor that tl.range is iterable.

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from asr.nn.gpu_kernels import INTERPRETED

FEW, MANY = 16, 64  # batch rows of a program
WARPS = {FEW: 4, MANY: 8}
UNITS = (16, 32, 64)  # of a program: the fewest with which all programs run at once
PARTS = tl.constexpr(WARPS[FEW])
INNER_OF_FEW, INNER_OF_MANY = tl.constexpr(128), tl.constexpr(64)  # terms of a product's sum at a time
MOST_STAGES = 6  # of these on their way; each takes some 600 cycles, and too few of them are what a frame waits for
SHARED = 0.8  # of a multiprocessor's memory, for them


def _kernel(function: Callable[..., Any]) -> Any:
    return triton.jit(inspect.unwrap(function))  # from what checks annotations in tests


@_kernel
def _arrive(counter):
    """Tell the other programs that what this one wrote can be read."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


@_kernel
def _wait(counter, arrivals):
    """Wait for so many arrivals of all programs together."""
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < arrivals:
        pass
    tl.debug_barrier()


@_kernel
def _place(counters, first_row, first_chain, B, H, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """A program's chain, rows, units, the latter two as a column and a row, which of them there are, its counter."""
    rows = first_row + tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    units = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    there = (rows[:, None] < B) & (units[None, :] < H)
    counter = counters + tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    return (first_chain + tl.program_id(2)).to(tl.int64), rows, units, rows[:, None], units[None, :], there, counter


@_kernel
def _split(x):
    """x as a sum of two: its leading 11 bits, and the rest."""
    leading = (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    return leading, x - leading


@_kernel
def _multiply(a, b, total, small, small_too, TF32: tl.constexpr):
    """Add a @ b; its value is the sum of the three."""
    if a.dtype != tl.float32:
        total = tl.dot(a, b, total)
    elif TF32:
        total = tl.dot(a, b, total, input_precision="tf32")
    else:
        a_leading, a_rest = _split(a)
        b_leading, b_rest = _split(b)
        total = tl.dot(a_leading, b_leading, total, input_precision="tf32")
        small = tl.dot(a_leading, b_rest, small, input_precision="tf32")
        small_too = tl.dot(a_rest, b_leading, small_too, input_precision="tf32")
    return total, small, small_too


@_kernel
def _products(
    left, left_stride, right, right_stride, N, rows, units, B, H,
    GATES: tl.constexpr, TF32: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """left (B, N) @ right (GATES, H, N) transposed: of these rows and units, for each gate.

    The strides are those of rows.
    """
    if ROWS == 16:
        return _products_of_few(
            left, left_stride, right, right_stride, N, rows, units, B, H, GATES, TF32, ROWS, UNITS, STAGES
        )
    else:
        return _products_of_many(
            left, left_stride, right, right_stride, N, rows, units, B, H, GATES, TF32, ROWS, UNITS, STAGES
        )


@_kernel
def _products_of_many(
    left, left_stride, right, right_stride, N, rows, units, B, H,
    GATES: tl.constexpr, TF32: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    sums = ()
    for _ in tl.static_range(3 * GATES):
        sums = sums + (tl.zeros((ROWS, UNITS), tl.float32),)
    for start in tl.range(0, N, INNER_OF_MANY, num_stages=STAGES):
        inner = start + tl.arange(0, INNER_OF_MANY)
        there = (rows[:, None] < B) & (inner[None, :] < N)
        a = tl.load(left + rows[:, None] * left_stride + inner[None, :], there, 0.0, cache_modifier=".cg")
        there = (inner[:, None] < N) & (units[None, :] < H)
        for gate in tl.static_range(GATES):
            b = tl.load(right + (gate * H + units[None, :]) * right_stride + inner[:, None], there, 0.0)
            sums = sums[3:] + _multiply(a, b, sums[0], sums[1], sums[2], TF32)
    results = ()
    for gate in tl.static_range(GATES):
        results = results + (sums[3 * gate] + (sums[3 * gate + 1] + sums[3 * gate + 2]),)
    return results


@_kernel
def _products_of_few(
    left, left_stride, right, right_stride, N, rows, units, B, H,
    GATES: tl.constexpr, TF32: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Rows that are too few to share out among the warps: each takes a part of the sum."""
    each: tl.constexpr = INNER_OF_FEW // PARTS
    sums = ()
    for _ in tl.static_range(3 * GATES):
        sums = sums + (tl.zeros((PARTS, ROWS, UNITS), tl.float32),)
    for start in tl.range(0, N, INNER_OF_FEW, num_stages=STAGES):
        inner = start + tl.arange(0, PARTS)[:, None] * each + tl.arange(0, each)[None, :]
        there = (rows[None, :, None] < B) & (inner[:, None, :] < N)
        a = tl.load(left + rows[None, :, None] * left_stride + inner[:, None, :], there, 0.0, cache_modifier=".cg")
        there = (inner[:, :, None] < N) & (units[None, None, :] < H)
        for gate in tl.static_range(GATES):
            b = tl.load(right + (gate * H + units[None, None, :]) * right_stride + inner[:, :, None], there, 0.0)
            sums = sums[3:] + _multiply(a, b, sums[0], sums[1], sums[2], TF32)
    results = ()
    for gate in tl.static_range(GATES):
        results = results + (tl.sum(sums[3 * gate] + (sums[3 * gate + 1] + sums[3 * gate + 2]), 0),)
    return results


@_kernel
def _load(pointers, there):
    return tl.load(pointers, there, 0.0).to(tl.float32)


@_kernel
def _store(pointers, value, there):
    tl.store(pointers, value.to(pointers.dtype.element_ty), there)


@_kernel
def _four(gates, H, there):
    """A frame's four gates."""
    return _load(gates, there), _load(gates + H, there), _load(gates + 2 * H, there), _load(gates + 3 * H, there)


@_kernel
def _state(first, states, frame, step):
    """Where the state after a frame is, or before the first one."""
    pointers = first
    if frame >= 0:
        pointers = states + frame * step
    return pointers


@_kernel
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@_kernel
def _tanh(x):
    return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0


@_kernel
def rnn_forward(
    p, recurrent, first, outputs, counters, first_row, first_chain, S, B, H, clip,
    TANH: tl.constexpr, TF32: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """tanh(p + U h), or min(max(p + U h, 0), clip)."""
    chain, rows, units, row, unit, there, counter = _place(counters, first_row, first_chain, B, H, ROWS, UNITS)
    recurrent += chain * H * H
    before = first + chain * B * H
    p += chain * S * B * H
    outputs += chain * S * B * H
    at = row * H + unit
    value = _load(p + at, there)
    for t in range(S):
        value += _products(before, H, recurrent, H, H, rows, units, B, H, 1, TF32, ROWS, UNITS, STAGES)[0]
        hidden = _tanh(value) if TANH else tl.where(value < 0.0, 0.0, tl.where(value > clip, clip, value))  # NaN stays
        _store(outputs + at, hidden, there)
        _arrive(counter)
        before = outputs
        outputs += B * H
        p += B * H
        value = _load(p + at, there & (t + 1 < S))
        _wait(counter, (t + 1) * tl.num_programs(0))


@_kernel
def rnn_backward(
    d_p, d_outputs, outputs, transposed, counters, first_row, first_chain, S, B, H, clip,
    TANH: tl.constexpr, TF32: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    chain, rows, units, row, unit, there, counter = _place(counters, first_row, first_chain, B, H, ROWS, UNITS)
    transposed += chain * H * H
    last = (chain * S + S - 1) * B * H
    at = row * H + unit
    d_p += last
    outputs += last + at
    d_outputs += last + at
    value = _load(d_outputs, there)
    for back in range(S):
        if back > 0:
            value += _products(d_p + B * H, H, transposed, H, H, rows, units, B, H, 1, TF32, ROWS, UNITS, STAGES)[0]
        hidden = _load(outputs, there)
        if TANH:
            value *= 1.0 - hidden * hidden
        else:
            value = tl.where((hidden > 0.0) & (hidden < clip), value, 0.0)
        _store(d_p + at, value, there)
        _arrive(counter)
        d_p -= B * H
        outputs -= B * H
        d_outputs -= B * H
        value = _load(d_outputs, there & (back + 1 < S))
        _wait(counter, (back + 1) * tl.num_programs(0))


@_kernel
def gru_after_forward(
    p, recurrent, bias, initial, first, outputs, gates, counters, first_row, first_chain, S, B, H,
    TF32: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """gates (K, S, B, 4H) becomes r, z, n and U_n h + c."""
    chain, rows, units, row, unit, there, counter = _place(counters, first_row, first_chain, B, H, ROWS, UNITS)
    recurrent += chain * 3 * H * H
    before = first + chain * B * H
    at = row * H + unit
    hidden = _load(initial + chain * B * H + at, there)
    c = tl.load(bias + chain * H + units, units < H, 0.0)[None, :]
    p += chain * S * B * 3 * H + row * 3 * H + unit
    gates += chain * S * B * 4 * H + row * 4 * H + unit
    outputs += chain * S * B * H
    p_r, p_z, p_n = _load(p, there), _load(p + H, there), _load(p + 2 * H, there)
    for t in range(S):
        from_r, from_z, from_n = _products(before, H, recurrent, H, H, rows, units, B, H, 3, TF32, ROWS, UNITS, STAGES)
        r, z, inner = _sigmoid(p_r + from_r), _sigmoid(p_z + from_z), from_n + c
        n = _tanh(p_n + r * inner)
        hidden = n + z * (hidden - n)
        _store(outputs + at, hidden, there)
        _arrive(counter)
        _store(gates, r, there)
        _store(gates + H, z, there)
        _store(gates + 2 * H, n, there)
        _store(gates + 3 * H, inner, there)
        before = outputs
        outputs += B * H
        gates += B * 4 * H
        p += B * 3 * H
        more = there & (t + 1 < S)
        p_r, p_z, p_n = _load(p, more), _load(p + H, more), _load(p + 2 * H, more)
        _wait(counter, (t + 1) * tl.num_programs(0))


@_kernel
def gru_after_backward(
    d_p, d_inner, d_initial, d_outputs, gates, outputs, first, transposed, counters, first_row, first_chain, S, B, H,
    TF32: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """d_inner (K, S, B, 3H): of U h + (0, 0, c); transposed (K, H, 3H)."""
    chain, rows, units, row, unit, there, counter = _place(counters, first_row, first_chain, B, H, ROWS, UNITS)
    transposed += chain * H * 3 * H
    last = (chain * S + S - 1) * B
    at = row * H + unit
    d_p += last * 3 * H + row * 3 * H + unit
    d_inner += last * 3 * H
    gates += last * 4 * H + row * 4 * H + unit
    d_outputs += last * H + at
    outputs += chain * S * B * H + at
    first += chain * B * H + at
    hidden, d_output = _load(_state(first, outputs, S - 2, B * H), there), _load(d_outputs, there)
    r, z, n, inner = _four(gates, H, there)
    carry = tl.zeros((ROWS, UNITS), tl.float32)
    for back in range(S):
        d_now = d_output + carry
        d_n = d_now * (1.0 - z) * (1.0 - n * n)
        d_z = d_now * (hidden - n) * z * (1.0 - z)
        d_r = d_n * inner * r * (1.0 - r)
        mine = d_inner + row * 3 * H + unit
        _store(mine, d_r, there)
        _store(mine + H, d_z, there)
        _store(mine + 2 * H, d_n * r, there)
        _arrive(counter)
        _store(d_p, d_r, there)
        _store(d_p + H, d_z, there)
        _store(d_p + 2 * H, d_n, there)
        carry = d_now * z
        gates -= B * 4 * H
        d_outputs -= B * H
        more = there & (back + 1 < S)
        hidden, d_output = _load(_state(first, outputs, S - 3 - back, B * H), more), _load(d_outputs, more)
        r, z, n, inner = _four(gates, H, more)
        _wait(counter, (back + 1) * tl.num_programs(0))
        carry += _products(d_inner, 3 * H, transposed, 3 * H, 3 * H, rows, units, B, H, 1, TF32, ROWS, UNITS, STAGES)[0]
        d_p -= B * 3 * H
        d_inner -= B * 3 * H
    tl.store(d_initial + chain * B * H + at, carry, there)


@_kernel
def gru_before_forward(
    p, recurrent, initial, first, outputs, gates, kept, counters, first_row, first_chain, S, B, H,
    TF32: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """gates (K, S, B, 3H) becomes r, z, n; kept (K, S, B, H) r * h."""
    chain, rows, units, row, unit, there, counter = _place(counters, first_row, first_chain, B, H, ROWS, UNITS)
    recurrent += chain * 3 * H * H
    before = first + chain * B * H
    at = row * H + unit
    hidden = _load(initial + chain * B * H + at, there)
    p += chain * S * B * 3 * H + row * 3 * H + unit
    gates += chain * S * B * 3 * H + row * 3 * H + unit
    kept += chain * S * B * H
    outputs += chain * S * B * H
    for t in range(S):
        r = _load(p, there) + _products(before, H, recurrent, H, H, rows, units, B, H, 1, TF32, ROWS, UNITS, STAGES)[0]
        r = _sigmoid(r)
        _store(kept + at, r * hidden, there)
        _arrive(counter)
        z = _load(p + H, there)
        z = _sigmoid(
            z + _products(before, H, recurrent + H * H, H, H, rows, units, B, H, 1, TF32, ROWS, UNITS, STAGES)[0]
        )
        _store(gates, r, there)
        _store(gates + H, z, there)
        n = _load(p + 2 * H, there)
        _wait(counter, (2 * t + 1) * tl.num_programs(0))
        n = _tanh(
            n + _products(kept, H, recurrent + 2 * H * H, H, H, rows, units, B, H, 1, TF32, ROWS, UNITS, STAGES)[0]
        )
        hidden = n + z * (hidden - n)
        _store(outputs + at, hidden, there)
        _arrive(counter)
        _store(gates + 2 * H, n, there)
        before = outputs
        p += B * 3 * H
        gates += B * 3 * H
        kept += B * H
        outputs += B * H
        _wait(counter, (2 * t + 2) * tl.num_programs(0))


@_kernel
def gru_before_backward(
    d_p, d_initial, d_outputs, gates, outputs, first, transposed, counters, first_row, first_chain, S, B, H,
    TF32: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """transposed (K, H, 3H)."""
    chain, rows, units, row, unit, there, counter = _place(counters, first_row, first_chain, B, H, ROWS, UNITS)
    transposed += chain * H * 3 * H
    last = (chain * S + S - 1) * B
    at = row * H + unit
    d_p += last * 3 * H
    gates += last * 3 * H + row * 3 * H + unit
    d_outputs += last * H + at
    outputs += chain * S * B * H + at
    first += chain * B * H + at
    carry = tl.zeros((ROWS, UNITS), tl.float32)
    for back in range(S):
        hidden = _load(_state(first, outputs, S - 2 - back, B * H), there)
        r, z, n = _load(gates, there), _load(gates + H, there), _load(gates + 2 * H, there)
        d_now = _load(d_outputs, there) + carry
        mine = d_p + row * 3 * H + unit
        _store(mine + 2 * H, d_now * (1.0 - z) * (1.0 - n * n), there)
        _store(mine + H, d_now * (hidden - n) * z * (1.0 - z), there)
        _arrive(counter)
        _wait(counter, (2 * back + 1) * tl.num_programs(0))
        d_kept = _products(
            d_p + 2 * H, 3 * H, transposed + 2 * H, 3 * H, H, rows, units, B, H, 1, TF32, ROWS, UNITS, STAGES
        )[0]  # fmt: skip
        _store(mine, d_kept * hidden * r * (1.0 - r), there)
        _arrive(counter)
        carry = d_now * z + d_kept * r
        carry += _products(d_p + H, 3 * H, transposed + H, 3 * H, H, rows, units, B, H, 1, TF32, ROWS, UNITS, STAGES)[0]
        _wait(counter, (2 * back + 2) * tl.num_programs(0))
        carry += _products(d_p, 3 * H, transposed, 3 * H, H, rows, units, B, H, 1, TF32, ROWS, UNITS, STAGES)[0]
        d_p -= B * 3 * H
        gates -= B * 3 * H
        d_outputs -= B * H
    tl.store(d_initial + chain * B * H + at, carry, there)


@_kernel
def lstm_forward(
    p, recurrent, first_cell, first, outputs, gates, cells, counters, first_row, first_chain, S, B, H,
    TF32: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """gates (K, S, B, 4H) becomes i, f, g, o."""
    chain, rows, units, row, unit, there, counter = _place(counters, first_row, first_chain, B, H, ROWS, UNITS)
    recurrent += chain * 4 * H * H
    before = first + chain * B * H
    at = row * H + unit
    cell = _load(first_cell + chain * B * H + at, there)
    p += chain * S * B * 4 * H + row * 4 * H + unit
    gates += chain * S * B * 4 * H + row * 4 * H + unit
    cells += chain * S * B * H + at
    outputs += chain * S * B * H
    p_i, p_f, p_g, p_o = _four(p, H, there)
    for t in range(S):
        from_i, from_f, from_g, from_o = _products(
            before, H, recurrent, H, H, rows, units, B, H, 4, TF32, ROWS, UNITS, STAGES
        )
        i, f, g, o = _sigmoid(p_i + from_i), _sigmoid(p_f + from_f), _tanh(p_g + from_g), _sigmoid(p_o + from_o)
        cell = f * cell + i * g
        _store(outputs + at, o * _tanh(cell), there)
        _arrive(counter)
        _store(gates, i, there)
        _store(gates + H, f, there)
        _store(gates + 2 * H, g, there)
        _store(gates + 3 * H, o, there)
        _store(cells, cell, there)
        before = outputs
        outputs += B * H
        cells += B * H
        gates += B * 4 * H
        p += B * 4 * H
        more = there & (t + 1 < S)
        p_i, p_f, p_g, p_o = _four(p, H, more)
        _wait(counter, (t + 1) * tl.num_programs(0))


@_kernel
def lstm_backward(
    d_p, d_initial, d_first_cell, d_outputs, d_cell, gates, cells, first_cell, transposed,
    counters, first_row, first_chain, S, B, H,
    TF32: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """d_cell (K, B, H): of the last cell state; transposed (K, H, 4H)."""
    chain, rows, units, row, unit, there, counter = _place(counters, first_row, first_chain, B, H, ROWS, UNITS)
    transposed += chain * H * 4 * H
    last = (chain * S + S - 1) * B
    at = row * H + unit
    d_p += last * 4 * H
    gates += last * 4 * H + row * 4 * H + unit
    d_outputs += last * H + at
    first_cell += chain * B * H + at
    cells += chain * S * B * H + at
    cell_carry = _load(d_cell + chain * B * H + at, there)
    c, d_output = _load(_state(first_cell, cells, S - 2, B * H), there), _load(d_outputs, there)
    i, f, g, o = _four(gates, H, there)
    carry = tl.zeros((ROWS, UNITS), tl.float32)
    for back in range(S):
        squashed = _tanh(f * c + i * g)
        d_hidden = d_output + carry
        d_now = cell_carry + d_hidden * o * (1.0 - squashed * squashed)
        mine = d_p + row * 4 * H + unit
        _store(mine, d_now * g * i * (1.0 - i), there)
        _store(mine + H, d_now * c * f * (1.0 - f), there)
        _store(mine + 2 * H, d_now * i * (1.0 - g * g), there)
        _store(mine + 3 * H, d_hidden * squashed * o * (1.0 - o), there)
        _arrive(counter)
        cell_carry = d_now * f
        gates -= B * 4 * H
        d_outputs -= B * H
        more = there & (back + 1 < S)
        c, d_output = _load(_state(first_cell, cells, S - 3 - back, B * H), more), _load(d_outputs, more)
        i, f, g, o = _four(gates, H, more)
        _wait(counter, (back + 1) * tl.num_programs(0))
        carry = _products(d_p, 4 * H, transposed, 4 * H, 4 * H, rows, units, B, H, 1, TF32, ROWS, UNITS, STAGES)[0]
        d_p -= B * 4 * H
    tl.store(d_initial + chain * B * H + at, carry, there)
    tl.store(d_first_cell + chain * B * H + at, cell_carry, there)


def run(
    kernel: Any,
    tensors: tuple[Tensor, ...],
    shape: tuple[int, ...],
    *settings: float,
    gates: int = 1,
    dtype: torch.dtype,
    **constants: bool,
) -> None:
    """Launch, for as many chains and rows at a time as have all their programs run at once.

    Args:
        kernel: one of the above.
        tensors: its arguments before the counters, contiguous.
        shape: K, S, B, H.
        settings: its arguments after H.
        gates: for which it computes products at a time.
        dtype: E.
        constants: those that are known when it is compiled.

    Raises:
        ValueError: there are more units than programs of the largest kind can share out.
    """
    chains, frames, batch, size = shape
    device = tensors[0].device
    rows = FEW if batch <= FEW else MANY
    tf32 = torch.backends.cudnn.rnn.fp32_precision == "tf32"  # type: ignore[attr-defined]
    if INTERPRETED:  # it runs one program after the other, so there can be but one
        at_once, memory, units = 1, 2**17, triton.next_power_of_2(size)
    else:
        gpu = torch.cuda.get_device_properties(device)
        at_once, memory = gpu.multi_processor_count, gpu.shared_memory_per_block_optin
        units = _units(chains * triton.cdiv(batch, rows), size, at_once)
    programs = triton.cdiv(size, units)
    if programs > at_once:
        raise ValueError(f"hidden_size: got {size}, expected at most {units * at_once} on this GPU")
    inner = INNER_OF_FEW if rows == FEW else INNER_OF_MANY
    stages = max(1, min(MOST_STAGES, int(SHARED * memory) // (inner.value * (rows + gates * units) * dtype.itemsize)))
    chains_at_once = min(chains, max(1, at_once // programs))
    blocks_at_once = max(1, at_once // programs // chains_at_once)
    for chain in range(0, chains, chains_at_once):
        for row in range(0, batch, blocks_at_once * rows):
            blocks = min(blocks_at_once, triton.cdiv(batch - row, rows))
            grid = (programs, blocks, min(chains_at_once, chains - chain))
            counters = torch.zeros(grid[1] * grid[2], dtype=torch.int32, device=device)
            kernel[grid](
                *tensors, counters, row, chain, frames, batch, size, *settings, **constants,
                TF32=tf32, ROWS=rows, UNITS=units, STAGES=stages,
                num_warps=WARPS[rows], launch_cooperative_grid=not INTERPRETED,
            )  # fmt: skip


def _units(groups: int, size: int, at_once: int) -> int:
    """Of a program, `groups` of programs each sharing out all units."""
    return next((units for units in UNITS if groups * triton.cdiv(size, units) <= at_once), UNITS[-1])
