"""Recurrent layers with diagonal recurrent matrices (Subakan and Smaragdis 2017, arXiv 1704.05420).

Each unit sees its own past alone, w * h for U h; units mix through the next layer's input projection. One product for
all frames, then an element-wise recurrence.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from asr.config.options import RecurrentOptions
from asr.nn.cells import DIAGONAL_CELLS
from asr.nn.cells.base import Cell
from asr.stacks._recurrent import RecurrentStack, arguments


class Config(RecurrentOptions):
    """Options of `stack=diagonal`."""

    cell: Literal["rnn", "lstm", "gru"] = Field("gru", description="rnn is the paper's tanh one")


def build(config: Config, input_size: int) -> RecurrentStack:
    """Make the stack that `config` describes."""

    def cell(num_chains: int) -> Cell:
        return DIAGONAL_CELLS[config.cell](hidden_size=config.hidden_size, num_chains=num_chains)

    return RecurrentStack(input_size=input_size, make_cell=cell, **arguments(config))
