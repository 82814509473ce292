"""Time loops with full recurrent matrices on a GPU, for the cells that cuDNN lacks: clipped ReLU, and reset before U h.

One program holds a block of batch rows and runs all frames; the state passes from a frame to the next through memory
that stays in the multiprocessor's cache, with a barrier between. So a layer is one launch forward and one backward
instead of several for each frame. Products accumulate in float32; the recurrent weight's gradient is one product
outside.

Imported only where there is a GPU, or Triton's interpreter.
"""

# pyright: reportCallIssue=false
# Triton's types know no launch options, such as num_stages.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16  # batch rows of a program: the fewest that tl.dot takes
TILE = 64  # units of a product at a time


@triton.jit
def _add_product(total, left, left_stride, right, rows, columns, B, H, TILE: tl.constexpr):
    """total + left (B, H), its rows `left_stride` apart, @ right (H, H), of these rows and columns."""
    for start in range(0, H, TILE):
        inner = start + tl.arange(0, TILE)
        a = tl.load(
            left + rows[:, None] * left_stride + inner[None, :],
            mask=(rows[:, None] < B) & (inner[None, :] < H),
            other=0.0,
        )
        b = tl.load(
            right + inner[:, None] * H + columns[None, :],
            mask=(inner[:, None] < H) & (columns[None, :] < H),
            other=0.0,
        )
        total = tl.dot(a, b, total, input_precision="ieee")
    return total


@triton.jit
def _rnn_forward(outputs, initial, transposed, S, B, H, clip, ROWS: tl.constexpr, TILE: tl.constexpr):
    """outputs (K, S, B, H) holds the projections and becomes min(max(p + U h, 0), clip)."""
    chain = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    outputs += chain * S * B * H
    transposed += chain * H * H
    before = initial + chain * B * H
    for _ in range(S):
        for start in range(0, H, TILE):
            columns = start + tl.arange(0, TILE)
            at = rows[:, None] * H + columns[None, :]
            mask = (rows[:, None] < B) & (columns[None, :] < H)
            value = tl.load(outputs + at, mask=mask, other=0.0)
            value = _add_product(value, before, H, transposed, rows, columns, B, H, TILE)
            tl.store(outputs + at, tl.minimum(tl.maximum(value, 0.0), clip), mask=mask)
        tl.debug_barrier()
        before = outputs
        outputs += B * H


@triton.jit
def _rnn_backward(d_gates, outputs, recurrent, S, B, H, clip, ROWS: tl.constexpr, TILE: tl.constexpr):
    """d_gates (K, S, B, H) holds the gradient of the outputs and becomes that of the pre-activations."""
    chain = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    recurrent += chain * H * H
    d_gates += (chain * S + S - 1) * B * H
    outputs += (chain * S + S - 1) * B * H
    for frame in range(S):
        for start in range(0, H, TILE):
            columns = start + tl.arange(0, TILE)
            at = rows[:, None] * H + columns[None, :]
            mask = (rows[:, None] < B) & (columns[None, :] < H)
            value = tl.load(d_gates + at, mask=mask, other=0.0)
            if frame > 0:
                value = _add_product(value, d_gates + B * H, H, recurrent, rows, columns, B, H, TILE)
            hidden = tl.load(outputs + at, mask=mask, other=0.0)
            tl.store(d_gates + at, tl.where((hidden > 0.0) & (hidden < clip), value, 0.0), mask=mask)
        tl.debug_barrier()
        d_gates -= B * H
        outputs -= B * H


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _tanh(x):
    return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0


