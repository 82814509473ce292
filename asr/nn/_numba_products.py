"""Products over rows and over windows as compiled loops on the CPU, for `asr.nn.products`.

Every output is a sum over one window of the input. Of each DEPTH elements, or each of the window's pieces if those are
shorter, the sum is formed from first to last and added to the others', the bias first: which rounds less than one long
sum does. So what a window gives depends on nothing else: not on other windows, nor on how they are split over threads.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from asr.nn._numba_calls import flat_arrays, run
from asr.nn._panels import multiply, pack
from asr.nn._vectors import Vector, copy_row, equations, kernel

DEPTH = 256  # elements: their part of a panel stays in the first two levels of the cache
ROWS_AT_A_TIME = 256
OUTERS_AT_A_TIME = 8


@equations(inputs=3, outputs=1)
def _add_product(total: Vector, x: Vector, y: Vector) -> tuple[Vector, ...]:
    return (total + x * y,)


@kernel
def windows(
    a, a_outer, a_row, a_segment, segments, length, b, bias, out, rows, columns, outers, by_outers, first, last
):
    """out[o, r] = bias + sum over s, i of a[o * a_outer + r * a_row + s * a_segment + i] b[s * length + i].

    A window is `segments` pieces of `length` elements each. The range is of o or, if not `by_outers`, of r.
    """
    outer_first, outer_last = (first, last) if by_outers else (0, outers)
    row_first, row_last = (0, rows) if by_outers else (first, last)
    depth = segments * length
    padded = len(b) // depth
    has_bias = 1 if len(bias) else 0
    # Zeros, which the columns that only fill a panel stay.
    scratch = np.zeros(OUTERS_AT_A_TIME * min(rows, ROWS_AT_A_TIME) * padded if padded != columns else 0, out.dtype)
    for outer_start in range(outer_first, outer_last, OUTERS_AT_A_TIME):
        outer_end = min(outer_last, outer_start + OUTERS_AT_A_TIME)
        for row_start in range(row_first, row_last, ROWS_AT_A_TIME):
            number = min(row_last - row_start, ROWS_AT_A_TIME)
            target, at, distance = out, (outer_start * rows + row_start) * columns, rows * columns
            if padded != columns:
                target, at, distance = scratch, 0, number * padded
            if has_bias:
                for outer in range(outer_end - outer_start):
                    for row in range(number):
                        copy_row(columns, bias, 0, target, at + outer * distance + row * padded)
            for segment in range(segments):
                for start in range(0, length, DEPTH):
                    end = min(length, start + DEPTH)
                    adds = 1 if has_bias or segment or start else 0
                    for outer in range(outer_start, outer_end):
                        a_at = outer * a_outer + row_start * a_row + segment * a_segment + start
                        c_at = at + (outer - outer_start) * distance
                        multiply(
                            a, a_at, a_row, 1, number, b, depth, segment * length + start, segment * length + end,
                            target, c_at, padded, adds,
                        )  # fmt: skip
            if padded != columns:
                for outer in range(outer_start, outer_end):
                    for row in range(number):
                        source = (outer - outer_start) * distance + row * padded
                        place = (outer * rows + row_start + row) * columns
                        copy_row(columns, scratch, source, out, place)


@kernel
def transposed(a, a_row, b, out, depth, columns, first, last):
    """out[i] = sum over k of a[k * a_row + i] b[k], rows i from `first` to `last`; out has b's filled up columns."""
    for row_start in range(first, last, ROWS_AT_A_TIME):
        number = min(last - row_start, ROWS_AT_A_TIME)
        for start in range(0, depth, DEPTH):
            end = min(depth, start + DEPTH)
            multiply(
                a, start * a_row + row_start, 1, a_row, number, b, depth, start, end,
                out, row_start * columns, columns, 1 if start else 0,
            )  # fmt: skip


@kernel
def each_unit(a, weight, out, frames, size, taps, first, last):
    """out[t, i] = sum over j of weight[j, i] a[t + j, i], of items `first` to `last`; out begins as zeros."""
    for item in range(first, last):
        for t in range(frames):
            at, now = (item * (frames + taps - 1) + t) * size, (item * frames + t) * size
            for j in range(taps):
                _add_product(size, out, now, a, at + j * size, weight, j * size, out, now)


