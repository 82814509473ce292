"""Gated recurrent units with sequence-wise batch norm: Deep Speech 2's stack (arXiv 1512.02595, section 3).

Bidirectional (offline), or forward-only with a look-ahead row convolution on top (streams).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from asr.config.options import RecurrentOptions
from asr.nn.cells import GruCell
from asr.stacks._recurrent import RecurrentStack, arguments


class Config(RecurrentOptions):
    """Options of `stack=gru`."""

    reset: Literal["after", "before"] = Field(
        "after",
        description="the reset gate multiplies U h (after: cuDNN, torch, Deep Speech 2) or h (before: Cho et al. 2014)",
    )


def build(config: Config, input_size: int) -> RecurrentStack:
    """Make the stack that `config` describes."""

    def cell(num_chains: int) -> GruCell:
        return GruCell(hidden_size=config.hidden_size, num_chains=num_chains, reset=config.reset)

    return RecurrentStack(input_size=input_size, make_cell=cell, **arguments(config))