@triton.jit
def _gru_forward(gates, kept, outputs, initial, transposed, S, B, H, ROWS: tl.constexpr, TILE: tl.constexpr):
    """gates (K, S, B, 3H) holds the projections and becomes r, z, n; kept is r * h; transposed (K, 3, H, H)."""
    chain = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    gates += chain * S * B * 3 * H
    kept += chain * S * B * H
    outputs += chain * S * B * H
    transposed += chain * 3 * H * H
    before = initial + chain * B * H
    for _ in range(S):
        for start in range(0, H, TILE):
            columns = start + tl.arange(0, TILE)
            mask = (rows[:, None] < B) & (columns[None, :] < H)
            at = rows[:, None] * H + columns[None, :]
            gate_at = rows[:, None] * 3 * H + columns[None, :]
            reset = tl.load(gates + gate_at, mask=mask, other=0.0)
            reset = _sigmoid(_add_product(reset, before, H, transposed, rows, columns, B, H, TILE))
            update = tl.load(gates + H + gate_at, mask=mask, other=0.0)
            update = _sigmoid(_add_product(update, before, H, transposed + H * H, rows, columns, B, H, TILE))
            tl.store(gates + gate_at, reset, mask=mask)
            tl.store(gates + H + gate_at, update, mask=mask)
            tl.store(kept + at, reset * tl.load(before + at, mask=mask, other=0.0), mask=mask)
        tl.debug_barrier()
        for start in range(0, H, TILE):
            columns = start + tl.arange(0, TILE)
            mask = (rows[:, None] < B) & (columns[None, :] < H)
            at = rows[:, None] * H + columns[None, :]
            gate_at = rows[:, None] * 3 * H + columns[None, :]
            candidate = tl.load(gates + 2 * H + gate_at, mask=mask, other=0.0)
            candidate = _tanh(_add_product(candidate, kept, H, transposed + 2 * H * H, rows, columns, B, H, TILE))
            update = tl.load(gates + H + gate_at, mask=mask, other=0.0)
            hidden = tl.load(before + at, mask=mask, other=0.0)
            tl.store(gates + 2 * H + gate_at, candidate, mask=mask)
            tl.store(outputs + at, candidate + update * (hidden - candidate), mask=mask)
        tl.debug_barrier()
        before = outputs
        gates += B * 3 * H
        kept += B * H
        outputs += B * H


@triton.jit
def _gru_backward(
    d_gates, d_states, gates, outputs, initial, recurrent, S, B, H, ROWS: tl.constexpr, TILE: tl.constexpr
):
    """d_states (K, S + 1, B, H) holds 0, then the outputs' gradients; its first frame becomes the initial state's."""
    chain = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d_gates += (chain * S + S - 1) * B * 3 * H
    gates += (chain * S + S - 1) * B * 3 * H
    d_states += (chain * (S + 1) + S) * B * H
    outputs += chain * S * B * H
    initial += chain * B * H
    recurrent += chain * 3 * H * H
    for frame in range(S - 1, -1, -1):
        before = initial
        if frame > 0:
            before = outputs + (frame - 1) * B * H
        for start in range(0, H, TILE):
            columns = start + tl.arange(0, TILE)
            mask = (rows[:, None] < B) & (columns[None, :] < H)
            at = rows[:, None] * H + columns[None, :]
            gate_at = rows[:, None] * 3 * H + columns[None, :]
            d_now = tl.load(d_states + at, mask=mask, other=0.0)
            update = tl.load(gates + H + gate_at, mask=mask, other=0.0)
            candidate = tl.load(gates + 2 * H + gate_at, mask=mask, other=0.0)
            hidden = tl.load(before + at, mask=mask, other=0.0)
            d_candidate = d_now * (1.0 - update) * (1.0 - candidate * candidate)
            tl.store(d_gates + H + gate_at, d_now * (hidden - candidate) * update * (1.0 - update), mask=mask)
            tl.store(d_gates + 2 * H + gate_at, d_candidate, mask=mask)
        tl.debug_barrier()
        for start in range(0, H, TILE):
            columns = start + tl.arange(0, TILE)
            mask = (rows[:, None] < B) & (columns[None, :] < H)
            at = rows[:, None] * H + columns[None, :]
            gate_at = rows[:, None] * 3 * H + columns[None, :]
            d_kept = tl.zeros((ROWS, TILE), tl.float32)
            d_kept = _add_product(d_kept, d_gates + 2 * H, 3 * H, recurrent + 2 * H * H, rows, columns, B, H, TILE)
            reset = tl.load(gates + gate_at, mask=mask, other=0.0)
            update = tl.load(gates + H + gate_at, mask=mask, other=0.0)
            hidden = tl.load(before + at, mask=mask, other=0.0)
            d_now = tl.load(d_states + at, mask=mask, other=0.0)
            carry = tl.load(d_states - B * H + at, mask=mask, other=0.0)
            tl.store(d_gates + gate_at, d_kept * hidden * reset * (1.0 - reset), mask=mask)
            tl.store(d_states - B * H + at, carry + d_now * update + d_kept * reset, mask=mask)
        tl.debug_barrier()
        for start in range(0, H, TILE):
            columns = start + tl.arange(0, TILE)
            mask = (rows[:, None] < B) & (columns[None, :] < H)
            at = rows[:, None] * H + columns[None, :]
            carry = tl.load(d_states - B * H + at, mask=mask, other=0.0)
            carry = _add_product(carry, d_gates, 3 * H, recurrent, rows, columns, B, H, TILE)
            carry = _add_product(carry, d_gates + H, 3 * H, recurrent + H * H, rows, columns, B, H, TILE)
            tl.store(d_states - B * H + at, carry, mask=mask)
        tl.debug_barrier()
        d_gates -= B * 3 * H
        gates -= B * 3 * H
        d_states -= B * H


