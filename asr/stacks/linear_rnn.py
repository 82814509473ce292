"""Layers whose recurrence is linear in the state: minGRU, minLSTM (arXiv 2410.01201), SRU (arXiv 1709.02755).

The gates see the input alone, so that a frame's recurrence is one multiply-add a unit; what is not linear comes from
depth.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from asr.config.options import RecurrentOptions
from asr.nn.cells import LINEAR_CELLS
from asr.nn.cells.base import Cell
from asr.stacks._recurrent import RecurrentStack, arguments


class Config(RecurrentOptions):
    """Options of `stack=linear_rnn`."""

    cell: Literal["mingru", "minlstm", "sru"] = Field("mingru", description="sru is the one with a highway connection")


def build(config: Config, input_size: int) -> RecurrentStack:
    """Make the stack that `config` describes."""

    def cell(num_chains: int) -> Cell:
        return LINEAR_CELLS[config.cell](hidden_size=config.hidden_size, num_chains=num_chains)

    return RecurrentStack(input_size=input_size, make_cell=cell, **arguments(config))
