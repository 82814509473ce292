"""A clockwork layer on the CPU: autograd around the loops of `_numba_clockwork` and the products around them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from asr.nn import products


def run(
    inputs: Float[Tensor, "S B D"],
    initial: Float[Tensor, "B H"],
    weight: Float[Tensor, "H D"],
    bias: Float[Tensor, "H"],
    blocks: Sequence[Float[Tensor, "k _"]],
    levels: Int[Tensor, "S"],
    runs: Bool[Tensor, "S _ g"],
    frames: Sequence[Int[Tensor, "_"]],
    packed: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Float[Tensor, "S B H"]:
    """Run S >= 1 frames.

    Args:
        inputs: x.
        initial: the state before the first frame.
        weight: V.
        bias: b.
        blocks: W; for i = 1, .. g what module i reads of itself and the slower modules, (k, (g - i + 1) k).
        levels: of a frame; the first so many modules hold all that run in it.
        runs: of each item, or one for all, whether a module runs.
        frames: for m = 0, .. g those of level m.
        packed: V and W, laid out for good.
    """
    initial = initial.to(weight.dtype)
    if torch.is_grad_enabled():
        outputs = _Layer.apply(levels, runs, frames, inputs, initial, weight, bias, *blocks)
        assert isinstance(outputs, Tensor)
        return outputs
    packed_weight, packed_blocks = (
        None if tensor is None or tensor.dtype != weight.dtype else tensor  # moved to another type since
        for tensor in packed
    )
    if packed_weight is None:
        packed_weight = products.pack(weight)
    parts = _by_level(inputs, frames)
    projected = []
    for part, rows in zip(parts, _rows(frames, len(weight)), strict=True):
        if len(part):
            prefix = packed_weight
            if prefix is not None:
                prefix = _loops().first_columns(prefix, weight.shape[1], rows)
            projected.append(products.linear(part, weight[:rows], bias[:rows], prefix))
    if packed_blocks is None:
        packed_blocks = pack(blocks)
    return _loops().forward(packed_blocks, _flat(projected, initial), levels, runs, initial)[1:]


def pack(blocks: Sequence[Float[Tensor, "k _"]]) -> Float[Tensor, "P"]:
    """What `run` else makes of W at each call; for weights that do not change any more."""
    return _loops().pack_blocks(blocks)


def _loops() -> ModuleType:
    """Imported here: numba takes 0.4 s, and most processes run no clockwork stack."""
    from asr.stacks import _numba_clockwork

    return _numba_clockwork


def _rows(frames: Sequence[Tensor], size: int) -> list[int]:
    """Units of the first 1, 2, .. g modules."""
    modules = len(frames) - 1
    return [level * size // modules for level in range(1, modules + 1)]


def _by_level(inputs: Tensor, frames: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The frames of level 1, .. g."""
    return inputs.index_select(0, torch.cat(tuple(frames[1:]))).split([len(chosen) for chosen in frames[1:]])


def _flat(projected: Sequence[Tensor], like: Tensor) -> Tensor:
    """As the loops read it; NumPy has no arithmetic for float16."""
    flat = torch.cat([part.flatten() for part in projected]) if projected else like.new_empty(0)
    return flat.to(like.dtype) if flat.dtype == torch.float16 else flat


class _Layer(torch.autograd.Function):
    """(levels, runs, frames, inputs, initial, weight, bias, block_1 .. block_g) -> outputs.

    V is laid out once for the products of all levels.
    """

    @staticmethod
    def forward(
        ctx: Any,
        levels: Tensor,
        runs: Tensor,
        frames: Sequence[Tensor],
        inputs: Tensor,
        initial: Tensor,
        weight: Tensor,
        bias: Tensor,
        *blocks: Tensor,
    ) -> Tensor:
        parts, packed = _by_level(inputs, frames), None
        projected = []
        for part, rows in zip(parts, _rows(frames, len(weight)), strict=True):
            if not products.ours(part, part.numel() * rows, training=True):
                projected.append(F.linear(part, weight[:rows], bias[:rows]))
                continue
            if packed is None:
                packed = _loops().pack(weight.mT)
            prefix = _loops().first_columns(packed, weight.shape[1], rows)
            projected.append(products.linear(part, weight[:rows], bias[:rows], prefix))
        flat = _flat(projected, initial)
        states = _loops().forward(pack(blocks), flat, levels, runs, initial)
        ctx.save_for_backward(levels, runs, inputs, weight, states, *frames, *blocks)
        ctx.number = flat.numel()
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        levels, runs, inputs, weight, states, *others = ctx.saved_tensors
        modules, size = runs.shape[-1], len(weight)
        frames, blocks = others[: modules + 1], others[modules + 1 :]
        wanted = ctx.needs_input_grad[3]  # the inputs' gradient
        recurrent = torch.cat([F.pad(block, (size - block.shape[1], 0)) for block in blocks])
        d_projected, d_inputs, d_initial = _loops().backward(
            recurrent, weight if wanted else weight[:, :0], ctx.number, levels, runs, states, gradients[0]
        )
        values = inputs.to(weight.dtype) if inputs.dtype == torch.float16 else inputs
        d_weight, d_recurrent, d_bias = torch.zeros_like(weight), torch.zeros_like(recurrent), weight.new_zeros(size)
        at = 0
        for chosen, rows in zip(frames[1:], _rows(frames, size), strict=True):
            shape = len(chosen), inputs.shape[1], rows
            d_part = d_projected[at : at + math.prod(shape)].view(shape)
            at += d_part.numel()
            if len(d_part):
                d_weight[:rows] += _loops().matrix_gradient(d_part, values, chosen)
                d_recurrent[:rows] += _loops().matrix_gradient(d_part, states, chosen)
                d_bias[:rows] += d_part.sum((0, 1))
        d_rows = d_recurrent.split(size // modules)
        d_blocks = [d_row[:, -block.shape[1] :] for d_row, block in zip(d_rows, blocks, strict=True)]
        return None, None, None, d_inputs.to(inputs.dtype) if wanted else None, d_initial, d_weight, d_bias, *d_blocks
