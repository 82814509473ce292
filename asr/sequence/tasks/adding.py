"""The adding problem (Hochreiter and Schmidhuber 1997, experiment 4; as in Bai, Kolter and Koltun 2018, section 5.2).

Two numbers of a sequence are marked; the answer, after the last frame, is their sum. Values are uniform in [0, 1], so
that always answering 1, the mean, has a mean squared error of 1/6.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from asr.config.fields import PositiveInt, Section
from asr.sequence.settings import Data
from asr.sequence.task import Examples, MadeTask


class Options(Section):
    """Options of the adding problem."""

    length: int = Field(200, ge=2, description="frames, T")
    num_test: PositiveInt = Field(1000, description="sequences of the validation set, and of the test set")


def build(options: Options, data: Data) -> Adding:
    """Make the task."""
    return Adding(options)


class Adding(MadeTask):
    """(B, T, 2): a value and whether it is marked -> the sum of the two marked values."""

    figure = "mean squared error"
    higher_is_better = False
    chance = 1 / 6
    input_size, output_size = 2, 1
    readout = "last"

    def __init__(self, options: Options) -> None:
        self.length, self.num_test = options.length, options.num_test

    def loss(self, outputs: Tensor, examples: Examples) -> Tensor:
        return F.mse_loss(outputs[:, 0], examples.targets)

    def score(self, outputs: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
        errors = (outputs[:, 0] - examples.targets).square()
        return errors.sum(), torch.tensor(len(errors))

    def examples(self, count: int, generator: torch.Generator) -> Examples:
        values = torch.rand(count, self.length, generator=generator)
        marked = torch.rand(count, self.length, generator=generator).topk(2).indices  # two places, each pair as likely
        marks = torch.zeros(count, self.length).scatter_(1, marked, 1.0)
        inputs = torch.stack((values, marks), -1)
        return Examples(inputs, torch.full((count,), self.length), (values * marks).sum(1))
