"""The element-wise recurrences as compiled loops on the CPU; `asr.nn.cells.elementwise` says what they compute.

A kernel runs a range of a chain's batch items one after the other, each over all frames: what a frame leaves for the
next stays in the first-level cache, and the inner loop over the units becomes vector instructions. An item's result
does not depend on the others, nor on how items are split over threads.

LLVM vectorises a loop only where few arrays can overlap: it checks at most 8 pairs, one of which is written. Hence
two loops where one would do, and one scratch array for all that a backward loop writes. A whole number would turn
float32 into float64, so constants are typed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, no_type_check

import numpy as np
import torch
from numba.core import types
from numba.extending import overload
from torch import Tensor

from asr.compiled import compiled

WORTH_A_THREAD = 2**17  # units x frames, some 0.3 ms
TILE = 128  # units whose scratch lies at distances that LLVM knows


_kernel = partial(compiled, fastmath={"contract"})

LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # their sum is ln 2
ROUNDER = np.float32(1.5 * 2**23)  # x + this - this is x, rounded; the sum's lowest bits are the integer
EXP_MIN, EXP_MAX = np.float32(-87.0), np.float32(88.0)
EXP = tuple(np.float32(c) for c in (1.9875691e-4, 1.3981999e-3, 8.3334519e-3, 4.1665796e-2, 1.6666666e-1, 0.5))
TANH = tuple(np.float32(c) for c in (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1))
TANH += (np.float32(-3.33332819422e-1),)
TANH_SMALL = np.float32(0.625)
ONE32, TWO32 = np.float32(1), np.float32(2)


@_kernel
def _exp32(x):
    """Cephes' expf, clamped where float32 ends; NaN stays NaN."""
    x = EXP_MIN if x < EXP_MIN else x
    x = EXP_MAX if x > EXP_MAX else x
    rounded = x * LOG2_E + ROUNDER
    n = rounded - ROUNDER
    x = x - n * LN2_HIGH
    x = x - n * LN2_LOW
    y = EXP[0]
    y = y * x + EXP[1]
    y = y * x + EXP[2]
    y = y * x + EXP[3]
    y = y * x + EXP[4]
    y = y * x + EXP[5]
    y = y * (x * x) + x + ONE32
    two_to_n = np.int32((np.float32(rounded).view(np.int32) << 23) + 0x3F800000)
    return y * np.int32(two_to_n).view(np.float32)


@_kernel
def _sigmoid32(x):
    return ONE32 / (ONE32 + _exp32(-x))


@_kernel
def _tanh32(x):
    """Cephes' tanhf: near 0 by its series, so that small values keep their digits."""
    s = x * x
    y = TANH[0]
    y = y * s + TANH[1]
    y = y * s + TANH[2]
    y = y * s + TANH[3]
    y = y * s + TANH[4]
    size = abs(x)
    far = math.copysign(ONE32 - TWO32 / (_exp32(size + size) + ONE32), x)
    return far if size > TANH_SMALL else y * s * x + x


@_kernel
def _sigmoid64(x):
    return 1.0 / (1.0 + math.exp(-x))


@_kernel
def _tanh64(x):
    return math.tanh(x)


def sigmoid(x: Any) -> Any:
    """Vectorisable for float32, the library's for float64."""


def tanh(x: Any) -> Any:
    """Likewise."""


def wide(x: Any) -> Any:
    """A projection's element as a number; bfloat16, which NumPy lacks, comes as its bits."""


def narrow(x: Any, like: Any) -> Any:
    """`x` as an element of `like`'s type."""


@no_type_check
@overload(sigmoid)
def _(x):
    function = _sigmoid32 if x == types.float32 else _sigmoid64
    return lambda x: function(x)


@no_type_check
@overload(tanh)
def _(x):
    function = _tanh32 if x == types.float32 else _tanh64
    return lambda x: function(x)


@no_type_check
@overload(wide)
def _(x):
    if x == types.uint16:
        return lambda x: np.uint32(np.uint32(x) << 16).view(np.float32)
    return lambda x: x


@no_type_check
@overload(narrow)
def _(x, like):
    if like == types.uint16:
        return lambda x, like: _bfloat16(x)
    return lambda x, like: x


