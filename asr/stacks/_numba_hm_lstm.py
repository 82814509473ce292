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
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from asr.nn._numba_calls import flat_arrays, rows_of, run
from asr.nn._panels import multiply, pack
from asr.nn._vectors import REGISTER, Vector, add_rows, equations, kernel, sigmoid, tanh
from asr.stacks._hm_lstm_on_cpu import NORM_EPSILON, Packed


@equations(numbers=2, inputs=6, outputs=6)
def _move(
    write: Vector, kept: Vector, i: Vector, f: Vector, g: Vector, o: Vector, cell: Vector, hidden: Vector
) -> tuple[Vector, ...]:
    i, f, g, o, copy = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o), 1.0 - write
    cell = write * (i * g) + (copy + kept * f) * cell
    return i, f, g, o, cell, write * (o * tanh(cell)) + copy * hidden


@equations(numbers=2, inputs=10, outputs=8)
def _move_back(
    write: Vector, kept: Vector, d: Vector, back: Vector, cell_back: Vector,
    i: Vector, f: Vector, g: Vector, o: Vector, now: Vector, cell: Vector, hidden: Vector,
) -> tuple[Vector, ...]:  # fmt: skip
    copy, squashed, forgotten = 1.0 - write, tanh(now), f * cell
    d_hidden = d + back
    through = write * d_hidden
    d_cell = cell_back + through * o * (1.0 - squashed * squashed)
    d_i, d_g = write * d_cell * g * i * (1.0 - i), write * d_cell * i * (1.0 - g * g)
    d_f, d_o = kept * d_cell * forgotten * (1.0 - f), through * squashed * o * (1.0 - o)
    d_copy = d_hidden * (hidden - o * squashed) + d_cell * (cell - forgotten - i * g)
    return d_i, d_f, d_g, d_o, copy * d_hidden, d_cell * (copy + kept * f), d_copy, d_cell * forgotten


@equations(numbers=1, inputs=2, outputs=1)
def _add_scaled(factor: Vector, x: Vector, y: Vector) -> tuple[Vector, ...]:
    return (x + factor * y,)


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
    """Add to the first `rows` sums the products of `weight` with the layer's own state and, if due, its neighbours'."""
    multiply(operands, 0, width, 1, rows, weight, width, 0, size, sums, at, distance, 1)
    if not top and above_first < above_end:
        start, number = above_first * width + size, above_end - above_first
        to = at + above_first * distance
        multiply(operands, start, width, 1, number, weight, width, size, 2 * size, sums, to, distance, 1)
    if layer and below_end:
        start = width - size
        multiply(operands, start, width, 1, below_end, weight, width, start, width, sums, at, distance, 1)


