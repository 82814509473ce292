"""The element-wise recurrences as compiled loops on the CPU; `asr.nn.cells.elementwise` says what they compute.

A kernel runs a range of a chain's batch items one after the other, each over all frames: what a frame leaves for the
next stays in the first-level cache. An item's result does not depend on the others, nor on how items are split over
threads. All arrays are flat; p, d and the like have rows (S, B) at the given distances.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asr.nn._numba_calls import by_chain, rows_of, run
from asr.nn._vectors import Vector, equations, exp, kernel, scratch, sigmoid, tanh

# What a frame computes of each unit. p: projected inputs; w: weights; h, c: states before the frame. Backward, d: what
# comes from above; back: what comes back from the frame after, for the hidden state and then the cell; d_w: sums.


@equations(inputs=3, outputs=1)
def _rnn(p: Vector, w: Vector, h: Vector) -> tuple[Vector, ...]:
    return (tanh(p + w * h),)


@equations(inputs=6, outputs=3)
def _rnn_back(d: Vector, back: Vector, w: Vector, d_w: Vector, h: Vector, now: Vector) -> tuple[Vector, ...]:
    d_p = (d + back) * (1.0 - now * now)
    return d_p, d_p * w, d_w + d_p * h


@equations(inputs=7, outputs=1)
def _gru(p_r: Vector, p_z: Vector, p_n: Vector, w_r: Vector, w_z: Vector, w_n: Vector, h: Vector) -> tuple[Vector, ...]:
    r, z = sigmoid(p_r + w_r * h), sigmoid(p_z + w_z * h)
    n = tanh(p_n + w_n * (r * h))
    return (n + z * (h - n),)


@equations(inputs=12, outputs=7)
def _gru_back(
    p_r: Vector, p_z: Vector, p_n: Vector, w_r: Vector, w_z: Vector, w_n: Vector,
    d_w_r: Vector, d_w_z: Vector, d_w_n: Vector, h: Vector, d: Vector, back: Vector,
) -> tuple[Vector, ...]:  # fmt: skip
    r, z = sigmoid(p_r + w_r * h), sigmoid(p_z + w_z * h)
    kept = r * h
    n = tanh(p_n + w_n * kept)
    d_h = d + back
    d_n = d_h * (1.0 - z) * (1.0 - n * n)
    d_z = d_h * (h - n) * z * (1.0 - z)
    d_kept = d_n * w_n
    d_r = d_kept * h * r * (1.0 - r)
    back = d_h * z + d_kept * r + d_r * w_r + d_z * w_z
    return d_w_r + d_r * h, d_w_z + d_z * h, d_w_n + d_n * kept, back, d_r, d_z, d_n


@equations(inputs=10, outputs=2)
def _lstm(
    p_i: Vector, p_f: Vector, p_g: Vector, p_o: Vector,
    w_i: Vector, w_f: Vector, w_g: Vector, w_o: Vector, h: Vector, c: Vector,
) -> tuple[Vector, ...]:  # fmt: skip
    c = sigmoid(p_f + w_f * h) * c + sigmoid(p_i + w_i * h) * tanh(p_g + w_g * h)
    return sigmoid(p_o + w_o * h) * tanh(c), c


@equations(inputs=18, outputs=10)
def _lstm_back(
    p_i: Vector, p_f: Vector, p_g: Vector, p_o: Vector, w_i: Vector, w_f: Vector, w_g: Vector, w_o: Vector,
    d_w_i: Vector, d_w_f: Vector, d_w_g: Vector, d_w_o: Vector,
    h: Vector, c: Vector, now: Vector, d: Vector, back: Vector, cell_back: Vector,
) -> tuple[Vector, ...]:  # fmt: skip
    i, f, g, o = sigmoid(p_i + w_i * h), sigmoid(p_f + w_f * h), tanh(p_g + w_g * h), sigmoid(p_o + w_o * h)
    squashed = tanh(now)
    d_h = d + back
    d_c = cell_back + d_h * o * (1.0 - squashed * squashed)
    d_i, d_f = d_c * g * i * (1.0 - i), d_c * c * f * (1.0 - f)
    d_g, d_o = d_c * i * (1.0 - g * g), d_h * squashed * o * (1.0 - o)
    sums = d_w_i + d_i * h, d_w_f + d_f * h, d_w_g + d_g * h, d_w_o + d_o * h
    return *sums, d_i * w_i + d_f * w_f + d_g * w_g + d_o * w_o, d_c * f, d_i, d_f, d_g, d_o


@equations(inputs=3, outputs=1)
def _linear(keep: Vector, add: Vector, h: Vector) -> tuple[Vector, ...]:
    return (keep * h + add,)


@equations(inputs=4, outputs=3)
def _linear_back(keep: Vector, h: Vector, d: Vector, back: Vector) -> tuple[Vector, ...]:
    d_h = d + back
    return d_h * h, d_h, d_h * keep


@equations(inputs=3, outputs=1)
def _min_gru(p_z: Vector, p_h: Vector, h: Vector) -> tuple[Vector, ...]:
    return (h + sigmoid(p_z) * (_positive(p_h)[0] - h),)


@equations(inputs=5, outputs=3)
def _min_gru_back(p_z: Vector, p_h: Vector, h: Vector, d: Vector, back: Vector) -> tuple[Vector, ...]:
    z, (candidate, slope) = sigmoid(p_z), _positive(p_h)
    d_h = d + back
    return d_h * (candidate - h) * z * (1.0 - z), d_h * z * slope, d_h * (1.0 - z)


@equations(inputs=4, outputs=1)
def _min_lstm(p_f: Vector, p_i: Vector, p_h: Vector, h: Vector) -> tuple[Vector, ...]:
    candidate = _positive(p_h)[0]
    return (candidate + _share(p_f, p_i) * (h - candidate),)


@equations(inputs=6, outputs=4)
def _min_lstm_back(p_f: Vector, p_i: Vector, p_h: Vector, h: Vector, d: Vector, back: Vector) -> tuple[Vector, ...]:
    share, (candidate, slope) = _share(p_f, p_i), _positive(p_h)
    d_h = d + back
    d_share = d_h * (h - candidate) * share * (1.0 - share)
    return d_share * sigmoid(-p_f), -d_share * sigmoid(-p_i), d_h * (1.0 - share) * slope, d_h * share


@equations(inputs=5, outputs=2)
def _sru(p_x: Vector, p_f: Vector, p_r: Vector, p_s: Vector, c: Vector) -> tuple[Vector, ...]:
    c = p_x + sigmoid(p_f) * (c - p_x)
    return p_s + sigmoid(p_r) * (c - p_s), c


@equations(inputs=8, outputs=5)
def _sru_back(
    p_x: Vector, p_f: Vector, p_r: Vector, p_s: Vector, c: Vector, now: Vector, d: Vector, back: Vector
) -> tuple[Vector, ...]:
    f, r = sigmoid(p_f), sigmoid(p_r)
    d_c = d * r + back
    d_f, d_r = d_c * (c - p_x) * f * (1.0 - f), d * (now - p_s) * r * (1.0 - r)
    return d_c * (1.0 - f), d_f, d_r, d * (1.0 - r), d_c * f


def _positive(x: Vector) -> tuple[Vector, Vector]:
    """The minGRU paper's g, and its slope."""
    s = sigmoid(x)
    return x.where(">=", 0.0, x + 0.5, s), x.where(">=", 0.0, 1.0, s * (1.0 - s))


