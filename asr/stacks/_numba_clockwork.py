"""The time loop of a clockwork layer as compiled loops on the CPU; `asr.stacks.clockwork` says what it computes.

A kernel runs a range of batch items over all frames. Where a module runs in any of them, a frame multiplies all their
states with its rows of W, from its own units on; the units of the items in which it runs take the result, the others
keep their state. What an item gives does not depend on the others, nor on how items are split over threads.

All arrays are flat. Projections stand by level, and in order within one, as `projected` says below.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from asr.nn._numba_calls import flat_arrays, rows_of, run
from asr.nn._panels import VECTORS, first_columns, multiply, pack
from asr.nn._vectors import REGISTER, Vector, add_rows, copy_row, equations, kernel, tanh

__all__ = ["backward", "first_columns", "forward", "matrix_gradient", "pack", "pack_blocks"]

DEPTH = 256  # rows that a matrix's gradient is added up from at a time


@equations(inputs=2, outputs=1)
def _tanh(p: Vector, u: Vector) -> tuple[Vector, ...]:
    return (tanh(p + u),)


@equations(inputs=3, outputs=1)
def _tanh_back(d: Vector, back: Vector, hidden: Vector) -> tuple[Vector, ...]:
    return ((d + back) * (1.0 - hidden * hidden),)


@kernel
def _places(levels, modules, module_rows):
    """Where each frame's projections begin; of a module and all items there are `module_rows`."""
    ends = np.zeros(modules + 1, np.int64)
    for level in levels:
        ends[level] += level * module_rows
    for level in range(1, modules + 1):
        ends[level] += ends[level - 1]
    places = np.empty(len(levels), np.int64)
    for t in range(len(levels) - 1, -1, -1):
        ends[levels[t]] -= levels[t] * module_rows
        places[t] = ends[levels[t]]
    return places


@kernel
def forward_loop(p, levels, runs, runs_frame, runs_item, weight, states, frames, batch, size, modules, first, last):
    rows, units = last - first, size // modules
    columns = 2 * len(weight) // (units * modules * (modules + 1))
    u = np.empty(rows * columns, weight.dtype)
    places = _places(levels, modules, batch * units)
    for t in range(frames):
        before_at, weight_at, p_item = (t * batch + first) * size, 0, levels[t] * units
        now_at = before_at + batch * size
        for row in range(rows):
            now, before = now_at + row * size, before_at + row * size
            copy_row(size - p_item, states, before + p_item, states, now + p_item)
        for module in range(levels[t]):
            start, depth = module * units, size - module * units
            waits = True
            for row in range(rows):
                now, before = now_at + row * size + start, before_at + row * size + start
                if not runs[t * runs_frame + (first + row) * runs_item + module]:
                    copy_row(units, states, before, states, now)
                    continue
                if waits:
                    block = weight[weight_at : weight_at + depth * columns]
                    multiply(states, before_at + start, size, 1, rows, block, depth, 0, depth, u, 0, columns, 0)
                    waits = False
                _tanh(units, p, places[t] + (first + row) * p_item + start, u, row * columns, states, now)
            weight_at += depth * columns


@kernel
def backward_loop(
    d, d_frame, d_item, levels, runs, runs_frame, runs_item, recurrent, weight, states, d_p, d_inputs, d_initial,
    frames, batch, size, modules, input_size, first, last,
):  # fmt: skip
    rows, units = last - first, size // modules
    columns, input_columns = len(recurrent) // size, len(weight) // size
    back, below = np.zeros(rows * columns, weight.dtype), np.zeros(rows * input_columns, weight.dtype)
    places = _places(levels, modules, batch * units)
    for t in range(frames - 1, -1, -1):
        p_item = levels[t] * units
        p_first = places[t] + first * p_item
        for row in range(rows):
            item, way = first + row, row * columns
            d_at, p_at = t * d_frame + item * d_item, p_first + row * p_item
            for module in range(levels[t]):
                start = module * units
                here = way + start
                if runs[t * runs_frame + item * runs_item + module]:
                    now = ((t + 1) * batch + item) * size + start
                    _tanh_back(units, d, d_at + start, back, here, states, now, d_p, p_at + start)
                    back[here : here + units] = 0
                else:
                    add_rows(units, d, d_at + start, back, here, back, here)
                    d_p[p_at + start : p_at + start + units] = 0
            add_rows(size - p_item, d, d_at + p_item, back, way + p_item, back, way + p_item)
        if p_item:
            multiply(d_p, p_first, p_item, 1, rows, recurrent, size, 0, p_item, back, 0, columns, 1)
            multiply(d_p, p_first, p_item, 1, rows, weight, size, 0, p_item, below, 0, input_columns, 0)
        else:
            below[:] = 0
        for row in range(rows):
            copy_row(input_size, below, row * input_columns, d_inputs, (t * batch + first + row) * input_size)
    for row in range(rows):
        copy_row(size, back, row * columns, d_initial, (first + row) * size)


