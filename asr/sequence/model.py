"""A stack between symbols or features and a linear read-out: the model of the sequence tasks."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asr.sequence.task import Examples
from asr.stacks.base import Stack


class SequenceModel(nn.Module):
    """A stack and its read-out.

    Args:
        stack: takes `embedding_size` features a frame, or `input_size` if that is 0.
        input_size: features of a frame, or how many symbols there are.
        output_size: of the read-out.
        readout: after every frame, or after the last one.
        embedding_size: of a symbol's learned vector; 0: one-hot.
        readout_deviation: of the read-out's initial weights; 0: torch's own.
        readout_dropout: on its input.
    """

    def __init__(
        self,
        *,
        stack: Stack,
        input_size: int,
        output_size: int,
        readout: Literal["every", "last"],
        embedding_size: int = 0,
        readout_deviation: float = 0.0,
        readout_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.embedding = nn.Embedding(input_size, embedding_size) if embedding_size else None
        self.stack = stack
        self.readout = readout
        self.dropout = nn.Dropout(readout_dropout)
        self.linear = nn.Linear(stack.output_size, output_size)
        if readout_deviation:
            nn.init.normal_(self.linear.weight, std=readout_deviation)

    def forward(self, examples: Examples) -> Tensor:
        """(B, S, output_size), or (B, output_size) if the read-out is of the last frame."""
        inputs = examples.inputs
        if not inputs.is_floating_point():
            embedding = self.embedding
            inputs = F.one_hot(inputs, self.input_size).float() if embedding is None else embedding(inputs)
        times = () if examples.times is None else (examples.times,)
        hidden, lengths = self.stack(inputs, examples.lengths, *times)
        if self.readout == "last":
            hidden = hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
        return self.linear(self.dropout(hidden))
