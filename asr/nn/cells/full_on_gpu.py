"""Recurrences with full matrices on a GPU: autograd around the kernels of `_triton_full`.

Under autocast the products, and what is given for the next layer, are of its type; what a unit carries from frame to
frame, gates and all sums stay float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from asr.nn import gpu_kernels
from asr.nn.cells.base import CLIP, matrix_gradient, product_type, shifted
from asr.nn.vanishing import with_omega

AMPERE = (8, 0)


def fits(like: Tensor) -> bool:
    """Whether the kernels take the recurrent weights `like`, where they are now.

    GPUs before Ampere have no matrix units for TF32 and bf16; there cuDNN is the better choice.
    """
    known = like.dtype == torch.float32 and gpu_kernels.runs_on(like)
    return known and torch.cuda.get_device_capability(like.device) >= AMPERE


def recur(
    kind: str,
    recurrent: Tensor,
    initial: tuple[Tensor, ...],
    projected: Sequence[Tensor],
    *,
    bias: Tensor | None = None,
    omega: float = 0.0,
) -> tuple[Tensor, ...]:
    """Run K chains; arguments as those of `asr.nn.cells.full.recur`.

    Returns:
        Hidden states (K, S, B, H), and a lstm's last cell state (K, B, H).
    """
    return _Loop.apply(kind, omega, recurrent, bias, len(initial), *initial, *projected)  # pyright: ignore[reportReturnType]


def _kernels() -> tuple[ModuleType, Callable[..., None]]:
    """The loops, and what runs one. Imported where there is Triton."""
    from asr.nn.cells import _triton_full, _triton_persistent

    return _triton_full, _triton_persistent.run


class _Loop(torch.autograd.Function):
    """(kind, omega, recurrent, bias, N, N initial states, K projections) -> a tuple as `recur` gives."""

    @staticmethod
    def forward(
        ctx, kind: str, omega: float, recurrent: Tensor, bias: Tensor | None, num_states: int, *tensors: Tensor
    ) -> Any:
        loops, run = _kernels()
        initial, projected = tensors[:num_states], tensors[num_states:]
        one, *more = projected
        p = torch.stack(projected) if more else one[None].contiguous()
        dtype = product_type(recurrent)
        hidden = initial[0].contiguous()
        first = hidden.to(dtype)
        weight = recurrent.to(dtype).contiguous()
        shape = (*p.shape[:3], hidden.shape[-1])
        outputs = p.new_empty(shape, dtype=dtype)
        kept: list[Tensor] = []  # for backward, after the outputs
        if kind == "lstm":
            cell = initial[-1].contiguous()
            kept = [_gates(p, 4, shape), outputs.new_empty(shape, dtype=torch.float32), cell]
            run(loops.lstm_forward, (p, weight, cell, first, outputs, *kept[:2]), shape, gates=4, dtype=dtype)
        elif kind == "gru_after":
            assert bias is not None
            kept = [_gates(p, 4, shape)]
            tensors = (p, weight, bias.contiguous(), hidden, first, outputs, *kept)
            run(loops.gru_after_forward, tensors, shape, gates=3, dtype=dtype)
        elif kind == "gru_before":
            kept = [_gates(p, 3, shape), torch.empty_like(outputs)]
            run(loops.gru_before_forward, (p, weight, hidden, first, outputs, *kept), shape, dtype=dtype)
        else:
            run(loops.rnn_forward, (p, weight, first, outputs), shape, _clip(kind), dtype=dtype, TANH=kind == "tanh")
        ctx.save_for_backward(recurrent, first, outputs, *kept)
        ctx.kind, ctx.omega, ctx.shape, ctx.projected_type = kind, omega, shape, p.dtype
        return (outputs, kept[1][:, -1].clone()) if kind == "lstm" else (outputs,)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        loops, run = _kernels()
        recurrent, first, outputs, *kept = ctx.saved_tensors
        kind, shape, dtype = ctx.kind, ctx.shape, outputs.dtype
        transposed = recurrent.to(dtype).mT.contiguous()  # (K, H, G * H)
        d_outputs = gradients[0].contiguous()
        d_p = outputs.new_empty(*shape[:3], recurrent.shape[1])
        d_inner = d_p  # of U h
        d_initial = [torch.empty(first.shape, dtype=torch.float32, device=first.device)]
        d_bias = None
        if kind == "lstm":
            gates, cells, cell = kept
            d_initial.append(torch.empty_like(d_initial[0]))
            tensors = (d_p, *d_initial, d_outputs, gradients[1].contiguous(), gates, cells, cell, transposed)
            run(loops.lstm_backward, tensors, shape, dtype=dtype)
        elif kind == "gru_after":
            d_inner = torch.empty_like(d_p)
            tensors = (d_p, d_inner, *d_initial, d_outputs, *kept, outputs, first, transposed)
            run(loops.gru_after_backward, tensors, shape, dtype=dtype)
            d_bias = d_inner[..., 2 * shape[3] :].sum((1, 2), dtype=torch.float32)
        elif kind == "gru_before":
            tensors = (d_p, *d_initial, d_outputs, kept[0], outputs, first, transposed)
            run(loops.gru_before_backward, tensors, shape, dtype=dtype)
        else:
            tensors = (d_p, d_outputs, outputs, transposed)
            run(loops.rnn_backward, tensors, shape, _clip(kind), dtype=dtype, TANH=kind == "tanh")
            d_initial = [torch.matmul(d_p[:, 0].float(), recurrent)]
        before = shifted(first, outputs)
        if kind == "gru_before":
            into_gates, into_candidate = d_p.split((2 * shape[3], shape[3]), -1)
            parts = (matrix_gradient(into_gates, before, dtype), matrix_gradient(into_candidate, kept[1], dtype))
            d_recurrent = torch.cat(parts, 1)
        else:
            d_recurrent = matrix_gradient(d_inner, before, dtype)
        d_recurrent = d_recurrent.to(recurrent.dtype)
        if ctx.omega:
            d_recurrent = with_omega(d_recurrent, ctx.omega, d_outputs.float(), d_p.float(), recurrent)
        d_projected = d_p.to(ctx.projected_type).unbind(0)
        return None, None, d_recurrent, d_bias, None, *d_initial, *d_projected


def _gates(p: Tensor, number: int, shape: tuple[int, ...]) -> Tensor:
    """Memory for so many values of each unit, in float32."""
    return p.new_empty(*shape[:3], number * shape[3], dtype=torch.float32)


def _clip(kind: str) -> float:
    return CLIP if kind == "clipped_relu" else math.inf
