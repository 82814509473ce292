"""What a task is, and what comes out of training on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from asr.sequence.model import SequenceModel
    from asr.sequence.report import Report
    from asr.sequence.settings import Case

Split = Literal["validation", "test"]
HELD_OUT_SEEDS: dict[Split, int] = {"validation": -1, "test": -2}  # training's seeds are not negative


@dataclass(frozen=True, slots=True)
class Examples:
    """A batch.

    inputs: (B, S, D) features, or (B, S) int64 symbols. lengths: (B,) int64, real frames.
    targets: whatever the task's loss compares with; batch first.
    times: (B, S) float, when each frame was; for stacks that take time stamps.
    """

    inputs: Tensor
    lengths: Tensor
    targets: Tensor
    times: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """All that there are."""
        return [self.inputs, self.lengths, self.targets, *([] if self.times is None else [self.times])]

    def clone(self) -> Examples:
        """The same in memory of its own."""
        return Examples(*(tensor.clone() for tensor in self.tensors()))

    def to(self, device: torch.device) -> Examples:
        """The same on another device; to a GPU they go from pinned memory, so that the host need not wait for it."""
        if device.type != "cuda":
            return Examples(*(tensor.to(device) for tensor in self.tensors()))
        return Examples(*(tensor.pin_memory().to(device, non_blocking=True) for tensor in self.tensors()))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training gave.

    value: the task's figure on the test set. parameters: how many were trained. steps: updates.
    curve: (updates, mean training loss since the last point, figure on the validation set).
    figures: whatever else is worth a line. cut_short: the time was up before the updates were done.
    """

    value: float
    parameters: int
    steps: int
    curve: list[tuple[int, float, float]]
    figures: dict[str, float] = field(default_factory=dict)
    cut_short: bool = False


class Task(ABC):
    """A task.

    Attributes:
        figure: name of the figure that targets speak of, with its unit.
        higher_is_better: of that figure.
        chance: the figure of the best answer that does not look at the input; None if that means nothing.
        curve_figure: name of the figure on the validation set, where it is not the judged one; empty: it is.
    """

    figure: str
    higher_is_better: bool
    chance: float | None = None
    curve_figure: str = ""

    @abstractmethod
    def run(self, case: Case, report: Report) -> Outcome:
        """Train as `case` says, telling `report` how it goes."""

    def draw(self, folder: Path) -> list[Path]:
        """Draw pictures of its own into `folder` after a run, with matplotlib; gives their paths."""
        return []


class SupervisedTask(Task):
    """A task that the shared trainer trains: batches of inputs and targets, a loss, a figure.

    Attributes:
        input_size: D, features of a frame; for symbols how many there are.
        output_size: outputs of the read-out.
        readout: whether the answer is wanted after every frame or after the last one.
    """

    input_size: int
    output_size: int
    readout: Literal["every", "last"]

    def run(self, case: Case, report: Report) -> Outcome:
        """Train `case.stack` with a linear read-out."""
        from asr.sequence.trainer import fit

        return fit(self, case, report)

    def initialize(self, model: SequenceModel) -> None:
        """Draw the weights anew, for a task whose paper wants them so; by default they stay as they are."""

    @abstractmethod
    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Examples]:
        """Training batches without end."""

    @abstractmethod
    def evaluation(self, split: Split) -> Iterable[Examples]:
        """The batches of a held-out set, the same ones each time."""

    @abstractmethod
    def loss(self, outputs: Tensor, examples: Examples) -> Tensor:
        """What is minimised, a scalar.

        Args:
            outputs: (B, S, output_size), or (B, output_size) if `readout` is "last".
            examples: the batch.
        """

    @abstractmethod
    def score(self, outputs: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
        """A sum over the batch and a count; the figure is the ratio of the sums over a set."""

    def figures(self, outputs: Tensor, examples: Examples) -> dict[str, tuple[Tensor, Tensor]]:
        """Other figures of the test set by name, each a sum and a count."""
        return {}


class MadeTask(SupervisedTask):
    """A supervised task whose examples are made as they are needed, so that no two batches are the same.

    Attributes:
        num_test: sequences of the validation set, and of the test set.
    """

    num_test: int

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Examples]:
        while True:
            yield self.examples(batch_size, generator)

    def evaluation(self, split: Split) -> Iterable[Examples]:
        return [self.examples(self.num_held_out(split), torch.Generator().manual_seed(HELD_OUT_SEEDS[split]))]

    def num_held_out(self, split: Split) -> int:
        """Sequences of a held-out set."""
        return self.num_test

    @abstractmethod
    def examples(self, count: int, generator: torch.Generator) -> Examples:
        """Make `count` sequences."""


class Classification(SupervisedTask):
    """A supervised task with one class for a sequence, asked for after its last frame; targets are (B,) classes."""

    figure = "accuracy"
    higher_is_better = True
    readout = "last"

    def loss(self, outputs: Tensor, examples: Examples) -> Tensor:
        return F.cross_entropy(outputs, examples.targets)

    def score(self, outputs: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
        return (outputs.argmax(1) == examples.targets).sum(), torch.tensor(len(outputs))
