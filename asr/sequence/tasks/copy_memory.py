"""Copy memory (Hochreiter and Schmidhuber 1997; as coded for Bai, Kolter and Koltun 2018, section 5.2).

Ten digits of 1 to 8, T - 1 zeros, a nine, and ten nines more, in whose places the ten digits are to be said again; 0
everywhere else. A model that says 0 until then and guesses afterwards has a mean cross-entropy of 10 ln 8 / (T + 20),
which counts all places: the accuracy in the last ten says more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from asr.config.fields import PositiveInt, Section
from asr.sequence.settings import Data
from asr.sequence.task import HELD_OUT_SEEDS, Examples, MadeTask, Split

NUM_DIGITS = 10
BLANK, MARKER, NUM_SYMBOLS = 0, 9, 10


class Options(Section):
    """Options of copy memory."""

    length: PositiveInt = Field(500, description="T, frames between the digits and their repetition")
    inputs: Literal["number", "one_hot"] = Field("number", description="a symbol as one feature (the code) or as ten")
    num_test: PositiveInt = Field(1000, description="sequences of the validation set, and of the test set")


def build(options: Options, data: Data) -> CopyMemory:
    """Make the task."""
    return CopyMemory(options)


class CopyMemory(MadeTask):
    """(B, T + 20) symbols -> at each frame the symbol to say."""

    figure = "cross-entropy a frame"
    higher_is_better = False
    readout = "every"
    output_size = NUM_SYMBOLS

    def __init__(self, options: Options) -> None:
        self.options, self.num_test = options, options.num_test
        self.chance = NUM_DIGITS * math.log(8) / (options.length + 2 * NUM_DIGITS)
        self.input_size = 1 if options.inputs == "number" else NUM_SYMBOLS

    def evaluation(self, split: Split) -> Iterable[Examples]:
        generator = torch.Generator().manual_seed(HELD_OUT_SEEDS[split])
        sizes = torch.arange(self.num_test).split(100)
        return (self.examples(len(size), generator) for size in sizes)

    def loss(self, outputs: Tensor, examples: Examples) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), examples.targets.flatten())

    def score(self, outputs: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
        losses = F.cross_entropy(outputs.flatten(0, 1), examples.targets.flatten(), reduction="sum")
        return losses, torch.tensor(examples.targets.numel())

    def figures(self, outputs: Tensor, examples: Examples) -> dict[str, tuple[Tensor, Tensor]]:
        """Accuracy in the last ten places."""
        right = (outputs.argmax(-1) == examples.targets)[:, -NUM_DIGITS:]
        return {"accuracy of the ten digits": (right.sum(), torch.tensor(right.numel()))}

    def examples(self, count: int, generator: torch.Generator) -> Examples:
        digits = torch.randint(1, 9, (count, NUM_DIGITS), generator=generator)
        zeros = torch.full((count, self.options.length - 1), BLANK)
        symbols = torch.cat((digits, zeros, torch.full((count, NUM_DIGITS + 1), MARKER)), 1)
        targets = torch.cat((torch.full((count, self.options.length + NUM_DIGITS), BLANK), digits), 1)
        inputs = symbols[..., None].float() if self.options.inputs == "number" else symbols
        return Examples(inputs, torch.full((count,), symbols.shape[1]), targets)
