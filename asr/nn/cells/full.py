"""Recurrences with full matrices: what they compute, and on what.

    tanh, relu, clipped_relu    h' = f(p + U h)
    gru_after, gru_before       `asr.nn.cells.gru` has the equations
    lstm                        `asr.nn.cells.lstm`

A frame waits for the one before, and torch, called frame by frame, takes longer to be called than to compute where
layers are narrow, and computes products of few rows slowly where they are not. So there are loops of our own, forward
and backward: compiled ones for the CPU (`full_on_cpu`) and persistent kernels for NVIDIA's GPUs (`full_on_gpu`).
torch's own operations, below, are the readable form; they run where neither can: while a model is exported, on other
devices, and in other types. Where a GPU cannot run ours, the cells ask cuDNN first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from asr.errors import ConfigError
from asr.nn.cells import full_on_cpu, full_on_gpu
from asr.nn.cells.base import CLIP
from asr.nn.cells.full_on_cpu import Packed

Kind = Literal["tanh", "relu", "clipped_relu", "gru_after", "gru_before", "lstm"]


def recur(
    kind: Kind,
    recurrent: Tensor,
    initial: tuple[Tensor, ...],
    projected: Sequence[Tensor],
    *,
    bias: Tensor | None = None,
    omega: float = 0.0,
    packed: Packed | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run K chains.

    Args:
        kind: of cell.
        recurrent: (K, G * H, H).
        initial: the states before the first frame, each (K, B, H), the hidden one first.
        projected: K times (S, B, G * H), at least one frame, in any floating type.
        bias: (K, H), a gru_after's c.
        omega: weight of the regulariser of `asr.nn.vanishing`, whose gradient joins that of `recurrent`; of the kinds
            with one matrix.
        packed: what `full_on_cpu.pack` made of `recurrent`.

    Returns:
        Hidden states (K, S, B, H), and all states after the last frame, each (K, B, H).

    Raises:
        ConfigError: `omega` where only torch's operations can run.
    """
    if full_on_gpu.fits(recurrent):
        outputs, *others = full_on_gpu.recur(kind, recurrent, initial, projected, bias=bias, omega=omega)
        return outputs, (outputs[:, -1].to(recurrent.dtype), *others)
    if full_on_cpu.fits(recurrent):
        outputs, *others = full_on_cpu.recur(kind, recurrent, initial, projected, bias=bias, omega=omega, packed=packed)
        return outputs, (outputs[:, -1], *others)
    if omega:
        raise ConfigError(
            f"optim.vanishing_regularizer={omega:g}: got {recurrent.dtype} on {recurrent.device}, expected float32 or "
            "float64 on a CPU, or float32 on an NVIDIA GPU from Ampere on"
        )
    return _by_frame(STEPS[kind], recurrent, initial, projected, bias)


def _by_frame(
    step: Callable[..., tuple[Tensor, ...]],
    recurrent: Tensor,
    states: tuple[Tensor, ...],
    projected: Sequence[Tensor],
    bias: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The same by torch's operations."""
    transposed = recurrent.mT
    if bias is not None:
        bias = bias[:, None]
    outputs = []
    for frame in torch.stack(tuple(projected)).to(recurrent.dtype).unbind(1):
        states = step(frame, transposed, bias, *states)
        outputs.append(states[0])
    return torch.stack(outputs, 1), states


def _tanh_step(p: Tensor, weight: Tensor, _: None, h: Tensor) -> tuple[Tensor, ...]:
    return (torch.tanh(p + h @ weight),)


def _relu_step(p: Tensor, weight: Tensor, _: None, h: Tensor) -> tuple[Tensor, ...]:
    return (torch.relu(p + h @ weight),)


def _clipped_relu_step(p: Tensor, weight: Tensor, _: None, h: Tensor) -> tuple[Tensor, ...]:
    return (torch.clamp(p + h @ weight, 0.0, CLIP),)


def _gru_after_step(p: Tensor, weight: Tensor, bias: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    p_r, p_z, p_n = p.chunk(3, -1)
    u_r, u_z, u_n = (h @ weight).chunk(3, -1)
    n = torch.tanh(p_n + torch.sigmoid(p_r + u_r) * (u_n + bias))
    return (torch.lerp(n, h, torch.sigmoid(p_z + u_z)),)


def _gru_before_step(p: Tensor, weight: Tensor, _: None, h: Tensor) -> tuple[Tensor, ...]:
    p_r, p_z, p_n = p.chunk(3, -1)
    size = h.shape[-1]
    u_r, u_z = (h @ weight[..., : 2 * size]).chunk(2, -1)
    n = torch.tanh(p_n + (torch.sigmoid(p_r + u_r) * h) @ weight[..., 2 * size :])
    return (torch.lerp(n, h, torch.sigmoid(p_z + u_z)),)


def _lstm_step(p: Tensor, weight: Tensor, _: None, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    i, f, g, o = (p + h @ weight).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


STEPS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "tanh": _tanh_step,
    "relu": _relu_step,
    "clipped_relu": _clipped_relu_step,
    "gru_after": _gru_after_step,
    "gru_before": _gru_before_step,
    "lstm": _lstm_step,
}
