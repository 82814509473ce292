"""Utterances of one or several splits behind one index, and the check that finds those that cannot be used."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr.data.ledger import Reason
from asr.data.shards import ShardReader
from asr.errors import DataError
from asr.types import Drop


class Corpus:
    """The utterances of several shard folders, in order, less those that `keep` left out.

    Attributes:
        ids, texts: of each utterance.
        num_samples: (n,) int64.
        numbers: (n,) int64, the place of each among all that were opened; leaving some out does not change it.
        num_tokens: (n,) int64, target tokens of each; 0 until `drop_unusable` has counted them.
    """

    def __init__(self, readers: Sequence[ShardReader], sample_rate_hz: int) -> None:
        self.readers = list(readers)
        tell_apart(self.readers)
        self.sample_rate_hz = sample_rate_hz
        self.ids = [name for reader in readers for name in reader.ids]
        self.texts = [text for reader in readers for text in reader.texts]
        self.num_samples = np.concatenate([np.asarray(r.num_samples, dtype=np.int64) for r in readers])
        self._starts = list(np.cumsum([0] + [len(reader.ids) for reader in readers]))
        self.numbers = np.arange(len(self.ids))
        self.num_tokens = np.zeros(len(self.ids), dtype=np.int64)

    @classmethod
    def open(cls, folders: Sequence[Path | str], sample_rate_hz: int) -> Corpus:
        """Read the shards in `folders`; each is a folder of this machine or a URL.

        Raises:
            DataError: shards are damaged, or hold audio at another rate.
        """
        readers = [ShardReader(folder) for folder in folders]
        for folder, reader in zip(folders, readers, strict=True):
            if reader.sample_rate_hz != sample_rate_hz:
                raise DataError(
                    f"{folder}: got shards at {reader.sample_rate_hz} Hz, data.sample_rate_hz is {sample_rate_hz}"
                )
        return cls(readers, sample_rate_hz)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def parts(self) -> NDArray[np.int64]:
        """(n,) the number of the reader that has each utterance."""
        return np.searchsorted(self._starts, self.numbers, side="right") - 1

    @property
    def seconds(self) -> float:
        """Length of all audio."""
        return float(self.num_samples.sum()) / self.sample_rate_hz

    def audio(self, index: int) -> NDArray[np.float32]:
        """Decode one utterance: (N,) float32 in [-1, 1].

        Raises:
            DataError: the shard or the audio in it is damaged.
        """
        reader, position = self._place(index)
        return reader.audio(position)

    def audio_or_drop(self, index: int) -> NDArray[np.float32] | Drop:
        """Decode one utterance, or say what is wrong with it.

        Raises:
            Unreachable: the utterance lies elsewhere and cannot be fetched.
        """
        return self.audio_or_drop_many([index])[0]

    def audio_or_drop_many(self, indices: Sequence[int]) -> list[NDArray[np.float32] | Drop]:
        """Do it for some utterances; those that lie elsewhere are fetched at the same time."""
        places = [self._place(index) for index in indices]
        found: dict[int, NDArray[np.float32] | Drop] = {}
        for reader in dict.fromkeys(reader for reader, _ in places):
            mine = [k for k, (other, _) in enumerate(places) if other is reader]
            for k, audio in zip(mine, reader.audio_many([places[k][1] for k in mine]), strict=True):
                if isinstance(audio, DataError):
                    audio = self.drop(indices[k], getattr(audio, "reason", Reason.UNREADABLE), str(audio))
                found[k] = audio
        return [found[k] for k in range(len(indices))]

    def drop(self, index: int, reason: str, detail: str) -> Drop:
        """Say why an utterance cannot be used."""
        return Drop(self.ids[index], reason, detail, self.source(index))

    def source(self, index: int) -> str:
        """The name of the folder of shards that has an utterance."""
        return self._place(index)[0].name

    def _place(self, index: int) -> tuple[ShardReader, int]:
        """The reader that has an utterance, and which of its utterances it is."""
        where = int(self.numbers[index])
        part = bisect.bisect_right(self._starts, where) - 1
        return self.readers[part], where - self._starts[part]

    def keep(self, indices: NDArray[np.int64]) -> None:
        """Leave out all utterances but these."""
        self.ids = [self.ids[i] for i in indices]
        self.texts = [self.texts[i] for i in indices]
        self.num_samples, self.numbers = self.num_samples[indices], self.numbers[indices]
        self.num_tokens = self.num_tokens[indices]


def tell_apart(readers: Sequence[ShardReader]) -> None:
    """Call those by their locations whose folders have one name: ledgers know an utterance by its source and id."""
    locations: dict[str, set[str]] = {}
    for reader in readers:
        locations.setdefault(reader.name, set()).add(reader.location)
    for reader in readers:
        if len(locations[reader.name]) > 1:
            reader.name = reader.location


def drop_unusable(
    corpus: Corpus,
    *,
    encode: Callable[[str], list[int]],
    frame_count: Callable[[int], int],
    min_seconds: float,
    max_seconds: float,
    fastest_speed: float = 1.0,
) -> list[Drop]:
    """Take out of `corpus` what CTC cannot train on, and say what and why.

    Args:
        corpus: changed in place.
        encode: text -> token ids; a DataError says which character it lacks.
        frame_count: samples -> output frames of the configured model.
        min_seconds: shorter utterances are dropped.
        max_seconds: longer ones are.
        fastest_speed: speed perturbation shortens audio by up to this factor; frames are counted after it.
    """
    drops, kept = [], []
    for index, (text, samples) in enumerate(zip(corpus.texts, corpus.num_samples, strict=True)):
        seconds = samples / corpus.sample_rate_hz
        try:
            tokens = encode(text)
        except DataError as error:
            drops.append(corpus.drop(index, Reason.UNKNOWN_CHARACTERS, str(error)))
            continue
        corpus.num_tokens[index] = len(tokens)
        needed, available = required_frames(tokens), frame_count(int(samples / fastest_speed))
        if not tokens:
            drops.append(corpus.drop(index, Reason.EMPTY_TEXT, f"the transcript {text!r} is empty once normalised"))
        elif seconds < min_seconds:
            drops.append(corpus.drop(index, Reason.TOO_SHORT, f"{seconds:.2f} s, data.min_seconds is {min_seconds}"))
        elif seconds > max_seconds:
            drops.append(corpus.drop(index, Reason.TOO_LONG, f"{seconds:.2f} s, data.max_seconds is {max_seconds}"))
        elif needed > available:
            detail = f"CTC needs {needed} frames for {len(tokens)} tokens, {seconds:.2f} s give {available}"
            drops.append(corpus.drop(index, Reason.INFEASIBLE, detail))
        else:
            kept.append(index)
    corpus.keep(np.asarray(kept, dtype=np.int64))
    return drops


def required_frames(tokens: Sequence[int]) -> int:
    """Frames that a CTC alignment needs at least: one a token, and a blank between equal neighbours."""
    return len(tokens) + sum(a == b for a, b in pairwise(tokens))
