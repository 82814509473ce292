"""What the stacks of recurrent layers share (gru, lstm, rnn, dilated, diagonal, linear_rnn): layers and streaming."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from asr.config.options import RecurrentOptions
from asr.nn.batch_norm import MaskedBatchNorm
from asr.nn.lookahead import Lookahead
from asr.nn.masking import zero_padding
from asr.nn.products import Linear
from asr.nn.recurrent_layer import MakeCell, Merge, RecurrentLayer
from asr.stacks.base import Stack

HORIZON_FRAMES = 256  # 10 s at a frame every 40 ms


@runtime_checkable
class Top(Protocol):
    """A layer above the recurrent ones that mixes neighbouring frames, such as `Lookahead`."""

    def __call__(self, hidden: Tensor, lengths: Tensor) -> Tensor: ...

    def initial_state(self, batch_size: int, like: Tensor) -> Tensor: ...

    def step(self, chunk: Tensor, state: Tensor) -> tuple[Tensor, Tensor]: ...

    def flush(self, state: Tensor) -> Tensor: ...


class RecurrentState(NamedTuple):
    """What a stream of a recurrent stack carries.

    layers: for each layer (B, d, N), the states of its d chains, that of the next frame first; N is the cell's state.
    tops: for each layer above, such as the look-ahead, the frames that it still needs, (B, w, D).
    """

    layers: tuple[Tensor, ...]
    tops: tuple[Tensor, ...]


def arguments(config: RecurrentOptions) -> dict[str, Any]:
    """The options that every recurrent stack has, as arguments of `RecurrentStack`."""
    names = RecurrentOptions.model_fields.keys() - {"hidden_size"}
    return {name: getattr(config, name) for name in names}


class RecurrentStack(Stack):
    """`num_layers` recurrent layers; see `RecurrentOptions` for the arguments that are not below.

    Args:
        name: of the stack, for messages.
        input_size: features of a frame.
        make_cell: the recurrence, for so many chains.
        dilations: of each layer; none: 1.
        make_fusion: (size, fused_frames) -> a layer above the recurrent ones and below the look-ahead, that mixes each
            frame with those before it, `fused_frames` in all.
    """

    def __init__(
        self,
        *,
        name: str,
        input_size: int,
        make_cell: MakeCell,
        num_layers: int,
        bidirectional: bool = True,
        merge: Merge = "sum",
        batch_norm: Literal["paper", "input", "none"] = "paper",
        lookahead_frames: int = 0,
        residual: Literal["none", "identity", "projection"] = "none",
        projection_size: int = 0,
        dropout: float = 0.0,
        dilations: Sequence[int] = (),
        make_fusion: Callable[[int, int], nn.Module] | None = None,
        fused_frames: int = 1,
    ) -> None:
        super().__init__()
        if bidirectional and lookahead_frames:
            raise ValueError(
                f"stack.lookahead_frames: got {lookahead_frames} with stack.bidirectional=true; a bidirectional stack "
                "sees the whole future already: set lookahead_frames to 0"
            )
        self.lookahead_frames = None if bidirectional else lookahead_frames
        if bidirectional:
            self.not_streamable = (
                f"stack {name} with bidirectional=true needs the whole utterance: its backward direction starts at the "
                "end. Streamable: bidirectional=false, with lookahead_frames for a little of the future, as "
                "stack=gru_streaming has"
            )
        self.layers = nn.ModuleList()
        self.projections = nn.ModuleList()
        self.shortcuts = nn.ModuleList()
        size = input_size
        for index in range(num_layers):
            layer = RecurrentLayer(
                size,
                make_cell,
                bidirectional=bidirectional,
                merge=merge,
                normalized=batch_norm == "paper",
                dilation=dilations[index] if dilations else 1,
            )
            self.layers.append(layer)
            output_size = projection_size or layer.output_size
            self.projections.append(Linear(layer.output_size, projection_size) if projection_size else nn.Identity())
            self.shortcuts.append(_shortcut(residual, size, output_size))
            size = output_size
        self.output_size = size
        norms = num_layers if batch_norm == "input" else 0
        self.norms = nn.ModuleList(MaskedBatchNorm(size) for _ in range(norms))  # on each layer's output
        self.dropout = nn.Dropout(dropout)
        self.fused_frames = 1 if make_fusion is None else fused_frames
        self.tops = nn.ModuleList() if make_fusion is None else nn.ModuleList([make_fusion(size, fused_frames)])
        if lookahead_frames:
            self.tops.append(Lookahead(size, lookahead_frames))

    def forward(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        hidden = zero_padding(inputs, lengths)
        for index, layer in enumerate(self.layers):
            below = self.dropout(hidden) if index else hidden
            hidden = self._after(index, layer(below, lengths), below, lengths)
        for top in self.tops:
            hidden = top(hidden, lengths)
        return hidden, lengths

    def _after(self, index: int, hidden: Tensor, below: Tensor, lengths: Tensor | None) -> Tensor:
        """What follows recurrent layer `index`: projection, norm, shortcut (He et al. 2016, equation 1).

        `lengths` is None where nothing is padding, which saves some of a small step's time.
        """
        hidden = self.projections[index](hidden)
        if self.norms:
            hidden = self.norms[index](hidden, _full_lengths(hidden) if lengths is None else lengths)
        elif lengths is not None:
            hidden = zero_padding(hidden, lengths)
        shortcut = self.shortcuts[index]
        return hidden if isinstance(shortcut, _NoShortcut) else hidden + shortcut(below)

    def initial_state(self, batch_size: int, like: Tensor) -> RecurrentState:
        if self.not_streamable:
            return super().initial_state(batch_size, like)
        return RecurrentState(
            tuple(layer.initial_state(batch_size, like) for layer in self._layers),
            tuple(top.initial_state(batch_size, like) for top in self._tops),
        )

    def step(self, chunk: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        if not chunk.shape[1]:
            return chunk.new_zeros(chunk.shape[0], 0, self.output_size), state
        hidden, layers, tops = chunk, [], []
        for index, (layer, before) in enumerate(zip(self._layers, state.layers, strict=True)):
            out, after = layer.step(hidden, before)
            layers.append(after)
            hidden = self._after(index, out, hidden, None)
        for top, before in zip(self._tops, state.tops, strict=True):
            hidden, after = top.step(hidden, before)
            tops.append(after)
        return hidden, RecurrentState(tuple(layers), tuple(tops))

    def flush(self, state: RecurrentState) -> Tensor:
        hidden = state.layers[0].new_zeros(state.layers[0].shape[0], 0, self.output_size)
        for top, waiting in zip(self._tops, state.tops, strict=True):
            ready, waiting = top.step(hidden, waiting)
            hidden = torch.cat((ready, top.flush(waiting)), 1)
        return hidden

    def figures(self) -> dict[str, float]:
        dilations = [layer.dilation for layer in self._layers]
        return {
            f"mean recurrent length over {HORIZON_FRAMES} frames": mean_recurrent_length(dilations, self.fused_frames)
        }

    @property
    def _layers(self) -> list[RecurrentLayer]:
        return [layer for layer in self.layers if isinstance(layer, RecurrentLayer)]

    @property
    def _tops(self) -> list[Top]:
        return list(self.tops)  # type: ignore[arg-type]


def _full_lengths(hidden: Tensor) -> Tensor:
    return torch.full((hidden.shape[0],), hidden.shape[1], device=hidden.device)


def mean_recurrent_length(dilations: Sequence[int], fused_frames: int = 1, horizon: int = HORIZON_FRAMES) -> float:
    """Edges on the shortest path from an input frame to the output n frames later, mean over n = 1..horizon.

    After Chang et al. 2017, definition 3.1: layers cost one edge each, a recurrent link one edge for its dilation's
    frames. The paper takes the period of the net as horizon; a fixed one compares nets of different periods.

    Args:
        dilations: of each layer.
        fused_frames: the output sees so many frames of the last layer directly.
        horizon: frames.

    Returns:
        The mean; infinity if some distance cannot be reached, as with dilations that share a divisor and no fusion.
    """
    links = [0.0] * fused_frames + [math.inf] * horizon
    for distance in range(fused_frames, horizon + 1):
        links[distance] = min(links[distance - d] + 1 if d <= distance else math.inf for d in dilations)
    return sum(links[1 : horizon + 1]) / horizon + len(dilations)


class _NoShortcut(nn.Module):
    """No residual connection around this layer."""


def _shortcut(kind: Literal["none", "identity", "projection"], input_size: int, output_size: int) -> nn.Module:
    """Identity where the sizes agree; where they do not, a linear map without bias if asked for, else none."""
    if kind == "none":
        return _NoShortcut()
    if input_size == output_size:
        return nn.Identity()
    return Linear(input_size, output_size, bias=False) if kind == "projection" else _NoShortcut()
