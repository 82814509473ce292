"""The time loops of recurrences with full matrices, compiled for the CPU; `asr.nn.cells.full` says what they compute.

A kernel runs a range of one chain's batch items over all frames. A frame is one product of the items' states with the
recurrent matrix (two where the reset gate comes first), then the gates of each item, unit by unit. What an item gives
does not depend on the others, nor on how items are split over threads.

All arrays are flat, and every kernel takes the same ones, which are empty where it has no use for them. p and d have
rows (S, B) at the given distances. Gates (S, B, 4H) and cells (S, B, H) have one frame if none are kept for backward,
which each frame then overwrites. `extra` is a gru_after's c, and a gru_before's U_n.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from asr.nn._numba_calls import by_chain, rows_of, run
from asr.nn._panels import multiply, pack
from asr.nn._vectors import Vector, add_rows, equations, kernel, sigmoid, tanh
from asr.nn.cells.base import CLIP

TANH, RELU, CLIPPED_RELU = range(3)

# What a frame computes of each unit. p: projected input; u: product with U; before, cell: states before the frame.
# Backward, d: what comes from above; through: what comes back without passing U; u: what comes back through it.


@equations(inputs=2, outputs=1)
def _tanh(p: Vector, u: Vector) -> tuple[Vector, ...]:
    return (tanh(p + u),)


@equations(inputs=2, outputs=1)
def _relu(p: Vector, u: Vector) -> tuple[Vector, ...]:
    x = p + u
    return (x.where("<", 0.0, 0.0, x),)


@equations(inputs=2, outputs=1)
def _clipped_relu(p: Vector, u: Vector) -> tuple[Vector, ...]:
    x = p + u
    x = x.where("<", 0.0, 0.0, x)
    return (x.where(">", CLIP, CLIP, x),)


@equations(inputs=3, outputs=1)
def _tanh_back(d: Vector, u: Vector, hidden: Vector) -> tuple[Vector, ...]:
    return ((d + u) * (1.0 - hidden * hidden),)


@equations(inputs=3, outputs=1)
def _relu_back(d: Vector, u: Vector, hidden: Vector) -> tuple[Vector, ...]:
    return (hidden.where(">", 0.0, d + u, 0.0),)


@equations(inputs=3, outputs=1)
def _clipped_relu_back(d: Vector, u: Vector, hidden: Vector) -> tuple[Vector, ...]:
    return (hidden.where(">", 0.0, hidden.where("<", CLIP, d + u, 0.0), 0.0),)


@equations(inputs=8, outputs=5)
def _gru_after(
    p_r: Vector, p_z: Vector, p_n: Vector, u_r: Vector, u_z: Vector, u_n: Vector, bias: Vector, before: Vector
) -> tuple[Vector, ...]:
    r, z, inner = sigmoid(p_r + u_r), sigmoid(p_z + u_z), u_n + bias
    n = tanh(p_n + r * inner)
    return r, z, n, inner, n + z * (before - n)


@equations(inputs=8, outputs=7)
def _gru_after_back(
    d: Vector, through: Vector, u: Vector, r: Vector, z: Vector, n: Vector, inner: Vector, before: Vector
) -> tuple[Vector, ...]:
    d_hidden = d + through + u
    d_n = d_hidden * (1.0 - z) * (1.0 - n * n)
    d_inner = d_n * r
    d_r = d_inner * inner * (1.0 - r)
    d_z = d_hidden * (before - n) * z * (1.0 - z)
    return d_r, d_z, d_inner, d_r, d_z, d_n, d_hidden * z


@equations(inputs=3, outputs=2)
def _reset(p: Vector, u: Vector, before: Vector) -> tuple[Vector, ...]:
    r = sigmoid(p + u)
    return r, r * before


@equations(inputs=5, outputs=3)
def _gru_before(p_z: Vector, p_n: Vector, u_z: Vector, u_n: Vector, before: Vector) -> tuple[Vector, ...]:
    z, n = sigmoid(p_z + u_z), tanh(p_n + u_n)
    return z, n, n + z * (before - n)


@equations(inputs=6, outputs=3)
def _gru_before_back(d: Vector, through: Vector, u: Vector, z: Vector, n: Vector, before: Vector) -> tuple[Vector, ...]:
    d_hidden = d + through + u
    d_z = d_hidden * (before - n) * z * (1.0 - z)
    return d_z, d_hidden * (1.0 - z) * (1.0 - n * n), d_hidden * z


@equations(inputs=4, outputs=2)
def _reset_back(d_kept: Vector, r: Vector, before: Vector, through: Vector) -> tuple[Vector, ...]:
    return d_kept * before * r * (1.0 - r), through + d_kept * r


@equations(inputs=9, outputs=6)
def _lstm(
    p_i: Vector, p_f: Vector, p_g: Vector, p_o: Vector,
    u_i: Vector, u_f: Vector, u_g: Vector, u_o: Vector, cell: Vector,
) -> tuple[Vector, ...]:  # fmt: skip
    i, f, g, o = sigmoid(p_i + u_i), sigmoid(p_f + u_f), tanh(p_g + u_g), sigmoid(p_o + u_o)
    cell = f * cell + i * g
    return i, f, g, o, cell, o * tanh(cell)


@equations(inputs=9, outputs=5)
def _lstm_back(
    d: Vector, u: Vector, d_cell: Vector, i: Vector, f: Vector, g: Vector, o: Vector, cell: Vector, now: Vector
) -> tuple[Vector, ...]:
    d_hidden, squashed = d + u, tanh(now)
    d_cell = d_cell + d_hidden * o * (1.0 - squashed * squashed)
    d_i = d_cell * g * i * (1.0 - i)
    d_f = d_cell * cell * f * (1.0 - f)
    d_g = d_cell * i * (1.0 - g * g)
    return d_i, d_f, d_g, d_hidden * squashed * o * (1.0 - o), d_cell * f


@kernel
def rnn_forward(
    p, p_frame, p_item, weight, extra, hidden, first_cell, outputs, cells, gates, keeps, activation,
    frames, batch, size, first, last,
):  # fmt: skip
    rows, columns = last - first, len(weight) // size
    u = np.empty(rows * columns, weight.dtype)
    before, before_at = hidden, first * size
    for t in range(frames):
        multiply(before, before_at, size, 1, rows, weight, size, 0, size, u, 0, columns, 0)
        now_at = (t * batch + first) * size
        for row in range(rows):
            p_at, u_at, out_at = t * p_frame + (first + row) * p_item, row * columns, now_at + row * size
            if activation == TANH:
                _tanh(size, p, p_at, u, u_at, outputs, out_at)
            elif activation == RELU:
                _relu(size, p, p_at, u, u_at, outputs, out_at)
            else:
                _clipped_relu(size, p, p_at, u, u_at, outputs, out_at)
        before, before_at = outputs, now_at


@kernel
def rnn_backward(
    d, d_frame, d_item, weight, extra, hidden, first_cell, outputs, cells, gates, d_u, d_p, d_hidden, d_cell,
    activation, frames, batch, size, first, last,
):  # fmt: skip
    rows, columns = last - first, len(weight) // size
    u = np.zeros(rows * columns, weight.dtype)
    for t in range(frames - 1, -1, -1):
        now_at = (t * batch + first) * size
        for row in range(rows):
            d_at, u_at, at = t * d_frame + (first + row) * d_item, row * columns, now_at + row * size
            if activation == TANH:
                _tanh_back(size, d, d_at, u, u_at, outputs, at, d_u, at)
            elif activation == RELU:
                _relu_back(size, d, d_at, u, u_at, outputs, at, d_u, at)
            else:
                _clipped_relu_back(size, d, d_at, u, u_at, outputs, at, d_u, at)
        multiply(d_u, now_at, size, 1, rows, weight, size, 0, size, u, 0, columns, 0)
    for row in range(rows):
        at = (first + row) * size
        d_hidden[at : at + size] = u[row * columns : row * columns + size]


@kernel
def gru_after_forward(
    p, p_frame, p_item, weight, extra, hidden, first_cell, outputs, cells, gates, keeps, activation,
    frames, batch, size, first, last,
):  # fmt: skip
    rows, columns = last - first, len(weight) // size
    u = np.empty(rows * columns, weight.dtype)
    before, before_at = hidden, first * size
    for t in range(frames):
        multiply(before, before_at, size, 1, rows, weight, size, 0, size, u, 0, columns, 0)
        now_at = (t * batch + first) * size
        for row in range(rows):
            r, u_r = t * p_frame + (first + row) * p_item, row * columns
            z, n, u_z, u_n = r + size, r + 2 * size, u_r + size, u_r + 2 * size
            g = t * keeps * batch * 4 * size + (first + row) * 4 * size
            _gru_after(
                size, p, r, p, z, p, n, u, u_r, u, u_z, u, u_n, extra, 0, before, before_at + row * size,
                gates, g, gates, g + size, gates, g + 2 * size, gates, g + 3 * size, outputs, now_at + row * size,
            )  # fmt: skip
        before, before_at = outputs, now_at


@kernel
def gru_after_backward(
    d, d_frame, d_item, weight, extra, hidden, first_cell, outputs, cells, gates, d_u, d_p, d_hidden, d_cell,
    activation, frames, batch, size, first, last,
):  # fmt: skip
    rows, columns = last - first, len(weight) // (3 * size)
    u = np.zeros(rows * columns, weight.dtype)
    through = np.zeros(rows * size, weight.dtype)
    for t in range(frames - 1, -1, -1):
        before = outputs if t else hidden
        before_at = ((t - 1) * batch + first) * size if t else first * size
        for row in range(rows):
            item = t * batch + first + row
            g, d_r, way = 4 * item * size, 3 * item * size, row * size
            d_z, d_n = d_r + size, d_r + 2 * size
            _gru_after_back(
                size, d, t * d_frame + (first + row) * d_item, through, way, u, row * columns,
                gates, g, gates, g + size, gates, g + 2 * size, gates, g + 3 * size, before, before_at + way,
                d_u, d_r, d_u, d_z, d_u, d_n, d_p, d_r, d_p, d_z, d_p, d_n, through, way,
            )  # fmt: skip
        multiply(
            d_u, (t * batch + first) * 3 * size, 3 * size, 1, rows, weight, 3 * size, 0, 3 * size, u, 0, columns, 0
        )
    for row in range(rows):
        add_rows(size, through, row * size, u, row * columns, d_hidden, (first + row) * size)


@kernel
def gru_before_forward(
    p, p_frame, p_item, weight, extra, hidden, first_cell, outputs, cells, gates, keeps, activation,
    frames, batch, size, first, last,
):  # fmt: skip
    rows, columns, candidate_columns = last - first, len(weight) // size, len(extra) // size
    u, u_n = np.empty(rows * columns, weight.dtype), np.empty(rows * candidate_columns, weight.dtype)
    before, before_at = hidden, first * size
    for t in range(frames):
        now_at, gates_at = (t * batch + first) * size, t * keeps * batch * 4 * size + first * 4 * size
        multiply(before, before_at, size, 1, rows, weight, size, 0, size, u, 0, columns, 0)
        for row in range(rows):
            r, g = t * p_frame + (first + row) * p_item, gates_at + row * 4 * size
            _reset(size, p, r, u, row * columns, before, before_at + row * size, gates, g, gates, g + 3 * size)
        multiply(gates, gates_at + 3 * size, 4 * size, 1, rows, extra, size, 0, size, u_n, 0, candidate_columns, 0)
        for row in range(rows):
            r, g, u_z = t * p_frame + (first + row) * p_item, gates_at + row * 4 * size, row * columns + size
            _gru_before(
                size, p, r + size, p, r + 2 * size, u, u_z, u_n, row * candidate_columns, before,
                before_at + row * size, gates, g + size, gates, g + 2 * size, outputs, now_at + row * size,
            )  # fmt: skip
        before, before_at = outputs, now_at


@kernel
def gru_before_backward(
    d, d_frame, d_item, weight, extra, hidden, first_cell, outputs, cells, gates, d_u, d_p, d_hidden, d_cell,
    activation, frames, batch, size, first, last,
):  # fmt: skip
    rows, columns = last - first, len(weight) // (2 * size)
    u, d_kept = np.zeros(rows * columns, weight.dtype), np.empty(rows * columns, weight.dtype)
    through = np.zeros(rows * size, weight.dtype)
    for t in range(frames - 1, -1, -1):
        before = outputs if t else hidden
        before_at = ((t - 1) * batch + first) * size if t else first * size
        for row in range(rows):
            item = t * batch + first + row
            g, d_r, way = 4 * item * size, 3 * item * size, row * size
            _gru_before_back(
                size, d, t * d_frame + (first + row) * d_item, through, way, u, row * columns,
                gates, g + size, gates, g + 2 * size, before, before_at + way,
                d_u, d_r + size, d_u, d_r + 2 * size, through, way,
            )  # fmt: skip
        d_at = (t * batch + first) * 3 * size
        multiply(d_u, d_at + 2 * size, 3 * size, 1, rows, extra, size, 0, size, d_kept, 0, columns, 0)
        for row in range(rows):
            g, way = 4 * (t * batch + first + row) * size, row * size
            _reset_back(
                size, d_kept, row * columns, gates, g, before, before_at + way, through, way,
                d_u, d_at + 3 * way, through, way,
            )  # fmt: skip
        multiply(d_u, d_at, 3 * size, 1, rows, weight, 2 * size, 0, 2 * size, u, 0, columns, 0)
    for row in range(rows):
        add_rows(size, through, row * size, u, row * columns, d_hidden, (first + row) * size)


@kernel
def lstm_forward(
    p, p_frame, p_item, weight, extra, hidden, first_cell, outputs, cells, gates, keeps, activation,
    frames, batch, size, first, last,
):  # fmt: skip
    rows, columns = last - first, len(weight) // size
    u = np.empty(rows * columns, weight.dtype)
    before, before_at, cell, cell_at = hidden, first * size, first_cell, first * size
    for t in range(frames):
        multiply(before, before_at, size, 1, rows, weight, size, 0, size, u, 0, columns, 0)
        now_at, cell_now_at = (t * batch + first) * size, t * keeps * batch * size + first * size
        for row in range(rows):
            i, u_i = t * p_frame + (first + row) * p_item, row * columns
            f, g, o, u_f, u_g, u_o = i + size, i + 2 * size, i + 3 * size, u_i + size, u_i + 2 * size, u_i + 3 * size
            at = t * keeps * batch * 4 * size + (first + row) * 4 * size
            _lstm(
                size, p, i, p, f, p, g, p, o, u, u_i, u, u_f, u, u_g, u, u_o, cell, cell_at + row * size,
                gates, at, gates, at + size, gates, at + 2 * size, gates, at + 3 * size,
                cells, cell_now_at + row * size, outputs, now_at + row * size,
            )  # fmt: skip
        before, before_at, cell, cell_at = outputs, now_at, cells, cell_now_at


@kernel
def lstm_backward(
    d, d_frame, d_item, weight, extra, hidden, first_cell, outputs, cells, gates, d_u, d_p, d_hidden, d_cell,
    activation, frames, batch, size, first, last,
):  # fmt: skip
    rows, columns = last - first, len(weight) // (4 * size)
    u = np.zeros(rows * columns, weight.dtype)
    for t in range(frames - 1, -1, -1):
        cell = cells if t else first_cell
        cell_at = ((t - 1) * batch + first) * size if t else first * size
        for row in range(rows):
            item = t * batch + first + row
            at, way = 4 * item * size, (first + row) * size
            _lstm_back(
                size, d, t * d_frame + (first + row) * d_item, u, row * columns, d_cell, way,
                gates, at, gates, at + size, gates, at + 2 * size, gates, at + 3 * size,
                cell, cell_at + row * size, cells, item * size,
                d_u, at, d_u, at + size, d_u, at + 2 * size, d_u, at + 3 * size, d_cell, way,
            )  # fmt: skip
        multiply(
            d_u, (t * batch + first) * 4 * size, 4 * size, 1, rows, weight, 4 * size, 0, 4 * size, u, 0, columns, 0
        )
    for row in range(rows):
        at = (first + row) * size
        d_hidden[at : at + size] = u[row * columns : row * columns + size]


FORWARD = {"gru_after": gru_after_forward, "gru_before": gru_before_forward, "lstm": lstm_forward}
BACKWARD = {"gru_after": gru_after_backward, "gru_before": gru_before_backward, "lstm": lstm_backward}
Packed = tuple[Tensor, Tensor]
ACTIVATIONS = {"tanh": TANH, "relu": RELU, "clipped_relu": CLIPPED_RELU}


def forward(
    kind: str,
    recurrent: Tensor,
    bias: Tensor | None,
    initial: tuple[Tensor, ...],
    projected: Sequence[Tensor],
    *,
    keeps: bool,
    packed: Packed | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run K chains over all frames.

    Args:
        kind: of cell.
        recurrent: (K, G * H, H).
        bias: (K, H), a gru_after's c.
        initial: the states before the first frame, each (K, B, H).
        projected: K times (S, B, G * H).
        keeps: gates and cells of all frames, for `backward`; else of the last one.
        packed: `recurrent` as `pack_forward` gives it; None: it is packed here.

    Returns:
        Outputs (K, S, B, H), cells (K, S, B, H) of an LSTM, and what `backward` needs of the gates, (K, S, B, 4H).
    """
    chains, _, size = recurrent.shape
    frames, batch, _ = projected[0].shape
    kept = frames if keeps else 1
    outputs = recurrent.new_empty(chains, frames, batch, size)
    gates = recurrent.new_empty(chains, kept, batch, 0 if kind in ACTIVATIONS else 4 * size)
    cells = recurrent.new_empty(chains, kept, batch, size if kind == "lstm" else 0)
    weight, extra = packed or pack_forward(kind, recurrent)
    extra = extra if bias is None else bias
    flat = by_chain(weight, extra, initial[0], initial[-1], outputs, cells, gates)
    facts = int(keeps), ACTIVATIONS.get(kind, 0), frames, batch, size
    calls = [(*rows_of(p), *tensors, *facts) for p, tensors in zip(projected, flat, strict=True)]
    run(FORWARD.get(kind, rnn_forward), calls, batch, frames * recurrent.shape[1] * (1 + size // 256))
    return outputs, cells, gates


def backward(
    kind: str,
    recurrent: Tensor,
    initial: Sequence[Tensor],
    outputs: Tensor,
    cells: Tensor,
    gates: Tensor,
    d_outputs: Tensor,
    d_cell: Tensor | None = None,
    *,
    projected_type: torch.dtype,
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Gradients of what comes out of U, (K, S, B, G * H), of the projections, likewise, and of the initial states.

    Args:
        kind: as above.
        recurrent: as above.
        initial: as above.
        outputs: as `forward` gave them.
        cells: likewise.
        gates: likewise.
        d_outputs: (K, S, B, H).
        d_cell: of an LSTM's last cell state, (K, B, H).
        projected_type: of projections, and so of their gradients.
    """
    chains, frames, batch, size = outputs.shape
    d_u = outputs.new_empty(chains, frames, batch, recurrent.shape[1])
    own = kind == "gru_after"  # its p_n is outside the reset gate, so its gradient is another than that of U h
    d_p = torch.empty_like(d_u, dtype=projected_type) if own else d_u
    d_initial = [torch.empty_like(state, memory_format=torch.contiguous_format) for state in initial]
    if d_cell is not None:
        d_initial[-1].copy_(d_cell)
    weight, extra = _pack(kind, recurrent, -2)
    states = (weight, extra, initial[0], initial[-1], outputs, cells, gates)
    flat = by_chain(*states, d_u, d_p, d_initial[0], d_initial[-1])
    facts = ACTIVATIONS.get(kind, 0), frames, batch, size
    calls = [(*rows_of(d), *tensors, *facts) for d, tensors in zip(d_outputs, flat, strict=True)]
    run(BACKWARD.get(kind, rnn_backward), calls, batch, frames * recurrent.shape[1] * (1 + size // 256))
    return d_u, d_p.to(projected_type), tuple(d_initial)


def pack_forward(kind: str, recurrent: Tensor) -> Packed:
    """`recurrent`, (K, G * H, H), as the forward kernel of `kind` reads it."""
    return _pack(kind, recurrent.mT, -1)


def _pack(kind: str, matrix: Tensor, gates: int) -> Packed:
    """A kernel's `weight` and `extra`, chain by chain; `gates` is the dimension of `matrix` along which they stand."""
    if kind == "gru_before":
        size = min(matrix.shape[-2:])
        first, second = matrix.split((2 * size, size), gates)
        return pack(first), pack(second)
    return pack(matrix), matrix.new_empty(len(matrix), 0)
