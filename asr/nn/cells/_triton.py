"""The element-wise recurrences as Triton kernels for NVIDIA's GPUs; `asr.nn.cells.elementwise` says what they compute.

A program takes one item of one chain and UNITS units over all frames: its states, weights and weight gradients stay in
registers, in the states' type (float32). A frame has to wait for the one before, not so what it reads: `tl.range` keeps
the loads of the next STAGES - 1 frames on their way. Weight gradients are added up over the items at the end.

tanh comes from exp, which Triton has on a GPU and in its interpreter (TRITON_INTERPRET=1); it is exact to 1e-7, but
not to as many digits near 0.
"""

# pyright: reportGeneralTypeIssues=false
# For a type checker, tl.range is not iterable.

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

UNITS = 64  # of a program: one warp, two units a thread, so that a thread's bfloat16 load has the 4 bytes it needs
STAGES = 4


def _kernel(function: Callable[..., Any]) -> Any:
    return triton.jit(inspect.unwrap(function))  # from what checks annotations in tests


@_kernel
def _tanh(x):
    return 1 - 2 / (1 + tl.exp(2 * x))


@_kernel
def rnn_forward(
    p, p_chain, p_frame, p_item, weight, first_hidden, outputs, frames, batch, size,
    UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    item, chain = tl.program_id(0) % batch, tl.program_id(0) // batch
    unit = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    real = unit < size
    kind = weight.dtype.element_ty
    w = tl.load(weight + chain * size + unit, real, 0)
    h = tl.load(first_hidden + (chain * batch + item) * size + unit, real, 0)
    p += chain.to(tl.int64) * p_chain + item * p_item + unit
    outputs += (chain.to(tl.int64) * frames * batch + item) * size + unit
    for _ in tl.range(0, frames, num_stages=STAGES):
        h = _tanh(tl.load(p, real, 0).to(kind) + w * h)
        tl.store(outputs, h, real)
        p += p_frame
        outputs += batch * size


@_kernel
def gru_forward(
    p, p_chain, p_frame, p_item, weight, first_hidden, outputs, frames, batch, size,
    UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    item, chain = tl.program_id(0) % batch, tl.program_id(0) // batch
    unit = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    real = unit < size
    kind = weight.dtype.element_ty
    weight += chain * 3 * size + unit
    w_r, w_z, w_n = tl.load(weight, real, 0), tl.load(weight + size, real, 0), tl.load(weight + 2 * size, real, 0)
    h = tl.load(first_hidden + (chain * batch + item) * size + unit, real, 0)
    p += chain.to(tl.int64) * p_chain + item * p_item + unit
    outputs += (chain.to(tl.int64) * frames * batch + item) * size + unit
    for _ in tl.range(0, frames, num_stages=STAGES):
        r = tl.sigmoid(tl.load(p, real, 0).to(kind) + w_r * h)
        z = tl.sigmoid(tl.load(p + size, real, 0).to(kind) + w_z * h)
        n = _tanh(tl.load(p + 2 * size, real, 0).to(kind) + w_n * (r * h))
        h = n + z * (h - n)
        tl.store(outputs, h, real)
        p += p_frame
        outputs += batch * size


@_kernel
def lstm_forward(
    p, p_chain, p_frame, p_item, weight, first_hidden, first_cell, outputs, cells, frames, batch, size,
    UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    item, chain = tl.program_id(0) % batch, tl.program_id(0) // batch
    unit = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    real = unit < size
    kind = weight.dtype.element_ty
    weight += chain * 4 * size + unit
    w_i, w_f = tl.load(weight, real, 0), tl.load(weight + size, real, 0)
    w_g, w_o = tl.load(weight + 2 * size, real, 0), tl.load(weight + 3 * size, real, 0)
    h = tl.load(first_hidden + (chain * batch + item) * size + unit, real, 0)
    c = tl.load(first_cell + (chain * batch + item) * size + unit, real, 0)
    p += chain.to(tl.int64) * p_chain + item * p_item + unit
    row = (chain.to(tl.int64) * frames * batch + item) * size + unit
    for _ in tl.range(0, frames, num_stages=STAGES):
        i = tl.sigmoid(tl.load(p, real, 0).to(kind) + w_i * h)
        f = tl.sigmoid(tl.load(p + size, real, 0).to(kind) + w_f * h)
        g = _tanh(tl.load(p + 2 * size, real, 0).to(kind) + w_g * h)
        o = tl.sigmoid(tl.load(p + 3 * size, real, 0).to(kind) + w_o * h)
        c = f * c + i * g
        h = o * _tanh(c)
        tl.store(outputs + row, h, real)
        tl.store(cells + row, c, real)
        p += p_frame
        row += batch * size


@_kernel
def _before(states, at, first_state, first_at, is_first, real):
    """A state before a frame: what the frame before left at `at`, or the first one."""
    later, first = real & (is_first == 0), real & is_first
    return tl.load(states + at, later, 0) + tl.load(first_state + first_at, first, 0)


@_kernel
def rnn_backward(
    p, p_chain, p_frame, p_item, weight, first_hidden, outputs, g, g_chain, g_frame, g_item,
    d_p, d_p_chain, d_p_frame, d_p_item, d_weight, d_hidden, frames, batch, size,
    UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    item, chain = tl.program_id(0) % batch, tl.program_id(0) // batch
    unit = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    real = unit < size
    w = tl.load(weight + chain * size + unit, real, 0)
    first_at = (chain * batch + item) * size + unit
    step = batch * size
    last = tl.cast(frames - 1, tl.int64)
    row = ((chain * frames + last) * batch + item) * size + unit
    g += chain.to(tl.int64) * g_chain + last * g_frame + item * g_item + unit
    d_p += chain.to(tl.int64) * d_p_chain + last * d_p_frame + item * d_p_item + unit
    carry = tl.zeros_like(w)
    d_w = tl.zeros_like(w)
    for back in tl.range(0, frames, num_stages=STAGES):
        is_first = back == frames - 1
        now = tl.load(outputs + row, real, 0)
        before = _before(outputs, row - step, first_hidden, first_at, is_first, real)
        delta = (tl.load(g, real, 0) + carry) * (1 - now * now)
        tl.store(d_p, delta.to(d_p.dtype.element_ty), real)
        d_w += delta * before
        carry = delta * w
        g -= g_frame
        d_p -= d_p_frame
        row -= step
    tl.store(d_weight + first_at, d_w, real)
    tl.store(d_hidden + first_at, carry, real)


@_kernel
def gru_backward(
    p, p_chain, p_frame, p_item, weight, first_hidden, outputs, g, g_chain, g_frame, g_item,
    d_p, d_p_chain, d_p_frame, d_p_item, d_weight, d_hidden, frames, batch, size,
    UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    item, chain = tl.program_id(0) % batch, tl.program_id(0) // batch
    unit = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    real = unit < size
    kind = weight.dtype.element_ty
    to = d_p.dtype.element_ty
    weight += chain * 3 * size + unit
    w_r, w_z, w_n = tl.load(weight, real, 0), tl.load(weight + size, real, 0), tl.load(weight + 2 * size, real, 0)
    first_at = (chain * batch + item) * size + unit
    step = batch * size
    last = tl.cast(frames - 1, tl.int64)
    row = ((chain * frames + last) * batch + item) * size + unit
    p += chain.to(tl.int64) * p_chain + last * p_frame + item * p_item + unit
    g += chain.to(tl.int64) * g_chain + last * g_frame + item * g_item + unit
    d_p += chain.to(tl.int64) * d_p_chain + last * d_p_frame + item * d_p_item + unit
    carry = tl.zeros_like(w_r)
    dw_r = tl.zeros_like(w_r)
    dw_z = tl.zeros_like(w_r)
    dw_n = tl.zeros_like(w_r)
    for back in tl.range(0, frames, num_stages=STAGES):
        is_first = back == frames - 1
        h = _before(outputs, row - step, first_hidden, first_at, is_first, real)
        r = tl.sigmoid(tl.load(p, real, 0).to(kind) + w_r * h)
        z = tl.sigmoid(tl.load(p + size, real, 0).to(kind) + w_z * h)
        kept = r * h
        n = _tanh(tl.load(p + 2 * size, real, 0).to(kind) + w_n * kept)
        to_h = tl.load(g, real, 0) + carry
        to_n = to_h * (1 - z) * (1 - n * n)
        to_z = to_h * (h - n) * z * (1 - z)
        to_kept = to_n * w_n
        to_r = to_kept * h * r * (1 - r)
        carry = to_h * z + to_kept * r + to_r * w_r + to_z * w_z
        dw_r += to_r * h
        dw_z += to_z * h
        dw_n += to_n * kept
        tl.store(d_p, to_r.to(to), real)
        tl.store(d_p + size, to_z.to(to), real)
        tl.store(d_p + 2 * size, to_n.to(to), real)
        p -= p_frame
        g -= g_frame
        d_p -= d_p_frame
        row -= step
    d_weight += (chain * batch + item) * 3 * size + unit
    tl.store(d_weight, dw_r, real)
    tl.store(d_weight + size, dw_z, real)
    tl.store(d_weight + 2 * size, dw_n, real)
    tl.store(d_hidden + first_at, carry, real)


@_kernel
def lstm_backward(
    p, p_chain, p_frame, p_item, weight, first_hidden, first_cell, outputs, cells, g, g_chain, g_frame, g_item, g_cell,
    d_p, d_p_chain, d_p_frame, d_p_item, d_weight, d_hidden, d_cell, frames, batch, size,
    UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    item, chain = tl.program_id(0) % batch, tl.program_id(0) // batch
    unit = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    real = unit < size
    kind = weight.dtype.element_ty
    to = d_p.dtype.element_ty
    weight += chain * 4 * size + unit
    w_i, w_f = tl.load(weight, real, 0), tl.load(weight + size, real, 0)
    w_g, w_o = tl.load(weight + 2 * size, real, 0), tl.load(weight + 3 * size, real, 0)
    first_at = (chain * batch + item) * size + unit
    step = batch * size
    last = tl.cast(frames - 1, tl.int64)
    row = ((chain * frames + last) * batch + item) * size + unit
    p += chain.to(tl.int64) * p_chain + last * p_frame + item * p_item + unit
    g += chain.to(tl.int64) * g_chain + last * g_frame + item * g_item + unit
    d_p += chain.to(tl.int64) * d_p_chain + last * d_p_frame + item * d_p_item + unit
    carry = tl.zeros_like(w_i)
    cell_carry = tl.load(g_cell + first_at, real, 0)
    dw_i = tl.zeros_like(w_i)
    dw_f = tl.zeros_like(w_i)
    dw_g = tl.zeros_like(w_i)
    dw_o = tl.zeros_like(w_i)
    for back in tl.range(0, frames, num_stages=STAGES):
        is_first = back == frames - 1
        h = _before(outputs, row - step, first_hidden, first_at, is_first, real)
        c = _before(cells, row - step, first_cell, first_at, is_first, real)
        i = tl.sigmoid(tl.load(p, real, 0).to(kind) + w_i * h)
        f = tl.sigmoid(tl.load(p + size, real, 0).to(kind) + w_f * h)
        candidate = _tanh(tl.load(p + 2 * size, real, 0).to(kind) + w_g * h)
        o = tl.sigmoid(tl.load(p + 3 * size, real, 0).to(kind) + w_o * h)
        squashed = _tanh(f * c + i * candidate)
        to_h = tl.load(g, real, 0) + carry
        to_c = cell_carry + to_h * o * (1 - squashed * squashed)
        to_i = to_c * candidate * i * (1 - i)
        to_f = to_c * c * f * (1 - f)
        to_g = to_c * i * (1 - candidate * candidate)
        to_o = to_h * squashed * o * (1 - o)
        carry = to_i * w_i + to_f * w_f + to_g * w_g + to_o * w_o
        cell_carry = to_c * f
        dw_i += to_i * h
        dw_f += to_f * h
        dw_g += to_g * h
        dw_o += to_o * h
        tl.store(d_p, to_i.to(to), real)
        tl.store(d_p + size, to_f.to(to), real)
        tl.store(d_p + 2 * size, to_g.to(to), real)
        tl.store(d_p + 3 * size, to_o.to(to), real)
        p -= p_frame
        g -= g_frame
        d_p -= d_p_frame
        row -= step
    d_weight += (chain * batch + item) * 4 * size + unit
    tl.store(d_weight, dw_i, real)
    tl.store(d_weight + size, dw_f, real)
    tl.store(d_weight + 2 * size, dw_g, real)
    tl.store(d_weight + 3 * size, dw_o, real)
    tl.store(d_hidden + first_at, carry, real)
    tl.store(d_cell + first_at, cell_carry, real)


@_kernel
def linear_forward(
    keep, keep_chain, keep_frame, keep_item, add, add_chain, add_frame, add_item, first_hidden, states,
    frames, batch, size, UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    item, chain = tl.program_id(0) % batch, tl.program_id(0) // batch
    unit = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    real = unit < size
    h = tl.load(first_hidden + (chain * batch + item) * size + unit, real, 0)
    keep += chain.to(tl.int64) * keep_chain + item * keep_item + unit
    add += chain.to(tl.int64) * add_chain + item * add_item + unit
    states += (chain.to(tl.int64) * frames * batch + item) * size + unit
    for _ in tl.range(0, frames, num_stages=STAGES):
        h = tl.load(keep, real, 0) * h + tl.load(add, real, 0)
        tl.store(states, h, real)
        keep += keep_frame
        add += add_frame
        states += batch * size


@_kernel
def linear_backward(
    keep, keep_chain, keep_frame, keep_item, first_hidden, states, g, g_chain, g_frame, g_item,
    d_keep, d_add, d_hidden, frames, batch, size, UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    item, chain = tl.program_id(0) % batch, tl.program_id(0) // batch
    unit = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    real = unit < size
    first_at = (chain * batch + item) * size + unit
    step = batch * size
    last = tl.cast(frames - 1, tl.int64)
    row = ((chain * frames + last) * batch + item) * size + unit
    keep += chain.to(tl.int64) * keep_chain + last * keep_frame + item * keep_item + unit
    g += chain.to(tl.int64) * g_chain + last * g_frame + item * g_item + unit
    carry = tl.zeros((UNITS,), d_hidden.dtype.element_ty)
    for back in tl.range(0, frames, num_stages=STAGES):
        is_first = back == frames - 1
        before = _before(states, row - step, first_hidden, first_at, is_first, real)
        delta = tl.load(g, real, 0) + carry
        tl.store(d_add + row, delta, real)
        tl.store(d_keep + row, delta * before, real)
        carry = delta * tl.load(keep, real, 0)
        keep -= keep_frame
        g -= g_frame
        row -= step
    tl.store(d_hidden + first_at, carry, real)


FORWARD = {"rnn": rnn_forward, "gru": gru_forward, "lstm": lstm_forward}
BACKWARD = {"rnn": rnn_backward, "gru": gru_backward, "lstm": lstm_backward}


def forward(cell: str, weight: Tensor, initial: tuple[Tensor, ...], projected: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """As `_numba.forward`."""
    chains, batch, size = initial[0].shape
    frames = len(projected[0])
    states = tuple(weight.new_empty(chains, frames, batch, size) for _ in initial)
    arguments = (*_rows(_joined(projected)), weight.contiguous(), *_contiguous(initial), *states)
    _run(FORWARD[cell], arguments, chains, frames, batch, size)
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
    _run(BACKWARD[cell], arguments, chains, frames, batch, size)
    return d_weight.sum(1), d_initial, list(d_projected.unbind(0))


def linear(keep: Tensor, add: Tensor, initial: Tensor) -> Tensor:
    """As `_numba.linear`."""
    chains, frames, batch, size = keep.shape
    states = keep.new_empty(keep.shape)
    arguments = (*_rows(keep), *_rows(add), initial.contiguous(), states)
    _run(linear_forward, arguments, chains, frames, batch, size)
    return states


def linear_gradients(keep: Tensor, initial: Tensor, states: Tensor, d_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `_numba.linear_gradients`."""
    chains, frames, batch, size = keep.shape
    gradients = keep.new_empty(keep.shape), keep.new_empty(keep.shape), initial.new_empty(initial.shape)
    arguments = (*_rows(keep), initial.contiguous(), states, *_rows(d_states), *gradients)
    _run(linear_backward, arguments, chains, frames, batch, size)
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


def _run(kernel: Any, arguments: tuple[Any, ...], chains: int, frames: int, batch: int, size: int) -> None:
    grid = (chains * batch, triton.cdiv(size, UNITS))
    kernel[grid](*arguments, frames, batch, size, UNITS=UNITS, STAGES=STAGES, num_warps=1)
