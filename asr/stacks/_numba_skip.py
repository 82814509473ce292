"""How LSTM-Jump walks through frames by the most probable jumps, compiled for the CPU; `asr.stacks.skip` has the rules.

A kernel runs a range of batch items, each at its own pace: a turn reads one frame of every item that is not at its end.
Those stand side by side; where one has come to its end, the last one takes its place. What an item gives depends
neither on its place nor on the others, nor on how items are split over threads.

All arrays are flat. A layer's weight is that of its input and then its recurrent one, layers one behind the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from asr.nn._numba_calls import flat_arrays, rows_of, run
from asr.nn._panels import multiply, pack
from asr.nn._vectors import Vector, equations, kernel, sigmoid, tanh

Packed = tuple[Tensor, Tensor]


class Walk(NamedTuple):
    """What was read.

    positions: (B, S) int64, of each read.
    tops: (B, S, D), top hidden states after them; an item has no more than its number of reads.
    reads: (B,) int64, their number.
    hidden, cell: (B, L, D), at the end.
    position, unread, num_jumps: (B,) int64, at the end.
    """

    positions: Tensor
    tops: Tensor
    reads: Tensor
    hidden: Tensor
    cell: Tensor
    position: Tensor
    unread: Tensor
    num_jumps: Tensor


@equations(inputs=9, outputs=2)
def _lstm(
    b_i: Vector, b_f: Vector, b_g: Vector, b_o: Vector, i: Vector, f: Vector, g: Vector, o: Vector, cell: Vector
) -> tuple[Vector, ...]:
    cell = sigmoid(f + b_f) * cell + sigmoid(i + b_i) * tanh(g + b_g)
    return sigmoid(o + b_o) * tanh(cell), cell


@kernel
def walk_loop(
    x, x_frame, x_item, weight, bias, policy, policy_bias, lengths, positions, tops, reads,
    hidden, cell, position, unread, num_jumps, frames, layers, inputs, size, between, max_jumps, first, last,
):  # fmt: skip
    rows, columns = last - first, len(weight) // (inputs + (2 * layers - 1) * size)
    choices, policy_columns = len(policy_bias), len(policy) // size
    operands = np.empty(rows * (inputs + (2 * layers - 1) * size), weight.dtype)  # each layer's: below, and hidden
    cells, sums = np.empty(layers * rows * size, weight.dtype), np.empty(rows * columns, weight.dtype)
    logits, items, number = np.empty(rows * policy_columns, weight.dtype), np.empty(rows, np.int64), 0
    for item in range(first, last):
        if position[item] < lengths[item]:
            items[number] = item
            for layer in range(layers):
                at, width, below = _place(layer, number, rows, inputs, size)
                start, own = (item * layers + layer) * size, (layer * rows + number) * size
                operands[at + below : at + width] = hidden[start : start + size]
                cells[own : own + size] = cell[start : start + size]
            number += 1
    while number:
        for row in range(number):
            at, start = row * (inputs + size), position[items[row]] * x_frame + items[row] * x_item
            operands[at : at + inputs] = x[start : start + inputs]
        weight_at, at, width, below = 0, 0, 0, 0
        for layer in range(layers):
            at, width, below = _place(layer, 0, rows, inputs, size)
            layer_weight = weight[weight_at : weight_at + width * columns]
            weight_at += width * columns
            multiply(operands, at, width, 1, number, layer_weight, width, 0, below, sums, 0, columns, 0)
            multiply(operands, at + below, width, 1, number, layer_weight, width, below, width, sums, 0, columns, 1)
            for row in range(number):
                i, b, own, now = row * columns, 4 * layer * size, (layer * rows + row) * size, at + row * width + below
                _lstm(
                    size, bias, b, bias, b + size, bias, b + 2 * size, bias, b + 3 * size,
                    sums, i, sums, i + size, sums, i + 2 * size, sums, i + 3 * size, cells, own,
                    operands, now, cells, own,
                )  # fmt: skip
                if layer < layers - 1:
                    above, _, _ = _place(layer + 1, row, rows, inputs, size)
                    operands[above : above + size] = operands[now : now + size]
        multiply(operands, at + below, width, 1, number, policy, size, 0, size, logits, 0, policy_columns, 0)
        row = 0
        while row < number:
            item, now = items[row], at + row * width + below
            read = item * frames + reads[item]
            positions[read] = position[item]
            tops[read * size : (read + 1) * size] = operands[now : now + size]
            reads[item] += 1
            position[item] += 1
            unread[item] -= 1
            if not unread[item]:
                if not max_jumps or num_jumps[item] < max_jumps:
                    position[item] += max(0, _largest(logits, row * policy_columns, policy_bias, choices) - 1)
                unread[item] = between
                num_jumps[item] += 1
            if position[item] < lengths[item]:
                row += 1
                continue
            number -= 1
            for layer in range(layers):
                place, layer_width, layer_below = _place(layer, row, rows, inputs, size)
                start, own = (item * layers + layer) * size, (layer * rows + row) * size
                hidden[start : start + size] = operands[place + layer_below : place + layer_width]
                cell[start : start + size] = cells[own : own + size]
                moved, _, _ = _place(layer, number, rows, inputs, size)
                operands[place : place + layer_width] = operands[moved : moved + layer_width]
                moved = (layer * rows + number) * size
                cells[own : own + size] = cells[moved : moved + size]
            moved = number * policy_columns
            logits[row * policy_columns : (row + 1) * policy_columns] = logits[moved : moved + policy_columns]
            items[row] = items[number]


@kernel
def _place(layer, row, rows, inputs, size):
    """Where a row of a layer's operands begins, and how many there are, of all and of the layer below."""
    if layer == 0:
        return row * (inputs + size), inputs + size, inputs
    return rows * (inputs + size) + ((layer - 1) * rows + row) * 2 * size, 2 * size, size


