"""The time loop of a clockwork layer as compiled loops on the CPU; `asr.stacks.clockwork` says what it computes.

A kernel runs a range of batch items over all frames. Where a module runs in any of them, a frame multiplies all their
states with its rows of W, from its own units on; the units of the items in which it runs take the result, the others
keep their state. What an item gives does not depend on the others, nor on how items are split over threads.

All arrays are flat. Projections stand by level, and in order within one, as `projected` says below.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from asr.nn._numba_calls import arrays, rows_of, run
from asr.nn._vectors import Vector, equations, first_columns, kernel, multiply, pack, tanh

__all__ = ["backward", "first_columns", "forward", "pack_blocks"]


@equations(inputs=2, outputs=1)
def _tanh(p: Vector, u: Vector) -> tuple[Vector, ...]:
    return (tanh(p + u),)


@equations(inputs=3, outputs=1)
def _tanh_back(d: Vector, back: Vector, hidden: Vector) -> tuple[Vector, ...]:
    return ((d + back) * (1.0 - hidden * hidden),)


@equations(inputs=2, outputs=1)
def _add(x: Vector, y: Vector) -> tuple[Vector, ...]:
    return (x + y,)


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
def forward_loop(
    p, levels, runs, runs_frame, runs_item, weight, hidden, outputs, frames, batch, size, modules, first, last
):
    rows, units = last - first, size // modules
    columns = 2 * len(weight) // (units * modules * (modules + 1))
    u = np.empty(rows * columns, weight.dtype)
    places = _places(levels, modules, batch * units)
    before, before_at = hidden, first * size
    for t in range(frames):
        now_at, weight_at, p_item = (t * batch + first) * size, 0, levels[t] * units
        for module in range(modules):
            start, depth = module * units, size - module * units
            waits = True
            for row in range(rows):
                runs_at = t * runs_frame + (first + row) * runs_item + module
                if runs[runs_at] and waits:
                    block = weight[weight_at : weight_at + depth * columns]
                    multiply(before, before_at + start, size, 1, rows, block, depth, 0, depth, u, 0, columns, 0)
                    waits = False
                now, old = now_at + row * size + start, before_at + row * size + start
                if runs[runs_at]:
                    _tanh(units, p, places[t] + (first + row) * p_item + start, u, row * columns, outputs, now)
                else:
                    outputs[now : now + units] = before[old : old + units]
            weight_at += depth * columns
        before, before_at = outputs, now_at


@kernel
def backward_loop(
    d, d_frame, d_item, levels, runs, runs_frame, runs_item, weight, outputs, d_p, d_hidden,
    frames, batch, size, modules, first, last,
):  # fmt: skip
    rows, units, columns = last - first, size // modules, len(weight) // size
    back = np.zeros(rows * columns, weight.dtype)
    places = _places(levels, modules, batch * units)
    for t in range(frames - 1, -1, -1):
        p_item = levels[t] * units
        for row in range(rows):
            item = first + row
            d_at, p_at, way = t * d_frame + item * d_item, places[t] + item * p_item, row * columns
            for module in range(levels[t]):
                start = module * units
                here = way + start
                if runs[t * runs_frame + item * runs_item + module]:
                    now = (t * batch + item) * size + start
                    _tanh_back(units, d, d_at + start, back, here, outputs, now, d_p, p_at + start)
                    back[here : here + units] = 0
                else:
                    _add(units, d, d_at + start, back, here, back, here)
                    d_p[p_at + start : p_at + start + units] = 0
            _add(size - p_item, d, d_at + p_item, back, way + p_item, back, way + p_item)
        if p_item:
            p_at = places[t] + first * p_item
            multiply(d_p, p_at, p_item, 1, rows, weight, size, 0, p_item, back, 0, columns, 1)
    for row in range(rows):
        at = (first + row) * size
        d_hidden[at : at + size] = back[row * columns : row * columns + size]


def forward(blocks: Tensor, projected: Tensor, levels: Tensor, runs: Tensor, initial: Tensor) -> Tensor:
    """Run all frames.

    Args:
        blocks: W as `pack_blocks` gives it.
        projected: flat; for each level m the rows (S_m, B, m k) of the frames that have it, one after the other.
        levels: (S,); the first so many modules hold all that run in a frame.
        runs: (S, B or 1, g), True where a module runs.
        initial: (B, H).

    Returns:
        (S, B, H).
    """
    frames, items, modules = runs.shape
    batch, size = initial.shape
    outputs = initial.new_empty(frames, batch, size)
    p, numbers, clock, weight, hidden, result = _flat(projected, levels, runs, blocks, initial, outputs)
    facts = (frames, batch, size, modules)
    call = (p, numbers, clock, items * modules, modules * (items > 1), weight, hidden, result, *facts)
    run(forward_loop, [call], batch, _work(levels, size, modules))
    return outputs


def backward(
    recurrent: Tensor, projected: int, levels: Tensor, runs: Tensor, outputs: Tensor, d_outputs: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the projections, flat as they are, and of the initial state.

    Args:
        recurrent: W, (H, H).
        projected: how many values these are.
        levels: as above.
        runs: as above.
        outputs: as `forward` gave them.
        d_outputs: likewise.
    """
    _, items, modules = runs.shape
    frames, batch, size = outputs.shape
    d_projected, d_initial = recurrent.new_empty(projected), recurrent.new_empty(batch, size)
    tensors = (levels, runs, pack(recurrent), outputs, d_projected, d_initial)
    numbers, clock, weight, states, d_p, d_hidden = _flat(*tensors)
    facts = (frames, batch, size, modules)
    call = (
        *rows_of(d_outputs), numbers, clock, items * modules, modules * (items > 1), weight, states, d_p, d_hidden,
        *facts,
    )  # fmt: skip
    run(backward_loop, [call], batch, _work(levels, size, modules))
    return d_projected, d_initial


def pack_blocks(recurrent: Tensor, modules: int) -> Tensor:
    """W, (H, H), module by module from its own units on, as `forward` reads it."""
    units = len(recurrent) // modules
    blocks = recurrent.split(units)
    return torch.cat([pack(block[:, index * units :].mT) for index, block in enumerate(blocks)])


def _work(levels: Tensor, size: int, modules: int) -> int:
    """Of an item, in what `run` counts in."""
    return int(levels.sum()) * (size // modules) * (1 + size // 256)


def _flat(*tensors: Tensor) -> list[np.ndarray]:
    return [array.reshape(-1) for array in arrays(*tensors)]
