"""Deep Speech 2's convolutions over the spectrogram (section 3.5): conv, masked batch norm, clipped ReLU, mask.

One-dimensional convolutions are two-dimensional ones whose first filter spans all frequencies.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from asr.config.schema import ConvLayer, FrontEnd
from asr.nn import convolution_on_gpu, products
from asr.nn.batch_norm import MaskedBatchNorm
from asr.nn.masking import zero_padding


def build(config: FrontEnd, num_features: int) -> ConvFrontEnd:
    """Make the front end that `config` describes."""
    return ConvFrontEnd(
        num_features=num_features,
        layers=config.layers,
        kind=config.kind,
        padding=config.padding,
        batch_norm=config.batch_norm,
        clip=config.clip,
        dropout=config.dropout,
    )


class FrontEndState(NamedTuple):
    """For each layer the input frames that later outputs still need: (B, w, F, C)."""

    frames: tuple[Tensor, ...]


class ConvFrontEnd(nn.Module):
    """(B, T, F) features -> (B, S, D) frames, S = ceil(T / time_stride).

    Attributes:
        output_size: D, channels times remaining frequencies.
        time_stride: feature frames an output frame, the product of the layers' strides.
        lookahead_frames: feature frames beyond its own that an output depends on.
    """

    def __init__(
        self,
        *,
        num_features: int,
        layers: tuple[ConvLayer, ...],
        kind: Literal["conv2d", "conv1d"] = "conv2d",
        padding: Literal["same", "causal"] = "same",
        batch_norm: bool = True,
        clip: float = 20.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.layers = nn.ModuleList()
        channels, width, self.time_stride, self.lookahead_frames = 1, num_features, 1, 0
        for layer in layers:
            block = ConvBlock(
                in_channels=channels,
                out_channels=layer.channels,
                time_kernel=layer.time_kernel,
                time_stride=layer.time_stride,
                frequency_kernel=width if kind == "conv1d" else layer.frequency_kernel,
                frequency_stride=1 if kind == "conv1d" else layer.frequency_stride,
                frequency_padding=0 if kind == "conv1d" else layer.frequency_kernel // 2,
                future=0 if padding == "causal" else layer.time_kernel // 2,
                batch_norm=batch_norm,
                clip=clip,
                dropout=dropout,
                feeds_convolution=len(self.layers) + 1 < len(layers),
            )
            self.layers.append(block)
            channels, width = layer.channels, block.output_width(width)
            self.lookahead_frames += block.future * self.time_stride
            self.time_stride *= layer.time_stride
        self.output_size = channels * width

    @property
    def _blocks(self) -> list[ConvBlock]:
        return [block for block in self.layers if isinstance(block, ConvBlock)]

    def frame_count(self, num_frames: int) -> int:
        """Output frames for `num_frames` feature frames."""
        for layer in self._blocks:
            num_frames = math.ceil(num_frames / layer.time_stride)
        return num_frames

    def forward(
        self, features: Float[Tensor, "B T F"], lengths: Int[Tensor, "B"]
    ) -> tuple[Float[Tensor, "B S D"], Int[Tensor, "B"]]:
        """Run whole utterances; padding frames come out as 0."""
        hidden = zero_padding(features, lengths)[..., None]
        for layer in self._blocks:
            hidden, lengths = layer(hidden, lengths)
        return hidden.flatten(2), lengths

    def initial_state(self, batch_size: int, like: Tensor) -> FrontEndState:
        """State before the first frame: each layer has its left padding waiting."""
        frames, width, channels = [], self.num_features, 1
        for layer in self._blocks:
            frames.append(like.new_zeros(batch_size, layer.past, width, channels))
            width, channels = layer.output_width(width), layer.conv.out_channels
        return FrontEndState(tuple(frames))

    def step(self, chunk: Float[Tensor, "B n F"], state: FrontEndState) -> tuple[Tensor, FrontEndState]:
        """Take n >= 0 feature frames, give the output frames that are final."""
        hidden, kept = chunk[..., None], []
        for layer, waiting in zip(self._blocks, state.frames, strict=True):
            hidden, waiting = layer.step(hidden, waiting)
            kept.append(waiting)
        return hidden.flatten(2), FrontEndState(tuple(kept))

    def flush(self, state: FrontEndState) -> Tensor:
        """Give the frames still owed, the missing future counted as 0 by each layer, as `forward` does."""
        first = state.frames[0]
        hidden = first[:, :0]
        for layer, waiting in zip(self._blocks, state.frames, strict=True):
            padding = waiting.new_zeros(waiting.shape[0], layer.future, *waiting.shape[2:])
            hidden, _ = layer.step(torch.cat((hidden, padding), 1), waiting)
        return hidden.flatten(2)


class ConvBlock(nn.Module):
    """Convolution, masked batch norm, clipped ReLU, dropout; frames first, (B, T, F, C)."""

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        time_kernel: int,
        time_stride: int,
        frequency_kernel: int,
        frequency_stride: int,
        frequency_padding: int,
        future: int,
        batch_norm: bool,
        clip: float,
        dropout: float,
        feeds_convolution: bool,
    ) -> None:
        super().__init__()
        self.time_kernel, self.time_stride = time_kernel, time_stride
        self.future, self.past = future, time_kernel - 1 - future
        self.clip = clip
        self.packed: Tensor | None = None
        self.frequency_padding = frequency_padding
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            (time_kernel, frequency_kernel),
            stride=(time_stride, frequency_stride),
            padding=(0, frequency_padding),
            bias=not batch_norm,
        )
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        # A convolution rounds what it reads to autocast's type; with dropout in between, that would be rounding twice.
        narrow = feeds_convolution and not dropout
        self.norm = MaskedBatchNorm(out_channels, clip=clip, narrow=narrow) if batch_norm else None
        self.dropout = nn.Dropout(dropout)

    def output_width(self, width: int) -> int:
        """Frequencies that come out for `width` going in."""
        kernel, stride = self.conv.kernel_size[1], self.conv.stride[1]
        return (width + 2 * self.frequency_padding - kernel) // stride + 1

    def forward(self, hidden: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F, C) with 0 in the padding -> (B, S, F', C'), (B,)."""
        if self.past == self.future:  # torch's convolution pads by itself, without a copy
            out = self._convolve(hidden, self.past)
        else:
            out = self._convolve(F.pad(hidden, (0, 0, 0, 0, self.past, self.future)))
        lengths = (lengths + self.time_stride - 1) // self.time_stride
        return self.dropout(self._activate(out, lengths)), lengths

    def step(self, chunk: Tensor, waiting: Tensor) -> tuple[Tensor, Tensor]:
        """Frames that wait and frames that come -> frames that are final, and those to keep."""
        frames = torch.cat((waiting, chunk), 1)
        ready = max(0, (frames.shape[1] - self.time_kernel) // self.time_stride + 1)
        kept = frames[:, ready * self.time_stride :]
        if not ready:
            width = self.output_width(frames.shape[2])
            return frames.new_zeros(frames.shape[0], 0, width, self.conv.out_channels), kept
        out = self._convolve(frames)
        if self.norm is None:
            return self._clipped(out), kept
        return self.norm(out, torch.full((out.shape[0],), ready, device=out.device)), kept

    @torch.no_grad()
    def fold_norm(self) -> None:
        """Put the running statistics into the convolution, and lay out its filters (`asr.nn.folding`)."""
        if self.norm is not None:
            gain, bias = self.norm.running_gain_and_bias()
            self.conv.weight.mul_(gain[:, None, None, None])
            self.conv.bias = nn.Parameter(bias)
            self.norm = None
        self.packed = products.pack(products.rows_of_filters(self.conv.weight))

    def _activate(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        if self.norm is not None:
            return self.norm(hidden, lengths)
        return zero_padding(self._clipped(hidden), lengths)

    def _clipped(self, out: Tensor) -> Tensor:
        return F.hardtanh(out, 0.0, self.clip, inplace=not torch.is_grad_enabled())

    def _convolve(self, frames: Tensor, time_padding: int = 0) -> Tensor:
        # (B, T, F, C) is torch's channels-last layout of (B, C, T, F): no copy in, no copy out.
        conv, padding = self.conv, (time_padding, self.frequency_padding)
        if not torch.is_grad_enabled() and products.ours(frames):
            padded = F.pad(frames, (0, 0, padding[1], padding[1], padding[0], padding[0]))
            return products.convolve(padded, conv.weight, conv.bias, conv.stride, self.packed)  # pyright: ignore[reportArgumentType]
        image, weight = frames.permute(0, 3, 1, 2), conv.weight
        if image.is_cuda:
            return convolution_on_gpu.convolve(frames, weight, conv.bias, conv.stride, padding).contiguous()  # pyright: ignore[reportArgumentType]
        if not torch.is_grad_enabled():
            out = F.conv2d(image, weight, conv.bias, conv.stride, padding)
        else:
            if torch.is_autocast_enabled("cpu"):
                dtype = torch.get_autocast_dtype("cpu")
                image, weight = image.to(dtype), weight.to(dtype)
            out = _CpuConvolution.apply(image, weight, conv.stride, padding)
            assert isinstance(out, Tensor)
            out = out if conv.bias is None else out + conv.bias[:, None, None]
        return out.permute(0, 2, 3, 1).contiguous()


class _CpuConvolution(torch.autograd.Function):
    """conv2d whose weight gradient is computed in the channels-first layout.

    In the channels-last one oneDNN has no fast kernel for it where there are few utterances in a batch, or long ones: a
    layer of 32 channels took 3.3 s in place of 0.08 for one utterance of 4 s.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(image, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(image, weight, None, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        image, weight = ctx.saved_tensors
        for_image, for_weight = ctx.needs_input_grad[:2]

        def gradient(out: Tensor, image: Tensor, which: list[bool]) -> tuple[Any, ...]:
            return torch.ops.aten.convolution_backward(
                out, image, weight, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1, which
            )

        (out,) = gradients
        image_gradient = gradient(out, image, [True, False, False])[0] if for_image else None
        if for_weight:
            return image_gradient, gradient(out.contiguous(), image.contiguous(), [False, True, False])[1], None, None
        return image_gradient, None, None, None