@kernel
def _largest(logits, at, bias, choices):
    """The index of the largest logit with its bias, of equals the first; of the first NaN, if there is one."""
    best, largest = 0, logits[at] + bias[0]
    for choice in range(1, choices):
        logit = logits[at + choice] + bias[choice]
        if logit > largest or (np.isnan(logit) and not np.isnan(largest)):
            best, largest = choice, logit
    return best


def walk(
    inputs: Tensor,
    lengths: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[tuple[Tensor, Tensor]],
    biases: Sequence[Tensor],
    policy: tuple[Tensor, Tensor],
    *,
    tokens_between_jumps: int,
    max_jumps: int,
    packed: Packed | None,
) -> Walk:
    """Read by the most probable jumps; a jump of 0 counts as 1.

    Args:
        inputs: (B, S, D_in).
        lengths: (B,).
        states: hidden and cell (B, L, D); position, frames to be read before the next jump, jumps so far: (B,) int64.
        weights: of each layer: of its input (4D, D_in or D), and the recurrent one (4D, D).
        biases: of each layer, (4D,).
        policy: weight (K + 1, D) and bias.
        tokens_between_jumps: R.
        max_jumps: N, 0 for no limit.
        packed: weights as `pack_weights` gives them; None: they are packed here.
    """
    like = policy[0]
    batch, frames, size = *inputs.shape[:2], like.shape[1]
    weight, policy_weight = packed or pack_weights(weights, like)
    hidden, cell = (state.to(like.dtype, copy=True, memory_format=torch.contiguous_format) for state in states[:2])
    counts = [count.clone(memory_format=torch.contiguous_format) for count in states[2:]]
    reads = lengths.new_zeros(batch)
    positions, tops = lengths.new_zeros(batch, frames), like.new_empty(batch, frames, size)
    weights_flat = flat_arrays(weight, torch.cat(list(biases)), policy_weight, policy[1], lengths)
    flat = (*weights_flat, *flat_arrays(positions, tops, reads, hidden, cell, *counts))
    facts = frames, len(biases), inputs.shape[2], size, tokens_between_jumps, max_jumps
    run(walk_loop, [(*rows_of(inputs.transpose(0, 1)), *flat, *facts)], batch, frames * len(weight) // 256)
    return Walk(positions, tops, reads, hidden, cell, *counts)


def pack_weights(weights: Sequence[tuple[Tensor, Tensor]], policy: Tensor) -> Packed:
    """All layers' weights, and the policy's, as the loop reads them."""
    return torch.cat([pack(torch.cat(pair, 1).mT) for pair in weights]), pack(policy.mT)