def linear(inputs: Tensor, packed: Tensor, bias: Tensor | None, columns: int) -> Tensor:
    """(*R, D) contiguous times a packed (D, O), plus bias (O,): (*R, O)."""
    depth = inputs.shape[-1]
    out = inputs.new_empty(*inputs.shape[:-1], columns)
    rows = out.numel() // columns
    a, b, c, result = flat_arrays(inputs, packed, _or_empty(bias, inputs), out)
    call = (a, 0, depth, 0, 1, depth, b, c, result, rows, columns, 1, 0)
    run(windows, [call], rows, _work(depth * columns))
    return out


def transposed_product(left: Tensor, right: Tensor) -> Tensor:
    """left^T right: (R, M), (R, N) -> (M, N)."""
    packed = pack(right)
    depth, rows = left.shape
    columns = len(packed) // depth
    out = left.new_empty(rows, columns)
    a, b, result = flat_arrays(left, packed, out)
    run(transposed, [(a, rows, b, result, depth, columns)], rows, _work(depth * columns))
    return out[:, : right.shape[1]]


def convolve(
    frames: Tensor, packed: Tensor, bias: Tensor | None, columns: int, kernel: tuple[int, int], stride: tuple[int, int]
) -> Tensor:
    """(B, T, F, C), a packed (k_t * k_f * C, C'), (C',) -> (B, S, F', C') where whole windows fit; contiguous."""
    batch, num_frames, width, channels = frames.shape
    outers, rows = ((n - k) // s + 1 for n, k, s in zip((num_frames, width), kernel, stride, strict=True))
    out = frames.new_empty(batch, outers, rows, columns)
    b, c = flat_arrays(packed, _or_empty(bias, frames))
    distances = stride[0] * width * channels, stride[1] * channels, width * channels
    length = kernel[1] * channels
    calls = [
        (a, *distances, kernel[0], length, b, c, result, rows, columns, outers, 1)
        for a, result in zip(map(_flat_one, frames), map(_flat_one, out), strict=True)
    ]
    run(windows, calls, outers, _work(rows * kernel[0] * length * columns))
    return out


def dilated_convolve(
    frames: Tensor, packed: Tensor, bias: Tensor | None, columns: int, taps: int, dilation: int
) -> Tensor:
    """(B, P, C), a packed (k * C, D), (D,) -> (B, S, D): windows of k frames, `dilation` apart."""
    batch, num_frames, channels = frames.shape
    ready = num_frames - (taps - 1) * dilation
    length, bias = (dilation * channels, taps, channels), _or_empty(bias, frames)
    if ready <= batch:  # many streams: rows are items, whose products with a panel go together
        out = frames.new_empty(ready, batch, columns)
        a, b, c, result = flat_arrays(frames, packed, bias, out)
        call = (a, channels, num_frames * channels, *length, b, c, result, batch, columns, ready, 0)
        run(windows, [call], batch, _work(ready * taps * channels * columns))
        return out.transpose(0, 1)
    out = frames.new_empty(batch, ready, columns)
    b, c = flat_arrays(packed, bias)
    calls = [
        (a, 0, channels, *length, b, c, result, ready, columns, 1, 0)
        for a, result in zip(map(_flat_one, frames), map(_flat_one, out), strict=True)
    ]
    run(windows, calls, ready, _work(taps * channels * columns))
    return out


def convolve_each_unit(frames: Tensor, weight: Tensor) -> Tensor:
    """(B, P, D), (k, D) -> (B, S, D): each unit by a filter of its own."""
    batch, num_frames, size = frames.shape
    taps = len(weight)
    out = frames.new_zeros(batch, num_frames - taps + 1, size)
    a, w, result = flat_arrays(frames, weight, out)
    run(each_unit, [(a, w, result, out.shape[1], size, taps)], batch, out.shape[1] * size * taps)
    return out


def _work(products: int) -> int:
    """Of so many multiply-adds, in what `run` counts in."""
    return products // 256


def _or_empty(bias: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if bias is None else bias


def _flat_one(tensor: Tensor) -> np.ndarray:
    return flat_arrays(tensor)[0]
