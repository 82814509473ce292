"""Convolutions in the shapes for which cuDNN has fast kernels.

Given as most write them, some layers take several times what the GPU needs (bf16 on an H200; 64 utterances of 15 s):

- of a dilated convolution the weight's gradient is computed without tensor cores: 12.1 ms in place of 0.7 for 800
  units and a kernel of 5;
- for an image of one channel so is everything: 27 ms in place of 3.6, forward and backward, for the first layer of
  Deep Speech 2;
- a layer of 32 filters leaves half of a tensor core's tile empty: 13.7 ms in place of 9.2 for the second one.

All are other layers' products in another order, and here they are given as those.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from asr.nn.cells.base import product_type

CHANNELS = 8  # tensor cores take channels in multiples of so many
FEW_FILTERS = 32  # half of a tile
LARGEST_KERNEL = 1.25  # times the given one: in which two outputs are computed together


def convolve_dilated(
    padded: Float[Tensor, "B P C"], weight: Float[Tensor, "D k C"], bias: Float[Tensor, "D"] | None, dilation: int
) -> Float[Tensor, "B S D"]:
    """out[t] = bias + sum over j of weight[:, j] padded[t + j dilation].

    Frames that are `dilation` apart are the ones that meet: they stand below each other in an image of P / dilation
    rows, without being moved, and the kernel is a column of k neighbours. P is best a multiple of `dilation`: else
    frames are copied to fill the last row, and the result is not contiguous.
    """
    (batch, frames, units), (outputs, kernel, _) = padded.shape, weight.shape
    missing = -frames % dilation
    if missing:
        padded = torch.cat((padded, padded.new_zeros(batch, missing, units)), dim=1)
    image = padded.reshape(batch, -1, dilation, units).permute(0, 3, 1, 2)  # channels last in memory
    out = F.conv2d(image, weight.mT[..., None], bias)
    out = out.permute(0, 2, 3, 1).reshape(batch, -1, outputs)
    return out[:, : frames - (kernel - 1) * dilation]


def convolve(
    frames: Float[Tensor, "B T F C"],
    weight: Float[Tensor, "E C t f"],
    bias: Float[Tensor, "E"] | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Float[Tensor, "B S G E"]:
    """What torch's `conv2d` gives, channels last."""
    frames = frames.to(product_type(frames))  # before they are copied, perhaps several times
    if weight.shape[1] < CHANNELS:
        return convolve_few_channels(frames, weight, bias, stride, padding)
    pair = pair_taps(weight.shape[3], stride[1]) * 2 * stride[1]
    if len(weight) <= FEW_FILTERS and pair <= LARGEST_KERNEL * weight.shape[3]:
        return convolve_few_filters(frames, weight, bias, stride, padding)
    return F.conv2d(frames.permute(0, 3, 1, 2), weight, bias, stride, padding).permute(0, 2, 3, 1)


def convolve_few_channels(
    frames: Float[Tensor, "B T F C"],
    weight: Float[Tensor, "E C t f"],
    bias: Float[Tensor, "E"] | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Float[Tensor, "B S G E"]:
    """The same, the frames of a window in the place of channels.

    The frames of a window, and as many neighbouring frequencies as the kernel moves by, become the channels of an
    image over which a kernel of one frame moves by one. A window is made longer, by weights of 0, until channels are
    a multiple of `CHANNELS`.
    """
    batch, num_frames, width, channels = frames.shape
    filters, _, time_kernel, frequency_kernel = weight.shape
    out_frames = (num_frames + 2 * padding[0] - time_kernel) // stride[0] + 1
    out_width = (width + 2 * padding[1] - frequency_kernel) // stride[1] + 1

    per_frame = stride[1] * channels
    unit = CHANNELS // math.gcd(CHANNELS, per_frame)
    window = -(-time_kernel // unit) * unit
    taps = -(-frequency_kernel // stride[1])
    after = (out_frames - 1) * stride[0] + window - num_frames - padding[0]  # negative: frames that none reads
    above = (out_width - 1 + taps) * stride[1] - width - padding[1]
    padded = F.pad(frames, (0, 0, padding[1], above, padding[0], after))
    image = padded.reshape(batch, padded.shape[1], -1, per_frame).unfold(1, window, stride[0])  # (B, S, G', c, window)
    image = image.transpose(3, 4).flatten(3)  # a copy: (B, S, G', window c)

    kernel = F.pad(weight, (0, taps * stride[1] - frequency_kernel, 0, window - time_kernel))
    kernel = kernel.reshape(filters, channels, window, taps, stride[1]).permute(0, 2, 4, 1, 3)
    return F.conv2d(image.permute(0, 3, 1, 2), kernel.reshape(filters, -1, 1, taps), bias).permute(0, 2, 3, 1)


def convolve_few_filters(
    frames: Float[Tensor, "B T F C"],
    weight: Float[Tensor, "E C t f"],
    bias: Float[Tensor, "E"] | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Float[Tensor, "B S G E"]:
    """The same, two neighbouring frequencies of the result computed together, as twice as many filters.

    The second one's filters are the first one's, moved by the stride. The frequencies by which the pair moves are
    channels, which lie side by side in memory.
    """
    batch, num_frames, width, channels = frames.shape
    filters, _, time_kernel, frequency_kernel = weight.shape
    out_width = (width + 2 * padding[1] - frequency_kernel) // stride[1] + 1
    pairs, taps, moved = -(-out_width // 2), pair_taps(frequency_kernel, stride[1]), 2 * stride[1]
    above = (pairs - 1 + taps) * moved - width - padding[1]  # negative: frequencies that none reads
    image = F.pad(frames, (0, 0, padding[1], above)).reshape(batch, num_frames, -1, moved * channels)

    spare = taps * moved - frequency_kernel
    kernel = torch.stack((F.pad(weight, (0, spare)), F.pad(weight, (stride[1], spare - stride[1]))))
    kernel = kernel.reshape(2 * filters, channels, time_kernel, taps, moved).permute(0, 4, 1, 2, 3).flatten(1, 2)
    image = image.permute(0, 3, 1, 2)
    out = F.conv2d(image, kernel, None if bias is None else bias.repeat(2), (stride[0], 1), (padding[0], 0))
    return out.permute(0, 2, 3, 1).reshape(batch, -1, 2 * pairs, filters)[:, :, :out_width]


def pair_taps(frequency_kernel: int, frequency_stride: int) -> int:
    """How many steps of a pair of outputs the frequencies that it needs take up."""
    return -(-(frequency_kernel + frequency_stride) // (2 * frequency_stride))