@_kernel
def _bfloat16(x):
    """Round to even."""
    bits = np.float32(x).view(np.uint32)
    rounded = np.uint16((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)
    return np.uint16(0x7FC0) if x != x else rounded


@_kernel
def rnn_forward(p, p_frame, p_item, weight, first_hidden, outputs, first, last):
    frames, _, size = outputs.shape
    for item in range(first, last):
        before = first_hidden[item]
        for t in range(frames):
            at = t * p_frame + item * p_item
            frame, now = p[at : at + size], outputs[t, item]
            for j in range(size):
                now[j] = tanh(wide(frame[j]) + weight[j] * before[j])
            before = now


@_kernel
def rnn_backward(
    p, p_frame, p_item, weight, first_hidden, outputs,
    g, g_frame, g_item, d_p, d_p_frame, d_p_item, d_weight, d_hidden, first, last,
):  # fmt: skip
    frames, _, size = outputs.shape
    one = weight.dtype.type(1)
    delta = np.empty_like(weight)
    for item in range(first, last):
        carry, d_w = d_hidden[item], d_weight[item]
        carry[:] = 0
        d_w[:] = 0
        for t in range(frames - 1, -1, -1):
            g_at, d_p_at = t * g_frame + item * g_item, t * d_p_frame + item * d_p_item
            above, d_frame = g[g_at : g_at + size], d_p[d_p_at : d_p_at + size]
            now, before = outputs[t, item], outputs[t - 1, item] if t else first_hidden[item]
            for j in range(size):
                delta[j] = (above[j] + carry[j]) * (one - now[j] * now[j])
            for j in range(size):
                carry[j] = delta[j] * weight[j]
                d_w[j] += delta[j] * before[j]
            for j in range(size):
                d_frame[j] = narrow(delta[j], d_frame[j])


@_kernel
def gru_forward(p, p_frame, p_item, weight, first_hidden, outputs, first, last):
    frames, _, size = outputs.shape
    weight_r, weight_z, weight_n = weight[:size], weight[size : 2 * size], weight[2 * size :]
    for item in range(first, last):
        before = first_hidden[item]
        for t in range(frames):
            at = t * p_frame + item * p_item
            p_r, p_z, p_n = p[at : at + size], p[at + size : at + 2 * size], p[at + 2 * size : at + 3 * size]
            now = outputs[t, item]
            for j in range(size):
                h = before[j]
                r = sigmoid(wide(p_r[j]) + weight_r[j] * h)
                z = sigmoid(wide(p_z[j]) + weight_z[j] * h)
                n = tanh(wide(p_n[j]) + weight_n[j] * (r * h))
                now[j] = n + z * (h - n)
            before = now


@_kernel
def gru_backward(
    p, p_frame, p_item, weight, first_hidden, outputs,
    g, g_frame, g_item, d_p, d_p_frame, d_p_item, d_weight, d_hidden, first, last,
):  # fmt: skip
    frames, _, size = outputs.shape
    one = weight.dtype.type(1)
    scratch = _scratch(weight, size, 3, 1)
    # Of r, z, n: weights, their gradients, what goes to the pre-activations; and what goes to h
    w_r, w_z, w_n, dw_r, dw_z, dw_n, d_r, d_z, d_n, carry = (
        0, TILE, 2 * TILE, 3 * TILE, 4 * TILE, 5 * TILE, 6 * TILE, 7 * TILE, 8 * TILE, 9 * TILE
    )  # fmt: skip
    for item in range(first, last):
        scratch[:, dw_r:] = 0
        for t in range(frames - 1, -1, -1):
            hidden = outputs[t - 1, item] if t else first_hidden[item]
            for tile in range(len(scratch)):
                start = tile * TILE
                s, length = scratch[tile], min(TILE, size - start)
                at, g_at = t * p_frame + item * p_item + start, t * g_frame + item * g_item + start
                p_r, p_z = p[at : at + length], p[at + size : at + size + length]
                p_n = p[at + 2 * size : at + 2 * size + length]
                before, above = hidden[start : start + length], g[g_at : g_at + length]
                for j in range(length):
                    h = before[j]
                    r = sigmoid(wide(p_r[j]) + s[w_r + j] * h)
                    z = sigmoid(wide(p_z[j]) + s[w_z + j] * h)
                    kept = r * h
                    n = tanh(wide(p_n[j]) + s[w_n + j] * kept)
                    to_h = above[j] + s[carry + j]
                    to_n = to_h * (one - z) * (one - n * n)
                    to_z = to_h * (h - n) * z * (one - z)
                    to_kept = to_n * s[w_n + j]
                    to_r = to_kept * h * r * (one - r)
                    s[carry + j] = to_h * z + to_kept * r + to_r * s[w_r + j] + to_z * s[w_z + j]
                    s[dw_r + j] += to_r * h
                    s[dw_z + j] += to_z * h
                    s[dw_n + j] += to_n * kept
                    s[d_r + j] = to_r
                    s[d_z + j] = to_z
                    s[d_n + j] = to_n
                _store(s[d_r:carry], d_p, t * d_p_frame + item * d_p_item + start, size, length)
        for tile in range(len(scratch)):
            start, s = tile * TILE, scratch[tile]
            length = min(TILE, size - start)
            _store(s[dw_r:d_r], d_weight[item], start, size, length)
            _store(s[carry:], d_hidden[item], start, size, length)


@_kernel
def lstm_forward(p, p_frame, p_item, weight, first_hidden, first_cell, outputs, cells, first, last):
    frames, _, size = outputs.shape
    w_i, w_f, w_g, w_o = weight[:size], weight[size : 2 * size], weight[2 * size : 3 * size], weight[3 * size :]
    h, c = np.empty_like(w_i), np.empty_like(w_i)
    for item in range(first, last):
        h[:], c[:] = first_hidden[item], first_cell[item]
        for t in range(frames):
            at = t * p_frame + item * p_item
            p_i, p_f = p[at : at + size], p[at + size : at + 2 * size]
            p_g, p_o = p[at + 2 * size : at + 3 * size], p[at + 3 * size : at + 4 * size]
            for j in range(size):
                keep = sigmoid(wide(p_f[j]) + w_f[j] * h[j])
                take = sigmoid(wide(p_i[j]) + w_i[j] * h[j])
                c[j] = keep * c[j] + take * tanh(wide(p_g[j]) + w_g[j] * h[j])
            for j in range(size):
                h[j] = sigmoid(wide(p_o[j]) + w_o[j] * h[j]) * tanh(c[j])
            outputs[t, item], cells[t, item] = h, c


@_kernel
def lstm_backward(
    p, p_frame, p_item, weight, first_hidden, first_cell, outputs, cells,
    g, g_frame, g_item, g_cell, d_p, d_p_frame, d_p_item, d_weight, d_hidden, d_cell, first, last,
):  # fmt: skip
    frames, _, size = outputs.shape
    one = weight.dtype.type(1)
    scratch = _scratch(weight, size, 4, 2)
    # Of i, f, g, o: weights, their gradients, what goes to the pre-activations; and what goes to h and to c
    w_i, w_f, w_g, w_o, dw_i, dw_f, dw_g, dw_o = (
        0, TILE, 2 * TILE, 3 * TILE, 4 * TILE, 5 * TILE, 6 * TILE, 7 * TILE
    )  # fmt: skip
    d_i, d_f, d_g, d_o, carry, cell_carry = 8 * TILE, 9 * TILE, 10 * TILE, 11 * TILE, 12 * TILE, 13 * TILE
    for item in range(first, last):
        scratch[:, dw_i:] = 0
        for tile in range(len(scratch)):
            start = tile * TILE
            for j in range(min(TILE, size - start)):
                scratch[tile, cell_carry + j] = g_cell[item, start + j]
        for t in range(frames - 1, -1, -1):
            hidden, cell = (outputs[t - 1, item], cells[t - 1, item]) if t else (first_hidden[item], first_cell[item])
            for tile in range(len(scratch)):
                start = tile * TILE
                s, length = scratch[tile], min(TILE, size - start)
                at, g_at = t * p_frame + item * p_item + start, t * g_frame + item * g_item + start
                p_i, p_f = p[at : at + length], p[at + size : at + size + length]
                p_g, p_o = p[at + 2 * size : at + 2 * size + length], p[at + 3 * size : at + 3 * size + length]
                before, above = hidden[start : start + length], g[g_at : g_at + length]
                cell_before, cell_now = cell[start : start + length], cells[t, item, start : start + length]
                for j in range(length):
                    h = before[j]
                    take = sigmoid(wide(p_i[j]) + s[w_i + j] * h)
                    keep = sigmoid(wide(p_f[j]) + s[w_f + j] * h)
                    candidate = tanh(wide(p_g[j]) + s[w_g + j] * h)
                    give = sigmoid(wide(p_o[j]) + s[w_o + j] * h)
                    squashed = tanh(cell_now[j])
                    to_h = above[j] + s[carry + j]
                    to_c = s[cell_carry + j] + to_h * give * (one - squashed * squashed)
                    to_i = to_c * candidate * take * (one - take)
                    to_f = to_c * cell_before[j] * keep * (one - keep)
                    to_g = to_c * take * (one - candidate * candidate)
                    to_o = to_h * squashed * give * (one - give)
                    s[carry + j] = to_i * s[w_i + j] + to_f * s[w_f + j] + to_g * s[w_g + j] + to_o * s[w_o + j]
                    s[cell_carry + j] = to_c * keep
                    s[dw_i + j] += to_i * h
                    s[dw_f + j] += to_f * h
                    s[dw_g + j] += to_g * h
                    s[dw_o + j] += to_o * h
                    s[d_i + j] = to_i
                    s[d_f + j] = to_f
                    s[d_g + j] = to_g
                    s[d_o + j] = to_o
                _store(s[d_i:carry], d_p, t * d_p_frame + item * d_p_item + start, size, length)
        for tile in range(len(scratch)):
            start, s = tile * TILE, scratch[tile]
            length = min(TILE, size - start)
            _store(s[dw_i:d_i], d_weight[item], start, size, length)
            _store(s[carry:cell_carry], d_hidden[item], start, size, length)
            _store(s[cell_carry:], d_cell[item], start, size, length)


@_kernel
def _scratch(weight, size, gates, states):
    """A row for each tile of units: the gates' weights, room for 2 more values a gate and one a state."""
    tiles = -(-size // TILE)
    scratch = np.empty((tiles, (3 * gates + states) * TILE), weight.dtype)
    for tile in range(tiles):
        start = tile * TILE
        for gate in range(gates):
            for j in range(min(TILE, size - start)):
                scratch[tile, gate * TILE + j] = weight[gate * size + start + j]
    return scratch


@_kernel
def _store(tile, values, at, stride, length):
    """Write each of a tile's rows to a place of its own, `stride` apart."""
    for gate in range(len(tile) // TILE):
        start = at + gate * stride
        row = values[start : start + length]
        for j in range(length):
            row[j] = narrow(tile[gate * TILE + j], row[j])


@_kernel
def linear_forward(keep, keep_frame, keep_item, add, add_frame, add_item, first_hidden, states, first, last):
    frames, _, size = states.shape
    for item in range(first, last):
        before = first_hidden[item]
        for t in range(frames):
            keep_at, add_at = t * keep_frame + item * keep_item, t * add_frame + item * add_item
            a, b, now = keep[keep_at : keep_at + size], add[add_at : add_at + size], states[t, item]
            for j in range(size):
                now[j] = a[j] * before[j] + b[j]
            before = now


@_kernel
def linear_backward(
    keep, keep_frame, keep_item, first_hidden, states, g, g_frame, g_item, d_keep, d_add, d_hidden, first, last
):
    frames, _, size = states.shape
    for item in range(first, last):
        carry = d_hidden[item]
        carry[:] = 0
        for t in range(frames - 1, -1, -1):
            keep_at, g_at = t * keep_frame + item * keep_item, t * g_frame + item * g_item
            a, above = keep[keep_at : keep_at + size], g[g_at : g_at + size]
            before = states[t - 1, item] if t else first_hidden[item]
            d_a, d_b = d_keep[t, item], d_add[t, item]
            for j in range(size):
                d_b[j] = above[j] + carry[j]
            for j in range(size):
                d_a[j] = d_b[j] * before[j]
                carry[j] = d_b[j] * a[j]


FORWARD = {"rnn": rnn_forward, "gru": gru_forward, "lstm": lstm_forward}
BACKWARD = {"rnn": rnn_backward, "gru": gru_backward, "lstm": lstm_backward}


def forward(cell: str, weight: Tensor, initial: tuple[Tensor, ...], projected: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Weight (K, G * H), states (K, B, H), projections (S, B, G * H) -> each state after each frame, (K, S, B, H)."""
    frames, batch, _ = projected[0].shape
    chains, _, size = initial[0].shape
    states = tuple(weight.new_empty(chains, frames, batch, size) for _ in initial)
    calls = [
        (*_rows(chain), *_arrays(weight[k], *(state[k] for state in initial), *(state[k] for state in states)))
        for k, chain in enumerate(projected)
    ]
    _run(FORWARD[cell], calls, batch, frames * size)
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
    frames, batch, _ = projected[0].shape
    d_projected = [torch.empty_like(chain) for chain in projected]
    d_weight = weight.new_empty(weight.shape[0], batch, weight.shape[1])
    d_initial = tuple(torch.empty_like(state, memory_format=torch.contiguous_format) for state in initial)
    calls = [
        (
            *_rows(chain),
            *_arrays(weight[k], *(state[k] for state in initial), *(state[k] for state in states)),
            *_rows(d_outputs[k]),
            *_arrays(*(state[k] for state in d_last)),
            *_rows(d_projected[k]),
            *_arrays(d_weight[k], *(state[k] for state in d_initial)),
        )
        for k, chain in enumerate(projected)
    ]
    _run(BACKWARD[cell], calls, batch, frames * weight.shape[1])
    return d_weight.sum(1), d_initial, d_projected


def linear(keep: Tensor, add: Tensor, initial: Tensor) -> Tensor:
    """h[t] = keep[t] * h[t - 1] + add[t], (K, S, B, H)."""
    chains, frames, batch, size = keep.shape
    states = keep.new_empty(keep.shape)
    calls = [(*_rows(keep[k]), *_rows(add[k]), *_arrays(initial[k], states[k])) for k in range(chains)]
    _run(linear_forward, calls, batch, frames * size)
    return states


def linear_gradients(keep: Tensor, initial: Tensor, states: Tensor, d_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of keep, add and initial."""
    chains, frames, batch, size = keep.shape
    d_keep, d_add, d_initial = keep.new_empty(keep.shape), keep.new_empty(keep.shape), initial.new_empty(initial.shape)
    calls = [
        (
            *_rows(keep[k]),
            *_arrays(initial[k], states[k]),
            *_rows(d_states[k]),
            *_arrays(d_keep[k], d_add[k], d_initial[k]),
        )
        for k in range(chains)
    ]
    _run(linear_backward, calls, batch, frames * size)
    return d_keep, d_add, d_initial


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def _rows(tensor: Tensor) -> tuple[np.ndarray, int, int]:
    """(S, B, O) as its memory from its first element on, and the distances of frames and of items."""
    tensor = tensor.detach()
    if tensor.stride(-1) != 1:
        tensor = tensor.contiguous()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    by_frame, by_item, _ = tensor.stride()
    frames, items, size = tensor.shape
    extent = (frames - 1) * by_frame + (items - 1) * by_item + size
    return tensor.as_strided((extent,), (1,)).numpy(), by_frame, by_item


def _run(kernel: Callable[..., Any], calls: list[tuple[Any, ...]], batch: int, work: int) -> None:
    """Call a kernel for each chain and all its items, on as many threads as torch uses where that pays.

    Args:
        kernel: takes a range of items last.
        calls: its other arguments, for each chain.
        batch: items.
        work: values that an item writes.
    """
    threads = min(torch.get_num_threads(), len(calls) * batch, len(calls) * batch * work // WORTH_A_THREAD)
    if threads <= 1:
        for call in calls:
            kernel(*call, 0, batch)
        return
    ranges = [
        (call, batch * part // threads, batch * (part + 1) // threads) for call in calls for part in range(threads)
    ]
    # Made anew each time, for some 50 us a thread: threads that wait between calls do not survive a fork.
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(kernel, *call, first, last) for call, first, last in ranges if first < last]:
            done.result()