def rnn_forward(outputs: Tensor, initial: Tensor, recurrent: Tensor, clip: float) -> None:
    """Clipped ReLU, in place: outputs (K, S, B, H) holds the projections; initial (K, B, H); recurrent (K, H, H)."""
    num_chains, num_frames, batch, size = outputs.shape
    grid = (triton.cdiv(batch, ROWS), num_chains)
    transposed = recurrent.mT.contiguous()
    _rnn_forward[grid](
        outputs, initial.contiguous(), transposed, num_frames, batch, size, clip, ROWS=ROWS, TILE=TILE, num_stages=1
    )


def rnn_backward(d_gates: Tensor, outputs: Tensor, recurrent: Tensor, clip: float) -> None:
    """In place: d_gates (K, S, B, H) holds the gradient of the outputs, then that of the pre-activations."""
    num_chains, num_frames, batch, size = outputs.shape
    grid = (triton.cdiv(batch, ROWS), num_chains)
    _rnn_backward[grid](
        d_gates, outputs, recurrent.contiguous(), num_frames, batch, size, clip, ROWS=ROWS, TILE=TILE, num_stages=1
    )


def gru_forward(gates: Tensor, kept: Tensor, outputs: Tensor, initial: Tensor, recurrent: Tensor) -> None:
    """Reset before U h: gates (K, S, B, 3H), in: projections, out: r, z, n; kept, outputs (K, S, B, H) are written."""
    num_chains, num_frames, batch, size = outputs.shape
    grid = (triton.cdiv(batch, ROWS), num_chains)
    transposed = recurrent.unflatten(1, (3, size)).mT.contiguous()
    _gru_forward[grid](
        gates, kept, outputs, initial.contiguous(), transposed, num_frames, batch, size,
        ROWS=ROWS, TILE=TILE, num_stages=1,
    )  # fmt: skip


def gru_backward(
    d_outputs: Tensor, gates: Tensor, outputs: Tensor, initial: Tensor, recurrent: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the pre-activations (K, S, B, 3H) and of the initial state (K, B, H)."""
    num_chains, num_frames, batch, size = outputs.shape
    grid = (triton.cdiv(batch, ROWS), num_chains)
    d_states = torch.cat((torch.zeros_like(initial)[:, None], d_outputs), 1)
    d_gates = torch.empty_like(gates)
    _gru_backward[grid](
        d_gates, d_states, gates, outputs, initial.contiguous(), recurrent.contiguous(), num_frames, batch, size,
        ROWS=ROWS, TILE=TILE, num_stages=1,
    )  # fmt: skip
    return d_gates, d_states[:, 0]
