"""Long-lag recall: a symbol, many distractors, and the question which symbol it was.

The long time lag of Hochreiter and Schmidhuber 1997, experiment 2, as a classification: what a dilated RNN reaches
over a few edges and a plain one over as many as there are frames (Chang et al. 2017, section 2.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from asr.config.fields import PositiveInt, Section
from asr.sequence.settings import Data
from asr.sequence.task import Examples, Split, SupervisedTask


class Options(Section):
    """Options of long-lag recall."""

    num_distractors: PositiveInt = Field(200, description="frames between the symbol and the answer, T")
    num_symbols: PositiveInt = Field(8, description="that may have to be recalled")
    num_distractor_symbols: PositiveInt = Field(2, description="others, that the distractors are drawn from")
    num_test: PositiveInt = Field(1000, description="sequences of the validation set, and of the test set")


def build(options: Options, data: Data) -> Recall:
    """Make the task."""
    return Recall(options)


class Recall(SupervisedTask):
    """(B, 1 + T) symbols -> the first one, asked for at the last frame."""

    figure = "accuracy"
    higher_is_better = True
    readout = "last"

    def __init__(self, options: Options) -> None:
        self.options = options
        self.chance = 1 / options.num_symbols
        self.input_size = options.num_symbols + options.num_distractor_symbols
        self.output_size = options.num_symbols

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Examples]:
        while True:
            yield self._examples(batch_size, generator)

    def evaluation(self, split: Split) -> Iterable[Examples]:
        seed = {"validation": -1, "test": -2}[split]  # training's seeds are not negative
        return [self._examples(self.options.num_test, torch.Generator().manual_seed(seed))]

    def loss(self, outputs: Tensor, examples: Examples) -> Tensor:
        return F.cross_entropy(outputs, examples.targets)

    def score(self, outputs: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
        return (outputs.argmax(1) == examples.targets).sum(), torch.tensor(len(outputs))

    def _examples(self, count: int, generator: torch.Generator) -> Examples:
        options = self.options
        symbols = torch.randint(options.num_symbols, (count, 1), generator=generator)
        distractors = torch.randint(
            options.num_symbols, self.input_size, (count, options.num_distractors), generator=generator
        )
        inputs = torch.cat((symbols, distractors), 1)
        return Examples(inputs, torch.full((count,), inputs.shape[1]), symbols[:, 0])
