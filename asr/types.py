"""The values that travel between the parts: frozen dataclasses with their shapes and units.

Letters: B items, N samples, U target tokens (docs/architecture.md has them all).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Utterance:
    """One line of a manifest: where the audio is and what was said.

    `audio` is an absolute path, or a path relative to the manifest's folder.
    `seconds` is the length that the audio file's header states.
    """

    id: str
    audio: str
    text: str
    seconds: float
    speaker: str = ""


@dataclass(frozen=True, slots=True)
class Drop:
    """An utterance that cannot be used, and why.

    `reason` is one of `asr.data.ledger.Reason`; `source` the list that it stood in, such as a split or a manifest.
    """

    id: str
    reason: str
    detail: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one rank works on at a time: its share of a step's global batch, or one of the pieces of it.

    audio: (B, N) float32 in [-1, 1], zero-padded; audio_lengths: (B,) int64 samples. An item of length 0 stands in
        where a rank has nothing to do; it weighs nothing.
    targets: (B, U) int64 token ids, padded with 0 (blank); target_lengths: (B,) int64.
    seeds: (B,) int64, one for each (seed, epoch, utterance): the only source of augmentation's randomness.
    ids: the utterances' names; texts: their transcripts. seconds: audio in the batch, padding not counted.
    step_tokens: target tokens of the whole global batch, on all ranks, by which the loss is divided.
    dropped: utterances of this batch that turned out to be unusable.
    numbers: (B,) int64, which utterances of the corpus these are (`Corpus.numbers`), 0 for a stand-in; None where
        nobody asks.
    """

    audio: Tensor
    audio_lengths: Tensor
    targets: Tensor
    target_lengths: Tensor
    seeds: Tensor
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    seconds: float
    step_tokens: int
    dropped: tuple[Drop, ...] = ()
    numbers: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device`; the copy is asynchronous where memory is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; called by torch's DataLoader."""
        return self._map(lambda tensor: tensor.pin_memory())

    def part(self, items: slice) -> Batch:
        """Some of its items, without the padding that only others need; what was dropped stays with the whole."""
        part = self._map(lambda tensor: tensor[items])
        samples, all_samples = int(part.audio_lengths.sum()), int(self.audio_lengths.sum())
        return replace(
            part,
            audio=part.audio[:, : int(part.audio_lengths.max())],
            ids=self.ids[items],
            texts=self.texts[items],
            seconds=self.seconds * samples / all_samples,
            dropped=(),
        )

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        names = ("audio", "audio_lengths", "targets", "target_lengths", "seeds", "numbers")
        tensors = {name: getattr(self, name) for name in names}
        return replace(self, **{name: function(tensor) for name, tensor in tensors.items() if tensor is not None})


@dataclass(frozen=True, slots=True)
class Word:
    """One recognised word. Times are seconds from the start of the audio; confidence is in [0, 1]."""

    text: str
    start_seconds: float
    end_seconds: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Reading:
    """One of the N best texts of an utterance.

    score: what readings are ranked by, natural logarithm. acoustic: log-probability of the text's tokens given the
    audio. lm: that of the language model, unweighted; 0 without one.
    """

    text: str
    score: float
    acoustic: float
    lm: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was recognised in one utterance: the text, its words, and the log-probability of the best path.

    nbest: the best readings, best first, where they were asked for.
    """

    text: str
    words: tuple[Word, ...] = ()
    log_prob: float = 0.0
    nbest: tuple[Reading, ...] = ()
