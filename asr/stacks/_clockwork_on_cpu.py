"""A clockwork layer on the CPU: autograd around the loops of `_numba_clockwork` and the products around them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from asr.nn import products


class Clock(NamedTuple):
    """Which modules run in the next frames.

    runs: (S, B, g), or (S, 1, g) of streams of one age; on the CPU.
    levels: (S,), 0 to g: the first so many modules hold all that run in a frame; on the CPU.
    order: (S,), the frames by level, and in order within one; on the inputs' device.
    counts: how many frames have level 0, 1, .. g.
    is_prefix: whether those modules all run.
    """

    runs: Bool[Tensor, "S _ g"]
    levels: Int[Tensor, "S"]
    order: Int[Tensor, "S"]
    counts: list[int]
    is_prefix: bool

    def by_level(self) -> list[tuple[int, Int[Tensor, "_"]]]:
        """Each level from 1 on that some frames have, and these."""
        return [(m, frames) for m, frames in enumerate(self.order.split(self.counts)) if m and self.counts[m]]


def run(
    inputs: Float[Tensor, "S B D"],
    initial: Float[Tensor, "B H"],
    weight: Float[Tensor, "H D"],
    bias: Float[Tensor, "H"],
    blocks: nn.ParameterList,
    clock: Clock,
    packed: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Float[Tensor, "S B H"]:
    """Run S >= 1 frames.

    Args:
        inputs: x.
        initial: the state before the first frame.
        weight: V.
        bias: b.
        blocks: W; for i = 1, .. g what module i reads of itself and the slower modules, (k, (g - i + 1) k).
        clock: says which modules run.
        packed: V and W, laid out for good.
    """
    initial = initial.to(weight.dtype)
    if torch.is_grad_enabled():
        outputs = _Layer.apply(clock, inputs, initial, weight, bias, *blocks)
        assert isinstance(outputs, Tensor)
        return outputs
    laid_out, of_blocks = (products.unless_moved(tensor, weight) for tensor in packed)
    if laid_out is None:
        laid_out = products.pack(weight)
    projected = []
    for level, part in _parts(inputs, clock):
        rows = level * len(weight) // len(blocks)
        prefix = None if laid_out is None else _loops().first_columns(laid_out, weight.shape[1], rows)
        projected.append(products.linear(part, weight[:rows], bias[:rows], prefix))
    of_blocks = pack(blocks) if of_blocks is None else of_blocks
    return _loops().forward(of_blocks, _flat(projected, initial), clock.levels, clock.runs, initial)[1:]


def pack(blocks: Iterable[Float[Tensor, "k _"]]) -> Float[Tensor, "P"]:
    """What `run` else makes of W at each call; for weights that do not change any more."""
    return _loops().pack_blocks(blocks)


def _loops() -> ModuleType:
    """Imported here: numba takes 0.4 s, and most processes run no clockwork stack."""
    from asr.stacks import _numba_clockwork

    return _numba_clockwork


def _parts(inputs: Tensor, clock: Clock) -> list[tuple[int, Tensor]]:
    """Each level from 1 on that some frames have, and what these hold."""
    if max(clock.counts) == len(clock.order):  # as in a step of one frame
        level = clock.counts.index(len(clock.order))
        return [(level, inputs)] if level else []
    ordered = inputs.index_select(0, clock.order).split(clock.counts)
    return [(level, part) for level, part in enumerate(ordered) if level and clock.counts[level]]


def _flat(projected: Sequence[Tensor], like: Tensor) -> Tensor:
    """As the loops read it; NumPy has no arithmetic for float16."""
    flat = torch.cat([part.flatten() for part in projected]) if projected else like.new_empty(0)
    return flat.to(like.dtype) if flat.dtype == torch.float16 else flat


class _Layer(torch.autograd.Function):
    """(clock, inputs, initial, weight, bias, block_1 .. block_g) -> outputs.

    V is laid out once for the products of all levels.
    """

    @staticmethod
    def forward(
        ctx: Any, clock: Clock, inputs: Tensor, initial: Tensor, weight: Tensor, bias: Tensor, *blocks: Tensor
    ) -> Tensor:
        packed, projected = None, []
        for level, part in _parts(inputs, clock):
            rows = level * len(weight) // len(blocks)
            if not products.ours(part, part.numel() * rows, training=True):
                projected.append(F.linear(part, weight[:rows], bias[:rows]))
                continue
            if packed is None:
                packed = _loops().pack(weight.mT)
            prefix = _loops().first_columns(packed, weight.shape[1], rows)
            projected.append(products.linear(part, weight[:rows], bias[:rows], prefix))
        flat = _flat(projected, initial)
        states = _loops().forward(pack(blocks), flat, clock.levels, clock.runs, initial)
        ctx.save_for_backward(inputs, weight, states, *blocks)
        ctx.clock, ctx.number = clock, flat.numel()
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs, weight, states, *blocks = ctx.saved_tensors
        clock, size = ctx.clock, len(weight)
        wanted = ctx.needs_input_grad[1]  # the inputs' gradient
        recurrent = torch.cat([F.pad(block, (size - block.shape[1], 0)) for block in blocks])
        d_projected, d_inputs, d_initial = _loops().backward(
            recurrent, weight if wanted else weight[:, :0], ctx.number, clock.levels, clock.runs, states, gradients[0]
        )
        values = inputs.to(weight.dtype) if inputs.dtype == torch.float16 else inputs
        d_weight, d_recurrent, d_bias = torch.zeros_like(weight), torch.zeros_like(recurrent), weight.new_zeros(size)
        at = 0
        for level, chosen in clock.by_level():
            shape = len(chosen), inputs.shape[1], level * size // len(blocks)
            d_part = d_projected[at : at + math.prod(shape)].view(shape)
            at += d_part.numel()
            d_weight[: shape[-1]] += _loops().matrix_gradient(d_part, values, chosen)
            d_recurrent[: shape[-1]] += _loops().matrix_gradient(d_part, states, chosen)
            d_bias[: shape[-1]] += d_part.sum((0, 1))
        d_rows = d_recurrent.split(size // len(blocks))
        d_blocks = [d_row[:, -block.shape[1] :] for d_row, block in zip(d_rows, blocks, strict=True)]
        return None, d_inputs.to(inputs.dtype) if wanted else None, d_initial, d_weight, d_bias, *d_blocks
