"""A phased LSTM layer's time gate and time loop on the CPU: autograd around the loops of `_numba_phased_lstm`."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from asr.nn import products
from asr.nn.cells.base import matrix_gradient, product_type, shifted


def time_gate(
    times: Float[Tensor, "S R"],
    period: Float[Tensor, "H"],
    shift: Float[Tensor, "H"],
    ratio_on: Float[Tensor, "H"],
    leak: float,
) -> Float[Tensor, "S R H"]:
    """How far each unit is open at float64 time stamps, in the type of tau."""
    if torch.is_grad_enabled():
        gate = _TimeGate.apply(times, period, shift, ratio_on, leak)
        assert isinstance(gate, Tensor)
        return gate
    return _loops().time_gate(times, period, shift, ratio_on, leak)


def recur(
    projected: Float[Tensor, "S B G"],
    gate: Float[Tensor, "S R H"],
    recurrent: Float[Tensor, "G H"],
    peepholes: Float[Tensor, "3 H"] | None,
    hidden: Float[Tensor, "B H"],
    cell: Float[Tensor, "B H"],
    packed: Float[Tensor, "P"] | None = None,
) -> tuple[Float[Tensor, "S B H"], Float[Tensor, "B H"]]:
    """Run S >= 1 frames.

    Args:
        projected: W x + b in any floating type.
        gate: of each item, or one for all (R = 1).
        recurrent: U.
        peepholes: w of i, f and o.
        hidden: the state before the first frame, in the type of U.
        cell: likewise.
        packed: what `asr.nn.products.pack` made of U.

    Returns:
        Hidden states, and the last cell state.
    """
    if projected.dtype == torch.float16:  # NumPy has no arithmetic for it
        projected = projected.to(recurrent.dtype)
    if torch.is_grad_enabled():
        return _Loop.apply(projected, gate, recurrent, peepholes, hidden, cell)  # pyright: ignore[reportReturnType]
    packed = products.unless_moved(packed, recurrent)
    if packed is None:
        packed = _loops().pack(recurrent.mT)
    weights = _or_zeros(peepholes, hidden)
    outputs, cells, _ = _loops().forward(projected, gate, packed, weights, hidden, cell, keeps=False)
    return outputs, cells[0]


def recur_open_units(
    inputs: Float[Tensor, "S B D"],
    gate: Float[Tensor, "S R H"],
    weight: Float[Tensor, "G D"],
    bias: Float[Tensor, "G"],
    recurrent: Float[Tensor, "G H"],
    peepholes: Float[Tensor, "3 H"] | None,
    hidden: Float[Tensor, "B H"],
    cell: Float[Tensor, "B H"],
) -> tuple[Float[Tensor, "S B H"], Float[Tensor, "B H"]]:
    """What `recur` gives for W x + b without gradients, computed for units that are open; faster where few are.

    Args:
        inputs: x.
        gate: as above.
        weight: W.
        bias: b.
        recurrent: as above.
        peepholes: as above.
        hidden: as above.
        cell: as above.
    """
    weights = _or_zeros(peepholes, hidden)
    return _loops().forward_of_open_units(inputs, gate, weight, bias, recurrent, weights, hidden, cell)


def _loops() -> ModuleType:
    """Imported here: numba takes 0.4 s, and most processes run no phased LSTM."""
    from asr.stacks import _numba_phased_lstm

    return _numba_phased_lstm


def _or_zeros(peepholes: Tensor | None, hidden: Tensor) -> Tensor:
    return hidden.new_zeros(3, hidden.shape[-1]) if peepholes is None else peepholes


class _TimeGate(torch.autograd.Function):
    """(times, tau, s, r, leak) -> k, as `time_gate`."""

    @staticmethod
    def forward(ctx: Any, times: Tensor, period: Tensor, shift: Tensor, ratio_on: Tensor, leak: float) -> Tensor:
        ctx.save_for_backward(times, period, shift, ratio_on)
        ctx.leak = leak
        return _loops().time_gate(times, period, shift, ratio_on, leak)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, *_loops().time_gate_gradients(gradients[0], *ctx.saved_tensors, ctx.leak), None


class _Loop(torch.autograd.Function):
    """(projected, gate, recurrent, peepholes, hidden, cell) -> hidden states, last cell state."""

    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        gate: Tensor,
        recurrent: Tensor,
        peepholes: Tensor | None,
        hidden: Tensor,
        cell: Tensor,
    ) -> tuple[Tensor, Tensor]:
        packed, weights = _loops().pack(recurrent.mT), _or_zeros(peepholes, hidden)
        kept = _loops().forward(projected, gate, packed, weights, hidden, cell, keeps=True)
        ctx.save_for_backward(gate, recurrent, peepholes, hidden, cell, *kept)
        ctx.projected_type, ctx.product_type = projected.dtype, product_type(recurrent)
        outputs, cells, _ = kept
        return outputs, cells[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        gate, recurrent, peepholes, hidden, cell, *kept = ctx.saved_tensors
        d_gates, d_gate, d_peepholes, d_hidden, d_cell = _loops().backward(
            gate, recurrent, _or_zeros(peepholes, hidden), hidden, cell, kept, *gradients
        )
        before = shifted(hidden[None], kept[0][None])
        (d_recurrent,) = matrix_gradient(d_gates[None], before, ctx.product_type)
        return (
            d_gates.to(ctx.projected_type),
            d_gate.sum_to_size(gate.shape),
            d_recurrent,
            None if peepholes is None else d_peepholes,
            d_hidden,
            d_cell,
        )
