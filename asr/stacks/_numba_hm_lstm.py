"""The time loop of the hierarchical multiscale LSTM, compiled for the CPU; `asr.stacks.hm_lstm` says what it computes.

A kernel runs a range of batch items over all frames, and in each frame over all layers. There is no product with the
layer above or below where z is 0, and if nothing is kept for a gradient, none where a layer does not move, besides
that of its detector. So items are put in an order in which those that need a product stand side by side:

    place in the order        0 ...... above_first ...... below_end ...... above_end ...... rows
    z[l, t-1], z[l-1, t]        0, > 0            > 0, > 0         > 0, 0           0, 0

What an item gives depends neither on its place nor on the others, nor on how items are split over threads.

All arrays are flat; layers stand one behind the other, or (S, B, L, D) as in `asr.stacks.hm_lstm`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from asr.nn._numba_calls import arrays, rows_of, run
from asr.nn._vectors import REGISTER, Vector, equations, kernel, multiply, pack, sigmoid, tanh

NORM_EPSILON = 1e-5  # torch's LayerNorm
Packed = tuple[Tensor, Tensor]


@equations(numbers=2, inputs=6, outputs=6)
def _move(
    write: Vector, kept: Vector, i: Vector, f: Vector, g: Vector, o: Vector, cell: Vector, hidden: Vector
) -> tuple[Vector, ...]:
    i, f, g, o, copy = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o), 1.0 - write
    cell = write * (i * g) + (copy + kept * f) * cell
    return i, f, g, o, cell, write * (o * tanh(cell)) + copy * hidden


@equations(inputs=2, outputs=1)
def _add(x: Vector, y: Vector) -> tuple[Vector, ...]:
    return (x + y,)


@equations(numbers=1, inputs=1, outputs=1)
def _scaled(factor: Vector, x: Vector) -> tuple[Vector, ...]:
    return (factor * x,)


@equations(inputs=1, outputs=1)
def _sigmoid(x: Vector) -> tuple[Vector, ...]:
    return (sigmoid(x),)


@kernel
def _order(flush, update, rows, order):
    """Fill `order`, and give the ends of its first three parts."""
    ends = (0, 0, 0)
    number = 0
    for part in range(4):
        flushes, updates = part == 1 or part == 2, part < 2
        for row in range(rows):
            if (flush[row] != 0) == flushes and (update[row] != 0) == updates:
                order[number] = row
                number += 1
        if part < 3:
            ends = (ends[1], ends[2], number)
    return ends


@kernel
def _products(operands, width, size, layer, top, weight, rows, above_first, below_end, above_end, sums, at, distance):
    """Add to the first `rows` sums the product of the layer's own state with `weight`, and of its neighbours' if due."""
    multiply(operands, 0, width, 1, rows, weight, width, 0, size, sums, at, distance, 1)
    if not top and above_first < above_end:
        start, number = above_first * width + size, above_end - above_first
        to = at + above_first * distance
        multiply(operands, start, width, 1, number, weight, width, size, 2 * size, sums, to, distance, 1)
    if layer and below_end:
        start = width - size
        multiply(operands, start, width, 1, below_end, weight, width, start, width, sums, at, distance, 1)


@kernel
def _normalise(sums, at, detector, has_detector, size):
    """Subtract their mean from 4 `size` sums, and a detector's if there is one, and divide them by their deviation."""
    f, g, o = at + size, at + 2 * size, at + 3 * size
    share, epsilon = sums.dtype.type(1 / (4 * size + has_detector)), sums.dtype.type(NORM_EPSILON)
    zero, own = sums.dtype.type(0), sums[detector] if has_detector else sums.dtype.type(0)
    mean, mean_f, mean_g, mean_o = own, zero, zero, zero  # four sums at a time take as long as one
    for j in range(size):
        mean += sums[at + j]
        mean_f += sums[f + j]
        mean_g += sums[g + j]
        mean_o += sums[o + j]
    mean = (mean + mean_f + mean_g + mean_o) * share
    square = (own - mean) ** 2 if has_detector else zero
    square_f, square_g, square_o = zero, zero, zero
    for j in range(size):
        square += (sums[at + j] - mean) ** 2
        square_f += (sums[f + j] - mean) ** 2
        square_g += (sums[g + j] - mean) ** 2
        square_o += (sums[o + j] - mean) ** 2
    inverse = 1 / np.sqrt((square + square_f + square_g + square_o) * share + epsilon)
    for j in range(4 * size):
        sums[at + j] = (sums[at + j] - mean) * inverse
    sums[detector] = (sums[detector] - mean) * inverse
    return inverse


