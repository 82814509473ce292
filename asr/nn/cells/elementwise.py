"""Recurrences in which each unit sees its own past alone: what they compute, and on what.

    rnn     h' = tanh(p + w h)
    gru     r = s(p_r + w_r h)   z = s(p_z + w_z h)   n = tanh(p_n + w_n (r h))   h' = (1 - z) n + z h
    lstm    i, f, o = s(p + w h)   g = tanh(p_g + w_g h)   c' = f c + i g         h' = o tanh(c')
    linear  h' = a h + b

s is the sigmoid, products are element-wise, gates stand in this order (the LSTM's i, f, g, o), p, a and b are given.
A frame costs a few dozen operations a unit and waits for the one before. torch, called frame by frame, takes longer to
be called than to compute; so there are compiled loops, `_numba` for the CPU and `_triton` for NVIDIA's GPUs, forward
and backward, which compute gates anew in backward rather than keep them. torch's own operations, below, are the
readable form; they run where the loops cannot: while a model is exported, on other devices, and in other types.

float32 values differ from the exact ones by less than 1e-6 a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from asr.nn import gpu_kernels

COMPILED = (torch.float32, torch.float64)  # types of states; projections may be narrower


def recur(
    cell: str, weight: Tensor, initial: tuple[Tensor, ...], projected: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run K chains of a diagonal cell.

    Args:
        cell: rnn, gru or lstm; where `on_cpu`, also min_gru, min_lstm or sru, which have no weight.
        weight: (K, G * H).
        initial: the states before the first frame, each (K, B, H), the hidden one first.
        projected: K times (S, B, G * H), at least one frame.

    Returns:
        Hidden states (K, S, B, H), and all states after the last frame, each (K, B, H).
    """
    loops = _loops(weight)
    if loops is None:
        return _by_frame(STEPS[cell], weight, initial, projected)
    if not weight.is_cuda:  # NumPy has no arithmetic for float16
        projected = [chain.to(weight.dtype) if chain.dtype == torch.float16 else chain for chain in projected]
    outputs, *others = _Diagonal.apply(loops, cell, len(initial), weight, *initial, *projected)
    return outputs, (outputs[:, -1], *others)


def linear_recurrence(keep: Tensor, add: Tensor, initial: Tensor) -> Tensor:
    """h[t] = keep[t] * h[t - 1] + add[t]: (K, S, B, H) twice and (K, B, H) -> (K, S, B, H)."""
    loops = _loops(keep) if keep.shape[1] > 1 else None  # a single frame is one operation as it stands
    if loops is not None:
        states = _Linear.apply(loops, keep, add, initial)
        assert isinstance(states, Tensor)
        return states
    states = []
    for factor, term in zip(keep.unbind(1), add.unbind(1), strict=True):
        states.append(torch.addcmul(term, factor, states[-1] if states else initial))
    return torch.stack(states, 1)


def on_cpu(like: Tensor) -> bool:
    """Whether the compiled loops for the CPU take this tensor; they know the cells of `asr.nn.cells.linear` as well."""
    loops = _loops(like)
    return loops is not None and loops.__name__.endswith("_numba")


def _loops(like: Tensor) -> ModuleType | None:
    """The compiled loops for this tensor. Imported here: numba takes 0.4 s, and most processes run no recurrence."""
    if like.dtype not in COMPILED or torch.compiler.is_compiling():
        return None
    if gpu_kernels.are_run(like):
        from asr.nn.cells import _triton

        return _triton
    if like.device.type != "cpu":
        return None
    from asr.nn.cells import _numba

    return _numba


class _Diagonal(torch.autograd.Function):
    """(loops, cell, N, weight, N initial states, K projections) -> hidden states, last values of the other states."""

    @staticmethod
    def forward(ctx, loops: ModuleType, cell: str, num_states: int, weight: Tensor, *tensors: Tensor) -> Any:
        initial, projected = tensors[:num_states], tensors[num_states:]
        states = loops.forward(cell, weight, initial, projected)
        ctx.loops, ctx.cell, ctx.num_states = loops, cell, num_states
        ctx.save_for_backward(weight, *states, *tensors)
        return states[0], *(state[:, -1].clone() for state in states[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        d_outputs, *d_last = gradients
        weight, *tensors = ctx.saved_tensors
        n = ctx.num_states
        states, initial, projected = tuple(tensors[:n]), tuple(tensors[n : 2 * n]), tensors[2 * n :]
        d_weight, d_initial, d_projected = ctx.loops.backward(
            ctx.cell, weight, initial, projected, states, d_outputs, tuple(d_last)
        )
        return None, None, None, d_weight, *d_initial, *d_projected


class _Linear(torch.autograd.Function):
    """(loops, keep, add, initial) -> states."""

    @staticmethod
    def forward(ctx, loops: ModuleType, keep: Tensor, add: Tensor, initial: Tensor) -> Tensor:
        states = loops.linear(keep, add, initial)
        ctx.loops = loops
        ctx.save_for_backward(keep, states, initial)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        keep, states, initial = ctx.saved_tensors
        return None, *ctx.loops.linear_gradients(keep, initial, states, gradients[0])


def _by_frame(
    step: Callable[..., tuple[Tensor, ...]],
    weight: Tensor,
    states: tuple[Tensor, ...],
    projected: Sequence[Tensor],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The same by torch's operations."""
    size = states[0].shape[-1]
    weights = weight[:, None].split(size, -1)  # each (K, 1, H)
    outputs = []
    for frame in torch.stack(tuple(projected)).to(weight.dtype).unbind(1):
        states = step(frame.split(size, -1), weights, *states)
        outputs.append(states[0])
    return torch.stack(outputs, 1), states


Parts = tuple[Tensor, ...]  # one of each gate, (K, B, H) or (K, 1, H)


def _rnn_step(p: Parts, w: Parts, h: Tensor) -> tuple[Tensor, ...]:
    return (torch.tanh(p[0] + w[0] * h),)


def _gru_step(p: Parts, w: Parts, h: Tensor) -> tuple[Tensor, ...]:
    r, z = torch.sigmoid(p[0] + w[0] * h), torch.sigmoid(p[1] + w[1] * h)
    return (torch.lerp(torch.tanh(p[2] + w[2] * (r * h)), h, z),)


def _lstm_step(p: Parts, w: Parts, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    i, f, g, o = (from_input + from_past * h for from_input, from_past in zip(p, w, strict=True))
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


STEPS: dict[str, Callable[..., tuple[Tensor, ...]]] = {"rnn": _rnn_step, "gru": _gru_step, "lstm": _lstm_step}
