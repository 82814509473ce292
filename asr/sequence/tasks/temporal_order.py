"""Temporal order (Hochreiter and Schmidhuber 1997, experiment 6a; as in Pascanu, Mikolov and Bengio 2013, section 4.1).

Two of the symbols of a sequence are A or B, the first one after a tenth to two tenths of it, the other after five to
six tenths; distractors c to f stand everywhere else. Which of AA, BA, AB, BB was it?
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from asr.config.fields import PositiveInt, Section
from asr.errors import ConfigError
from asr.nn.cells import RnnCell
from asr.sequence.model import SequenceModel
from asr.sequence.settings import Data
from asr.sequence.task import Classification, Examples, MadeTask, Split

NUM_DISTRACTORS = 4
NONZEROS, SPECTRAL_RADIUS, DEVIATION = 15, 0.95, 0.01  # of the authors' "smart tanh" initialisation


class Options(Section):
    """Options of temporal order."""

    length: int = Field(50, ge=10, description="frames, L")
    initialization: Literal["stack", "smart_tanh", "basic_tanh"] = Field(
        "stack",
        description="the stack's own; smart_tanh: 15 links a unit of spectral radius 0.95, all else N(0, 0.01);"
        " basic_tanh: all N(0, 0.1)",
    )
    num_test: PositiveInt = Field(10_000, description="sequences of the test set; the validation set has a fifth")


def build(options: Options, data: Data) -> TemporalOrder:
    """Make the task."""
    return TemporalOrder(options)


class TemporalOrder(MadeTask, Classification):
    """(B, L) symbols of 6 -> which of 4 orders, asked for at the last frame."""

    figure = "error rate"
    higher_is_better = False
    chance = 0.75
    input_size, output_size = 2 + NUM_DISTRACTORS, 4

    def __init__(self, options: Options) -> None:
        self.options, self.num_test = options, options.num_test

    def initialize(self, model: SequenceModel) -> None:
        """Draw the weights as `options.initialization` says.

        Raises:
            ConfigError: the stack is not one layer of full tanh units.
        """
        if self.options.initialization == "stack":
            return
        cells = [module for module in model.modules() if isinstance(module, RnnCell) and not module.diagonal]
        if len(cells) != 1 or cells[0].activation != "tanh" or cells[0].num_chains != 1:
            raise ConfigError(
                f"options.initialization: got {self.options.initialization}, which is for one forward layer of "
                "stack=rnn stack.activation=tanh; expected stack"
            )
        smart = self.options.initialization == "smart_tanh"
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=(DEVIATION if smart else 0.1) if parameter.dim() > 1 else 0.0)
        if smart:
            cells[0].recurrent.data[0] = smart_matrix(cells[0].hidden_size)

    def num_held_out(self, split: Split) -> int:
        return self.num_test if split == "test" else max(1, self.num_test // 5)

    def score(self, outputs: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
        return (outputs.argmax(1) != examples.targets).sum(), torch.tensor(len(outputs))

    def examples(self, count: int, generator: torch.Generator) -> Examples:
        length = self.options.length
        symbols = torch.randint(2, self.input_size, (count, length), generator=generator)
        order = torch.randint(2, (count, 2), generator=generator)  # A is 0, B is 1
        for column, (low, high) in enumerate(((length // 10, 2 * length // 10), (length // 2, 6 * length // 10))):
            places = torch.randint(low, high, (count, 1), generator=generator)
            symbols.scatter_(1, places, order[:, column : column + 1])
        return Examples(symbols, torch.full((count,), length), order[:, 0] + 2 * order[:, 1])


def smart_matrix(size: int) -> Tensor:
    """(H, H): NONZEROS links a unit, N(0, 1), scaled so that the largest absolute eigenvalue is SPECTRAL_RADIUS."""
    weight = torch.randn(size, size)
    kept = torch.rand(size, size).topk(min(NONZEROS, size), dim=1).indices
    weight = weight * torch.zeros(size, size).scatter_(1, kept, 1.0)
    return weight * (SPECTRAL_RADIUS / torch.linalg.eigvals(weight).abs().max())
