"""Time loops of cells with full recurrent matrices, as Triton kernels; `asr.nn.cells.full_on_gpu` calls them.

A layer is one launch forward and one backward; `_triton_persistent` says how its programs share it out. What they
exchange in a frame is all that one has to wait for, so it is written first, and what the next frame needs besides is
read before the wait.

Letters: K chains, S frames, B items, H units.
"""

# pyright: reportCallIssue=false

from __future__ import annotations

import triton.language as tl

from asr.nn.cells._triton_persistent import arrive, load, place, products, store, wait
from asr.nn.triton_kernel import kernel


@kernel
def _four(gates, H, there):
    """A frame's four gates."""
    return load(gates, there), load(gates + H, there), load(gates + 2 * H, there), load(gates + 3 * H, there)


@kernel
def _state(first, states, frame, step):
    """Where the state after a frame is, or before the first one."""
    pointers = first
    if frame >= 0:
        pointers = states + frame * step
    return pointers


@kernel
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@kernel
def _tanh(x):
    return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0


@kernel
def rnn_forward(
    p, recurrent, first, outputs, counters, first_row, first_chain, S, B, H, clip,
    TANH: tl.constexpr, TF32: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """tanh(p + U h), or min(max(p + U h, 0), clip)."""
    chain, rows, units, row, unit, there, counter = place(counters, first_row, first_chain, B, H, ROWS, UNITS)
    recurrent += chain * H * H
    before = first + chain * B * H
    p += chain * S * B * H
    outputs += chain * S * B * H
    at = row * H + unit
    value = load(p + at, there)
    for t in range(S):
        value += products(before, H, recurrent, H, H, rows, units, B, H, 1, TF32, ROWS, UNITS, STAGES)[0]
        hidden = _tanh(value) if TANH else tl.where(value < 0.0, 0.0, tl.where(value > clip, clip, value))  # NaN stays
        store(outputs + at, hidden, there)
        arrive(counter)
        before = outputs
        outputs += B * H
        p += B * H
        value = load(p + at, there & (t + 1 < S))
        wait(counter, (t + 1) * tl.num_programs(0))


@kernel
def rnn_backward(
    d_p, d_outputs, outputs, transposed, counters, first_row, first_chain, S, B, H, clip,
    TANH: tl.constexpr, TF32: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    chain, rows, units, row, unit, there, counter = place(counters, first_row, first_chain, B, H, ROWS, UNITS)
    transposed += chain * H * H
    last = (chain * S + S - 1) * B * H
    at = row * H + unit
    d_p += last
    outputs += last + at
    d_outputs += last + at
    value = load(d_outputs, there)
    for back in range(S):
        if back > 0:
            value += products(d_p + B * H, H, transposed, H, H, rows, units, B, H, 1, TF32, ROWS, UNITS, STAGES)[0]
        hidden = load(outputs, there)
        if TANH:
            value *= 1.0 - hidden * hidden
        else:
            value = tl.where((hidden > 0.0) & (hidden < clip), value, 0.0)
        store(d_p + at, value, there)
        arrive(counter)
        d_p -= B * H
        outputs -= B * H
        d_outputs -= B * H
        value = load(d_outputs, there & (back + 1 < S))
        wait(counter, (back + 1) * tl.num_programs(0))


@kernel
def gru_after_forward(
    p, recurrent, bias, initial, first, outputs, gates, counters, first_row, first_chain, S, B, H,
    TF32: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """gates (K, S, B, 4H) becomes r, z, n and U_n h + c."""
    chain, rows, units, row, unit, there, counter = place(counters, first_row, first_chain, B, H, ROWS, UNITS)
    recurrent += chain * 3 * H * H
    before = first + chain * B * H
    at = row * H + unit
    hidden = load(initial + chain * B * H + at, there)
    c = tl.load(bias + chain * H + units, units < H, 0.0)[None, :]
    p += chain * S * B * 3 * H + row * 3 * H + unit
    gates += chain * S * B * 4 * H + row * 4 * H + unit
    outputs += chain * S * B * H
    p_r, p_z, p_n = load(p, there), load(p + H, there), load(p + 2 * H, there)
    for t in range(S):
        from_r, from_z, from_n = products(before, H, recurrent, H, H, rows, units, B, H, 3, TF32, ROWS, UNITS, STAGES)
        r, z, inner = _sigmoid(p_r + from_r), _sigmoid(p_z + from_z), from_n + c
        n = _tanh(p_n + r * inner)
        hidden = n + z * (hidden - n)
        store(outputs + at, hidden, there)
        arrive(counter)
        store(gates, r, there)
        store(gates + H, z, there)
        store(gates + 2 * H, n, there)
        store(gates + 3 * H, inner, there)
        before = outputs
        outputs += B * H
        gates += B * 4 * H
        p += B * 3 * H
        more = there & (t + 1 < S)
        p_r, p_z, p_n = load(p, more), load(p + H, more), load(p + 2 * H, more)
        wait(counter, (t + 1) * tl.num_programs(0))


@kernel
def gru_after_backward(
    d_p, d_inner, d_initial, d_outputs, gates, outputs, first, transposed, counters, first_row, first_chain, S, B, H,
    TF32: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """d_inner (K, S, B, 3H): of U h + (0, 0, c); transposed (K, H, 3H)."""
    chain, rows, units, row, unit, there, counter = place(counters, first_row, first_chain, B, H, ROWS, UNITS)
    transposed += chain * H * 3 * H
    last = (chain * S + S - 1) * B
    at = row * H + unit
    d_p += last * 3 * H + row * 3 * H + unit
    d_inner += last * 3 * H
    gates += last * 4 * H + row * 4 * H + unit
    d_outputs += last * H + at
    outputs += chain * S * B * H + at
    first += chain * B * H + at
    hidden, d_output = load(_state(first, outputs, S - 2, B * H), there), load(d_outputs, there)
    r, z, n, inner = _four(gates, H, there)
    carry = tl.zeros((ROWS, UNITS), tl.float32)
    for back in range(S):
        d_now = d_output + carry
        d_n = d_now * (1.0 - z) * (1.0 - n * n)
        d_z = d_now * (hidden - n) * z * (1.0 - z)
        d_r = d_n * inner * r * (1.0 - r)
        mine = d_inner + row * 3 * H + unit
        store(mine, d_r, there)
        store(mine + H, d_z, there)
        store(mine + 2 * H, d_n * r, there)
        arrive(counter)
        store(d_p, d_r, there)
        store(d_p + H, d_z, there)
        store(d_p + 2 * H, d_n, there)
        carry = d_now * z
        gates -= B * 4 * H
        d_outputs -= B * H
        more = there & (back + 1 < S)
        hidden, d_output = load(_state(first, outputs, S - 3 - back, B * H), more), load(d_outputs, more)
        r, z, n, inner = _four(gates, H, more)
        wait(counter, (back + 1) * tl.num_programs(0))
        carry += products(d_inner, 3 * H, transposed, 3 * H, 3 * H, rows, units, B, H, 1, TF32, ROWS, UNITS, STAGES)[0]
        d_p -= B * 3 * H
        d_inner -= B * 3 * H
    tl.store(d_initial + chain * B * H + at, carry, there)


@kernel
def gru_before_forward(
    p, recurrent, initial, first, outputs, gates, kept, counters, first_row, first_chain, S, B, H,
    TF32: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """gates (K, S, B, 3H) becomes r, z, n; kept (K, S, B, H) r * h."""
    chain, rows, units, row, unit, there, counter = place(counters, first_row, first_chain, B, H, ROWS, UNITS)
    recurrent += chain * 3 * H * H
    before = first + chain * B * H
    at = row * H + unit
    hidden = load(initial + chain * B * H + at, there)
    p += chain * S * B * 3 * H + row * 3 * H + unit
    gates += chain * S * B * 3 * H + row * 3 * H + unit
    kept += chain * S * B * H
    outputs += chain * S * B * H
    for t in range(S):
        r = load(p, there) + products(before, H, recurrent, H, H, rows, units, B, H, 1, TF32, ROWS, UNITS, STAGES)[0]
        r = _sigmoid(r)
        store(kept + at, r * hidden, there)
        arrive(counter)
        z = load(p + H, there)
        z = _sigmoid(
            z + products(before, H, recurrent + H * H, H, H, rows, units, B, H, 1, TF32, ROWS, UNITS, STAGES)[0]
        )
        store(gates, r, there)
        store(gates + H, z, there)
        n = load(p + 2 * H, there)
        wait(counter, (2 * t + 1) * tl.num_programs(0))
        n = _tanh(
            n + products(kept, H, recurrent + 2 * H * H, H, H, rows, units, B, H, 1, TF32, ROWS, UNITS, STAGES)[0]
        )
        hidden = n + z * (hidden - n)
        store(outputs + at, hidden, there)
        arrive(counter)
        store(gates + 2 * H, n, there)
        before = outputs
        p += B * 3 * H
        gates += B * 3 * H
        kept += B * H
        outputs += B * H
        wait(counter, (2 * t + 2) * tl.num_programs(0))


@kernel
def gru_before_backward(
    d_p, d_initial, d_outputs, gates, outputs, first, transposed, counters, first_row, first_chain, S, B, H,
    TF32: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """transposed (K, H, 3H)."""
    chain, rows, units, row, unit, there, counter = place(counters, first_row, first_chain, B, H, ROWS, UNITS)
    transposed += chain * H * 3 * H
    last = (chain * S + S - 1) * B
    at = row * H + unit
    d_p += last * 3 * H
    gates += last * 3 * H + row * 3 * H + unit
    d_outputs += last * H + at
    outputs += chain * S * B * H + at
    first += chain * B * H + at
    carry = tl.zeros((ROWS, UNITS), tl.float32)
    for back in range(S):
        hidden = load(_state(first, outputs, S - 2 - back, B * H), there)
        r, z, n = load(gates, there), load(gates + H, there), load(gates + 2 * H, there)
        d_now = load(d_outputs, there) + carry
        mine = d_p + row * 3 * H + unit
        store(mine + 2 * H, d_now * (1.0 - z) * (1.0 - n * n), there)
        store(mine + H, d_now * (hidden - n) * z * (1.0 - z), there)
        arrive(counter)
        wait(counter, (2 * back + 1) * tl.num_programs(0))
        d_kept = products(
            d_p + 2 * H, 3 * H, transposed + 2 * H, 3 * H, H, rows, units, B, H, 1, TF32, ROWS, UNITS, STAGES
        )[0]  # fmt: skip
        store(mine, d_kept * hidden * r * (1.0 - r), there)
        arrive(counter)
        carry = d_now * z + d_kept * r
        carry += products(d_p + H, 3 * H, transposed + H, 3 * H, H, rows, units, B, H, 1, TF32, ROWS, UNITS, STAGES)[0]
        wait(counter, (2 * back + 2) * tl.num_programs(0))
        carry += products(d_p, 3 * H, transposed, 3 * H, H, rows, units, B, H, 1, TF32, ROWS, UNITS, STAGES)[0]
        d_p -= B * 3 * H
        gates -= B * 3 * H
        d_outputs -= B * H
    tl.store(d_initial + chain * B * H + at, carry, there)


@kernel
def lstm_forward(
    p, recurrent, first_cell, first, outputs, gates, cells, counters, first_row, first_chain, S, B, H,
    TF32: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """gates (K, S, B, 4H) becomes i, f, g, o."""
    chain, rows, units, row, unit, there, counter = place(counters, first_row, first_chain, B, H, ROWS, UNITS)
    recurrent += chain * 4 * H * H
    before = first + chain * B * H
    at = row * H + unit
    cell = load(first_cell + chain * B * H + at, there)
    p += chain * S * B * 4 * H + row * 4 * H + unit
    gates += chain * S * B * 4 * H + row * 4 * H + unit
    cells += chain * S * B * H + at
    outputs += chain * S * B * H
    p_i, p_f, p_g, p_o = _four(p, H, there)
    for t in range(S):
        from_i, from_f, from_g, from_o = products(
            before, H, recurrent, H, H, rows, units, B, H, 4, TF32, ROWS, UNITS, STAGES
        )
        i, f, g, o = _sigmoid(p_i + from_i), _sigmoid(p_f + from_f), _tanh(p_g + from_g), _sigmoid(p_o + from_o)
        cell = f * cell + i * g
        store(outputs + at, o * _tanh(cell), there)
        arrive(counter)
        store(gates, i, there)
        store(gates + H, f, there)
        store(gates + 2 * H, g, there)
        store(gates + 3 * H, o, there)
        store(cells, cell, there)
        before = outputs
        outputs += B * H
        cells += B * H
        gates += B * 4 * H
        p += B * 4 * H
        more = there & (t + 1 < S)
        p_i, p_f, p_g, p_o = _four(p, H, more)
        wait(counter, (t + 1) * tl.num_programs(0))


@kernel
def lstm_backward(
    d_p, d_initial, d_first_cell, d_outputs, d_cell, gates, cells, first_cell, transposed,
    counters, first_row, first_chain, S, B, H,
    TF32: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """d_cell (K, B, H): of the last cell state; transposed (K, H, 4H)."""
    chain, rows, units, row, unit, there, counter = place(counters, first_row, first_chain, B, H, ROWS, UNITS)
    transposed += chain * H * 4 * H
    last = (chain * S + S - 1) * B
    at = row * H + unit
    d_p += last * 4 * H
    gates += last * 4 * H + row * 4 * H + unit
    d_outputs += last * H + at
    first_cell += chain * B * H + at
    cells += chain * S * B * H + at
    cell_carry = load(d_cell + chain * B * H + at, there)
    c, d_output = load(_state(first_cell, cells, S - 2, B * H), there), load(d_outputs, there)
    i, f, g, o = _four(gates, H, there)
    carry = tl.zeros((ROWS, UNITS), tl.float32)
    for back in range(S):
        squashed = _tanh(f * c + i * g)
        d_hidden = d_output + carry
        d_now = cell_carry + d_hidden * o * (1.0 - squashed * squashed)
        mine = d_p + row * 4 * H + unit
        store(mine, d_now * g * i * (1.0 - i), there)
        store(mine + H, d_now * c * f * (1.0 - f), there)
        store(mine + 2 * H, d_now * i * (1.0 - g * g), there)
        store(mine + 3 * H, d_hidden * squashed * o * (1.0 - o), there)
        arrive(counter)
        cell_carry = d_now * f
        gates -= B * 4 * H
        d_outputs -= B * H
        more = there & (back + 1 < S)
        c, d_output = load(_state(first_cell, cells, S - 3 - back, B * H), more), load(d_outputs, more)
        i, f, g, o = _four(gates, H, more)
        wait(counter, (back + 1) * tl.num_programs(0))
        carry = products(d_p, 4 * H, transposed, 4 * H, 4 * H, rows, units, B, H, 1, TF32, ROWS, UNITS, STAGES)[0]
        d_p -= B * 4 * H
    tl.store(d_initial + chain * B * H + at, carry, there)
    tl.store(d_first_cell + chain * B * H + at, cell_carry, there)
