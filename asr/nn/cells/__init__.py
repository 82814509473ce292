"""Recurrent cells with their time loops: what a recurrent layer runs over its projected inputs.

`asr.nn.recurrent_layer` puts a cell between projection, directions and dilation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from asr.nn.cells.base import Cell
from asr.nn.cells.gru import GruCell
from asr.nn.cells.linear import MinGruCell, MinLstmCell, SruCell
from asr.nn.cells.lstm import LstmCell
from asr.nn.cells.rnn import RnnCell

__all__ = ["DIAGONAL_CELLS", "FULL_CELLS", "LINEAR_CELLS", "Cell", "GruCell", "LstmCell", "RnnCell"]

FULL_CELLS: dict[str, Callable[..., Cell]] = {"rnn": RnnCell, "lstm": LstmCell, "gru": GruCell}
DIAGONAL_CELLS: dict[str, Callable[..., Cell]] = {
    name: partial(cell, diagonal=True) for name, cell in FULL_CELLS.items()
}
LINEAR_CELLS: dict[str, Callable[..., Cell]] = {"mingru": MinGruCell, "minlstm": MinLstmCell, "sru": SruCell}
