"""The time gate and the time loop of a phased LSTM's layer, compiled for the CPU.

`asr.stacks.phased_lstm` says what they compute. The loop runs a range of batch items over all frames. A frame is one
product of the items' states with U, then the gates of each item, unit by unit. Another loop, for inference, computes
the open units alone, projections included. What an item gives does not depend on the others, nor on how items are split
over threads.

All arrays are flat. Gates (S, B, 4H) and cells (S, B, H) have one frame if none are kept for backward, which each frame
then overwrites.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from asr.nn._numba_calls import flat_arrays, rows_of, run
from asr.nn._panels import four_products, multiply, pack
from asr.nn._vectors import Vector, add_rows, copy_row, equations, kernel, sigmoid, tanh

# What a frame computes of each unit. p: projected input; u: product with U; w: peepholes; h, c: states before the
# frame; k: how far the unit is open. Backward, d: what comes from above; through: what comes back without passing U; u:
# what comes back through it; s: sums.


@equations(inputs=5, outputs=1)
def _open(time: Vector, shift: Vector, period: Vector, ratio: Vector, leak: Vector) -> tuple[Vector, ...]:
    phase = _phase((time - shift) / period)
    opening = 2.0 * phase / ratio
    closing = phase.where("<", ratio, 2.0 - opening, leak * phase)
    return (phase.where("<", 0.5 * ratio, opening, closing),)


@equations(inputs=9, outputs=3)
def _open_back(
    d: Vector, time: Vector, shift: Vector, period: Vector, ratio: Vector, leak: Vector,
    s_period: Vector, s_shift: Vector, s_ratio: Vector,
) -> tuple[Vector, ...]:  # fmt: skip
    cycles = (time - shift) / period
    phase, steep = _phase(cycles), 2.0 / ratio
    slope = phase.where("<", ratio, phase.where("<", 0.5 * ratio, steep, -steep), leak)
    d_phase = d * slope
    return s_period + d_phase * cycles, s_shift + d_phase, s_ratio + phase.where("<", ratio, d_phase * phase, 0.0)


def _phase(cycles: Vector) -> Vector:
    return cycles - cycles.call("floor")


@equations(inputs=14, outputs=6)
def _phased(
    p_g: Vector, p_i: Vector, p_f: Vector, p_o: Vector, u_g: Vector, u_i: Vector, u_f: Vector, u_o: Vector,
    w_i: Vector, w_f: Vector, w_o: Vector, k: Vector, c: Vector, h: Vector,
) -> tuple[Vector, ...]:  # fmt: skip
    g, i, f = tanh(p_g + u_g), sigmoid(p_i + u_i + w_i * c), sigmoid(p_f + u_f + w_f * c)
    new_cell = f * c + i * g
    o = sigmoid(p_o + u_o + w_o * new_cell)
    kept = 1.0 - k
    return g, i, f, o, k * new_cell + kept * c, k * (o * tanh(new_cell)) + kept * h


@equations(inputs=17, outputs=10)
def _phased_back(
    d: Vector, through: Vector, u: Vector, d_cell: Vector, g: Vector, i: Vector, f: Vector, o: Vector,
    w_i: Vector, w_f: Vector, w_o: Vector, k: Vector, c: Vector, h: Vector, s_i: Vector, s_f: Vector, s_o: Vector,
) -> tuple[Vector, ...]:  # fmt: skip
    new_cell, kept = f * c + i * g, 1.0 - k
    squashed = tanh(new_cell)
    d_hidden = d + through + u
    d_k = d_hidden * (o * squashed - h) + d_cell * (new_cell - c)
    d_new_hidden = d_hidden * k
    d_o = d_new_hidden * squashed * o * (1.0 - o)
    d_new_cell = d_cell * k + d_new_hidden * o * (1.0 - squashed * squashed) + d_o * w_o
    d_g = d_new_cell * i * (1.0 - g * g)
    d_i = d_new_cell * g * i * (1.0 - i)
    d_f = d_new_cell * c * f * (1.0 - f)
    d_cell = d_cell * kept + d_new_cell * f + d_i * w_i + d_f * w_f
    return d_g, d_i, d_f, d_o, d_k, d_hidden * kept, d_cell, s_i + d_i * c, s_f + d_f * c, s_o + d_o * new_cell


@kernel
def gate_forward(times, shift, period, ratio, leak, gate, items, size, first, last):
    now, leaks = np.empty(size), np.full(size, leak)
    for row in range(first * items, last * items):
        now[:] = times[row]
        _open(size, now, 0, shift, 0, period, 0, ratio, 0, leaks, 0, gate, row * size)


@kernel
def gate_backward(d, times, shift, period, ratio, leak, sums, frames, items, size, first, last):
    now, leaks = np.empty(size), np.full(size, leak)
    for item in range(first, last):
        s_period = 3 * item * size
        s_shift, s_ratio = s_period + size, s_period + 2 * size
        for t in range(frames):
            row = t * items + item
            now[:] = times[row]
            _open_back(
                size, d, row * size, now, 0, shift, 0, period, 0, ratio, 0, leaks, 0,
                sums, s_period, sums, s_shift, sums, s_ratio, sums, s_period, sums, s_shift, sums, s_ratio,
            )  # fmt: skip


@kernel
def loop_forward(
    p, p_frame, p_item, gate, gate_frame, gate_item, weight, peepholes, hidden, first_cell, outputs, cells, gates,
    keeps, frames, batch, size, first, last,
):  # fmt: skip
    rows, columns = last - first, len(weight) // size
    u = np.empty(rows * columns, weight.dtype)
    before, before_at, cell, cell_at = hidden, first * size, first_cell, first * size
    for t in range(frames):
        multiply(before, before_at, size, 1, rows, weight, size, 0, size, u, 0, columns, 0)
        now_at, cell_now_at = (t * batch + first) * size, (t * keeps * batch + first) * size
        for row in range(rows):
            g, u_g, way = t * p_frame + (first + row) * p_item, row * columns, row * size
            i, f, o, u_i, u_f, u_o = g + size, g + 2 * size, g + 3 * size, u_g + size, u_g + 2 * size, u_g + 3 * size
            at = 4 * (cell_now_at + way)
            _phased(
                size, p, g, p, i, p, f, p, o, u, u_g, u, u_i, u, u_f, u, u_o,
                peepholes, 0, peepholes, size, peepholes, 2 * size,
                gate, t * gate_frame + (first + row) * gate_item, cell, cell_at + way, before, before_at + way,
                gates, at, gates, at + size, gates, at + 2 * size, gates, at + 3 * size,
                cells, cell_now_at + way, outputs, now_at + way,
            )  # fmt: skip
        before, before_at, cell, cell_at = outputs, now_at, cells, cell_now_at


@kernel
def open_units_loop(
    x, x_frame, x_item, gate, gate_frame, gate_item, weight, bias, recurrent, peepholes, hidden, cell, outputs,
    frames, batch, size, input_size, first, last,
):  # fmt: skip
    together = last - first if gate_item == 0 else 1  # items of which the same units are open
    opened, row_size = np.empty(size, np.int64), 4 * size
    p = np.empty(together * row_size, outputs.dtype)
    u, gates = np.empty_like(p), np.empty_like(p)
    of_unit, states = np.empty(4 * size, outputs.dtype), np.empty(2 * size, outputs.dtype)  # w of i, f, o and k; c, h
    before, before_at = hidden, first * size
    for t in range(frames):
        now_at = (t * batch + first) * size
        for start in range(0, last - first, together):
            h, now, c = before_at + start * size, now_at + start * size, (first + start) * size
            gate_at, number = t * gate_frame + (first + start) * gate_item, 0
            for unit in range(size):
                if gate[gate_at + unit] != 0:  # true of NaN
                    opened[number] = unit
                    number += 1
            for n in range(number):
                unit = opened[n]
                x_at = t * x_frame + (first + start) * x_item
                for j in range(3):
                    of_unit[j * size + n] = peepholes[j * size + unit]
                of_unit[3 * size + n] = gate[gate_at + unit]
                four_products(
                    x, x_at, x_item, together, weight, unit * input_size, size * input_size, input_size,
                    p, n, row_size, size,
                )  # fmt: skip
                four_products(
                    before, h, size, together, recurrent, unit * size, size * size, size, u, n, row_size, size
                )
                for at in range(n, together * row_size, size):
                    p[at] += bias[at % row_size - n + unit]
            for row in range(together):
                copy_row(size, before, h + row * size, outputs, now + row * size)
                for n in range(number):
                    states[n] = cell[c + row * size + opened[n]]
                    states[size + n] = before[h + row * size + opened[n]]
                g = row * row_size
                i, f, o = g + size, g + 2 * size, g + 3 * size
                _phased(
                    number, p, g, p, i, p, f, p, o, u, g, u, i, u, f, u, o,
                    of_unit, 0, of_unit, size, of_unit, 2 * size, of_unit, 3 * size, states, 0, states, size,
                    gates, g, gates, i, gates, f, gates, o, states, 0, states, size,
                )  # fmt: skip
                for n in range(number):
                    cell[c + row * size + opened[n]] = states[n]
                    outputs[now + row * size + opened[n]] = states[size + n]
        before, before_at = outputs, now_at


@kernel
def loop_backward(
    d, d_frame, d_item, gate, gate_frame, gate_item, weight, peepholes, hidden, first_cell, outputs, cells, gates,
    d_gates, d_gate, d_peepholes, d_hidden, d_cell, frames, batch, size, first, last,
):  # fmt: skip
    rows, columns = last - first, len(weight) // (4 * size)
    u, through = np.zeros(rows * columns, weight.dtype), np.zeros(rows * size, weight.dtype)
    for t in range(frames - 1, -1, -1):
        now_at = (t * batch + first) * size
        h, c, before_at = (outputs, cells, now_at - batch * size) if t else (hidden, first_cell, first * size)
        for row in range(rows):
            item, way = first + row, row * size
            g, here, s_i = 4 * (now_at + way), item * size, 3 * item * size
            i, f, o, s_f, s_o = g + size, g + 2 * size, g + 3 * size, s_i + size, s_i + 2 * size
            _phased_back(
                size, d, t * d_frame + item * d_item, through, way, u, row * columns, d_cell, here,
                gates, g, gates, i, gates, f, gates, o, peepholes, 0, peepholes, size, peepholes, 2 * size,
                gate, t * gate_frame + item * gate_item, c, before_at + way, h, before_at + way,
                d_peepholes, s_i, d_peepholes, s_f, d_peepholes, s_o,
                d_gates, g, d_gates, i, d_gates, f, d_gates, o, d_gate, now_at + way, through, way, d_cell, here,
                d_peepholes, s_i, d_peepholes, s_f, d_peepholes, s_o,
            )  # fmt: skip
        multiply(d_gates, 4 * now_at, 4 * size, 1, rows, weight, 4 * size, 0, 4 * size, u, 0, columns, 0)
    for row in range(rows):
        add_rows(size, through, row * size, u, row * columns, d_hidden, (first + row) * size)


def time_gate(times: Tensor, period: Tensor, shift: Tensor, ratio_on: Tensor, leak: float) -> Tensor:
    """The gate k (S, R, H) in the type of tau, from times (S, R) float64, tau, s and r (H,)."""
    frames, items = times.shape
    gate = period.new_empty(frames, items, len(period))
    call = (*flat_arrays(times, shift.double(), period.double(), ratio_on, gate), items, len(period))
    run(gate_forward, [(*call[:4], leak, *call[4:])], frames, gate[0].numel())
    return gate


def time_gate_gradients(
    d_gate: Tensor, times: Tensor, period: Tensor, shift: Tensor, ratio_on: Tensor, leak: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Of tau, s and r."""
    frames, items = times.shape
    sums = times.new_zeros(items, 3, len(period))
    call = (*flat_arrays(d_gate, times, shift.double(), period.double(), ratio_on), leak, *flat_arrays(sums))
    run(gate_backward, [(*call, frames, items, len(period))], items, frames * len(period))
    of_period, of_shift, of_ratio_on = (-sums.sum(0) / torch.stack((period, period, ratio_on))).to(period.dtype)
    return of_period, of_shift, of_ratio_on


