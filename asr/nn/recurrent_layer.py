"""One recurrent layer: projection (with batch norm), one or two directions, dilation; whole utterances or chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from asr.nn import products
from asr.nn.batch_norm import NormalizedLinear
from asr.nn.cells import Cell
from asr.nn.masking import reverse_within_lengths

BLOCK_FRAMES = 4096  # of longer audio; 80 s at 20 ms a frame, so batches of utterances go through at once

Merge = Literal["sum", "concat"]
MakeCell = Callable[[int], Cell]  # number of chains -> cell


class RecurrentLayer(nn.Module):
    """h = merge(forward, backward) over B(W x).

    With dilation d the recurrence links frame t to t - d (Chang et al. 2017, arXiv 1710.02224): d independent chains,
    which run side by side as d times the batch, in a d-th of the steps.

    Args:
        input_size: features of an input frame.
        make_cell: the recurrence for one chain a direction.
        bidirectional: also from the end to the start.
        merge: how the two directions join.
        normalized: batch norm on the projection (Deep Speech 2, section 3.2); else a bias.
        dilation: frames between two links of a chain.
    """

    def __init__(
        self,
        input_size: int,
        make_cell: MakeCell,
        *,
        bidirectional: bool,
        merge: Merge,
        normalized: bool,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.num_directions = 2 if bidirectional else 1
        self.merge: Merge = merge
        self.dilation = dilation
        self.packed: tuple[Tensor, ...] | None = None  # each direction's projection, laid out for good
        self.cell = make_cell(self.num_directions)
        size = self.cell.hidden_size
        self.output_size = size * (2 if bidirectional and merge == "concat" else 1)
        self.state_size = self.cell.num_states * size
        features = self.num_directions * self.cell.num_gates * size
        self.projection = NormalizedLinear(input_size, features) if normalized else nn.Linear(input_size, features)
        bias = self.projection.norm.shift if isinstance(self.projection, NormalizedLinear) else self.projection.bias
        with torch.no_grad():
            bias.add_(self.cell.initial_bias().repeat(self.num_directions))

    def forward(self, inputs: Float[Tensor, "B S D"], lengths: Int[Tensor, "B"]) -> Float[Tensor, "B S E"]:
        """Run whole utterances; what the output holds beyond an item's length is unspecified.

        Args:
            inputs: padding frames hold 0.
            lengths: (B,).
        """
        batch, num_frames, _ = inputs.shape
        initial = inputs.new_zeros(
            self.num_directions, self.dilation * batch, self.state_size, dtype=self.projection.weight.dtype
        )
        if self.training and isinstance(self.projection, NormalizedLinear) and not inputs.is_cuda:
            # While there are fewer frames than features, or not many more, folding costs more than it saves (ADR 2). A
            # GPU has time for products, and none for passes over all gates.
            projected = self.projection(inputs, lengths).chunk(self.num_directions, -1)
            outputs, _ = self.cell.recur(self._chains(projected, lengths), initial)  # (K, S / d, d * B, H)
        else:
            weight, bias = self._weight_and_bias(inputs, lengths)
            chains = self._chains([inputs] * self.num_directions, lengths)
            if num_frames > BLOCK_FRAMES and not torch.is_grad_enabled():
                outputs = self._in_blocks(chains, weight, bias, initial)
            else:
                outputs, _ = self.cell(chains, weight, bias, initial, self.packed)
        outputs = outputs.unflatten(2, (self.dilation, batch)).flatten(1, 2)[:, :num_frames]  # (K, S, B, H)
        forward = outputs[0].transpose(0, 1)
        if self.num_directions == 1:
            return forward
        backward = reverse_within_lengths(outputs[1].transpose(0, 1), lengths)
        if self.merge == "concat":
            return torch.cat((forward, backward), dim=-1)
        return forward + backward if torch.is_grad_enabled() else backward.add_(forward)

    def _in_blocks(self, chains: Sequence[Tensor], weight: Tensor, bias: Tensor, state: Tensor) -> Tensor:
        """What the cell gives, with the memory for the gates of a block of frames only."""
        steps = len(chains[0])
        outputs = chains[0].new_empty(self.num_directions, *chains[0].shape[:2], self.cell.hidden_size)
        size = max(1, BLOCK_FRAMES // self.dilation)
        for start in range(0, steps, size):
            block = slice(start, start + size)
            outputs[:, block], state = self.cell([c[block] for c in chains], weight, bias, state, self.packed)
        return outputs

    def _chains(self, directions: Sequence[Tensor], lengths: Tensor) -> list[Tensor]:
        """What each direction reads (B, S, D), in the order in which it reads: time first, folded (S / d, d * B, D)."""
        ordered = [directions[0], *(reverse_within_lengths(other, lengths) for other in directions[1:])]
        return [fold(chain.transpose(0, 1), self.dilation) for chain in ordered]

    def initial_state(self, batch_size: int, like: Tensor) -> Float[Tensor, "B d N"]:
        """Zeros: the states of the d chains, that of the next frame first."""
        return like.new_zeros(batch_size, self.dilation, self.state_size)

    def step(
        self, chunk: Float[Tensor, "B n D"], state: Float[Tensor, "B d N"]
    ) -> tuple[Float[Tensor, "B n E"], Float[Tensor, "B d N"]]:
        """Take n >= 1 frames of a forward-only layer."""
        lengths = torch.full((chunk.shape[0],), chunk.shape[1], device=chunk.device)
        weight, bias = self._weight_and_bias(chunk, lengths)
        batch, num_frames = chunk.shape[:2]
        frames, states = chunk.transpose(0, 1), state.transpose(0, 1)  # (n, B, D), (d, B, N)
        whole = num_frames - num_frames % self.dilation
        outputs = []
        if whole:  # each chain takes as many frames as the others
            folded = fold(frames[:whole], self.dilation)
            hidden, final = self.cell([folded], weight, bias, states.flatten(0, 1)[None], self.packed)
            outputs.append(hidden[0].unflatten(1, (self.dilation, batch)).flatten(0, 1))
            states = final[0].unflatten(0, (self.dilation, batch))
        rest = num_frames - whole
        if rest:  # the first chains take one more
            hidden, final = self.cell(
                [frames[whole:].flatten(0, 1)[None]], weight, bias, states[:rest].flatten(0, 1)[None], self.packed
            )
            outputs.append(hidden[0, 0].unflatten(0, (rest, batch)))
            states = torch.cat((states[rest:], final[0].unflatten(0, (rest, batch))))
        return torch.cat(outputs).transpose(0, 1), states.transpose(0, 1)

    @torch.no_grad()
    def fold_norm(self) -> None:
        """Put a plain linear map in place of the normalised one, and lay out all weights (`asr.nn.folding`)."""
        self.cell.fold()
        normalized = self.projection
        if isinstance(normalized, NormalizedLinear):
            weight, bias = normalized.running_folded()
            self.projection = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
            self.projection.weight, self.projection.bias = nn.Parameter(weight), nn.Parameter(bias)
        by_chain = self.projection.weight.unflatten(0, (self.num_directions, -1))
        packed = products.pack(by_chain)
        self.packed = None if packed is None else packed.unbind()

    def _weight_and_bias(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(self.projection, NormalizedLinear):
            return self.projection.folded(inputs, lengths)
        return self.projection.weight, self.projection.bias


def fold(chain: Float[Tensor, "S B D"], dilation: int) -> Float[Tensor, "Q R D"]:
    """Lay the `dilation` interleaved chains of a sequence side by side as batch rows: Q = ceil(S / d), R = d * B.

    Row (t mod d) * B + b is frame t of item b; missing frames at the end hold 0, and nothing real comes after them.
    """
    if dilation == 1:
        return chain
    missing = -chain.shape[0] % dilation
    return F.pad(chain, (0, 0, 0, 0, 0, missing)).unflatten(0, (-1, dilation)).flatten(1, 2)
