"""Recurrences with full matrices on the CPU: autograd around the loops of `_numba_full`."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from asr.nn import products
from asr.nn.cells.base import matrix_gradient, product_type, shifted
from asr.nn.vanishing import with_omega

Packed = tuple[Tensor, Tensor]


def fits(like: Tensor) -> bool:
    """Whether the loops take the recurrent weights `like`, where they are now."""
    return products.loops_take(like)


def recur(
    kind: str,
    recurrent: Tensor,
    initial: tuple[Tensor, ...],
    projected: Sequence[Tensor],
    *,
    bias: Tensor | None,
    omega: float,
    packed: Packed | None,
) -> tuple[Tensor, ...]:
    """Run K chains; arguments as those of `asr.nn.cells.full.recur`.

    Returns:
        Hidden states (K, S, B, H), and a lstm's last cell state (K, B, H).
    """
    # NumPy has no arithmetic for float16
    projected = [chain.to(recurrent.dtype) if chain.dtype == torch.float16 else chain for chain in projected]
    if torch.is_grad_enabled():
        return _Loop.apply(kind, omega, recurrent, bias, len(initial), *initial, *projected)  # pyright: ignore[reportReturnType]
    packed = products.unless_moved(packed, recurrent)
    outputs, cells, _ = _loops().forward(kind, recurrent, bias, initial, projected, keeps=False, packed=packed)
    return (outputs, cells[:, 0]) if kind == "lstm" else (outputs,)


def pack(kind: str, recurrent: Tensor) -> Packed | None:
    """What `recur` else makes of `recurrent` at each call; for weights that do not change any more, where it `fits`."""
    return _loops().pack_forward(kind, recurrent) if fits(recurrent) else None


def _loops() -> ModuleType:
    """Imported here: numba takes 0.4 s, and most processes run no recurrence."""
    from asr.nn.cells import _numba_full

    return _numba_full


class _Loop(torch.autograd.Function):
    """(kind, omega, recurrent, bias, N, N initial states, K projections) -> a tuple as `recur` gives."""

    @staticmethod
    def forward(
        ctx, kind: str, omega: float, recurrent: Tensor, bias: Tensor | None, number: int, *tensors: Tensor
    ) -> Any:
        initial, projected = tensors[:number], tensors[number:]
        outputs, cells, gates = _loops().forward(kind, recurrent, bias, initial, projected, keeps=True, packed=None)
        ctx.save_for_backward(recurrent, outputs, cells, gates, *initial)
        ctx.kind, ctx.omega, ctx.projected_type = kind, omega, projected[0].dtype
        ctx.product_type = product_type(recurrent)
        return (outputs, cells[:, -1].clone()) if kind == "lstm" else (outputs,)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        recurrent, outputs, cells, gates, *initial = ctx.saved_tensors
        kind, size = ctx.kind, outputs.shape[-1]
        d_outputs, *d_cell = gradients
        d_u, d_p, d_initial = _loops().backward(
            kind, recurrent, initial, outputs, cells, gates, d_outputs, *d_cell, projected_type=ctx.projected_type
        )
        before = shifted(initial[0], outputs)
        if kind == "gru_before":
            into_gates, into_candidate = d_u.split((2 * size, size), -1)
            kept = gates[..., 3 * size :]
            parts = [
                matrix_gradient(*pair, ctx.product_type) for pair in ((into_gates, before), (into_candidate, kept))
            ]
            d_recurrent = torch.cat(parts, 1)
        else:
            d_recurrent = matrix_gradient(d_u, before, ctx.product_type)
        if ctx.omega:
            d_recurrent = with_omega(d_recurrent, ctx.omega, d_outputs, d_u, recurrent)
        d_bias = d_u[..., 2 * size :].sum((1, 2)) if kind == "gru_after" else None
        return None, None, d_recurrent, d_bias, None, *d_initial, *d_p.unbind(0)
