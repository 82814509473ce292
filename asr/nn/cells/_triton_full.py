"""Time loops with full recurrent matrices on a GPU, for the cells that cuDNN lacks: clipped ReLU, and reset before U h.

A layer is one launch forward and one backward, as in Persistent RNNs (Diamos et al. 2016): the programs share out the
units, and each runs all frames, reading the whole state that the others have written and writing its own units of the
next one. After each frame they meet: a counter in memory is counted up by all before any goes on. So all of them have
to run at once; there are no more than the GPU has multiprocessors, and they are launched together or not at all.

Products are of float32: a factor is split in two that the matrix units take whole, and three of the four partial
products are added up in float32, which leaves an error of 2^-20. The recurrent weight's gradient is one product
outside.

Imported only where there is a GPU, or Triton's interpreter.
"""

# pyright: reportCallIssue=false, reportGeneralTypeIssues=false
# Triton's types know neither launch options, such as num_stages, nor that tl.range is iterable.

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

FEW, MANY = 16, 64  # batch rows of a program
WARPS = {FEW: 4, MANY: 8}
UNITS = (16, 32, 64)  # of a program: the fewest with which all programs run at once
PARTS = tl.constexpr(WARPS[FEW])
INNER_OF_FEW, INNER_OF_MANY = tl.constexpr(128), tl.constexpr(64)  # inner units of a product at a time
STAGES = tl.constexpr(3)  # of these on their way
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # it runs one program after the other, so there can be but one


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
def _split(x):
    """x as a sum of two: its leading 11 bits, and the rest."""
    leading = (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    return leading, x - leading


@_kernel
def _product(left, left_stride, right, rows, units, B, H, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """left (B, H), its rows `left_stride` apart, @ right (H, H) transposed: of these rows and units."""
    if ROWS == 16:
        return _product_of_few(left, left_stride, right, rows, units, B, H, ROWS, UNITS)
    else:
        return _product_of_many(left, left_stride, right, rows, units, B, H, ROWS, UNITS)


@_kernel
def _product_of_many(left, left_stride, right, rows, units, B, H, ROWS: tl.constexpr, UNITS: tl.constexpr):
    total = tl.zeros((ROWS, UNITS), tl.float32)
    small = tl.zeros((ROWS, UNITS), tl.float32)
    small_too = tl.zeros((ROWS, UNITS), tl.float32)
    for start in tl.range(0, H, INNER_OF_MANY, num_stages=STAGES):
        inner = start + tl.arange(0, INNER_OF_MANY)
        there = (rows[:, None] < B) & (inner[None, :] < H)
        a = tl.load(left + rows[:, None] * left_stride + inner[None, :], there, 0.0, cache_modifier=".cg")
        b = tl.load(right + units[None, :] * H + inner[:, None], (inner[:, None] < H) & (units[None, :] < H), 0.0)
        a_leading, a_rest = _split(a)
        b_leading, b_rest = _split(b)
        total = tl.dot(a_leading, b_leading, total, input_precision="tf32")
        small = tl.dot(a_leading, b_rest, small, input_precision="tf32")
        small_too = tl.dot(a_rest, b_leading, small_too, input_precision="tf32")
    return total + (small + small_too)


@_kernel
def _product_of_few(left, left_stride, right, rows, units, B, H, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """Rows that are too few to share out among the warps: each takes a part of the inner units."""
    each: tl.constexpr = INNER_OF_FEW // PARTS
    total = tl.zeros((PARTS, ROWS, UNITS), tl.float32)
    small = tl.zeros((PARTS, ROWS, UNITS), tl.float32)
    small_too = tl.zeros((PARTS, ROWS, UNITS), tl.float32)
    at = rows[None, :, None] * left_stride
    units = units[None, None, :]
    for start in tl.range(0, H, INNER_OF_FEW, num_stages=STAGES):
        inner = start + tl.arange(0, PARTS)[:, None] * each + tl.arange(0, each)[None, :]
        there = (rows[None, :, None] < B) & (inner[:, None, :] < H)
        a = tl.load(left + at + inner[:, None, :], there, 0.0, cache_modifier=".cg")
        inner = inner[:, :, None]
        b = tl.load(right + units * H + inner, (inner < H) & (units < H), 0.0)
        a_leading, a_rest = _split(a)
        b_leading, b_rest = _split(b)
        total = tl.dot(a_leading, b_leading, total, input_precision="tf32")
        small = tl.dot(a_leading, b_rest, small, input_precision="tf32")
        small_too = tl.dot(a_rest, b_leading, small_too, input_precision="tf32")
    return tl.sum(total + (small + small_too), 0)


@_kernel
def _place(counters, first_row, first_chain, B, H, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """A program's chain, rows, units, where these are in a frame, which of them there are, and its counter."""
    rows = first_row + tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    units = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    there = (rows[:, None] < B) & (units[None, :] < H)
    counter = counters + tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    return (first_chain + tl.program_id(2)).to(tl.int64), rows, units, rows[:, None], units[None, :], there, counter


@_kernel
def _rnn_forward(
    outputs,
    initial,
    recurrent,
    counters,
    first_row,
    first_chain,
    S,
    B,
    H,
    clip,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """outputs (K, S, B, H) holds the projections and becomes min(max(p + U h, 0), clip)."""
    chain, rows, units, row, unit, there, counter = _place(counters, first_row, first_chain, B, H, ROWS, UNITS)
    recurrent += chain * H * H
    before = initial + chain * B * H
    outputs += chain * S * B * H
    at = row * H + unit
    value = tl.load(outputs + at, there, 0.0)
    for t in range(S):
        value += _product(before, H, recurrent, rows, units, B, H, ROWS, UNITS)
        tl.store(outputs + at, tl.minimum(tl.maximum(value, 0.0), clip), there)
        _arrive(counter)
        before = outputs
        outputs += B * H
        value = tl.load(outputs + at, there & (t + 1 < S), 0.0)
        _wait(counter, (t + 1) * tl.num_programs(0))


@_kernel
def _rnn_backward(
    d_gates,
    outputs,
    transposed,
    counters,
    first_row,
    first_chain,
    S,
    B,
    H,
    clip,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """d_gates (K, S, B, H) holds the gradient of the outputs and becomes that of the pre-activations."""
    chain, rows, units, row, unit, there, counter = _place(counters, first_row, first_chain, B, H, ROWS, UNITS)
    transposed += chain * H * H
    outputs += (chain * S + S - 1) * B * H + row * H + unit
    now = d_gates + (chain * S + S - 1) * B * H
    value = tl.load(now + row * H + unit, there, 0.0)
    for back in range(S):
        if back > 0:
            value += _product(now + B * H, H, transposed, rows, units, B, H, ROWS, UNITS)
        hidden = tl.load(outputs, there, 0.0)
        tl.store(now + row * H + unit, tl.where((hidden > 0.0) & (hidden < clip), value, 0.0), there)
        _arrive(counter)
        now -= B * H
        outputs -= B * H
        value = tl.load(now + row * H + unit, there & (back + 1 < S), 0.0)
        _wait(counter, (back + 1) * tl.num_programs(0))


@_kernel
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@_kernel
def _tanh(x):
    return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0


@_kernel
def _gru_forward(
    gates,
    kept,
    outputs,
    initial,
    recurrent,
    counters,
    first_row,
    first_chain,
    S,
    B,
    H,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """gates (K, S, B, 3H) holds the projections and becomes r, z, n; kept is r * h; recurrent (K, 3, H, H)."""
    chain, rows, units, row, unit, there, counter = _place(counters, first_row, first_chain, B, H, ROWS, UNITS)
    recurrent += chain * 3 * H * H
    before = initial + chain * B * H
    gates += chain * S * B * 3 * H + row * 3 * H + unit
    kept += chain * S * B * H
    outputs += chain * S * B * H
    at = row * H + unit
    hidden = tl.load(before + at, there, 0.0)
    for t in range(S):
        reset = tl.load(gates, there, 0.0)
        reset = _sigmoid(reset + _product(before, H, recurrent, rows, units, B, H, ROWS, UNITS))
        tl.store(kept + at, reset * hidden, there)
        _arrive(counter)
        tl.store(gates, reset, there)
        update = tl.load(gates + H, there, 0.0)
        update = _sigmoid(update + _product(before, H, recurrent + H * H, rows, units, B, H, ROWS, UNITS))
        tl.store(gates + H, update, there)
        candidate = tl.load(gates + 2 * H, there, 0.0)
        _wait(counter, (2 * t + 1) * tl.num_programs(0))
        candidate = _tanh(candidate + _product(kept, H, recurrent + 2 * H * H, rows, units, B, H, ROWS, UNITS))
        hidden = candidate + update * (hidden - candidate)
        tl.store(outputs + at, hidden, there)
        _arrive(counter)
        tl.store(gates + 2 * H, candidate, there)
        before = outputs
        gates += B * 3 * H
        kept += B * H
        outputs += B * H
        _wait(counter, (2 * t + 2) * tl.num_programs(0))


@_kernel
def _gru_backward(
    d_gates, d_initial, d_outputs, gates, outputs, initial, transposed, counters, first_row, first_chain, S, B, H,
    ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """transposed (K, 3, H, H); all others as their names say."""
    chain, rows, units, row, unit, there, counter = _place(counters, first_row, first_chain, B, H, ROWS, UNITS)
    transposed += chain * 3 * H * H
    d_gates += (chain * S + S - 1) * B * 3 * H
    gates += (chain * S + S - 1) * B * 3 * H + row * 3 * H + unit
    at = row * H + unit
    d_outputs += (chain * S + S - 1) * B * H + at
    initial += chain * B * H + at
    outputs += chain * S * B * H + at
    d_initial += chain * B * H + at
    carry = tl.zeros((ROWS, UNITS), tl.float32)
    for back in range(S):
        before = initial
        if back < S - 1:
            before = outputs + (S - 2 - back) * B * H
        mine = d_gates + row * 3 * H + unit
        reset, update = tl.load(gates, there, 0.0), tl.load(gates + H, there, 0.0)
        candidate, hidden = tl.load(gates + 2 * H, there, 0.0), tl.load(before, there, 0.0)
        d_now = tl.load(d_outputs, there, 0.0) + carry
        tl.store(mine + 2 * H, d_now * (1.0 - update) * (1.0 - candidate * candidate), there)
        tl.store(mine + H, d_now * (hidden - candidate) * update * (1.0 - update), there)
        _arrive(counter)
        _wait(counter, (2 * back + 1) * tl.num_programs(0))
        d_kept = _product(d_gates + 2 * H, 3 * H, transposed + 2 * H * H, rows, units, B, H, ROWS, UNITS)
        tl.store(mine, d_kept * hidden * reset * (1.0 - reset), there)
        _arrive(counter)
        carry = d_now * update + d_kept * reset
        carry += _product(d_gates + H, 3 * H, transposed + H * H, rows, units, B, H, ROWS, UNITS)
        _wait(counter, (2 * back + 2) * tl.num_programs(0))
        carry += _product(d_gates, 3 * H, transposed, rows, units, B, H, ROWS, UNITS)
        d_gates -= B * 3 * H
        gates -= B * 3 * H
        d_outputs -= B * H
    tl.store(d_initial, carry, there)


def rnn_forward(outputs: Tensor, initial: Tensor, recurrent: Tensor, clip: float) -> None:
    """Clipped ReLU, in place: outputs (K, S, B, H) holds the projections; initial (K, B, H); recurrent (K, H, H)."""
    _run(_rnn_forward, (outputs, initial.contiguous(), recurrent.contiguous()), outputs, clip)


def rnn_backward(d_gates: Tensor, outputs: Tensor, recurrent: Tensor, clip: float) -> None:
    """In place: d_gates (K, S, B, H) holds the gradient of the outputs, then that of the pre-activations."""
    _run(_rnn_backward, (d_gates, outputs, recurrent.mT.contiguous()), outputs, clip)


def gru_forward(gates: Tensor, kept: Tensor, outputs: Tensor, initial: Tensor, recurrent: Tensor) -> None:
    """Reset before U h: gates (K, S, B, 3H), in: projections, out: r, z, n; kept, outputs (K, S, B, H) are written."""
    _run(_gru_forward, (gates, kept, outputs, initial.contiguous(), recurrent.contiguous()), outputs)


def gru_backward(
    d_outputs: Tensor, gates: Tensor, outputs: Tensor, initial: Tensor, recurrent: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the pre-activations (K, S, B, 3H) and of the initial state (K, B, H)."""
    d_gates, d_initial = torch.empty_like(gates), torch.empty_like(initial, memory_format=torch.contiguous_format)
    transposed = recurrent.unflatten(1, (3, -1)).mT.contiguous()
    tensors = (d_gates, d_initial, d_outputs.contiguous(), gates, outputs, initial.contiguous(), transposed)
    _run(_gru_backward, tensors, outputs)
    return d_gates, d_initial


def _run(kernel: Any, tensors: tuple[Tensor, ...], outputs: Tensor, *settings: float) -> None:
    """Launch, for as many chains and rows at a time as have all their programs run at once."""
    chains, frames, batch, size = outputs.shape
    rows = FEW if batch <= FEW else MANY
    at_once = 1 if INTERPRETED else torch.cuda.get_device_properties(outputs.device).multi_processor_count
    units = triton.next_power_of_2(size) if INTERPRETED else _units(chains * triton.cdiv(batch, rows), size, at_once)
    programs = triton.cdiv(size, units)
    if programs > at_once:
        raise ValueError(f"hidden_size: got {size}, expected at most {units * at_once} on this GPU")
    chains_at_once = min(chains, max(1, at_once // programs))
    blocks_at_once = max(1, at_once // programs // chains_at_once)
    for chain in range(0, chains, chains_at_once):
        for row in range(0, batch, blocks_at_once * rows):
            grid = (
                programs,
                min(blocks_at_once, triton.cdiv(batch - row, rows)),
                min(chains_at_once, chains - chain),
            )
            kernel[grid](
                *tensors, torch.zeros(grid[1] * grid[2], dtype=torch.int32, device=outputs.device), row, chain,
                frames, batch, size, *settings,
                ROWS=rows, UNITS=units, num_warps=WARPS[rows], launch_cooperative_grid=not INTERPRETED,
            )  # fmt: skip


def _units(groups: int, size: int, at_once: int) -> int:
    """Of a program, `groups` of programs each sharing out all units."""
    return next((units for units in UNITS if groups * triton.cdiv(size, units) <= at_once), UNITS[-1])
