"""Temporal convolutional network: dilated convolutions in residual blocks (Bai, Kolter, Koltun, arXiv 1803.01271).

Block i, with two convolutions of kernel k and dilation d = 2^i (section 3.3 and figure 1 of the paper):

    u = drop(relu(conv(x)))    u = drop(relu(conv(u)))    out = relu(u + x)    conv(x)[t] = b + sum_j W_j x[t - j d]

x passes through a 1x1 convolution on its way around where the widths differ, which is the first block. Each W is
weight-normed: g v / |v|, one g for each output unit.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from asr.config.options import PositiveInt, Probability, StackOptions
from asr.nn import products
from asr.nn.batch_norm import EPSILON, MaskedBatchNorm
from asr.nn.cells.base import product_type
from asr.nn.convolution_on_gpu import convolve_dilated
from asr.nn.masking import Padding
from asr.nn.products import Linear
from asr.stacks.base import Stack

FEW_FRAMES = 32  # up to so many, of all items together, a product of gathered frames is faster than a convolution


class Config(StackOptions):
    """Options of `stack=tcn`."""

    num_layers: PositiveInt = Field(4, description="residual blocks, two convolutions each; block i has dilation 2^i")
    hidden_size: PositiveInt = 256
    kernel_size: PositiveInt = Field(5, description="frames that a convolution mixes; odd with padding=centred")
    padding: Literal["causal", "centred"] = Field(
        "causal",
        description="causal: frame t and earlier ones, as in the paper; centred: as many later as earlier frames,"
        " (kernel_size - 1) * (2^num_layers - 1) of each, which is the delay when it streams",
    )
    dropout: Probability = Field(0.0, description="after each convolution")
    dropout_kind: Literal["channel", "element"] = Field(
        "channel", description="channel: a unit in all frames of an utterance (the paper); element (the paper's code)"
    )
    batch_norm: bool = Field(False, description="after each convolution, in place of the paper's weight norm")


def build(config: Config, input_size: int) -> Tcn:
    """Make the stack that `config` describes."""
    return Tcn(
        input_size=input_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        kernel_size=config.kernel_size,
        padding=config.padding,
        dropout=config.dropout,
        dropout_kind=config.dropout_kind,
        batch_norm=config.batch_norm,
    )


class TcnState(NamedTuple):
    """What each block still needs of the frames that it has heard; w grows up to the bound given, and then stays.

    Attributes:
        first: for each block (B, w, D_in), last inputs of its first convolution, w <= (k - 1) d; when causal w is
            that from the start.
        second: for each block (B, w, D), last inputs of its second convolution, likewise.
        around: for each block (B, w, D), frames on their way around that the convolutions have not caught up with,
            w <= (k - 1) d; none when causal.
    """

    first: tuple[Tensor, ...]
    second: tuple[Tensor, ...]
    around: tuple[Tensor, ...]


class Tcn(Stack):
    """L residual blocks; see `Config` for the options.

    Initialisation is what the published results were had with: torch's default for the convolutions (the paper's
    N(0, 0.01) has no effect in its code, where weight norm overwrites it) and N(0, 0.01) for the 1x1 convolution.
    """

    def __init__(
        self,
        *,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        kernel_size: int,
        padding: Literal["causal", "centred"] = "causal",
        dropout: float = 0.0,
        dropout_kind: Literal["channel", "element"] = "channel",
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if padding == "centred" and kernel_size % 2 == 0:
            raise ValueError(
                f"stack.kernel_size: got {kernel_size} with stack.padding=centred, expected an odd number, so that a "
                "frame has as many neighbours before it as after it"
            )
        self.output_size = hidden_size
        self.blocks = nn.ModuleList(
            TcnBlock(
                hidden_size if index else input_size,
                hidden_size,
                kernel_size=kernel_size,
                dilation=2**index,
                centred=padding == "centred",
                dropout=dropout,
                dropout_kind=dropout_kind,
                batch_norm=batch_norm,
            )
            for index in range(num_layers)
        )
        reach = 2 * (kernel_size - 1) * (2**num_layers - 1)  # of 2 convolutions in each block
        self.lookahead_frames = reach // 2 if padding == "centred" else 0
        self.past_frames = reach - self.lookahead_frames

    def forward(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        frames = inputs.shape[1]
        if inputs.is_cuda:  # whole rows of every dilation
            inputs = F.pad(inputs, (0, 0, 0, -frames % 2 ** (len(self.blocks) - 1)))
        padding = Padding(lengths, inputs.shape[1])
        hidden = padding.zero(inputs)
        for block in self.blocks:
            hidden = block(hidden, lengths, padding)
        return padding.zero(hidden)[:, :frames], lengths

    def initial_state(self, batch_size: int, like: Tensor) -> TcnState:
        states = (block.initial_state(batch_size, like) for block in self._typed_blocks())
        return TcnState(*zip(*states, strict=True))

    def step(self, chunk: Tensor, state: TcnState) -> tuple[Tensor, TcnState]:
        return self._advance(chunk, state, ends=False)

    def flush(self, state: TcnState) -> Tensor:
        nothing = state.first[0][:, :0]
        return self._advance(nothing, state, ends=True)[0]

    def _advance(self, hidden: Tensor, state: TcnState, *, ends: bool) -> tuple[Tensor, TcnState]:
        states = []
        for block, *own in zip(self._typed_blocks(), *state, strict=True):
            hidden, *after = block.step(hidden, *own, ends=ends)
            states.append(after)
        return hidden, TcnState(*zip(*states, strict=True))

    def _typed_blocks(self) -> list[TcnBlock]:
        return [block for block in self.blocks if isinstance(block, TcnBlock)]


class TcnBlock(nn.Module):
    """Two convolutions of one dilation, and the way around them."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        kernel_size: int,
        dilation: int,
        centred: bool,
        dropout: float,
        dropout_kind: Literal["channel", "element"],
        batch_norm: bool,
    ) -> None:
        super().__init__()
        self.first, self.second = (
            DilatedConvolution(
                size,
                hidden_size,
                kernel_size=kernel_size,
                dilation=dilation,
                centred=centred,
                batch_norm=batch_norm,
                narrow=narrow,
            )
            # Only the second convolution reads what the first gives, unless dropout comes between.
            for size, narrow in ((input_size, not dropout), (hidden_size, False))
        )
        self.dropout = ChannelDropout(dropout) if dropout_kind == "channel" else nn.Dropout(dropout)
        self.around = Linear(input_size, hidden_size) if input_size != hidden_size else None
        if self.around is not None:
            nn.init.normal_(self.around.weight, std=0.01)

    def forward(self, hidden: Float[Tensor, "B S C"], lengths: Tensor, padding: Padding) -> Float[Tensor, "B S D"]:
        """Run whole utterances.

        Args:
            hidden: padding frames hold 0 when centred, anything finite when causal; so they do in the result.
            lengths: (B,).
            padding: the padding frames of `hidden`.
        """
        mixed = self.dropout(self.first(hidden, lengths, padding))
        mixed = self.dropout(self.second(mixed, lengths, padding))
        if self.around is not None:
            hidden = self.around(hidden)
            if self.first.lookahead:
                hidden = padding.zero(hidden)
        return torch.relu(mixed + hidden)

    def initial_state(self, batch_size: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The block's part of the state before the first frame: first, second, around."""
        convolutions = (self.first, self.second)
        first, second = (convolution.initial_state(batch_size, like) for convolution in convolutions)
        return first, second, second[:, :0]

    def step(
        self, chunk: Tensor, first: Tensor, second: Tensor, around: Tensor, *, ends: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take n frames, give those that no later frame can change, and the block's part of the state."""
        mixed, first = self.first.step(chunk, first, ends=ends)
        mixed, second = self.second.step(mixed, second, ends=ends)
        hidden = chunk if self.around is None else self.around(chunk)
        if self.first.lookahead:
            ready = mixed.shape[1]
            hidden = torch.cat((around, hidden), dim=1)
            hidden, around = hidden[:, :ready], hidden[:, ready:]
        return torch.relu(mixed + hidden), first, second, around


class DilatedConvolution(nn.Module):
    """relu(norm(sum_j W_j x[t - j d] + b)), by weight norm on W or by batch norm in place of b.

    The filters stand with the kernel before the input units, (D, k, C), oldest frame first: the layout in which both
    a channels-last convolution and a product with gathered frames take them.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        kernel_size: int,
        dilation: int,
        centred: bool,
        batch_norm: bool,
        narrow: bool,
    ) -> None:
        super().__init__()
        self.dilation = dilation
        self.span = (kernel_size - 1) * dilation  # frames that an output needs beside the newest
        self.lookahead = self.span // 2 if centred else 0
        bound = (kernel_size * input_size) ** -0.5  # torch's default for Conv1d
        self.weight = nn.Parameter(torch.empty(hidden_size, kernel_size, input_size).uniform_(-bound, bound))
        # With the ReLU in it.
        self.norm = MaskedBatchNorm(hidden_size, clip=math.inf, narrow=narrow) if batch_norm else None
        self.packed: Tensor | None = None
        self.gain: nn.Parameter | None = None
        if self.norm is None:
            self.gain = nn.Parameter(torch.linalg.vector_norm(self.weight.detach(), dim=(1, 2), keepdim=True))
            self.bias = nn.Parameter(torch.empty(hidden_size).uniform_(-bound, bound))

    def forward(self, hidden: Float[Tensor, "B S C"], lengths: Tensor, padding: Padding) -> Float[Tensor, "B S D"]:
        """Run whole utterances; arguments and result as those of `TcnBlock.forward`."""
        hidden = hidden.to(product_type(hidden))
        batch, _, units = hidden.shape
        parts = [hidden.new_zeros(batch, self.span - self.lookahead, units), hidden]
        if self.lookahead:
            parts.append(hidden.new_zeros(batch, self.lookahead, units))
        padded = torch.cat(parts, dim=1)  # on a GPU at twice the speed of F.pad, unless a part is empty
        if self.norm is not None and self.training:
            return self.norm(_convolve(padded, self.weight, None, self.dilation), lengths)
        out = _convolve(padded, *self.folded(), self.dilation, self.packed)
        return torch.relu(padding.zero(out) if self.lookahead else out)

    def folded(self) -> tuple[Float[Tensor, "D k C"], Float[Tensor, "D"]]:
        """Filters and bias with the weight norm, or the batch norm's running statistics, in them."""
        norm = self.norm
        if norm is None:
            if self.gain is None:  # folded for good
                return self.weight, self.bias
            return torch._VF._weight_norm(self.weight, self.gain, 0), self.bias  # what torch's weight_norm calls
        gain = norm.scale * torch.rsqrt(norm.running_variance + EPSILON)
        return self.weight * gain[:, None, None], norm.shift - norm.running_mean * gain

    @torch.no_grad()
    def fold_norm(self) -> None:
        """Keep the folded filters and bias in place of the norm (`asr.nn.folding`)."""
        weight, bias = self.folded()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.norm = self.gain = None
        self.packed = products.pack(weight.flatten(1))

    def initial_state(self, batch_size: int, like: Tensor) -> Float[Tensor, "B w C"]:
        """The zeros that stand before the first frame."""
        return like.new_zeros(batch_size, self.span - self.lookahead, self.weight.shape[-1])

    def step(self, chunk: Tensor, state: Tensor, *, ends: bool) -> tuple[Tensor, Tensor]:
        """Take n frames, and the zeros after the last one if it `ends`; give what is ready and the frames to keep."""
        parts = [state, chunk]
        if ends:
            parts.append(chunk.new_zeros(chunk.shape[0], self.lookahead, chunk.shape[2]))
        heard = torch.cat(parts, dim=1)
        ready = max(0, heard.shape[1] - self.span)
        if not ready:
            return heard.new_zeros(heard.shape[0], 0, self.weight.shape[0]), heard
        return torch.relu(_convolve(heard, *self.folded(), self.dilation, self.packed)), heard[:, ready:]


class ChannelDropout(nn.Dropout):
    """Drops a unit in all frames of an item; (B, S, D) -> (B, S, D)."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 -- the base class's name
        return F.dropout1d(input.mT, self.p, self.training).mT


def _convolve(
    padded: Float[Tensor, "B P C"],
    weight: Float[Tensor, "D k C"],
    bias: Tensor | None,
    dilation: int,
    packed: Tensor | None = None,
) -> Float[Tensor, "B S D"]:
    """Give out[t] = bias + sum_j weight[:, j] padded[t + j dilation], for the S = P - (k - 1) dilation whole sums."""
    if not torch.is_grad_enabled() and products.ours(padded):
        return products.dilated_convolve(padded, weight, bias, dilation, packed)
    frames = padded.shape[1] - (weight.shape[1] - 1) * dilation
    if padded.shape[0] * frames <= FEW_FRAMES:
        if frames == 1:
            gathered = padded[:, None, ::dilation].flatten(2)  # a slice costs less than a window
        else:
            gathered = padded.unfold(1, frames, dilation).permute(0, 3, 1, 2).flatten(2)  # (B, S, k C)
        return F.linear(gathered, weight.flatten(1), bias)
    if padded.is_cuda and dilation > 1:
        return convolve_dilated(padded, weight, bias, dilation)
    # As an image of one row whose channels stand last in memory: conv1d would transpose to channels first and back.
    image, filters = padded.mT[:, :, None], weight.mT[:, :, None]  # (B, C, 1, P), (D, C, 1, k)
    return F.conv2d(image, filters, bias, dilation=(1, dilation))[:, :, 0].mT
