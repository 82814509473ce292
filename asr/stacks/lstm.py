"""Long short-term memory (Hochreiter and Schmidhuber 1997; forget gate of Gers et al. 2000), as deep as you like.

Bidirectional (offline), or forward-only with a look-ahead row convolution on top (streams).
"""

from __future__ import annotations

from pydantic import Field

from asr.config.options import RecurrentOptions
from asr.nn.cells import LstmCell
from asr.stacks._recurrent import RecurrentStack, arguments


class Config(RecurrentOptions):
    """Options of `stack=lstm`."""

    forget_bias: float = Field(1.0, description="what the forget gate's bias starts as")


def build(config: Config, input_size: int) -> RecurrentStack:
    """Make the stack that `config` describes."""

    def cell(num_chains: int) -> LstmCell:
        return LstmCell(hidden_size=config.hidden_size, num_chains=num_chains, forget_bias=config.forget_bias)

    return RecurrentStack(input_size=input_size, make_cell=cell, **arguments(config))
