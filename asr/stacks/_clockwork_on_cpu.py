"""A clockwork layer's time loop on the CPU: autograd around the loops of `_numba_clockwork`."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from asr.nn.products import transposed_product


def recur(
    projected: Sequence[Float[Tensor, "_ B _"]],
    recurrent: Float[Tensor, "H H"] | None,
    initial: Float[Tensor, "B H"],
    levels: Int[Tensor, "S"],
    runs: Bool[Tensor, "S _ g"],
    frames: Sequence[Int[Tensor, "_"]],
    packed: Float[Tensor, "P"] | None = None,
) -> Float[Tensor, "S B H"]:
    """Run S >= 1 frames from the state `initial`.

    Args:
        projected: for m = 1, 2, .. g in any floating type (S_m, B, m k), of the frames whose level is m.
        recurrent: W; not needed without gradients and with `packed`.
        initial: in the type of the weights.
        levels: the first so many modules hold all that run in a frame.
        runs: of each item, or one for all, whether a module runs.
        frames: for m = 1, 2, .. g those of level m.
        packed: what `pack` made of W.
    """
    # NumPy has no arithmetic for float16
    projected = [part.to(initial.dtype) if part.dtype == torch.float16 else part for part in projected]
    if torch.is_grad_enabled() or packed is None:
        assert recurrent is not None
        outputs = _Loop.apply(levels, runs, frames, recurrent, initial, *projected)
        assert isinstance(outputs, Tensor)
        return outputs
    return _loops().forward(packed, _flat(projected), levels, runs, initial)


def pack(recurrent: Float[Tensor, "H H"], modules: int) -> Float[Tensor, "P"]:
    """What `recur` else makes of W at each call; for weights that do not change any more."""
    return _loops().pack_blocks(recurrent, modules)


def first_columns(packed: Float[Tensor, "P"], depth: int, columns: int) -> Float[Tensor, "_"]:
    """The first columns of a packed matrix with `depth` rows."""
    return _loops().first_columns(packed, depth, columns)


def _loops() -> ModuleType:
    """Imported here: numba takes 0.4 s, and most processes run no clockwork stack."""
    from asr.stacks import _numba_clockwork

    return _numba_clockwork


def _flat(projected: Sequence[Tensor]) -> Tensor:
    parts = [part.flatten() for part in projected if part.numel()] or [projected[0].flatten()]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


class _Loop(torch.autograd.Function):
    """(levels, runs, frames, recurrent, initial, projected_1 .. projected_g) -> outputs."""

    @staticmethod
    def forward(
        ctx: Any,
        levels: Tensor,
        runs: Tensor,
        frames: Sequence[Tensor],
        recurrent: Tensor,
        initial: Tensor,
        *projected: Tensor,
    ) -> Tensor:
        blocks = pack(recurrent, len(projected))
        outputs = _loops().forward(blocks, _flat(projected), levels, runs, initial)
        ctx.save_for_backward(levels, runs, recurrent, initial, outputs, *frames)
        ctx.shapes, ctx.projected_type = [part.shape for part in projected], projected[0].dtype
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        levels, runs, recurrent, initial, outputs, *frames = ctx.saved_tensors
        number = sum(shape.numel() for shape in ctx.shapes)
        d_projected, d_initial = _loops().backward(recurrent, number, levels, runs, outputs, gradients[0])
        parts = d_projected.to(ctx.projected_type).split([shape.numel() for shape in ctx.shapes])
        parts = [part.view(shape) for part, shape in zip(parts, ctx.shapes, strict=True)]
        before = torch.cat((initial[None], outputs[:-1]))
        d_recurrent = torch.zeros_like(recurrent)
        for part, chosen in zip(parts, frames, strict=True):
            previous = before.index_select(0, chosen).flatten(0, 1).to(part.dtype)
            d_recurrent[: part.shape[-1]] += transposed_product(part.flatten(0, 1), previous)
        return None, None, None, d_recurrent, d_initial, *parts
