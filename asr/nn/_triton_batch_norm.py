"""Batch norm's passes over its rows as Triton kernels for NVIDIA's GPUs; `asr.nn.batch_norm_on_gpu` calls them.

Training reads x twice forward, and x and dy twice backward, for statistics have to be known before they are used. Sums
are float32 over a program's rows, of which a thread adds up at most `TILES` for a unit, and float64 over programs; the
order is always the same. Once the mean is known all is computed of x - mean, which keeps its digits where the mean is
large. Padding is neither read nor trusted to hold 0.

Letters: an item has N rows of C units, frames times frequencies, which are `step` rows apart in memory, and items
`item_step` rows: (1, N), or with frames first (items, 1). A program takes some of one item's rows and units, in tiles.
"""

# pyright: reportCallIssue=false
# Triton's types know no launch options.

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from asr.nn.triton_kernel import kernel

ELEMENTS = 4096  # of a tile, 32 a thread; a quarter where rows do not begin at words that a thread could load at once
UNITS = 128  # of a tile at most: with these, what is read in one piece is long enough
TILES = 8  # of a program
COUNTS = ["N", "per_frame", "step", "item_step"]  # that change with batches, for which nothing is compiled anew


counting_kernel = partial(kernel, do_not_specialize=COUNTS)


@kernel
def _place(
    lengths, N, per_frame, step, item_step,
    C: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Where a program's first row begins, how many are left from there to the item's end, how many of them are real.

    Then rows of a tile, its elements counted from that beginning, its units, and which of those there are.
    """
    first = tl.program_id(1) * (ROWS * TILES)
    begin = (tl.program_id(2).to(tl.int64) * item_step + first.to(tl.int64) * step) * C
    real = tl.load(lengths + tl.program_id(2)).to(tl.int32) * per_frame - first
    rows = tl.arange(0, ROWS)[:, None]
    units = tl.program_id(0) * UNITS + tl.arange(0, UNITS)[None, :]
    return begin, N - first, real, rows, rows * (step * C) + units, units, units < C


@kernel
def _add_sums(one, other, partial, units, C: tl.constexpr):
    """Write both of a program's sums over rows, (2, C) for each program over rows."""
    partial += (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * (2 * C)
    tl.store(partial + units, tl.sum(one, 0, keep_dims=True), units < C)
    tl.store(partial + C + units, tl.sum(other, 0, keep_dims=True), units < C)


@kernel
def _before_clip(x, mean, gain, shift):
    """What is clipped; forward and backward have to find the same."""
    return tl.fma(x - mean, gain, shift)


@kernel
def _unclipped(dy, y, clip, CLIPPED: tl.constexpr):
    """The gradient before the clip; where y is NaN it passes, as in torch."""
    if CLIPPED:
        return tl.where((y <= 0) | (y >= clip), 0.0, dy)
    else:
        return dy


@counting_kernel
def _sums(
    x, lengths, partial, N, per_frame, step, item_step,
    C: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Of x and its squares."""
    begin, _, real, rows, elements, units, there = _place(
        lengths, N, per_frame, step, item_step, C, ROWS, UNITS, TILES
    )  # fmt: skip
    x += begin
    total, squares = tl.zeros((ROWS, UNITS), tl.float32), tl.zeros((ROWS, UNITS), tl.float32)
    for row in range(0, tl.minimum(real, ROWS * TILES), ROWS):
        values = tl.load(x + (row * step).to(tl.int64) * C + elements, (row + rows < real) & there, 0.0).to(tl.float32)
        total += values
        squares += values * values
    _add_sums(total, squares, partial, units, C)


@counting_kernel
def _normalize(
    y, x, lengths, mean, gain, shift, clip, N, per_frame, step, item_step,
    CLIPPED: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    begin, left, real, rows, elements, units, there = _place(
        lengths, N, per_frame, step, item_step, C, ROWS, UNITS, TILES
    )  # fmt: skip
    mean, gain, shift = (
        tl.load(mean + units, there, 0.0), tl.load(gain + units, there, 0.0), tl.load(shift + units, there, 0.0)
    )  # fmt: skip
    x += begin
    y += begin
    for row in range(0, tl.minimum(left, ROWS * TILES), ROWS):
        is_real = row + rows < real
        values = tl.load(x + (row * step).to(tl.int64) * C + elements, is_real & there, 0.0).to(tl.float32)
        values = _before_clip(values, mean, gain, shift)
        if CLIPPED:  # a NaN stays one
            values = tl.where(values < 0, 0.0, values)
            values = tl.where(values > clip, clip, values)
        values = tl.where(is_real, values, 0.0)
        tl.store(
            y + (row * step).to(tl.int64) * C + elements, values.to(y.dtype.element_ty), (row + rows < left) & there
        )


@counting_kernel
def _gradient_sums(
    x, dy, lengths, mean, gain, shift, partial, clip, N, per_frame, step, item_step,
    CLIPPED: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Of the gradient before the clip, and of it times x - mean."""
    begin, _, real, rows, elements, units, there = _place(
        lengths, N, per_frame, step, item_step, C, ROWS, UNITS, TILES
    )  # fmt: skip
    mean, gain, shift = (
        tl.load(mean + units, there, 0.0), tl.load(gain + units, there, 0.0), tl.load(shift + units, there, 0.0)
    )  # fmt: skip
    x += begin
    dy += begin
    total, products = tl.zeros((ROWS, UNITS), tl.float32), tl.zeros((ROWS, UNITS), tl.float32)
    for row in range(0, tl.minimum(real, ROWS * TILES), ROWS):
        inside = (row + rows < real) & there
        values = tl.load(x + (row * step).to(tl.int64) * C + elements, inside, 0.0).to(tl.float32)
        slopes = tl.load(dy + (row * step).to(tl.int64) * C + elements, inside, 0.0).to(tl.float32)
        slopes = _unclipped(slopes, _before_clip(values, mean, gain, shift), clip, CLIPPED)
        total += slopes
        products += slopes * (values - mean)
    _add_sums(total, products, partial, units, C)


@counting_kernel
def _gradient(
    dx, x, dy, lengths, mean, gain, shift, mean_dy, mean_slope, clip, N, per_frame, step, item_step,
    CLIPPED: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """dx = gain (dy - mean_dy) - mean_slope (x - mean)."""
    begin, left, real, rows, elements, units, there = _place(
        lengths, N, per_frame, step, item_step, C, ROWS, UNITS, TILES
    )  # fmt: skip
    mean, gain, shift, mean_dy, mean_slope = (
        tl.load(mean + units, there, 0.0), tl.load(gain + units, there, 0.0), tl.load(shift + units, there, 0.0),
        tl.load(mean_dy + units, there, 0.0), tl.load(mean_slope + units, there, 0.0),
    )  # fmt: skip
    x += begin
    dy += begin
    dx += begin
    for row in range(0, tl.minimum(left, ROWS * TILES), ROWS):
        is_real = row + rows < real
        values = tl.load(x + (row * step).to(tl.int64) * C + elements, is_real & there, 0.0).to(tl.float32)
        slopes = tl.load(dy + (row * step).to(tl.int64) * C + elements, is_real & there, 0.0).to(tl.float32)
        slopes = _unclipped(slopes, _before_clip(values, mean, gain, shift), clip, CLIPPED)
        slopes = gain * (slopes - mean_dy) - mean_slope * (values - mean)
        slopes = tl.where(is_real, slopes, 0.0)
        tl.store(
            dx + (row * step).to(tl.int64) * C + elements, slopes.to(dx.dtype.element_ty), (row + rows < left) & there
        )


def sums(x: Tensor, lengths: Tensor) -> Tensor:
    """Sums of x and of its squares over real rows, (2 C,) float32.

    Args:
        x: (B, S, ..., C), or (B, S, C) with frames first in memory. So are dy and what is given back, in all these.
        lengths: (B,).
    """
    grid, rows, tile = _division(x)
    partial = _partial_sums(x, grid)
    _sums[grid](x, lengths, partial, *rows, **tile)
    return _total(partial)


def normalize(
    x: Tensor, lengths: Tensor, mean: Tensor, gain: Tensor, shift: Tensor, clip: float | None, dtype: torch.dtype
) -> Tensor:
    """clip((x - mean) gain + shift), and 0 in padding."""
    grid, rows, tile = _division(x)
    y = torch.empty_like(x, dtype=dtype)
    _normalize[grid](y, x, lengths, mean, gain, shift, *_clip(clip), *rows, CLIPPED=clip is not None, **tile)
    return y


def gradient_sums(
    x: Tensor, dy: Tensor, lengths: Tensor, mean: Tensor, gain: Tensor, shift: Tensor, clip: float | None
) -> Tensor:
    """Sums over real rows of what passes the clip of dy, and of that times x - mean, (2 C,) float32."""
    grid, rows, tile = _division(x)
    partial = _partial_sums(x, grid)
    moments = (mean, gain, shift)
    _gradient_sums[grid](x, dy, lengths, *moments, partial, *_clip(clip), *rows, CLIPPED=clip is not None, **tile)
    return _total(partial)


def gradient(
    x: Tensor,
    dy: Tensor,
    lengths: Tensor,
    mean: Tensor,
    gain: Tensor,
    shift: Tensor,
    mean_dy: Tensor,
    mean_slope: Tensor,
    clip: float | None,
) -> Tensor:
    """dx, in x's type, and 0 in padding; see `_gradient`."""
    grid, rows, tile = _division(x)
    dx = torch.empty_like(x)
    units = (mean, gain, shift, mean_dy, mean_slope)
    _gradient[grid](dx, x, dy, lengths, *units, *_clip(clip), *rows, CLIPPED=clip is not None, **tile)
    return dx


def _division(x: Tensor) -> tuple[tuple[int, int, int], tuple[int, int, int, int], dict[str, int]]:
    """How x's elements are shared out: grid; N, per_frame, step and item_step; sizes."""
    num_items, num_frames, num_units = x.shape[0], x.shape[1], x.shape[-1]
    per_frame = x[0, 0].numel() // num_units
    units = min(triton.next_power_of_2(num_units), UNITS)
    elements = ELEMENTS if num_units % 4 == 0 else ELEMENTS // 4
    tile = {"C": num_units, "ROWS": elements // units, "UNITS": units, "TILES": TILES}
    num_rows = num_frames * per_frame
    step, item_step = (1, num_rows) if x.is_contiguous() else (num_items, 1)
    grid = (triton.cdiv(num_units, units), triton.cdiv(num_rows, tile["ROWS"] * TILES), num_items)
    return grid, (num_rows, per_frame, step, item_step), tile


def _clip(clip: float | None) -> tuple[float]:
    return (float("inf") if clip is None else clip,)


def _partial_sums(x: Tensor, grid: tuple[int, int, int]) -> Tensor:
    return torch.empty(grid[1] * grid[2], 2 * x.shape[-1], dtype=torch.float32, device=x.device)


def _total(partial: Tensor) -> Tensor:
    return partial.sum(0, dtype=torch.float64).float()
