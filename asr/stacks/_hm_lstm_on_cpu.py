"""The hierarchical multiscale LSTM on the CPU: autograd around the loops of `_numba_hm_lstm`."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from asr.nn import products

NORM_EPSILON = 1e-5  # torch's LayerNorm
Packed = tuple[Tensor, Tensor]  # columns of the gates, and those of the detectors


def recur(
    projected: Tensor,
    state: Sequence[Tensor],
    slope: Tensor,
    thresholds: Tensor | None,
    parameters: Sequence[Sequence[Tensor]],
    *,
    packed: Packed | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run all layers over all frames.

    Args:
        projected: (S, B, 4D + 1), W x of layer 1.
        state: hidden and cell (B, L, D), boundary (B, L - 1).
        slope: a.
        thresholds: (S, L - 1, B, 1), z = p > threshold; None: z = p.
        parameters: weights, biases, scales (none without layer norm), of each layer.
        packed: what `pack` made of the weights.

    Returns:
        h (S, B, L, D), z (S, B, L - 1; its gradient stays inside) and the last c (B, L, D).
    """
    weights, biases, scales = parameters
    if torch.is_grad_enabled():
        return _Loop.apply(projected, *state, slope, thresholds, len(weights), *weights, *biases, *scales)  # pyright: ignore[reportReturnType]
    packed = products.unless_moved(packed, weights[0])
    result = loops().forward(projected, state, slope, thresholds, *parameters, keeps=False, packed=packed)
    return result.outputs, result.boundaries, result.cells[-1]


def loops() -> ModuleType:
    """Imported here: numba takes 0.4 s, and most processes have no use for it."""
    from asr.stacks import _numba_hm_lstm

    return _numba_hm_lstm


class _Loop(torch.autograd.Function):
    """(projected, hidden, cell, boundary, slope, thresholds, L, weights, biases, scales) -> as `recur` gives."""

    @staticmethod
    def forward(
        ctx,
        projected: Tensor,
        hidden: Tensor,
        cell: Tensor,
        boundary: Tensor,
        slope: Tensor,
        thresholds: Tensor | None,
        layers: int,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights, biases, scales = parameters[:layers], parameters[layers : 2 * layers], parameters[2 * layers :]
        state = (hidden, cell, boundary)
        kept = loops().forward(projected, state, slope, thresholds, weights, biases, scales, keeps=True, packed=None)
        ctx.save_for_backward(*state, slope, *kept, *weights, *scales)
        ctx.layers, ctx.number = layers, len(kept)
        ctx.mark_non_differentiable(kept.boundaries)
        return kept.outputs, kept.boundaries, kept.cells[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        d_outputs, _, d_cell = gradients
        hidden, cell, boundary, slope, *rest = ctx.saved_tensors
        layers, number = ctx.layers, ctx.number
        kept, weights, scales = loops().Kept(*rest[:number]), rest[number:][:layers], rest[number + layers :]
        state = (hidden, cell, boundary)
        d_gates, d_sums, d_state = loops().backward(d_outputs, d_cell, state, slope, weights, scales, kept)
        before = torch.cat((hidden[None], kept.outputs[:-1]))
        flush = torch.cat((boundary[None], kept.boundaries[:-1]))[..., None]
        d_weights = []
        for layer, weight in enumerate(weights):
            operands = [before[:, :, layer]]
            if layer < layers - 1:
                operands.append(flush[:, :, layer] * before[:, :, layer + 1])
            if layer:
                operands.append(kept.boundaries[:, :, layer - 1, None] * kept.outputs[:, :, layer - 1])
            # The narrower factor is the second, which is copied.
            factors = d_sums[layer].flatten(0, 1), torch.cat(operands, -1).flatten(0, 1)
            d_weights.append(products.transposed_product(*factors)[: weight.shape[1]].mT)
        d_biases = _of_each(d_gates.sum((1, 2)), weights)
        d_scales = _of_each((d_gates * kept.normalised).sum((1, 2)), weights) if scales else []
        d_projected = d_sums[0, ..., : weights[0].shape[1]]
        return d_projected, *d_state, None, None, None, *d_weights, *d_biases, *d_scales


def _of_each(features: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Each layer's part of (L, 4D + 1)."""
    return [row[: weight.shape[1]] for row, weight in zip(features, weights, strict=True)]
