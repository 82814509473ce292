"""Gated recurrent units with sequence-wise batch norm: Deep Speech 2's stack (arXiv 1512.02595, section 3).

Bidirectional (offline), or forward-only with a look-ahead row convolution on top (streams). Gates in cuDNN's
convention, r after U h (equation 6 of the paper).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from asr.config.options import NonNegativeInt, PositiveInt, Probability, StackOptions
from asr.nn.batch_norm import MaskedBatchNorm, NormalizedLinear
from asr.nn.gru_recurrence import gru_recurrence
from asr.nn.lookahead import Lookahead
from asr.nn.masking import reverse_within_lengths, zero_padding
from asr.stacks.base import Stack


class Config(StackOptions):
    """Options of `stack=gru`."""

    num_layers: PositiveInt = 3
    hidden_size: PositiveInt = 256
    bidirectional: bool = True
    merge: Literal["sum", "concat"] = Field("sum", description="how the two directions join; the paper sums")
    batch_norm: Literal["paper", "input", "none"] = Field(
        "paper",
        description="paper: on W h, before U h (section 3.2); input: on each layer's input but the first, and on the"
        " last layer's output (deepspeech.pytorch)",
    )
    lookahead_frames: NonNegativeInt = Field(0, description="future frames of the row convolution; forward-only nets")
    dropout: Probability = Field(0.0, description="on each layer's output but the last one's")


def build(config: Config, input_size: int) -> Gru:
    """Make the stack that `config` describes."""
    return Gru(
        input_size=input_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        bidirectional=config.bidirectional,
        merge=config.merge,
        batch_norm=config.batch_norm,
        lookahead_frames=config.lookahead_frames,
        dropout=config.dropout,
    )


class GruState(NamedTuple):
    """hidden: (B, L, H), each layer's last hidden state. lookahead: (B, w, H), frames whose future is not here yet."""

    hidden: Tensor
    lookahead: Tensor


