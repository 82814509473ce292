"""Batch norm in training on an NVIDIA GPU: autograd around the kernels of `_triton_batch_norm`.

Computes what `asr.nn.batch_norm` computes, which is bound by how often activations pass through memory: torch's
operations, one after the other, move several times the bytes. x is read in the type in which it comes, and y is not
kept for backward.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from asr.nn import gpu_kernels
from asr.nn.distributed import sum_over_ranks

TYPES = (torch.float32, torch.bfloat16, torch.float16)  # of activations; statistics and parameters are float32


def fits(hidden: Tensor, scale: Tensor) -> bool:
    """Whether the kernels take these activations, where they are now."""
    known = hidden.dtype in TYPES and scale.dtype == torch.float32 and hidden.numel() > 0
    return known and gpu_kernels.are_run(hidden)


def normalize(
    hidden: Float[Tensor, "B S *F C"],
    lengths: Int[Tensor, "B"],
    scale: Float[Tensor, "C"],
    shift: Float[Tensor, "C"],
    *,
    clip: float | None,
    epsilon: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give y = clip(scale (x - mean) / sqrt(variance + epsilon) + shift) of the real frames, and 0 in padding.

    Args:
        hidden: x; its padding may hold anything.
        lengths: real frames of each item.
        scale: gradients flow to it, to `shift` and to `hidden`.
        shift: see `scale`.
        clip: None, or y is clipped to between 0 and this.
        epsilon: added to the variance.
        dtype: of y.

    Returns:
        y, and of the global batch: mean (C,), variance (C,) and number of real rows, float32.
    """
    return _Normalize.apply(hidden, lengths, scale, shift, clip, epsilon, dtype)  # pyright: ignore[reportReturnType]


def moments(
    inputs: Float[Tensor, "B S D"], lengths: Int[Tensor, "B"], dtype: torch.dtype
) -> tuple[Float[Tensor, "D"], Float[Tensor, "D D"], Float[Tensor, ""]]:
    """Mean of all ranks' real frames, this rank's share of their covariance times their number, and their number.

    The gradient is that for inputs whose padding gets none; what it holds for padding is of no use.

    Args:
        inputs: x; its padding may hold anything.
        lengths: real frames of each item.
        dtype: of the results, float32.
    """
    return _Moments.apply(inputs, lengths, dtype)  # pyright: ignore[reportReturnType]


def _kernels() -> ModuleType:
    from asr.nn import _triton_batch_norm  # where there is Triton

    return _triton_batch_norm


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        lengths: Tensor,
        scale: Tensor,
        shift: Tensor,
        clip: float | None,
        epsilon: float,
        dtype: torch.dtype,
    ) -> Any:
        kernels = _kernels()
        x, lengths = _dense(x), lengths.contiguous()
        real_rows = (lengths.sum() * (x[0, 0].numel() // x.shape[-1])).float()
        sums = sum_over_ranks(torch.cat((kernels.sums(x, lengths), real_rows[None])))
        real_rows = sums[-1]
        count = real_rows.clamp(min=1)
        exact_mean, square = (sums[:-1].double() / count).chunk(2)
        variance = (square - exact_mean.square()).clamp(min=0.0).float()
        mean, inverse = exact_mean.float(), torch.rsqrt(variance + epsilon)
        gain = scale * inverse
        y = kernels.normalize(x, lengths, mean, gain, shift, clip, dtype)
        ctx.save_for_backward(x, lengths, count, mean, inverse, gain, shift)
        ctx.clip = clip
        ctx.mark_non_differentiable(mean, variance, real_rows)
        return y, mean, variance, real_rows

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, lengths, count, mean, inverse, gain, shift = ctx.saved_tensors
        kernels = _kernels()
        dy = _arranged(gradients[0], x)
        d_shift, d_scale = kernels.gradient_sums(x, dy, lengths, mean, gain, shift, ctx.clip).chunk(2)
        d_scale = d_scale * inverse
        # A rank's own sums are its share of d_scale and d_shift; the input's gradient needs the whole batch's.
        mean_dy, mean_dy_x = (sum_over_ranks(torch.cat((d_shift, d_scale))) / count).chunk(2)
        mean_slope = gain * inverse * mean_dy_x
        dx = kernels.gradient(x, dy, lengths, mean, gain, shift, mean_dy, mean_slope, ctx.clip)
        return dx, None, d_scale, d_shift, None, None, None


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, lengths: Tensor, dtype: torch.dtype) -> Any:
        kernels = _kernels()
        x, lengths = _dense(x), lengths.contiguous()
        size = x.shape[-1]
        sums = sum_over_ranks(torch.cat((kernels.sums(x, lengths)[:size], lengths.sum().to(dtype)[None])))
        count = sums[-1]
        divisor = count.clamp(min=1)
        mean = sums[:-1] / divisor
        one, zero = mean.new_ones(size), mean.new_zeros(size)
        centred = kernels.normalize(x, lengths, mean, one, zero, None, dtype)
        ctx.frames_first, ctx.dtype = not x.is_contiguous(), x.dtype
        if ctx.frames_first:
            centred = centred.transpose(0, 1)
        ctx.shape = centred.shape
        centred = centred.flatten(0, 1)
        ctx.save_for_backward(centred, divisor)
        ctx.mark_non_differentiable(count)
        return mean, centred.T @ centred, count

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        centred, divisor = ctx.saved_tensors
        d_mean, d_covariance, _ = gradients
        # Through the mean that is subtracted nothing flows: over all ranks, what is centred adds up to 0.
        d_sums = sum_over_ranks(d_mean) / divisor
        with torch.autocast(centred.device.type, enabled=False):
            d_x = torch.addmm(d_sums, centred, d_covariance + d_covariance.T)
        d_x = d_x.to(ctx.dtype).view(ctx.shape)
        return d_x.transpose(0, 1) if ctx.frames_first else d_x, None, None


def _dense(x: Tensor) -> Tensor:
    """Give x without gaps, items first in memory, or frames first."""
    return x if x.is_contiguous() or (x.dim() == 3 and x.transpose(0, 1).is_contiguous()) else x.contiguous()


def _arranged(dy: Tensor, x: Tensor) -> Tensor:
    """Give dy in memory as x is."""
    return dy if dy.stride() == x.stride() else torch.empty_like(x, dtype=dy.dtype).copy_(dy)