@kernel
def gradient_loop(d_p, rows, values, frame, item, chosen, batch, columns, out, first, last):
    width = VECTORS * (REGISTER // out.itemsize)
    number, out_row, own = len(chosen) * batch, -(-columns // width) * width, (last - first) * width
    part = np.empty(own * DEPTH, out.dtype)  # of the factor on the right, packed; in the second-level cache
    for start in range(0, number, DEPTH):
        depth = min(DEPTH, number - start)
        for k in range(depth):
            at = chosen[(start + k) // batch] * frame + (start + k) % batch * item
            for panel in range(first, last):
                length = min(width, columns - panel * width)
                copy_row(length, values, at + panel * width, part, ((panel - first) * depth + k) * width)
        now = part[: own * depth]
        multiply(d_p, start * rows, 1, rows, rows, now, depth, 0, depth, out, first * width, out_row, 1 if start else 0)


def forward(blocks: Tensor, projected: Tensor, levels: Tensor, runs: Tensor, initial: Tensor) -> Tensor:
    """Run all frames.

    Args:
        blocks: W as `pack_blocks` gives it.
        projected: flat; for each level m the rows (S_m, B, m k) of the frames that have it, one after the other.
        levels: (S,); the first so many modules hold all that run in a frame.
        runs: (S, B or 1, g), True where a module runs.
        initial: (B, H).

    Returns:
        States, (S + 1, B, H), the initial ones first.
    """
    frames, items, modules = runs.shape
    batch, size = initial.shape
    states = initial.new_empty(frames + 1, batch, size)
    states[0] = initial
    p, numbers, clock, weight, all_states = flat_arrays(projected, levels, runs, blocks, states)
    facts = (frames, batch, size, modules)
    call = (p, numbers, clock, items * modules, modules * (items > 1), weight, all_states, *facts)
    run(forward_loop, [call], batch, _work(levels, size, modules))
    return states


def backward(
    recurrent: Tensor,
    weight: Tensor,
    projected: int,
    levels: Tensor,
    runs: Tensor,
    states: Tensor,
    d_outputs: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the projections, flat as they are, of the inputs (S, B, D), and of the initial states.

    Args:
        recurrent: W, (H, H).
        weight: V, (H, D).
        projected: how many values these are.
        levels: as above.
        runs: as above.
        states: as `forward` gave them.
        d_outputs: (S, B, H).
    """
    _, items, modules = runs.shape
    frames, batch, size = d_outputs.shape
    d_projected, d_initial = states.new_empty(projected), states.new_empty(batch, size)
    d_inputs = states.new_empty(frames, batch, weight.shape[1])
    numbers, clock, *others = flat_arrays(
        levels, runs, pack(recurrent), pack(weight), states, d_projected, d_inputs, d_initial
    )
    facts = (frames, batch, size, modules, weight.shape[1])
    call = (*rows_of(d_outputs), numbers, clock, items * modules, modules * (items > 1), *others, *facts)
    run(backward_loop, [call], batch, _work(levels, size, modules))
    return d_projected, d_inputs, d_initial


def matrix_gradient(d_projected: Tensor, values: Tensor, chosen: Tensor) -> Tensor:
    """The sum over some frames, and all items, of gradients times values, which is that of a matrix.

    Args:
        d_projected: (S', B, R).
        values: (S, B, N).
        chosen: (S',), the frames of `values`.

    Returns:
        (R, N).
    """
    frames, batch, rows = d_projected.shape
    columns = values.shape[-1]
    width = VECTORS * (REGISTER // d_projected.element_size())
    panels = -(-columns // width)
    out = d_projected.new_empty(rows, panels * width)
    d_p, numbers, result = flat_arrays(d_projected, chosen, out)
    call = (d_p, rows, *rows_of(values), numbers, batch, columns, result)
    run(gradient_loop, [call], panels, frames * batch * rows * width // 256)
    return out[:, :columns]


def pack_blocks(blocks: Iterable[Tensor]) -> Tensor:
    """W as `forward` reads it, of its blocks (k, (g - i) k): what module i reads of itself and the slower modules."""
    return torch.cat([pack(block.mT) for block in blocks])


def _work(levels: Tensor, size: int, modules: int) -> int:
    """Of an item, in what `run` counts in."""
    return int(levels.sum()) * (size // modules) * (1 + size // 256)
