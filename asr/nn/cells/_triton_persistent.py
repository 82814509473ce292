"""How programs of a Triton kernel share out a recurrence with full matrices; `_triton_full` has the cells.

As in Persistent RNNs (Diamos et al. 2016) the programs share out the units, and each runs all frames, reading the whole
state that the others have written and writing its own units of the next one. Before a program reads, all have to have
written: they count up a number in memory and wait until it says so. For that all of them have to run at once; there are
no more than the GPU has multiprocessors, and they are launched together or not at all.

States are exchanged in the type E of the products, which is autocast's or float32; what a program carries of its own
units, and all sums, are float32. Where float32 is to be whole (`asr.nn.precision`), a factor is split in two that the
matrix units take as they are, and three of the four partial products are added up: an error of 2^-20. Else it is TF32,
by the setting that cuDNN's recurrences go by.

Letters: K chains, S frames, B items, H units.
"""

# ruff: noqa: RUF005
# Triton cannot unpack within a tuple.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false
# Its types know neither launch options, such as num_stages, nor that tl.range is iterable.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from asr.nn.gpu_kernels import INTERPRETED
from asr.nn.triton_kernel import kernel

FEW, MANY = 16, 64  # batch rows of a program
WARPS = {FEW: 4, MANY: 8}
UNITS = (16, 32, 64)  # of a program: the fewest with which all programs run at once
PARTS = tl.constexpr(WARPS[FEW])
INNER_OF_FEW, INNER_OF_MANY = tl.constexpr(128), tl.constexpr(64)  # terms of a product's sum at a time
MOST_STAGES = 6  # of these on their way; each takes some 600 cycles, and too few of them are what a frame waits for
SHARED = 0.8  # of a multiprocessor's memory, for them


@kernel
def arrive(counter):
    """Tell the other programs that what this one wrote can be read."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


@kernel
def wait(counter, arrivals):
    """Wait for so many arrivals of all programs together."""
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < arrivals:
        pass
    tl.debug_barrier()


@kernel
def place(counters, first_row, first_chain, B, H, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """A program's chain, rows, units, the latter two as a column and a row, which of them there are, its counter."""
    rows = first_row + tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    units = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    there = (rows[:, None] < B) & (units[None, :] < H)
    counter = counters + tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    return (first_chain + tl.program_id(2)).to(tl.int64), rows, units, rows[:, None], units[None, :], there, counter


@kernel
def _split(x):
    """x as a sum of two: its leading 11 bits, and the rest."""
    leading = (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    return leading, x - leading


@kernel
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


@kernel
def products(
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


@kernel
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


@kernel
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


@kernel
def load(pointers, there):
    return tl.load(pointers, there, 0.0).to(tl.float32)


@kernel
def store(pointers, value, there):
    tl.store(pointers, value.to(pointers.dtype.element_ty), there)


def run(
    loop: Any,
    tensors: tuple[Tensor, ...],
    shape: tuple[int, ...],
    *settings: float,
    gates: int = 1,
    dtype: torch.dtype,
    **constants: bool,
) -> None:
    """Launch, for as many chains and rows at a time as have all their programs run at once.

    Args:
        loop: of `_triton_full`.
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
            loop[grid](
                *tensors, counters, row, chain, frames, batch, size, *settings, **constants,
                TF32=tf32, ROWS=rows, UNITS=units, STAGES=stages,
                num_warps=WARPS[rows], launch_cooperative_grid=not INTERPRETED,
            )  # fmt: skip


def _units(groups: int, size: int, at_once: int) -> int:
    """Of a program, `groups` of programs each sharing out all units."""
    return next((units for units in UNITS if groups * triton.cdiv(size, units) <= at_once), UNITS[-1])
