"""Dilated recurrent layers (Chang et al. 2017, arXiv 1710.02224): layer l links frame t to frame t - d0 * M^l.

The link replaces the one to t - 1, so that a layer is d independent chains, computed side by side. With d0 > 1 no
layer links neighbours, and a fusing layer at the end mixes the last d0 frames (section 3.2 of the paper). One layer of
dilation r with its last r outputs pooled is Feudal Networks' dilated LSTM (Vezhnevets et al. 2017, arXiv 1703.01161).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from asr.config.options import PositiveInt, RecurrentOptions
from asr.nn.cells import FULL_CELLS
from asr.nn.cells.base import Cell
from asr.nn.masking import zero_padding
from asr.nn.recurrent_layer import MakeCell
from asr.stacks._recurrent import RecurrentStack, arguments


class Config(RecurrentOptions):
    """Options of `stack=dilated`."""

    cell: Literal["rnn", "lstm", "gru"] = Field("gru", description="rnn is the paper's tanh one")
    first_dilation: PositiveInt = Field(1, description="d0: frames that the first layer's link goes back")
    dilation_factor: PositiveInt = Field(2, description="M: each layer's link goes this many times further back")
    fusion: Literal["linear", "mean", "none"] = Field(
        "linear", description="with first_dilation > 1, how the last first_dilation frames are mixed; mean: pooled"
    )


def build(config: Config, input_size: int) -> DilatedStack:
    """Make the stack that `config` describes."""

    def cell(num_chains: int) -> Cell:
        return FULL_CELLS[config.cell](hidden_size=config.hidden_size, num_chains=num_chains)

    return DilatedStack(
        input_size=input_size,
        make_cell=cell,
        first_dilation=config.first_dilation,
        dilation_factor=config.dilation_factor,
        fusion=config.fusion,
        **arguments(config),
    )


class DilatedStack(RecurrentStack):
    """`num_layers` layers of dilations d0, d0 M, d0 M^2, ...

    Args:
        input_size: features of a frame.
        make_cell: the recurrence, any.
        num_layers: L.
        first_dilation, dilation_factor: d0 and M.
        fusion: what mixes the last d0 frames where d0 > 1.
        others: the other arguments of `RecurrentStack`.
    """

    def __init__(
        self,
        *,
        input_size: int,
        make_cell: MakeCell,
        num_layers: int,
        first_dilation: int = 1,
        dilation_factor: int = 2,
        fusion: Literal["linear", "mean", "none"] = "linear",
        **others: Any,
    ) -> None:
        super().__init__(
            input_size=input_size,
            make_cell=make_cell,
            num_layers=num_layers,
            dilations=[first_dilation * dilation_factor**layer for layer in range(num_layers)],
            make_fusion=_FUSIONS[fusion] if first_dilation > 1 else None,
            fused_frames=first_dilation,
            **others,
        )


class _Fusion(nn.Module):
    """Mixes each frame with the n - 1 before it, those before the first frame counted as 0; looks at no later one."""

    def __init__(self, size: int, num_frames: int) -> None:
        super().__init__()
        self.size, self.num_frames = size, num_frames

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """(B, S, D) with 0 in the padding -> the same."""
        return zero_padding(self._mix(F.pad(hidden, (0, 0, self.num_frames - 1, 0))), lengths)

    def initial_state(self, batch_size: int, like: Tensor) -> Tensor:
        """The n - 1 frames before the first one, (B, n - 1, D)."""
        return like.new_zeros(batch_size, self.num_frames - 1, self.size)

    def step(self, chunk: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take m frames, give m."""
        frames = torch.cat((state, chunk), 1)
        kept = frames[:, chunk.shape[1] :]
        return (self._mix(frames) if chunk.shape[1] else chunk), kept

    def flush(self, state: Tensor) -> Tensor:
        """Nothing is owed."""
        return state[:, :0]

    def _mix(self, frames: Tensor) -> Tensor:
        raise NotImplementedError


class _LinearFusion(_Fusion):
    """y_t = b + sum over j = 0..n-1 of V_j c_(t-j)."""

    def __init__(self, size: int, num_frames: int) -> None:
        super().__init__(size, num_frames)
        self.conv = nn.Conv1d(size, size, num_frames)

    def _mix(self, frames: Tensor) -> Tensor:
        return self.conv(frames.mT).mT


class _MeanFusion(_Fusion):
    """Pooling over the n cores: the mean of each core's newest output."""

    def _mix(self, frames: Tensor) -> Tensor:
        return F.avg_pool1d(frames.mT, self.num_frames, stride=1).mT


_FUSIONS = {"linear": _LinearFusion, "mean": _MeanFusion, "none": None}
