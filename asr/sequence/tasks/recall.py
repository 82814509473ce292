"""Long-lag recall: a symbol, many distractors, and the question which symbol it was.

The long time lag of Hochreiter and Schmidhuber 1997, experiment 2, as a classification: what a dilated RNN reaches
over a few edges and a plain one over as many as there are frames (Chang et al. 2017, section 2.3).
"""

from __future__ import annotations

import torch
from pydantic import Field

from asr.config.fields import PositiveInt, Section
from asr.sequence.settings import Data
from asr.sequence.task import Classification, Examples, MadeTask


class Options(Section):
    """Options of long-lag recall."""

    num_distractors: PositiveInt = Field(200, description="frames between the symbol and the answer, T")
    num_symbols: PositiveInt = Field(8, description="that may have to be recalled")
    num_distractor_symbols: PositiveInt = Field(2, description="others, that the distractors are drawn from")
    num_test: PositiveInt = Field(1000, description="sequences of the validation set, and of the test set")


def build(options: Options, data: Data) -> Recall:
    """Make the task."""
    return Recall(options)


class Recall(MadeTask, Classification):
    """(B, 1 + T) symbols -> the first one, asked for at the last frame."""

    def __init__(self, options: Options) -> None:
        self.options, self.num_test = options, options.num_test
        self.chance = 1 / options.num_symbols
        self.input_size = options.num_symbols + options.num_distractor_symbols
        self.output_size = options.num_symbols

    def examples(self, count: int, generator: torch.Generator) -> Examples:
        options = self.options
        symbols = torch.randint(options.num_symbols, (count, 1), generator=generator)
        distractors = torch.randint(
            options.num_symbols, self.input_size, (count, options.num_distractors), generator=generator
        )
        inputs = torch.cat((symbols, distractors), 1)
        return Examples(inputs, torch.full((count,), inputs.shape[1]), symbols[:, 0])