def _share(p_f: Vector, p_i: Vector) -> Vector:
    """F / (f + i) for gates f and i, which both may be too small for a float32."""
    largest = (-p_f).where(">", -p_i, -p_f, -p_i)
    largest = largest.where(">", 0.0, largest, 0.0)
    one, of_f, of_i = exp(-largest), exp(-p_f - largest), exp(-p_i - largest)
    return (one + of_i) / (2.0 * one + of_f + of_i)


@kernel
def rnn_forward(p, p_frame, p_item, weight, hidden, outputs, frames, batch, size, first, last):
    for item in range(first, last):
        before, h = hidden, item * size
        for t in range(frames):
            now = (t * batch + item) * size
            _rnn(size, p, t * p_frame + item * p_item, weight, 0, before, h, outputs, now)
            before, h = outputs, now


@kernel
def rnn_backward(
    p, p_frame, p_item, weight, hidden, outputs, d, d_frame, d_item, d_p, d_p_frame, d_p_item, d_weight, d_hidden,
    frames, batch, size, first, last,
):  # fmt: skip
    own, w, d_w = _own(weight, 1, 1, size)
    for item in range(first, last):
        own[:w], own[d_w:] = 0, 0
        for t in range(frames - 1, -1, -1):
            now = (t * batch + item) * size
            before, h = (outputs, now - batch * size) if t else (hidden, item * size)
            _rnn_back(
                size, d, t * d_frame + item * d_item, own, 0, own, w, own, d_w, before, h, outputs, now,
                d_p, t * d_p_frame + item * d_p_item, own, 0, own, d_w,
            )  # fmt: skip
        _copy(own, d_w, w, d_weight, item * size, size, 1, size)
        d_hidden[item * size : (item + 1) * size] = own[:size]