@kernel
def _normalise(sums, at, detector, has_detector, size, scale, bias, parameters_at, kept, kept_at, keeps):
    """Layer norm over 4 `size` sums and a detector's, if there is one; gives 1 / deviation, keeps what is scaled."""
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
    inverse, last = 1 / np.sqrt((square + square_f + square_g + square_o) * share + epsilon), 4 * size
    for j in range(last):
        sums[at + j] = (sums[at + j] - mean) * inverse
    sums[detector] = (sums[detector] - mean) * inverse
    if keeps:
        kept[kept_at : kept_at + last], kept[kept_at + last] = sums[at : at + last], sums[detector]
    for j in range(last):
        sums[at + j] = sums[at + j] * scale[parameters_at + j] + bias[parameters_at + j]
    sums[detector] = sums[detector] * scale[parameters_at + last] + bias[parameters_at + last]
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
    flush, update = np.zeros(rows, weight.dtype), np.zeros(rows, weight.dtype)
    sums = np.zeros(rows * distance, weight.dtype)
    zero, half, one = weight.dtype.type(0), weight.dtype.type(0.5), weight.dtype.type(1)
    before, before_at, cell, cell_at = hidden, first * layers * size, first_cell, first * layers * size
    z, z_at = first_boundary, first * (layers - 1)
    for t in range(frames):
        step = t * batch + first
        now_at, z_now_at = step * layers * size, step * (layers - 1)
        cell_now_at = (t * keeps * batch + first) * layers * size
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
            computed = rows if keeps or (norm and not top) else above_end  # items whose gates are
            # What is multiplied, and what the products are added to.
            for place in range(computed if top else rows):
                row = order[place]
                own, at = (row * layers + layer) * size, place * width
                operands[at : at + size] = before[before_at + own : before_at + own + size]
                if above_first <= place and place < above_end and not top:
                    _scaled(size, flush[row], before, before_at + own + size, operands, at + size)
                if layer and place < below_end:
                    _scaled(size, update[row], outputs, now_at + own - size, operands, at + width - size)
                to, start, end = place * distance, layer * features, (layer + 1) * features - 1
                if layer:
                    sums[to : to + 4 * size], sums[to + columns] = offset[start:end], offset[end]
                else:
                    p_at = t * p_frame + (first + row) * p_item
                    add_rows(4 * size, p, p_at, offset, 0, sums, to)
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
            # States and boundaries.
            for place in range(rows):
                row, at = order[place], place * distance
                own, item = (row * layers + layer) * size, (layer * frames + t) * batch + first + row
                if norm and place < computed:
                    inverse = _normalise(
                        sums, at, at + columns, 0 if top else 1, size, scale, bias, layer * features,
                        normalised, item * features, keeps,
                    )  # fmt: skip
                    if keeps:
                        inverses[item] = inverse
                if place < computed:
                    write = one - (one - flush[row]) * (one - update[row])
                    kept, kept_at = (gates, item * 4 * size) if keeps else (sums, at)
                    _move(
                        size, write, write - flush[row],
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
                    if keeps:
                        relaxed[to] = chance
                    if len(thresholds):
                        limit = thresholds[(t * (layers - 1) + layer) * batch + first + row]
                        chance = one if chance > limit else zero
                    boundaries[to] = chance
            for row in range(rows):
                update[row] = zero if top else boundaries[z_now_at + row * (layers - 1) + layer]
        before, before_at, cell, cell_at, z, z_at = outputs, now_at, cells, cell_now_at, boundaries, z_now_at


@kernel
def _dot(x, x_at, y, y_at, size):
    """In a fixed order, four sums at a time, which take as long as one."""
    whole, zero = size - size % 4, x.dtype.type(0)
    first, second, third, fourth = zero, zero, zero, zero
    for j in range(0, whole, 4):
        first += x[x_at + j] * y[y_at + j]
        second += x[x_at + j + 1] * y[y_at + j + 1]
        third += x[x_at + j + 2] * y[y_at + j + 2]
        fourth += x[x_at + j + 3] * y[y_at + j + 3]
    for j in range(whole, size):
        first += x[x_at + j] * y[y_at + j]
    return first + second + third + fourth


@kernel
def _normalise_back(d, at, d_detector, scale, parameters_at, normalised, normal_at, inverse, size, number):
    """From the gradients of `number` values after the norm to those before; gives that of the detector."""
    share, last = d.dtype.type(1 / number), 4 * size
    for j in range(last):
        d[at + j] *= scale[parameters_at + j]
    d_detector *= scale[parameters_at + last]
    ones = np.ones(last, d.dtype)
    mean = (_dot(d, at, ones, 0, last) + d_detector) * share
    slope = (_dot(d, at, normalised, normal_at, last) + d_detector * normalised[normal_at + last]) * share
    for j in range(last):
        d[at + j] = (d[at + j] - mean - normalised[normal_at + j] * slope) * inverse
    return (d_detector - mean - normalised[normal_at + last] * slope) * inverse


@kernel
def backward_loop(
    d_outputs, weight, detectors, scale, slope, hidden, first_cell, first_boundary,
    outputs, cells, boundaries, gates, relaxed, normalised, inverses,
    d_gates, d_sums, d_hidden, d_cell, d_boundary, frames, batch, layers, size, first, last,
):  # fmt: skip
    rows, lanes, features, norm = last - first, REGISTER // weight.itemsize, 4 * size + 1, len(scale) > 0
    zero, half, one = weight.dtype.type(0), weight.dtype.type(0.5), weight.dtype.type(1)
    order = np.empty(rows, np.int64)
    flush, update = np.zeros(rows, weight.dtype), np.zeros(rows, weight.dtype)
    by_detector = np.zeros(rows, weight.dtype)
    by_copy, by_flush = np.zeros(rows, weight.dtype), np.zeros(rows, weight.dtype)
    d, u = np.empty(rows * 4 * size, weight.dtype), np.empty(rows * (3 * size + lanes), weight.dtype)
    copied, forgotten, ones = np.empty(size, weight.dtype), np.empty(size, weight.dtype), np.ones(size, weight.dtype)
    for t in range(frames - 1, -1, -1):
        step = t * batch + first
        now_at, z_now_at = step * layers * size, step * (layers - 1)
        if t:
            before, cell, before_at = outputs, cells, now_at - batch * layers * size
            z, z_at = boundaries, z_now_at - batch * (layers - 1)
        else:
            before, cell, before_at = hidden, first_cell, first * layers * size
            z, z_at = first_boundary, first * (layers - 1)
        weight_end, detector_end = len(weight), len(detectors)
        for layer in range(layers - 1, -1, -1):
            top = layer == layers - 1
            width = ((1 if top else 2) + (1 if layer else 0)) * size
            columns = width + -width % lanes
            layer_weight = weight[weight_end - 4 * size * columns : weight_end]
            weight_end -= 4 * size * columns
            for row in range(rows):
                flush[row] = zero if top else z[z_at + row * (layers - 1) + layer]
                update[row] = boundaries[z_now_at + row * (layers - 1) + layer - 1] if layer else one
            _, _, moving = _order(flush, update, rows, order)
            computed = rows if norm else moving  # items whose gates have a gradient
            # Gates, and what comes back to the states without passing the weight.
            for place in range(rows):
                row, at = order[place], place * 4 * size
                own, item = (row * layers + layer) * size, (layer * frames + t) * batch + first + row
                gate, way = item * 4 * size, first * layers * size + own
                write = one - (one - flush[row]) * (one - update[row])
                _move_back(
                    size, write, write - flush[row], d_outputs, now_at + own, d_hidden, way, d_cell, way,
                    gates, gate, gates, gate + size, gates, gate + 2 * size, gates, gate + 3 * size,
                    cells, now_at + own, cell, before_at + own, before, before_at + own,
                    d, at, d, at + size, d, at + 2 * size, d, at + 3 * size,
                    d_hidden, way, d_cell, way, copied, 0, forgotten, 0,
                )  # fmt: skip
                by_copy[place], by_flush[place] = _dot(copied, 0, ones, 0, size), -_dot(forgotten, 0, ones, 0, size)
                detector = zero
                if not top:
                    at_z = row * (layers - 1) + layer
                    chance = relaxed[z_now_at + at_z]
                    if chance > zero and chance < one:  # straight through: as if z were p
                        detector = d_boundary[first * (layers - 1) + at_z] * half * slope[0]
                end = (item + 1) * features - 1
                d_gates[end - 4 * size : end], d_gates[end] = d[at : at + 4 * size], detector
                if norm:
                    number = features - 1 if top else features
                    detector = _normalise_back(
                        d, at, detector, scale, layer * features, normalised, end - 4 * size, inverses[item],
                        size, number,
                    )  # fmt: skip
                    d_sums[end - 4 * size : end], d_sums[end] = d[at : at + 4 * size], detector
                by_detector[place] = detector
            # What comes back through the weight, to the layer itself, its neighbours, and the boundaries between them.
            multiply(d, 0, 4 * size, 1, computed, layer_weight, 4 * size, 0, 4 * size, u, 0, columns, 0)
            u[computed * columns : rows * columns] = 0
            detector_at = detector_end - width
            if not top:
                detector_end -= width
            for place in range(rows):
                row, at = order[place], place * columns
                own, at_z = (row * layers + layer) * size, (first + row) * (layers - 1) + layer
                way = first * layers * size + own
                if not top:
                    _add_scaled(width, by_detector[place], u, at, detectors, detector_at, u, at)
                    above = _dot(u, at + size, before, before_at + own + size, size)
                    _add_scaled(size, flush[row], d_hidden, way + size, u, at + size, d_hidden, way + size)
                    d_boundary[at_z] = above + by_flush[place] + by_copy[place] * (update[row] - one)
                if layer:
                    start = at + width - size
                    below = _dot(u, start, outputs, now_at + own - size, size)
                    _add_scaled(size, update[row], d_hidden, way - size, u, start, d_hidden, way - size)
                    d_boundary[at_z - 1] += below + by_copy[place] * (flush[row] - one)
                add_rows(size, d_hidden, way, u, at, d_hidden, way)


@kernel
def sigmoid_loop(x, out, first, last):
    _sigmoid(last - first, x, first, out, first)


class Kept(NamedTuple):
    """What `backward` needs of the frames.

    outputs, cells: (S, B, L, D), h and c.
    boundaries, relaxed: (S, B, L - 1), z and p.
    gates: (L, S, B, 4D), i f g o.
    normalised, inverses: (L, S, B, 4D + 1), sums less their mean times (L, S, B) 1 / deviation; empty without norm.
    """

    outputs: Tensor
    cells: Tensor
    boundaries: Tensor
    gates: Tensor
    relaxed: Tensor
    normalised: Tensor
    inverses: Tensor


def forward(
    projected: Tensor,
    state: Sequence[Tensor],
    slope: Tensor,
    thresholds: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    scales: Sequence[Tensor],
    *,
    keeps: bool,
    packed: Packed | None,
) -> Kept:
    """Run all layers over all frames.

    Args:
        projected: (S, B, 4D + 1), W x of layer 1.
        state: hidden and cell (B, L, D), boundary (B, L - 1).
        slope: a.
        thresholds: (S, L - 1, B, 1), z = p > threshold; None: z = p.
        weights: of each layer.
        biases: likewise.
        scales: likewise; none without layer norm.
        keeps: for `backward`; else there are no gates and what comes after them, and cells of the last frame alone.
        packed: `weights` as `pack_weights` gives them; None: they are packed here.
    """
    like = weights[0]
    frames, batch, _ = projected.shape
    _, layers, size = state[0].shape
    kept, normed = (frames if keeps else 1), keeps and len(scales) > 0
    results = Kept(
        outputs=like.new_empty(frames, batch, layers, size),
        cells=like.new_empty(kept, batch, layers, size),
        boundaries=like.new_empty(frames, batch, layers - 1),
        gates=like.new_empty(layers if keeps else 0, frames, batch, 4 * size),
        relaxed=like.new_empty(kept, batch, layers - 1),
        normalised=like.new_empty(layers if normed else 0, frames, batch, 4 * size + 1),
        inverses=like.new_empty(layers if normed else 0, frames, batch),
    )
    weight, detectors = packed or pack_weights(weights)
    bias, scale = _side_by_side(biases, like), _side_by_side(scales, like)
    limits = like.new_empty(0) if thresholds is None else thresholds.to(like)
    flat = flat_arrays(
        weight, detectors, torch.zeros_like(bias) if scales else bias, scale, bias, slope.to(like), limits,
        *(tensor.to(like) for tensor in state), *results,
    )  # fmt: skip
    call = (*rows_of(projected), *flat, int(keeps), frames, batch, layers, size)
    run(forward_loop, [call], batch, _work(frames, layers, size))
    return results


def backward(
    d_outputs: Tensor,
    d_last_cell: Tensor,
    state: Sequence[Tensor],
    slope: Tensor,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor],
    kept: Kept,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Gradients of sums after the norm and before it, (L, S, B, 4D + 1) each, and of the state.

    The first two are the same without layer norm. The top layer's last feature has no meaning.

    Args:
        d_outputs: (S, B, L, D).
        d_last_cell: (B, L, D).
        state: as above.
        slope: as above.
        weights: as above.
        scales: as above.
        kept: what `forward` gave.
    """
    like = weights[0]
    frames, batch, layers, size = d_outputs.shape
    d_gates = like.new_empty(layers, frames, batch, 4 * size + 1)
    d_sums = torch.empty_like(d_gates) if scales else d_gates
    d_cell = d_last_cell.to(like.dtype, copy=True, memory_format=torch.contiguous_format)
    d_hidden, d_boundary = torch.zeros_like(d_cell), like.new_zeros(batch, layers - 1)
    gates, detectors = _without_detectors(weights)
    weight, detector = torch.cat([pack(matrix.mT) for matrix in gates]), torch.cat([d.flatten() for d in detectors])
    flat = flat_arrays(
        d_outputs, weight, detector, _side_by_side(scales, like), slope.to(like),
        *(tensor.to(like) for tensor in state), *kept, d_gates, d_sums, d_hidden, d_cell, d_boundary,
    )  # fmt: skip
    run(backward_loop, [(*flat, frames, batch, layers, size)], batch, _work(frames, layers, size))
    return d_gates, d_sums, (d_hidden, d_cell, d_boundary)


def pack_weights(weights: Sequence[Tensor]) -> Packed:
    """Columns of the gates, and those of the detectors, of all layers as the loop reads them."""
    gates, detectors = _without_detectors(weights)
    return torch.cat([pack(matrix) for matrix in gates]), torch.cat([pack(matrix).flatten() for matrix in detectors])


def _without_detectors(weights: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Gates' columns, a multiple of 4, and the detector's, of which the top layer has none."""
    number = weights[-1].shape[1]
    return [weight[:, :number] for weight in weights], [weight[:, number:] for weight in weights]


def _side_by_side(vectors: Sequence[Tensor], like: Tensor) -> Tensor:
    """(L, 4D + 1), the top layer's filled up; empty if there are none."""
    return torch.stack([*vectors[:-1], F.pad(vectors[-1], (0, 1))]) if vectors else like.new_empty(0)


def _work(frames: int, layers: int, size: int) -> int:
    """Of an item, in what `run` counts in."""
    return frames * (3 * layers - 2) * 4 * size * (1 + size // 256)


def sigmoids(inputs: Tensor) -> Tensor:
    """Of each element, whatever stands beside it."""
    out = torch.empty_like(inputs, memory_format=torch.contiguous_format)
    run(sigmoid_loop, [tuple(flat_arrays(inputs, out))], inputs.numel(), 1)
    return out