@kernel
def forward_loop(
    p, p_frame, p_item, weight, detectors, offset, scale, bias, slope, thresholds, hidden, first_cell, first_boundary,
    outputs, cells, boundaries, gates, relaxed, normalised, inverses, keeps, frames, batch, layers, size, first, last,
):  # fmt: skip
    rows, lanes, features, norm = last - first, REGISTER // weight.itemsize, 4 * size + 1, len(scale) > 0
    columns = len(weight) // ((3 * layers - 2) * size)
    distance = columns + lanes  # of rows of sums: those of the gates, and of the detector
    order, operands = np.empty(rows, np.int64), np.empty(rows * 3 * size, weight.dtype)
    flush, update, sums = np.zeros(rows, weight.dtype), np.zeros(rows, weight.dtype), np.zeros(rows * distance, weight.dtype)
    zero, half, one = weight.dtype.type(0), weight.dtype.type(0.5), weight.dtype.type(1)
    before, before_at, cell, cell_at = hidden, first * layers * size, first_cell, first * layers * size
    z, z_at = first_boundary, first * (layers - 1)
    for t in range(frames):
        step = t * batch + first
        now_at, cell_now_at, z_now_at = step * layers * size, (t * keeps * batch + first) * layers * size, step * (layers - 1)
        weight_at, detector_at = 0, 0
        update[:] = 1
        for layer in range(layers):
            top = layer == layers - 1
            width = ((1 if top else 2) + (1 if layer else 0)) * size
            layer_weight = weight[weight_at : weight_at + width * columns]
            weight_at += width * columns
            for row in range(rows):
                flush[row] = zero if top else z[z_at + row * (layers - 1) + layer]
            above_first, below_end, above_end = _order(flush, update, rows, order)
            computed = rows if keeps or (norm and not top) else above_end  # gates
            for place in range(computed if top else rows):
                row = order[place]
                own, at, p_at = (row * layers + layer) * size, place * width, t * p_frame + (first + row) * p_item
                operands[at : at + size] = before[before_at + own : before_at + own + size]
                if above_first <= place and place < above_end and not top:
                    _scaled(size, flush[row], before, before_at + own + size, operands, at + size)
                if layer and place < below_end:
                    _scaled(size, update[row], outputs, now_at + own - size, operands, at + width - size)
                to, parameters = place * distance, layer * features
                if layer:
                    sums[to : to + 4 * size] = offset[parameters : parameters + 4 * size]
                    sums[to + columns] = offset[parameters + 4 * size]
                else:
                    _add(4 * size, p, p_at, offset, 0, sums, to)
                    if not top:
                        sums[to + columns] = p[p_at + 4 * size] + offset[4 * size]
            _products(
                operands, width, size, layer, top, layer_weight, computed, above_first, below_end, above_end,
                sums, 0, distance,
            )  # fmt: skip
            if not top:
                layer_detector = detectors[detector_at : detector_at + width * lanes]
                detector_at += width * lanes
                _products(
                    operands, width, size, layer, top, layer_detector, rows, above_first, below_end, above_end,
                    sums, columns, distance,
                )  # fmt: skip
            for place in range(rows):
                row, at = order[place], place * distance
                own = (row * layers + layer) * size
                if norm and place < computed:
                    inverse = _normalise(sums, at, at + columns, 0 if top else 1, size)
                    item, parameters = (layer * frames + t) * batch + first + row, layer * features
                    if keeps:
                        inverses[item] = inverse
                        normalised[item * features : (item + 1) * features - 1] = sums[at : at + 4 * size]
                        normalised[(item + 1) * features - 1] = sums[at + columns]
                    for j in range(4 * size):
                        sums[at + j] = sums[at + j] * scale[parameters + j] + bias[parameters + j]
                    last_one = parameters + 4 * size
                    sums[at + columns] = sums[at + columns] * scale[last_one] + bias[last_one]
                if place < computed:
                    copy = (one - flush[row]) * (one - update[row])
                    kept, kept_at = (gates, ((layer * frames + t) * batch + first + row) * 4 * size) if keeps else (sums, at)
                    _move(
                        size, one - copy, one - copy - flush[row],
                        sums, at, sums, at + size, sums, at + 2 * size, sums, at + 3 * size,
                        cell, cell_at + own, before, before_at + own,
                        kept, kept_at, kept, kept_at + size, kept, kept_at + 2 * size, kept, kept_at + 3 * size,
                        cells, cell_now_at + own, outputs, now_at + own,
                    )  # fmt: skip
                else:
                    outputs[now_at + own : now_at + own + size] = before[before_at + own : before_at + own + size]
                    cells[cell_now_at + own : cell_now_at + own + size] = cell[cell_at + own : cell_at + own + size]
                if not top:
                    chance = (slope[0] * sums[at + columns] + one) * half
                    chance = zero if chance < zero else one if chance > one else chance  # NaN stays NaN
                    to = z_now_at + row * (layers - 1) + layer
                    relaxed[to if keeps else 0] = chance
                    if len(thresholds):
                        limit = thresholds[(t * (layers - 1) + layer) * batch + first + row]
                        chance = one if chance > limit else zero
                    boundaries[to] = chance
            for row in range(rows):
                update[row] = zero if top else boundaries[z_now_at + row * (layers - 1) + layer]
        before, before_at, cell, cell_at, z, z_at = outputs, now_at, cells, cell_now_at, boundaries, z_now_at