@kernel
def gru_forward(p, p_frame, p_item, weight, hidden, outputs, frames, batch, size, first, last):
    z, n = size, 2 * size
    for item in range(first, last):
        before, h = hidden, item * size
        for t in range(frames):
            at, now = t * p_frame + item * p_item, (t * batch + item) * size
            _gru(
                size, p, at, p, at + z, p, at + n, weight, 0, weight, z, weight, n, before, h, outputs, now
            )  # fmt: skip
            before, h = outputs, now


@kernel
def gru_backward(
    p, p_frame, p_item, weight, hidden, outputs, d, d_frame, d_item, d_p, d_p_frame, d_p_item, d_weight, d_hidden,
    frames, batch, size, first, last,
):  # fmt: skip
    z, n = size, 2 * size
    own, w, d_w = _own(weight, 3, 1, size)  # w is the distance of rows as well
    for item in range(first, last):
        own[:w], own[d_w:] = 0, 0
        for t in range(frames - 1, -1, -1):
            before, h = (outputs, ((t - 1) * batch + item) * size) if t else (hidden, item * size)
            at, d_at = t * p_frame + item * p_item, t * d_p_frame + item * d_p_item
            _gru_back(
                size, p, at, p, at + z, p, at + n, own, w, own, 2 * w, own, 3 * w,
                own, 4 * w, own, 5 * w, own, 6 * w, before, h, d, t * d_frame + item * d_item, own, 0,
                own, 4 * w, own, 5 * w, own, 6 * w, own, 0, d_p, d_at, d_p, d_at + z, d_p, d_at + n,
            )  # fmt: skip
        _copy(own, d_w, w, d_weight, 3 * item * size, size, 3, size)
        d_hidden[item * size : (item + 1) * size] = own[:size]


@kernel
def lstm_forward(p, p_frame, p_item, weight, hidden, cell, outputs, cells, frames, batch, size, first, last):
    f, g, o = size, 2 * size, 3 * size
    for item in range(first, last):
        before, cell_before, h = hidden, cell, item * size
        for t in range(frames):
            at, now = t * p_frame + item * p_item, (t * batch + item) * size
            _lstm(
                size, p, at, p, at + f, p, at + g, p, at + o, weight, 0, weight, f, weight, g, weight, o,
                before, h, cell_before, h, outputs, now, cells, now,
            )  # fmt: skip
            before, cell_before, h = outputs, cells, now


@kernel
def lstm_backward(
    p, p_frame, p_item, weight, hidden, cell, outputs, cells, d, d_frame, d_item, d_p, d_p_frame, d_p_item,
    d_weight, d_hidden, d_cell, frames, batch, size, first, last,
):  # fmt: skip
    f, g, o = size, 2 * size, 3 * size
    own, w, d_w = _own(weight, 4, 2, size)
    row = w // 2
    w_f, w_g, w_o, d_f, d_g, d_o = w + row, w + 2 * row, w + 3 * row, d_w + row, d_w + 2 * row, d_w + 3 * row
    for item in range(first, last):
        way = item * size
        own[:w], own[d_w:] = 0, 0
        own[row : row + size] = d_cell[way : way + size]
        for t in range(frames - 1, -1, -1):
            now = (t * batch + item) * size
            before, cell_before, h = (outputs, cells, now - batch * size) if t else (hidden, cell, way)
            at, d_at = t * p_frame + item * p_item, t * d_p_frame + item * d_p_item
            _lstm_back(
                size, p, at, p, at + f, p, at + g, p, at + o, own, w, own, w_f, own, w_g, own, w_o,
                own, d_w, own, d_f, own, d_g, own, d_o,
                before, h, cell_before, h, cells, now, d, t * d_frame + item * d_item, own, 0, own, row,
                own, d_w, own, d_f, own, d_g, own, d_o, own, 0, own, row,
                d_p, d_at, d_p, d_at + f, d_p, d_at + g, d_p, d_at + o,
            )  # fmt: skip
        _copy(own, d_w, row, d_weight, 4 * way, size, 4, size)
        d_hidden[way : way + size], d_cell[way : way + size] = own[:size], own[row : row + size]


