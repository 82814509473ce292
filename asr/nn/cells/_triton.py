"""The element-wise recurrences as Triton kernels for NVIDIA's GPUs; `asr.nn.cells.elementwise` says what they compute.

A program is a warp, and takes one item of one chain and UNITS units over all frames: states, weights and weight
gradients stay in registers, in the states' type (float32). Weight gradients are added up over the items at the end.

A frame waits for the one before, so what counts is the way from one state to the next. All that does not depend on a
state stays off it: a frame's inputs are loaded into registers `AHEAD` frames early, in a loop unrolled as often, so
that they move nowhere; backward, a gate's slopes are computed first and a state's gradient is then one multiply-add.
A warp waits wherever one of its instructions does, so there are few and no branches: the layer's width is known when a
kernel is compiled. Gates come from 2^x and 1/x, one instruction each, with log2(e) in the weights: to 1e-6, tanh not to
as many digits near 0.
"""

# ruff: noqa: RUF005
# Triton cannot unpack within a tuple.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false
# For a type checker, tl.range is not iterable.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from asr.nn.gpu_kernels import INTERPRETED
from asr.nn.triton_kernel import kernel

UNITS = 32  # of a program, one a thread
AHEAD = {"rnn": (16, 16), "gru": (16, 8), "lstm": (16, 8), "linear": (16, 16)}  # frames, forward and backward
BY_LOGISTIC = tl.constexpr(-1.4426950408889634)  # -log2(e), and for tanh 2 log2(e); see `_logistic`
BY_TANH = tl.constexpr(2 * 1.4426950408889634)


@kernel
def _fast_exp2(x):
    if x.dtype == tl.float64:
        return tl.exp2(x)
    else:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


@kernel
def _fast_reciprocal(x):
    if x.dtype == tl.float64:
        return 1 / x
    else:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


@kernel
def _plain_exp2(x):
    return tl.exp2(x)


@kernel
def _plain_reciprocal(x):
    return 1 / x


# The interpreter knows no assembly.
_exp2, _reciprocal = (_plain_exp2, _plain_reciprocal) if INTERPRETED else (_fast_exp2, _fast_reciprocal)


@kernel
def _logistic(scaled):
    """sigmoid(x) of x * BY_LOGISTIC; (1 - tanh(x)) / 2 of x * BY_TANH."""
    return _reciprocal(1 + _exp2(scaled))


@kernel
def _place(batch, size: tl.constexpr, UNITS: tl.constexpr):
    """What a program works at: chain, item, its row among those of one frame, units, which of them there are."""
    chain, item = tl.program_id(0) // batch, tl.program_id(0) % batch
    unit = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    return chain.to(tl.int64), item, tl.program_id(0).to(tl.int64) * size + unit, unit, unit < size


@kernel
def _gates(p, there, size: tl.constexpr, GATES: tl.constexpr):
    """What is projected for a frame, gate after gate; 0 where it is not `there`."""
    values = ()
    for gate in tl.static_range(GATES):
        values = values + (tl.load(p + gate * size, there, 0),)
    return values


@kernel
def _before(state, first, t, there):
    """The state before frame t: what the frame before left, or the first one."""
    return tl.load(tl.where(t == 0, first, state), there, 0)


@kernel
def _is_there(t, frames, real):
    return real & (t < frames) & (t >= 0)


