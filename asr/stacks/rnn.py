"""Simple recurrent layers, h' = f(B(W x) + U h): Deep Speech 2's first choice (arXiv 1512.02595, section 3.1).

Bidirectional (offline), or forward-only with a look-ahead row convolution on top (streams). The paper's bidirectional
layer shares W between the directions; here each has its own.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from asr.config.options import RecurrentOptions
from asr.nn.cells import RnnCell
from asr.stacks._recurrent import RecurrentStack, arguments


class Config(RecurrentOptions):
    """Options of `stack=rnn`."""

    activation: Literal["tanh", "relu", "clipped_relu"] = Field(
        "clipped_relu", description="clipped_relu is Deep Speech 2's min(max(x, 0), 20)"
    )


def build(config: Config, input_size: int) -> RecurrentStack:
    """Make the stack that `config` describes."""

    def cell(num_chains: int) -> RnnCell:
        return RnnCell(hidden_size=config.hidden_size, num_chains=num_chains, activation=config.activation)

    return RecurrentStack(input_size=input_size, make_cell=cell, **arguments(config))
