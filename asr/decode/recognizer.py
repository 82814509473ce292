"""Speech in, text out: a checkpoint ready for use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from asr.audio.io import audio_info, read_audio
from asr.checkpoint import Checkpoint
from asr.decode.greedy import TokenPath, greedy
from asr.decode.words import words_of
from asr.errors import AsrError
from asr.nn.folding import fold_norms
from asr.types import Transcript

BATCH_SECONDS = 600.0  # audio recognised at a time, padding included: some hundred MB of activations


@dataclass(frozen=True, slots=True)
class Source:
    """Audio to be recognised: its length, for batching, and how to get it as (N,) float32 at the model's rate."""

    seconds: float
    read: Callable[[], NDArray[np.float32]]


class Recognizer:
    """Recognises whole utterances with greedy decoding. A transcript does not depend on what else is in its batch.

    Args:
        checkpoint: from `asr.checkpoint.load`; its model is this recogniser's from now on (`asr.nn.folding`).
        device: torch's name of it; None: a GPU if there is one.
    """

    def __init__(self, checkpoint: Checkpoint, device: str | None = None) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = checkpoint.model.to(self.device)
        fold_norms(self.model)
        self.tokenizer = checkpoint.tokenizer
        self.sample_rate_hz = checkpoint.config.data.sample_rate_hz

    def transcribe(self, audio: str | Path | NDArray[np.float32], sample_rate_hz: int | None = None) -> Transcript:
        """Recognise one file, or samples in [-1, 1] at `sample_rate_hz` (the model's rate if None).

        Raises:
            DataError: the file cannot be read.
        """
        if isinstance(audio, np.ndarray):
            samples = _as_samples(audio, sample_rate_hz or self.sample_rate_hz, self.sample_rate_hz)
        else:
            samples = read_audio(audio, sample_rate_hz=self.sample_rate_hz)
        return self.transcribe_batch([samples])[0]

    def file_source(self, path: str | Path) -> Source:
        """A file as a `Source`.

        Raises:
            DataError: the file's header cannot be read.
        """
        return Source(audio_info(path).seconds, lambda: read_audio(path, sample_rate_hz=self.sample_rate_hz))

    def transcribe_many(
        self, sources: Sequence[Source], *, batch_seconds: float = BATCH_SECONDS
    ) -> Iterator[tuple[int, Transcript | AsrError]]:
        """Recognise many, batched by length: yields (index, transcript or what went wrong), longest first.

        The next batch is read while this one is recognised.
        """
        order = sorted(range(len(sources)), key=lambda i: -sources[i].seconds)
        batches = _cut(order, [sources[i].seconds for i in order], batch_seconds)
        with ThreadPoolExecutor(1) as pool:
            pending = [pool.submit(_read, sources, batch) for batch in batches[:1]]
            for following in [*batches[1:], None]:
                read = pending.pop().result()
                if following is not None:
                    pending.append(pool.submit(_read, sources, following))
                yield from ((i, result) for i, result in read if isinstance(result, AsrError))
                good = [(i, result) for i, result in read if not isinstance(result, AsrError)]
                yield from zip((i for i, _ in good), self.transcribe_batch([s for _, s in good]), strict=True)

    @torch.inference_mode()
    def transcribe_batch(self, audio: Sequence[NDArray[np.float32]]) -> list[Transcript]:
        """Recognise (N_i,) samples each, all in one padded batch."""
        if not audio:
            return []
        padded = np.zeros((len(audio), max(1, *(len(samples) for samples in audio))), dtype=np.float32)
        for row, samples in enumerate(audio):
            padded[row, : len(samples)] = samples
        lengths = torch.tensor([len(samples) for samples in audio], device=self.device)
        log_probs, frames = self.model(torch.from_numpy(padded).to(self.device), lengths)
        return [self._transcript(path) for path in greedy(log_probs, frames)]

    def _transcript(self, path: TokenPath) -> Transcript:
        words = words_of(path, self.tokenizer, self.model.frame_seconds)
        return Transcript(self.tokenizer.decode(path.ids), words, path.total)


def _as_samples(audio: NDArray[np.float32], from_hz: int, to_hz: int) -> NDArray[np.float32]:
    from asr.audio.resample import resample

    if audio.ndim != 1 or audio.dtype != np.float32:
        raise ValueError(f"audio: got {audio.dtype} of shape {audio.shape}, expected float32 of shape (N,)")
    return audio if from_hz == to_hz else resample(audio, from_hz, to_hz)


def _read(sources: Sequence[Source], batch: Sequence[int]) -> list[tuple[int, NDArray[np.float32] | AsrError]]:
    results: list[tuple[int, NDArray[np.float32] | AsrError]] = []
    for i in batch:
        try:
            results.append((i, sources[i].read()))
        except AsrError as error:
            results.append((i, error))
    return results


def _cut(order: Sequence[int], seconds: Sequence[float], batch_seconds: float) -> list[list[int]]:
    """Cut a descending order so that items times longest stays within `batch_seconds`; one item always fits."""
    batches: list[list[int]] = []
    longest = 0.0
    for i, length in zip(order, seconds, strict=True):
        if not batches or (len(batches[-1]) + 1) * longest > batch_seconds:
            batches.append([])
            longest = length
        batches[-1].append(i)
    return batches