@kernel
def _own(weight, gates, states, size):
    """Rows for what comes back to each state, for each gate's weights, and for its sums; where the last two begin."""
    memory, distance = scratch(2 * gates + states, size, weight)
    _copy(weight, 0, size, memory, states * distance, distance, gates, size)
    return memory, states * distance, (states + gates) * distance


@kernel
def _copy(source, source_at, source_row, target, target_at, target_row, rows, size):
    for row in range(rows):
        start, end = source_at + row * source_row, target_at + row * target_row
        target[end : end + size] = source[start : start + size]


@kernel
def min_gru_forward(p, p_frame, p_item, weight, hidden, outputs, frames, batch, size, first, last):
    for item in range(first, last):
        before, h = hidden, item * size
        for t in range(frames):
            at, now = t * p_frame + item * p_item, (t * batch + item) * size
            _min_gru(size, p, at, p, at + size, before, h, outputs, now)
            before, h = outputs, now


@kernel
def min_gru_backward(
    p, p_frame, p_item, weight, hidden, outputs, d, d_frame, d_item, d_p, d_p_frame, d_p_item, d_weight, d_hidden,
    frames, batch, size, first, last,
):  # fmt: skip
    for item in range(first, last):
        way = item * size
        for t in range(frames - 1, -1, -1):
            before, h = (outputs, ((t - 1) * batch + item) * size) if t else (hidden, way)
            at, d_at = t * p_frame + item * p_item, t * d_p_frame + item * d_p_item
            _min_gru_back(
                size, p, at, p, at + size, before, h, d, t * d_frame + item * d_item, d_hidden, way,
                d_p, d_at, d_p, d_at + size, d_hidden, way,
            )  # fmt: skip


@kernel
def min_lstm_forward(p, p_frame, p_item, weight, hidden, outputs, frames, batch, size, first, last):
    for item in range(first, last):
        before, h = hidden, item * size
        for t in range(frames):
            at, now = t * p_frame + item * p_item, (t * batch + item) * size
            _min_lstm(size, p, at, p, at + size, p, at + 2 * size, before, h, outputs, now)
            before, h = outputs, now


@kernel
def min_lstm_backward(
    p, p_frame, p_item, weight, hidden, outputs, d, d_frame, d_item, d_p, d_p_frame, d_p_item, d_weight, d_hidden,
    frames, batch, size, first, last,
):  # fmt: skip
    i, n = size, 2 * size
    for item in range(first, last):
        way = item * size
        for t in range(frames - 1, -1, -1):
            before, h = (outputs, ((t - 1) * batch + item) * size) if t else (hidden, way)
            at, d_at = t * p_frame + item * p_item, t * d_p_frame + item * d_p_item
            _min_lstm_back(
                size, p, at, p, at + i, p, at + n, before, h, d, t * d_frame + item * d_item, d_hidden, way,
                d_p, d_at, d_p, d_at + i, d_p, d_at + n, d_hidden, way,
            )  # fmt: skip


@kernel
def sru_forward(p, p_frame, p_item, weight, hidden, cell, outputs, cells, frames, batch, size, first, last):
    f, r, s = size, 2 * size, 3 * size
    for item in range(first, last):
        before, c = cell, item * size
        for t in range(frames):
            at, now = t * p_frame + item * p_item, (t * batch + item) * size
            _sru(size, p, at, p, at + f, p, at + r, p, at + s, before, c, outputs, now, cells, now)
            before, c = cells, now


@kernel
def sru_backward(
    p, p_frame, p_item, weight, hidden, cell, outputs, cells, d, d_frame, d_item, d_p, d_p_frame, d_p_item,
    d_weight, d_hidden, d_cell, frames, batch, size, first, last,
):  # fmt: skip
    f, r, s = size, 2 * size, 3 * size
    for item in range(first, last):
        way = item * size
        for t in range(frames - 1, -1, -1):
            now = (t * batch + item) * size
            before, c = (cells, now - batch * size) if t else (cell, way)
            at, d_at = t * p_frame + item * p_item, t * d_p_frame + item * d_p_item
            _sru_back(
                size, p, at, p, at + f, p, at + r, p, at + s, before, c, cells, now,
                d, t * d_frame + item * d_item, d_cell, way,
                d_p, d_at, d_p, d_at + f, d_p, d_at + r, d_p, d_at + s, d_cell, way,
            )  # fmt: skip


@kernel
def linear_forward(
    keep, keep_frame, keep_item, add, add_frame, add_item, hidden, states, frames, batch, size, first, last
):
    for item in range(first, last):
        before, h = hidden, item * size
        for t in range(frames):
            now = (t * batch + item) * size
            keep_at, add_at = t * keep_frame + item * keep_item, t * add_frame + item * add_item
            _linear(size, keep, keep_at, add, add_at, before, h, states, now)
            before, h = states, now