class Gru(Stack):
    """L layers of GRU; see `Config` for the options."""

    def __init__(
        self,
        *,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bidirectional: bool = True,
        merge: Literal["sum", "concat"] = "sum",
        batch_norm: Literal["paper", "input", "none"] = "paper",
        lookahead_frames: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if bidirectional and lookahead_frames:
            raise ValueError(
                f"stack.lookahead_frames: got {lookahead_frames} with stack.bidirectional=true; a bidirectional stack "
                "sees the whole future already: set lookahead_frames to 0"
            )
        self.hidden_size = hidden_size
        self.output_size = hidden_size * (2 if bidirectional and merge == "concat" else 1)
        self.lookahead_frames = None if bidirectional else lookahead_frames
        if bidirectional:
            self.not_streamable = (
                "stack gru with bidirectional=true needs the whole utterance: its backward direction starts at the end."
                " Streamable: stack=gru_streaming (forward-only with a look-ahead)"
            )
        sizes = [input_size] + [self.output_size] * (num_layers - 1)
        self.layers = nn.ModuleList(
            GruLayer(size, hidden_size, bidirectional=bidirectional, merge=merge, normalized=batch_norm == "paper")
            for size in sizes
        )
        norms = num_layers if batch_norm == "input" else 0
        self.norms = nn.ModuleList(MaskedBatchNorm(self.output_size) for _ in range(norms))  # on each layer's output
        self.dropout = nn.Dropout(dropout)
        self.lookahead = Lookahead(self.output_size, lookahead_frames) if lookahead_frames else None

    def forward(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        hidden = zero_padding(inputs, lengths)
        for index, layer in enumerate(self.layers):
            if index:
                hidden = self.dropout(hidden)
            hidden = zero_padding(layer(hidden, lengths), lengths)
            if self.norms:
                hidden = self.norms[index](hidden, lengths)
        if self.lookahead is not None:
            hidden = self.lookahead(hidden, lengths)
        return hidden, lengths

    def initial_state(self, batch_size: int, like: Tensor) -> GruState:
        if self.not_streamable:
            return super().initial_state(batch_size, like)
        lookahead = like.new_zeros(batch_size, 0, self.output_size)
        return GruState(like.new_zeros(batch_size, len(self.layers), self.hidden_size), lookahead)

    def step(self, chunk: Tensor, state: GruState) -> tuple[Tensor, GruState]:
        if not chunk.shape[1]:
            return chunk.new_zeros(chunk.shape[0], 0, self.output_size), state
        lengths = torch.full((chunk.shape[0],), chunk.shape[1], device=chunk.device)
        hidden, finals = chunk, []
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, lengths, state.hidden[:, index])
            finals.append(hidden[:, -1])
            if self.norms:
                hidden = self.norms[index](hidden, lengths)
        waiting = state.lookahead
        if self.lookahead is not None:
            hidden, waiting = self.lookahead.step(hidden, waiting)
        return hidden, GruState(torch.stack(finals, 1), waiting)

    def flush(self, state: GruState) -> Tensor:
        return self.lookahead.flush(state.lookahead) if self.lookahead is not None else state.lookahead


class GruLayer(nn.Module):
    """One layer, one or two directions, h = merge(forward, backward)."""

    def __init__(self, input_size: int, hidden_size: int, *, bidirectional: bool, merge: str, normalized: bool) -> None:
        super().__init__()
        self.num_directions = 2 if bidirectional else 1
        self.merge = merge
        gates = 3 * hidden_size
        if normalized:
            self.projection = NormalizedLinear(input_size, self.num_directions * gates)
        else:
            self.projection = nn.Linear(input_size, self.num_directions * gates)
        self.recurrent = nn.Parameter(torch.empty(self.num_directions, gates, hidden_size))
        self.recurrent_bias = nn.Parameter(torch.zeros(self.num_directions, hidden_size))
        with torch.no_grad():
            for gate in self.recurrent.view(-1, hidden_size, hidden_size):
                nn.init.orthogonal_(gate)

    def forward(self, inputs: Tensor, lengths: Tensor, initial: Tensor | None = None) -> Tensor:
        """(B, S, D_in) -> (B, S, D); what stands beyond an item's length is unspecified.

        Args:
            inputs: padding frames hold 0.
            lengths: (B,).
            initial: (B, H) hidden state before the first frame, of a forward-only layer; zeros if None.
        """
        if isinstance(self.projection, NormalizedLinear):
            weight, bias = self.projection.folded(inputs, lengths)
        else:
            weight, bias = self.projection.weight, self.projection.bias
        chains = [inputs.transpose(0, 1)]  # time first, as the recurrence wants it
        if self.num_directions == 2:
            chains.append(reverse_within_lengths(inputs, lengths).transpose(0, 1))
        outputs = _recur(chains, weight, bias, self.recurrent, self.recurrent_bias, initial)  # (K, S, B, H)
        forward = outputs[0].transpose(0, 1)
        if self.num_directions == 1:
            return forward
        backward = reverse_within_lengths(outputs[1].transpose(0, 1), lengths)
        return forward + backward if self.merge == "sum" else torch.cat((forward, backward), dim=-1)


def _recur(
    chains: list[Tensor],
    weight: Tensor,
    bias: Tensor,
    recurrent: Tensor,
    recurrent_bias: Tensor,
    initial: Tensor | None,
) -> Tensor:
    """Project each chain's inputs (S, B, D) and run the recurrence: cuDNN on a GPU, our loop on a CPU."""
    num_chains, gates, size = recurrent.shape
    batch = chains[0].shape[1]
    start = recurrent.new_zeros(num_chains, batch, size) if initial is None else initial[None].to(recurrent.dtype)
    weights, biases = weight.chunk(num_chains), bias.chunk(num_chains)
    if chains[0].is_cuda:
        zeros = recurrent_bias.new_zeros(num_chains, gates - size)
        inner_bias = torch.cat((zeros, recurrent_bias), 1)
        return torch.stack(
            [
                torch._VF.gru(  # the functional form of nn.GRU
                    chain, start[k : k + 1], (weights[k], recurrent[k], biases[k], inner_bias[k]), True, 1, 0.0,
                    torch.is_grad_enabled(), False, False,
                )[0]
                for k, chain in enumerate(chains)
            ]
        )  # fmt: skip
    projected = [F.linear(chain, weights[k], biases[k]) for k, chain in enumerate(chains)]
    return gru_recurrence(projected, recurrent, recurrent_bias, start)