def forward(
    projected: Tensor,
    gate: Tensor,
    packed: Tensor,
    peepholes: Tensor,
    hidden: Tensor,
    cell: Tensor,
    *,
    keeps: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run all frames.

    Args:
        projected: (S, B, 4H), of gates g, i, f, o.
        gate: k, (S, B or 1, H).
        packed: U's transpose, packed.
        peepholes: (3, H).
        hidden: the state before the first frame, (B, H).
        cell: likewise.
        keeps: gates and cells of all frames, for `backward`; else of the last one.

    Returns:
        Outputs (S, B, H), cells (S, B, H), gates (S, B, 4H).
    """
    frames, batch, size = len(projected), *hidden.shape
    kept = frames if keeps else 1
    outputs, cells = hidden.new_empty(frames, batch, size), hidden.new_empty(kept, batch, size)
    gates = hidden.new_empty(kept, batch, 4 * size)
    tensors = flat_arrays(packed, peepholes, hidden, cell, outputs, cells, gates)
    call = (*rows_of(projected), *_gate_rows(gate), *tensors, int(keeps), frames, batch, size)
    run(loop_forward, [call], batch, frames * 4 * size * (1 + size // 256))
    return outputs, cells, gates


def forward_of_open_units(
    inputs: Tensor,
    gate: Tensor,
    weight: Tensor,
    bias: Tensor,
    recurrent: Tensor,
    peepholes: Tensor,
    hidden: Tensor,
    cell: Tensor,
) -> tuple[Tensor, Tensor]:
    """Run all frames, projection included, and compute nothing for units that are closed.

    Args:
        inputs: (S, B, D), in the type of the weights.
        gate: as above.
        weight: W, (4H, D).
        bias: b, (4H,).
        recurrent: U, (4H, H).
        peepholes: as above.
        hidden: as above.
        cell: as above.

    Returns:
        Outputs (S, B, H), and the last cell state (B, H).
    """
    frames, (batch, size) = len(inputs), hidden.shape
    outputs, last_cell = hidden.new_empty(frames, batch, size), cell.contiguous().clone()
    tensors = flat_arrays(weight, bias, recurrent, peepholes, hidden, last_cell, outputs)
    call = (*rows_of(inputs), *_gate_rows(gate), *tensors, frames, batch, size, inputs.shape[-1])
    run(open_units_loop, [call], batch, frames * size * (1 + size // 256))
    return outputs, last_cell


def backward(
    gate: Tensor,
    recurrent: Tensor,
    peepholes: Tensor,
    hidden: Tensor,
    cell: Tensor,
    kept: Sequence[Tensor],
    d_outputs: Tensor,
    d_last_cell: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of pre-activations (S, B, 4H), time gates (S, B, H), peepholes (3, H) and initial states.

    Args:
        gate: as above.
        recurrent: U, (4H, H).
        peepholes: as above.
        hidden: as above.
        cell: as above.
        kept: what `forward` gave.
        d_outputs: (S, B, H).
        d_last_cell: (B, H).
    """
    outputs, cells, gates = kept
    frames, batch, size = outputs.shape
    d_gates, d_gate, d_hidden = (
        gates.new_empty(gates.shape),
        outputs.new_empty(outputs.shape),
        hidden.new_empty(batch, size),
    )
    d_peepholes, d_cell = outputs.new_zeros(batch, 3, size), d_last_cell.contiguous().clone()
    tensors = flat_arrays(
        pack(recurrent), peepholes, hidden, cell, outputs, cells, gates, d_gates, d_gate, d_peepholes, d_hidden, d_cell
    )
    call = (*rows_of(d_outputs), *_gate_rows(gate), *tensors, frames, batch, size)
    run(loop_backward, [call], batch, frames * 4 * size * (1 + size // 256))
    return d_gates, d_gate, d_peepholes.sum(0), d_hidden, d_cell


def _gate_rows(gate: Tensor) -> tuple[np.ndarray, int, int]:
    """As `rows_of`; the distance of items is 0 where all have the same."""
    array, by_frame, by_item = rows_of(gate)
    return array, by_frame, by_item if gate.shape[1] > 1 else 0
