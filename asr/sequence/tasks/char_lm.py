"""A character language model: bits that the next character of a text costs, of all that came before it.

The text is Karpathy's tiny Shakespeare, 1.1 million characters: the last tenth for the test, the twentieth before it
for validation. Or a text of your own, if data.root is that file, or the Penn Treebank as Mikolov prepared it, which has
to be bought. Held-out text is cut into windows whose first quarter is context only, so that no history is cold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

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
PENN_TREEBANK = tuple(f"ptb.char.{part}.txt" for part in ("train", "valid", "test"))  # characters between spaces
EVALUATION_ITEMS = 32


class Options(Section):
    """Options of the character language model."""

    text: Literal["shakespeare", "penn_treebank"] = Field(
        "shakespeare", description=f"penn_treebank: {', '.join(PENN_TREEBANK)} in data.root"
    )
    length: int = Field(128, ge=8, description="characters of a window")
    max_evaluated: int = Field(30_000, ge=1000, description="characters of the validation set, and of the test set")


def build(options: Options, data: Data) -> CharacterModel:
    """Make the task; reads the text.

    Raises:
        ConfigError, DataError: it is not at hand, or too short.
    """
    if options.text == "shakespeare":
        path = find(data, NAME, url=URL, sha256=SHA256)
        parts: tuple[Sequence[str], Sequence[str], Sequence[str]] = cut(_read(path))
    else:
        path = data.root or Path("data.root")
        paths = [path / name for name in PENN_TREEBANK]
        if not all(part.is_file() for part in paths):
            raise ConfigError(f"data.root={data.root}: expected a folder that holds {', '.join(PENN_TREEBANK)}")
        train, validation, test = (_read(part).split() for part in paths)
        parts = train, validation, test
    try:
        return CharacterModel(*parts, options)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def cut(text: str) -> tuple[str, str, str]:
    """A text's parts for training, validation and test."""
    tenth, twentieth = len(text) // 10, len(text) // 20
    return text[: -tenth - twentieth], text[-tenth - twentieth : -tenth], text[-tenth:]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from None


class CharacterModel(SupervisedTask):
    """(B, T) characters -> (B, T) the ones that follow."""

    figure = "bits a character"
    higher_is_better = False
    readout = "every"

    def __init__(self, train: Sequence[str], validation: Sequence[str], test: Sequence[str], options: Options) -> None:
        self.options = options
        alphabet = sorted({*train, *validation, *test})
        places = {character: i for i, character in enumerate(alphabet)}
        shortest = min(map(len, (train, validation, test)))
        if shortest <= options.length + 1:
            raise ValueError(
                f"got a part of {shortest} characters, expected at least {options.length + 2} for training, validation"
                " (a twentieth of a text that is cut) and test"
            )
        self.train, held_out, tested = (
            torch.tensor([places[character] for character in part]) for part in (train, validation, test)
        )
        self.held_out = {"validation": held_out, "test": tested}
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