@kernel
def rnn_forward(
    p, p_chain, p_frame, p_item, weight, first_hidden, outputs, frames, batch, size: tl.constexpr,
    UNITS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    chain, item, row, unit, real = _place(batch, size, UNITS)
    step = batch * size
    w = tl.load(weight + chain * size + unit, real, 0) * BY_TANH
    h = tl.load(first_hidden + row, real, 0)
    p += chain * p_chain + item * p_item + unit
    outputs += (chain * frames * batch + item) * size + unit
    coming = ()
    for early in tl.static_range(AHEAD):
        coming = coming + _gates(p, real & (early < frames), size, 1)
        p += p_frame
    for start in tl.range(0, frames, AHEAD, num_stages=1):
        for j in tl.static_range(AHEAD):
            t = start + j
            scaled = coming[0].to(h.dtype) * BY_TANH
            h = 1 - 2 * _logistic(scaled + w * h)
            tl.store(outputs, h, real & (t < frames))
            outputs += step
            coming = coming[1:] + _gates(p, real & (t + AHEAD < frames), size, 1)
            p += p_frame


@kernel
def gru_forward(
    p, p_chain, p_frame, p_item, weight, first_hidden, outputs, frames, batch, size: tl.constexpr,
    UNITS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    chain, item, row, unit, real = _place(batch, size, UNITS)
    step = batch * size
    weight += chain * 3 * size + unit
    w_r, w_z = tl.load(weight, real, 0) * BY_LOGISTIC, tl.load(weight + size, real, 0) * BY_LOGISTIC
    w_n = tl.load(weight + 2 * size, real, 0) * BY_TANH
    h = tl.load(first_hidden + row, real, 0)
    p += chain * p_chain + item * p_item + unit
    outputs += (chain * frames * batch + item) * size + unit
    coming = ()
    for early in tl.static_range(AHEAD):
        coming = coming + _gates(p, real & (early < frames), size, 3)
        p += p_frame
    for start in tl.range(0, frames, AHEAD, num_stages=1):
        for j in tl.static_range(AHEAD):
            t = start + j
            p_r, p_z = coming[0].to(h.dtype) * BY_LOGISTIC, coming[1].to(h.dtype) * BY_LOGISTIC
            p_n = coming[2].to(h.dtype) * BY_TANH
            r = _logistic(p_r + w_r * h)
            z = _logistic(p_z + w_z * h)
            below = _logistic(p_n + (w_n * h) * r)  # n = 1 - 2 below
            h = ((1 - z) + z * h) - (2 * (1 - z)) * below
            tl.store(outputs, h, real & (t < frames))
            outputs += step
            coming = coming[3:] + _gates(p, real & (t + AHEAD < frames), size, 3)
            p += p_frame


@kernel
def lstm_forward(
    p, p_chain, p_frame, p_item, weight, first_hidden, first_cell, outputs, cells, frames, batch, size: tl.constexpr,
    UNITS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    chain, item, row, unit, real = _place(batch, size, UNITS)
    step = batch * size
    weight += chain * 4 * size + unit
    w_i, w_f = tl.load(weight, real, 0) * BY_LOGISTIC, tl.load(weight + size, real, 0) * BY_LOGISTIC
    w_g, w_o = tl.load(weight + 2 * size, real, 0) * BY_TANH, tl.load(weight + 3 * size, real, 0) * BY_LOGISTIC
    h = tl.load(first_hidden + row, real, 0)
    c = tl.load(first_cell + row, real, 0)
    p += chain * p_chain + item * p_item + unit
    outputs += (chain * frames * batch + item) * size + unit
    cells += (chain * frames * batch + item) * size + unit
    coming = ()
    for early in tl.static_range(AHEAD):
        coming = coming + _gates(p, real & (early < frames), size, 4)
        p += p_frame
    for start in tl.range(0, frames, AHEAD, num_stages=1):
        for j in tl.static_range(AHEAD):
            t = start + j
            p_i, p_f = coming[0].to(h.dtype) * BY_LOGISTIC, coming[1].to(h.dtype) * BY_LOGISTIC
            p_g, p_o = coming[2].to(h.dtype) * BY_TANH, coming[3].to(h.dtype) * BY_LOGISTIC
            i = _logistic(p_i + w_i * h)
            f = _logistic(p_f + w_f * h)
            o = _logistic(p_o + w_o * h)
            c = (f * c + i) - (2 * i) * _logistic(p_g + w_g * h)
            h = o - (2 * o) * _logistic(c * BY_TANH)
            tl.store(outputs, h, real & (t < frames))
            tl.store(cells, c, real & (t < frames))
            outputs += step
            cells += step
            coming = coming[4:] + _gates(p, real & (t + AHEAD < frames), size, 4)
            p += p_frame


@kernel
def rnn_backward(
    p, p_chain, p_frame, p_item, weight, first_hidden, outputs, g, g_chain, g_frame, g_item,
    d_p, d_p_chain, d_p_frame, d_p_item, d_weight, d_hidden, frames, batch, size: tl.constexpr,
    UNITS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    chain, item, row, unit, real = _place(batch, size, UNITS)
    step = batch * size
    last = tl.cdiv(frames, AHEAD) * AHEAD - 1
    at_last = last.to(tl.int64)
    w = tl.load(weight + chain * size + unit, real, 0)
    first_hidden += row
    state = outputs + ((chain * frames + at_last) * batch + item) * size + unit
    g += chain * g_chain + at_last * g_frame + item * g_item + unit
    d_p += chain * d_p_chain + at_last * d_p_frame + item * d_p_item + unit
    carry = tl.zeros_like(w)
    d_w = tl.zeros_like(w)
    output = tl.load(state, real & (last < frames), 0)
    coming = ()
    for early in tl.static_range(AHEAD):
        t = last - early
        state -= step
        coming = coming + (_before(state, first_hidden, t, real & (t <= frames) & (t >= 0)),)
        coming = coming + (tl.load(g, _is_there(t, frames, real), 0),)
        g -= g_frame
    for start in tl.range(0, frames, AHEAD, num_stages=1):
        for j in tl.static_range(AHEAD):
            now = last - start - j
            before = coming[0]
            slope = 1 - output * output
            delta = (coming[1] + carry) * slope
            carry = (coming[1] + carry) * (slope * w)
            d_w += delta * before
            output = before
            tl.store(d_p, delta.to(d_p.dtype.element_ty), real & (now < frames))
            d_p -= d_p_frame
            later = now - AHEAD
            state -= step
            coming = coming[2:] + (_before(state, first_hidden, later, _is_there(later, frames, real)),)
            coming = coming + (tl.load(g, _is_there(later, frames, real), 0),)
            g -= g_frame
    tl.store(d_weight + row, d_w, real)
    tl.store(d_hidden + row, carry, real)


@kernel
def gru_backward(
    p, p_chain, p_frame, p_item, weight, first_hidden, outputs, g, g_chain, g_frame, g_item,
    d_p, d_p_chain, d_p_frame, d_p_item, d_weight, d_hidden, frames, batch, size: tl.constexpr,
    UNITS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    chain, item, row, unit, real = _place(batch, size, UNITS)
    step = batch * size
    last = tl.cdiv(frames, AHEAD) * AHEAD - 1
    at_last = last.to(tl.int64)
    to = d_p.dtype.element_ty
    weight += chain * 3 * size + unit
    w_r, w_z, w_n = tl.load(weight, real, 0), tl.load(weight + size, real, 0), tl.load(weight + 2 * size, real, 0)
    first_hidden += row
    p += chain * p_chain + at_last * p_frame + item * p_item + unit
    state = outputs + ((chain * frames + at_last) * batch + item) * size + unit
    g += chain * g_chain + at_last * g_frame + item * g_item + unit
    d_p += chain * d_p_chain + at_last * d_p_frame + item * d_p_item + unit
    carry = tl.zeros_like(w_r)
    dw_r = tl.zeros_like(w_r)
    dw_z = tl.zeros_like(w_r)
    dw_n = tl.zeros_like(w_r)
    coming = ()
    for early in tl.static_range(AHEAD):
        t = last - early
        there = _is_there(t, frames, real)
        state -= step
        coming = coming + _gates(p, there, size, 3)
        coming = coming + (_before(state, first_hidden, t, there), tl.load(g, there, 0))
        p -= p_frame
        g -= g_frame
    for start in tl.range(0, frames, AHEAD, num_stages=1):
        for j in tl.static_range(AHEAD):
            now = last - start - j
            h = coming[3]
            r = _logistic((coming[0].to(h.dtype) + w_r * h) * BY_LOGISTIC)
            z = _logistic((coming[1].to(h.dtype) + w_z * h) * BY_LOGISTIC)
            kept = r * h
            n = 1 - 2 * _logistic((coming[2].to(h.dtype) + w_n * kept) * BY_TANH)
            slope_n = (1 - z) * (1 - n * n)  # of h' by the pre-activations
            slope_z = (h - n) * z * (1 - z)
            slope_r = slope_n * w_n * kept * (1 - r)
            slope = z + slope_n * w_n * r + slope_r * w_r + slope_z * w_z  # of h' by h
            to_h = coming[4] + carry
            carry = coming[4] * slope + carry * slope
            to_r, to_z, to_n = to_h * slope_r, to_h * slope_z, to_h * slope_n
            dw_r += to_r * h
            dw_z += to_z * h
            dw_n += to_n * kept
            tl.store(d_p, to_r.to(to), real & (now < frames))
            tl.store(d_p + size, to_z.to(to), real & (now < frames))
            tl.store(d_p + 2 * size, to_n.to(to), real & (now < frames))
            d_p -= d_p_frame
            later = now - AHEAD
            there = _is_there(later, frames, real)
            state -= step
            coming = coming[5:] + _gates(p, there, size, 3)
            coming = coming + (_before(state, first_hidden, later, there), tl.load(g, there, 0))
            p -= p_frame
            g -= g_frame
    d_weight += (chain * batch + item) * 3 * size + unit
    tl.store(d_weight, dw_r, real)
    tl.store(d_weight + size, dw_z, real)
    tl.store(d_weight + 2 * size, dw_n, real)
    tl.store(d_hidden + row, carry, real)


@kernel
def lstm_backward(
    p, p_chain, p_frame, p_item, weight, first_hidden, first_cell, outputs, cells, g, g_chain, g_frame, g_item, g_cell,
    d_p, d_p_chain, d_p_frame, d_p_item, d_weight, d_hidden, d_cell, frames, batch, size: tl.constexpr,
    UNITS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    chain, item, row, unit, real = _place(batch, size, UNITS)
    step = batch * size
    last = tl.cdiv(frames, AHEAD) * AHEAD - 1
    at_last = last.to(tl.int64)
    to = d_p.dtype.element_ty
    weight += chain * 4 * size + unit
    w_i, w_f = tl.load(weight, real, 0), tl.load(weight + size, real, 0)
    w_g, w_o = tl.load(weight + 2 * size, real, 0), tl.load(weight + 3 * size, real, 0)
    first_hidden += row
    first_cell += row
    p += chain * p_chain + at_last * p_frame + item * p_item + unit
    state = outputs + ((chain * frames + at_last) * batch + item) * size + unit
    cell = cells + ((chain * frames + at_last) * batch + item) * size + unit
    g += chain * g_chain + at_last * g_frame + item * g_item + unit
    d_p += chain * d_p_chain + at_last * d_p_frame + item * d_p_item + unit
    carry = tl.zeros_like(w_i)
    last_to_c = tl.load(g_cell + row, real, 0)
    cell_carry = tl.zeros_like(w_i)
    dw_i = tl.zeros_like(w_i)
    dw_f = tl.zeros_like(w_i)
    dw_g = tl.zeros_like(w_i)
    dw_o = tl.zeros_like(w_i)
    coming = ()
    for early in tl.static_range(AHEAD):
        t = last - early
        there = _is_there(t, frames, real)
        state -= step
        cell -= step
        coming = coming + _gates(p, there, size, 4)
        coming = coming + (_before(state, first_hidden, t, there), _before(cell, first_cell, t, there))
        coming = coming + (tl.load(g, there, 0),)
        p -= p_frame
        g -= g_frame
    for start in tl.range(0, frames, AHEAD, num_stages=1):
        for j in tl.static_range(AHEAD):
            now = last - start - j
            h, c = coming[4], coming[5]
            i = _logistic((coming[0].to(h.dtype) + w_i * h) * BY_LOGISTIC)
            f = _logistic((coming[1].to(h.dtype) + w_f * h) * BY_LOGISTIC)
            candidate = 1 - 2 * _logistic((coming[2].to(h.dtype) + w_g * h) * BY_TANH)
            o = _logistic((coming[3].to(h.dtype) + w_o * h) * BY_LOGISTIC)
            squashed = 1 - 2 * _logistic((f * c + i * candidate) * BY_TANH)
            slope_c = o * (1 - squashed * squashed)  # of h' by c'
            slope_o = squashed * o * (1 - o)  # of h' by the pre-activation; the others' are of c'
            slope_i = candidate * i * (1 - i)
            slope_f = c * f * (1 - f)
            slope_g = i * (1 - candidate * candidate)
            to_h = coming[6] + carry
            to_c = tl.where(now == frames - 1, last_to_c, cell_carry) + to_h * slope_c
            carry = to_c * (slope_i * w_i + slope_f * w_f + slope_g * w_g) + to_h * (slope_o * w_o)
            cell_carry = to_c * f
            to_i, to_f, to_g, to_o = to_c * slope_i, to_c * slope_f, to_c * slope_g, to_h * slope_o
            dw_i += to_i * h
            dw_f += to_f * h
            dw_g += to_g * h
            dw_o += to_o * h
            tl.store(d_p, to_i.to(to), real & (now < frames))
            tl.store(d_p + size, to_f.to(to), real & (now < frames))
            tl.store(d_p + 2 * size, to_g.to(to), real & (now < frames))
            tl.store(d_p + 3 * size, to_o.to(to), real & (now < frames))
            d_p -= d_p_frame
            later = now - AHEAD
            there = _is_there(later, frames, real)
            state -= step
            cell -= step
            coming = coming[7:] + _gates(p, there, size, 4)
            coming = coming + (_before(state, first_hidden, later, there), _before(cell, first_cell, later, there))
            coming = coming + (tl.load(g, there, 0),)
            p -= p_frame
            g -= g_frame
    d_weight += (chain * batch + item) * 4 * size + unit
    tl.store(d_weight, dw_i, real)
    tl.store(d_weight + size, dw_f, real)
    tl.store(d_weight + 2 * size, dw_g, real)
    tl.store(d_weight + 3 * size, dw_o, real)
    tl.store(d_hidden + row, carry, real)
    tl.store(d_cell + row, cell_carry, real)


@kernel
def linear_forward(
    keep, keep_chain, keep_frame, keep_item, add, add_chain, add_frame, add_item, first_hidden, states,
    frames, batch, size: tl.constexpr, UNITS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    chain, item, row, unit, real = _place(batch, size, UNITS)
    h = tl.load(first_hidden + row, real, 0)
    keep += chain * keep_chain + item * keep_item + unit
    add += chain * add_chain + item * add_item + unit
    states += (chain * frames * batch + item) * size + unit
    coming = ()
    for early in tl.static_range(AHEAD):
        there = real & (early < frames)
        coming = coming + (tl.load(keep, there, 0), tl.load(add, there, 0))
        keep += keep_frame
        add += add_frame
    for start in tl.range(0, frames, AHEAD, num_stages=1):
        for j in tl.static_range(AHEAD):
            t = start + j
            h = coming[0] * h + coming[1]
            tl.store(states, h, real & (t < frames))
            states += batch * size
            there = real & (t + AHEAD < frames)
            coming = coming[2:] + (tl.load(keep, there, 0), tl.load(add, there, 0))
            keep += keep_frame
            add += add_frame


@kernel
def linear_backward(
    keep, keep_chain, keep_frame, keep_item, first_hidden, states, g, g_chain, g_frame, g_item,
    d_keep, d_add, d_hidden, frames, batch, size: tl.constexpr, UNITS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    chain, item, row, unit, real = _place(batch, size, UNITS)
    step = batch * size
    last = tl.cdiv(frames, AHEAD) * AHEAD - 1
    at_last = last.to(tl.int64)
    first_hidden += row
    at = ((chain * frames + at_last) * batch + item) * size + unit
    d_keep += at
    d_add += at
    state = states + at
    keep += chain * keep_chain + at_last * keep_frame + item * keep_item + unit
    g += chain * g_chain + at_last * g_frame + item * g_item + unit
    carry = tl.zeros((UNITS,), d_hidden.dtype.element_ty)
    coming = ()
    for early in tl.static_range(AHEAD):
        t = last - early
        there = _is_there(t, frames, real)
        state -= step
        coming = coming + (tl.load(keep, there, 0), _before(state, first_hidden, t, there), tl.load(g, there, 0))
        keep -= keep_frame
        g -= g_frame
    for start in tl.range(0, frames, AHEAD, num_stages=1):
        for j in tl.static_range(AHEAD):
            now = last - start - j
            before, delta = coming[1], coming[2] + carry
            carry = coming[2] * coming[0] + carry * coming[0]
            tl.store(d_add, delta, real & (now < frames))
            tl.store(d_keep, delta * before, real & (now < frames))
            d_add -= step
            d_keep -= step
            later = now - AHEAD
            there = _is_there(later, frames, real)
            state -= step
            coming = coming[3:] + (
                tl.load(keep, there, 0), _before(state, first_hidden, later, there), tl.load(g, there, 0)
            )  # fmt: skip
            keep -= keep_frame
            g -= g_frame
    tl.store(d_hidden + row, carry, real)


FORWARD = {"rnn": rnn_forward, "gru": gru_forward, "lstm": lstm_forward}
BACKWARD = {"rnn": rnn_backward, "gru": gru_backward, "lstm": lstm_backward}


def forward(cell: str, weight: Tensor, initial: tuple[Tensor, ...], projected: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """As `_numba.forward`."""
    chains, batch, size = initial[0].shape
    frames = len(projected[0])
    states = tuple(weight.new_empty(chains, frames, batch, size) for _ in initial)
    arguments = (*_rows(_joined(projected)), weight.contiguous(), *_contiguous(initial), *states)
    _run(FORWARD[cell], AHEAD[cell][0], arguments, chains, frames, batch, size)
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
    """As `_numba.backward`."""
    chains, batch, size = initial[0].shape
    frames = len(projected[0])
    joined = _joined(projected)
    d_projected = torch.empty_like(joined)
    d_weight = weight.new_empty(chains, batch, weight.shape[1])
    d_initial = tuple(state.new_empty(state.shape) for state in initial)
    arguments = (
        *_rows(joined),
        weight.contiguous(),
        *_contiguous(initial),
        *states,
        *_rows(d_outputs),
        *_contiguous(d_last),
        *_rows(d_projected),
        d_weight,
        *d_initial,
    )
    _run(BACKWARD[cell], AHEAD[cell][1], arguments, chains, frames, batch, size)
    return d_weight.sum(1), d_initial, list(d_projected.unbind(0))


def linear(keep: Tensor, add: Tensor, initial: Tensor) -> Tensor:
    """As `_numba.linear`."""
    chains, frames, batch, size = keep.shape
    states = keep.new_empty(keep.shape)
    arguments = (*_rows(keep), *_rows(add), initial.contiguous(), states)
    _run(linear_forward, AHEAD["linear"][0], arguments, chains, frames, batch, size)
    return states


def linear_gradients(keep: Tensor, initial: Tensor, states: Tensor, d_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `_numba.linear_gradients`."""
    chains, frames, batch, size = keep.shape
    gradients = keep.new_empty(keep.shape), keep.new_empty(keep.shape), initial.new_empty(initial.shape)
    arguments = (*_rows(keep), initial.contiguous(), states, *_rows(d_states), *gradients)
    _run(linear_backward, AHEAD["linear"][1], arguments, chains, frames, batch, size)
    return gradients


def _joined(projected: Sequence[Tensor]) -> Tensor:
    """(K, S, B, O); one chain, the usual case, is not copied."""
    return projected[0][None] if len(projected) == 1 else torch.stack(tuple(projected))


def _contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]


def _rows(tensor: Tensor) -> tuple[Any, ...]:
    """(K, S, B, O) and the distances of its chains, frames and items."""
    if tensor.stride(-1) != 1:
        tensor = tensor.contiguous()
    return tensor, *tensor.stride()[:3]


def _run(loop: Any, ahead: int, arguments: tuple[Any, ...], chains: int, frames: int, batch: int, size: int) -> None:
    grid = (chains * batch, triton.cdiv(size, UNITS))
    loop[grid](*arguments, frames, batch, size, UNITS=UNITS, AHEAD=ahead, num_warps=1)
