"""Where words end in a text without spaces: does a hierarchical LSTM find out (Chung, Ahn and Bengio 2017, section 4)?

Words of a small lexicon follow one another at random; the net predicts the next letter, and nothing tells it of words.
Judged is the first layer's boundary detector against the true word ends, by F1, less the best F1 that a detector of the
same rate, or one that always fires, would have blindly.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from asr.config.fields import PositiveInt, Section
from asr.errors import ConfigError
from asr.sequence.model import SequenceModel
from asr.sequence.report import Report
from asr.sequence.settings import Case, Data
from asr.sequence.task import Examples, MadeTask, Outcome
from asr.sequence.trainer import fit
from asr.stacks.hm_lstm import HmLstm

NUM_LETTERS, SHORTEST, LONGEST = 26, 3, 8


class Options(Section):
    """Options of word boundaries."""

    num_words: PositiveInt = Field(100, description="in the lexicon")
    length: PositiveInt = Field(100, description="letters of a sequence")
    num_test: PositiveInt = Field(100, description="sequences of the validation set, and of the test set")


def build(options: Options, data: Data) -> WordBoundaries:
    """Make the task."""
    return WordBoundaries(options)


class WordBoundaries(MadeTask):
    """(B, T) letters -> (B, T) the ones that follow; the targets' last column says where words end."""

    figure = "boundary F1 above blind"
    curve_figure = "minus bits a letter"
    higher_is_better = True
    readout = "every"
    input_size = output_size = NUM_LETTERS

    def __init__(self, options: Options) -> None:
        self.options, self.num_test = options, options.num_test
        generator = torch.Generator().manual_seed(20170424)
        sizes = torch.randint(SHORTEST, LONGEST + 1, (options.num_words,), generator=generator)
        self.lexicon = [torch.randint(NUM_LETTERS, (int(size),), generator=generator) for size in sizes]
        self.model: SequenceModel | None = None

    def initialize(self, model: SequenceModel) -> None:
        """Keep the model, to look at its boundaries when it is trained.

        Raises:
            ConfigError: the stack looks ahead.
        """
        if model.stack.lookahead_frames != 0:
            raise ConfigError(
                "stack: would see the letters that it is asked for; expected one that does not look ahead"
            )
        self.model = model

    def run(self, case: Case, report: Report) -> Outcome:
        outcome = fit(self, case, report)
        assert self.model is not None
        figures = {"bits a letter": -outcome.value, "of knowing the lexicon": self.entropy}
        stack = self.model.stack
        if not isinstance(stack, HmLstm):
            return replace(outcome, value=0.0, figures=figures)
        found, ends = [], []
        with torch.no_grad():
            for examples in self.evaluation("test"):
                examples = examples.to(self.model.linear.weight.device)
                inputs = F.one_hot(examples.inputs, NUM_LETTERS).float()
                found.append(stack.eval().boundaries(inputs, examples.lengths))
                ends.append(examples.targets[..., 1].bool())
        detected, true = torch.cat(found), torch.cat(ends)
        score, rate, share = f1(detected[..., 0], true), detected[..., 0].double().mean(), true.double().mean()
        blind = max(float(2 * rate * share / (rate + share).clamp(min=1e-9)), float(2 * share / (1 + share)))
        figures |= {"boundary F1": score, "blind F1": blind}
        figures |= {
            f"share of frames that layer {layer + 2} copies": 1 - float(detected[..., layer].double().mean())
            for layer in range(detected.shape[-1])
        }
        return replace(outcome, value=score - blind, figures=figures)

    @property
    def entropy(self) -> float:
        """Bits a letter for who knows the lexicon and where words begin: one draw of a word for all its letters."""
        return math.log2(len(self.lexicon)) * len(self.lexicon) / sum(map(len, self.lexicon))

    def loss(self, outputs: Tensor, examples: Examples) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), examples.targets[..., 0].flatten())

    def score(self, outputs: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
        # Bits, negated, as the trainer takes the highest figure for the best.
        losses = F.cross_entropy(outputs.flatten(0, 1), examples.targets[..., 0].flatten(), reduction="sum")
        return -losses / math.log(2), torch.tensor(examples.inputs.numel())

    def examples(self, count: int, generator: torch.Generator) -> Examples:
        length = self.options.length
        words = torch.randint(len(self.lexicon), (count, length // SHORTEST + 2), generator=generator)
        letters, ends = [], []
        for row in words.tolist():
            pieces = [self.lexicon[word] for word in row]
            letters.append(torch.cat(pieces)[: length + 1])
            marks = torch.zeros(sum(map(len, pieces)), dtype=torch.int64)
            marks[torch.tensor([len(piece) for piece in pieces]).cumsum(0) - 1] = 1
            ends.append(marks[: length + 1])
        symbols, marks = torch.stack(letters), torch.stack(ends)
        targets = torch.stack((symbols[:, 1:], marks[:, :-1]), -1)
        return Examples(symbols[:, :-1], torch.full((count,), length), targets)


def f1(found: Tensor, true: Tensor) -> float:
    """Harmonic mean of precision and recall; 0 if nothing is right."""
    right = (found & true).sum()
    return float(2 * right / (found.sum() + true.sum()).clamp(min=1))