@kernel
def sigmoid_loop(x, out, size, first, last):
    _sigmoid((last - first) * size, x, first * size, out, first * size)


def forward(
    projected: Tensor,
    state: Sequence[Tensor],
    slope: Tensor,
    thresholds: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    scales: Sequence[Tensor],
    *,
    packed: Packed | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run all layers over all frames.

    Args:
        projected: (S, B, 4D + 1), W x of layer 1.
        state: hidden and cell (B, L, D), boundary (B, L - 1).
        slope: a.
        thresholds: (S, L - 1, B, 1), z = p > threshold; None: z = p.
        weights: of each layer.
        biases: likewise.
        scales: likewise; none without layer norm.
        packed: `weights` as `pack_weights` gives them; None: they are packed here.

    Returns:
        h (S, B, L, D), z (S, B, L - 1) and the last c (B, L, D).
    """
    like = weights[0]
    frames, batch, _ = projected.shape
    _, layers, size = state[0].shape
    outputs, cells = like.new_empty(frames, batch, layers, size), like.new_empty(batch, layers, size)
    boundaries = like.new_empty(frames, batch, layers - 1)
    weight, detectors = packed or pack_weights(weights)
    bias, scale = _side_by_side(biases, like), _side_by_side(scales, like)
    none = like.new_empty(0)
    inputs = (
        weight, detectors, torch.zeros_like(bias) if scales else bias, scale, bias, slope.to(like).view(1),
        none if thresholds is None else thresholds.to(like), *(tensor.to(like) for tensor in state),
    )  # fmt: skip
    results = (outputs, cells, boundaries, none, like.new_empty(1), none, none)
    flat = [array.reshape(-1) for array in arrays(*inputs, *results)]
    work = frames * (3 * layers - 2) * 4 * size * (1 + size // 256)
    run(forward_loop, [(*rows_of(projected), *flat, 0, frames, batch, layers, size)], batch, work)
    return outputs, boundaries, cells


def pack_weights(weights: Sequence[Tensor]) -> Packed:
    """Columns of the gates, and those of the detectors, of all layers as the loop reads them."""
    gates, detectors = zip(*(_without_detector(weight) for weight in weights), strict=True)
    return torch.cat([pack(weight) for weight in gates]), torch.cat([pack(weight).flatten() for weight in detectors])


def _without_detector(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gates' columns, a multiple of 4, and the detector's if it has one."""
    columns = weight.shape[1] - weight.shape[1] % 4
    return weight[:, :columns], weight[:, columns:]


def _side_by_side(vectors: Sequence[Tensor], like: Tensor) -> Tensor:
    """(L, 4D + 1), the top layer's filled up; empty if there are none."""
    if not vectors:
        return like.new_empty(0)
    return torch.stack([*vectors[:-1], F.pad(vectors[-1], (0, 1))])


def sigmoids(inputs: Tensor) -> Tensor:
    """Of each element, whatever stands beside it."""
    x, out = inputs.contiguous(), torch.empty_like(inputs, memory_format=torch.contiguous_format)
    run(sigmoid_loop, [(*(array.reshape(-1) for array in arrays(x, out)), 1)], x.numel(), 1)
    return out