@kernel
def linear_backward(
    keep, keep_frame, keep_item, d, d_frame, d_item, hidden, states, d_keep, d_add, back,
    frames, batch, size, first, last,
):  # fmt: skip
    for item in range(first, last):
        way = item * size
        for t in range(frames - 1, -1, -1):
            now = (t * batch + item) * size
            before, h = (states, now - batch * size) if t else (hidden, way)
            _linear_back(
                size, keep, t * keep_frame + item * keep_item, before, h, d, t * d_frame + item * d_item, back, way,
                d_keep, now, d_add, now, back, way,
            )  # fmt: skip


FORWARD = {
    "rnn": rnn_forward,
    "gru": gru_forward,
    "lstm": lstm_forward,
    "min_gru": min_gru_forward,
    "min_lstm": min_lstm_forward,
    "sru": sru_forward,
}
BACKWARD = {
    "rnn": rnn_backward,
    "gru": gru_backward,
    "lstm": lstm_backward,
    "min_gru": min_gru_backward,
    "min_lstm": min_lstm_backward,
    "sru": sru_backward,
}


def forward(cell: str, weight: Tensor, initial: tuple[Tensor, ...], projected: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Weight (K, G * H), states (K, B, H), projections (S, B, G * H) -> each state after each frame, (K, S, B, H)."""
    frames, batch, _ = projected[0].shape
    chains, _, size = initial[0].shape
    states = tuple(weight.new_empty(chains, frames, batch, size) for _ in initial)
    flat = by_chain(weight, *initial, *states)
    calls = [(*rows_of(p), *tensors, frames, batch, size) for p, tensors in zip(projected, flat, strict=True)]
    run(FORWARD[cell], calls, batch, frames * size)
    return states


def backward(
    cell: str,
    weight: Tensor,
    initial: tuple[Tensor, ...],
    projected: Sequence[Tensor],
    states: tuple[Tensor, ...],
    d_outputs: Tensor,
    d_last: tuple[Tensor, ...],
) -> tuple[Tensor, tuple[Tensor, ...], list[Tensor]]:
    """Gradients of weight, initial states and projections.

    Args:
        cell: rnn, gru or lstm.
        weight: as above.
        initial: as above.
        projected: as above.
        states: what `forward` gave.
        d_outputs: of the first state, the hidden one.
        d_last: of the other states after the last frame, (K, B, H).
    """
    chains, frames, batch, size = d_outputs.shape
    d_projected = [torch.empty_like(chain if chain.stride(-1) == 1 else chain.contiguous()) for chain in projected]
    d_weight = weight.new_empty(chains, batch, weight.shape[1])
    d_initial = tuple(values.contiguous().clone() for values in (torch.zeros_like(initial[0]), *d_last))
    calls = [
        (*rows_of(p), *inputs, *rows_of(d), *rows_of(d_p), *gradients, frames, batch, size)
        for p, inputs, d, d_p, gradients in zip(
            projected,
            by_chain(weight, *initial, *states),
            d_outputs,
            d_projected,
            by_chain(d_weight, *d_initial),
            strict=True,
        )
    ]
    run(BACKWARD[cell], calls, batch, frames * projected[0].shape[2])
    return d_weight.sum(1), d_initial, d_projected


def linear(keep: Tensor, add: Tensor, initial: Tensor) -> Tensor:
    """h[t] = keep[t] * h[t - 1] + add[t], (K, S, B, H)."""
    _, frames, batch, size = keep.shape
    states = keep.new_empty(keep.shape)
    calls = [
        (*rows_of(a), *rows_of(b), *flat, frames, batch, size)
        for a, b, flat in zip(keep, add, by_chain(initial, states), strict=True)
    ]
    run(linear_forward, calls, batch, frames * size)
    return states


def linear_gradients(keep: Tensor, initial: Tensor, states: Tensor, d_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of keep, add and initial."""
    _, frames, batch, size = keep.shape
    d_keep, d_add, d_initial = keep.new_empty(keep.shape), keep.new_empty(keep.shape), initial.new_zeros(initial.shape)
    calls = [
        (*rows_of(a), *rows_of(d), *flat, frames, batch, size)
        for a, d, flat in zip(keep, d_states, by_chain(initial, states, d_keep, d_add, d_initial), strict=True)
    ]
    run(linear_backward, calls, batch, frames * size)
    return d_keep, d_add, d_initial
