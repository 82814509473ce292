"""A character language model: bits that the next character of a text costs, of all that came before it.

The text is Karpathy's tiny Shakespeare, 1.1 million characters: the last tenth for the test, the twentieth before it
for validation. Held-out text is cut into windows whose first quarter is context only, so that no history is cold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from asr.config.fields import Section
from asr.errors import ConfigError, DataError
from asr.sequence.files import find
from asr.sequence.model import SequenceModel
from asr.sequence.settings import Data
from asr.sequence.task import Examples, Split, SupervisedTask

NAME = "tinyshakespeare.txt"
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
EVALUATION_ITEMS = 32


class Options(Section):
    """Options of the character language model."""

    length: int = Field(128, ge=8, description="characters of a window")
    max_evaluated: int = Field(30_000, ge=1000, description="characters of the validation set, and of the test set")


def build(options: Options, data: Data) -> CharacterModel:
    """Make the task; reads the text.

    Raises:
        ConfigError, DataError: it is not at hand, or too short.
    """
    path = find(data, NAME, url=URL, sha256=SHA256)
    try:
        return CharacterModel(path.read_text(encoding="utf-8"), options)
    except (UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{path}: {error}") from None


class CharacterModel(SupervisedTask):
    """(B, T) characters -> (B, T) the ones that follow."""

    figure = "bits a character"
    higher_is_better = False
    readout = "every"

    def __init__(self, text: str, options: Options) -> None:
        self.options = options
        alphabet = sorted(set(text))
        places = {character: i for i, character in enumerate(alphabet)}
        symbols = torch.tensor([places[character] for character in text])
        tenth, twentieth = len(symbols) // 10, len(symbols) // 20
        if twentieth <= options.length + 1:
            raise ValueError(f"got {len(symbols)} characters, expected at least {20 * (options.length + 2)}")
        self.train = symbols[: -tenth - twentieth]
        self.held_out = {"validation": symbols[-tenth - twentieth : -tenth], "test": symbols[-tenth:]}
        self.input_size = self.output_size = len(alphabet)
        self.context = options.length // 4
        share = torch.bincount(self.train, minlength=len(alphabet)).double().clamp(min=0.5)
        counts = torch.bincount(self.held_out["test"], minlength=len(alphabet)).double()
        self.chance = float(-(counts * (share / share.sum()).log2()).sum() / counts.sum())

    def initialize(self, model: SequenceModel) -> None:
        """Refuse a stack that sees the characters it is asked for.

        Raises:
            ConfigError: the stack looks ahead.
        """
        if model.stack.lookahead_frames != 0:
            raise ConfigError(
                f"stack: looks {model.stack.lookahead_frames or 'at all'} frames ahead and would see what it is asked "
                "for; expected one that does not, such as with stack.bidirectional=false or stack.padding=causal"
            )

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Examples]:
        places = torch.arange(self.options.length + 1)
        while True:
            starts = torch.randint(len(self.train) - self.options.length, (batch_size, 1), generator=generator)
            yield self._examples(self.train[starts + places])

    def evaluation(self, split: Split) -> Iterable[Examples]:
        symbols = self.held_out[split][: self.options.max_evaluated]
        stride = self.options.length - self.context
        windows = symbols.unfold(0, self.options.length + 1, stride)
        return (self._examples(part) for part in windows.split(EVALUATION_ITEMS))

    def loss(self, outputs: Tensor, examples: Examples) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), examples.targets.flatten())

    def score(self, outputs: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
        outputs, targets = outputs[:, self.context :], examples.targets[:, self.context :]
        losses = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="sum") / math.log(2)
        return losses, torch.tensor(targets.numel())

    def _examples(self, windows: Tensor) -> Examples:
        lengths = torch.full((len(windows),), windows.shape[1] - 1)
        return Examples(windows[:, :-1], lengths, windows[:, 1:])
