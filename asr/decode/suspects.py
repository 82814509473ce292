"""Which training utterances may have a wrong transcript, by their losses in training and by what the model hears."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from asr import checkpoint
from asr.checkpoint import TRAINER
from asr.data.corpus import Corpus
from asr.data.shards import ShardReader
from asr.data.utterance_losses import KEY, corpus_digest
from asr.decode.align import viterbi
from asr.decode.greedy import greedy
from asr.decode.recognizer import Recognizer
from asr.decode.words import token_groups
from asr.errors import CheckpointError, DataError
from asr.types import Drop

GROUP_UTTERANCES = 50  # an utterance is compared with at least that many of its length
MAX_GROUPS = 50


@dataclass(frozen=True, slots=True)
class Losses:
    """The running losses of a run's training utterances, as its last checkpoint has them.

    corpus: every utterance that was opened, those left out of training included.
    losses: (n,) nats per token; NaN where training never came to the utterance.
    typical: (n,) median of the losses of utterances of about the same length.
    folder: the checkpoint.
    """

    corpus: Corpus
    losses: NDArray[np.float64]
    typical: NDArray[np.float64]
    folder: Path

    def most_suspicious(self, above: float | None = None) -> NDArray[np.int64]:
        """Utterances that have a loss, or more than `above` nats per token; first those furthest above the typical."""
        counted = np.flatnonzero(~np.isnan(self.losses) if above is None else self.losses > above)
        return counted[np.argsort((self.typical - self.losses)[counted], kind="stable")]


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a transcript, where the model would rather have it; log_prob is that of its best frame."""

    text: str
    start_seconds: float
    end_seconds: float
    log_prob: float


@dataclass(frozen=True, slots=True)
class Hearing:
    """A transcript beside what the model hears.

    text: the transcript as the model spells it. heard: what the model recognises.
    contradiction: by how many nats a token of the transcript the best path of all beats the best one that spells it.
    tokens: of the transcript. word_log_probs: of each of its words, the mean over tokens.
    """

    text: str
    heard: str
    contradiction: float
    tokens: tuple[Token, ...]
    word_log_probs: tuple[float, ...]


def read_losses(run: Path) -> Losses:
    """Read a run's losses and find the utterances again that they belong to.

    Raises:
        CheckpointError: there is no checkpoint, or none with losses.
        DataError: the shards that the run was trained on are gone or others.
    """
    index = checkpoint.read_index(run)
    if "last" not in index:
        raise CheckpointError(f"{run}: no checkpoint here; expected a run folder (with {checkpoint.INDEX})")
    folder = run / index["last"]
    checkpoint.verify(folder)
    if not (folder / TRAINER).is_file():
        raise CheckpointError(f"{folder}: holds no {TRAINER}, which has the losses; expected a checkpoint of training")
    # Mapped, as it holds the optimiser's moments too.
    state = torch.load(folder / TRAINER, map_location="cpu", weights_only=True, mmap=True).get(KEY)
    if state is None:
        raise CheckpointError(
            f"{folder}: has no losses by utterance: a former version wrote it; train on and look again"
        )
    readers = [ShardReader(name) for name in state["folders"]]
    corpus = Corpus(readers, readers[0].sample_rate_hz)
    if corpus_digest(corpus) != state["digest"]:
        raise DataError(f"{', '.join(state['folders'])}: got other utterances than {run} was trained on")
    sums, weights = state["totals"].double().numpy()
    losses = np.where(weights > 0, sums / np.where(weights > 0, weights, 1.0), np.nan)
    return Losses(corpus, losses, typical_losses(losses, corpus.num_samples), folder)


def typical_losses(losses: NDArray[np.float64], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """The median of each utterance's group of those of about its length.

    Args:
        losses: (n,); NaN: none.
        lengths: (n,) of the audio.

    Returns:
        (n,); NaN where there is no loss.
    """
    typical = np.full_like(losses, np.nan)
    counted = np.flatnonzero(~np.isnan(losses))
    by_length = counted[np.argsort(lengths[counted], kind="stable")]
    for group in np.array_split(by_length, np.clip(len(counted) // GROUP_UTTERANCES, 1, MAX_GROUPS)):
        if len(group):
            typical[group] = np.median(losses[group])
    return typical


def hear(recognizer: Recognizer, corpus: Corpus, numbers: Sequence[int]) -> Iterator[Hearing | Drop]:
    """Recognise training utterances and lay their transcripts over them; a Drop where that cannot be done."""
    for number in numbers:
        audio = corpus.audio_or_drop(number)
        if isinstance(audio, Drop):
            yield audio
            continue
        try:
            yield compare(recognizer, audio, corpus.texts[number])
        except DataError as error:
            yield corpus.drop(number, "infeasible", str(error))


def compare(recognizer: Recognizer, samples: NDArray[np.float32], text: str) -> Hearing:
    """Lay a transcript over (N,) samples at the model's rate, beside what the model hears in them.

    Raises:
        DataError: the model cannot spell the text, or not in so short a time.
    """
    tokenizer = recognizer.tokenizer
    ids = tokenizer.encode(text)
    log_probs = recognizer.log_probs(samples)  # (S, V)
    heard = greedy(log_probs[None], torch.tensor([len(log_probs)], device=log_probs.device))[0]
    path = viterbi(np.ascontiguousarray(log_probs.cpu().numpy()), ids)
    seconds = recognizer.model.frame_seconds
    tokens = tuple(
        Token(tokenizer.pieces[token], round(start * seconds, 3), round(end * seconds, 3), round(log_prob, 4))
        for token, start, end, log_prob in zip(path.ids, path.frames, path.ends, path.log_probs, strict=True)
    )
    words = tuple(
        round(sum(path.log_probs[i] for i in group) / len(group), 4) for group in token_groups(ids, tokenizer)
    )
    contradiction = max(0.0, heard.total - path.total) / len(ids)  # below 0 by rounding only
    return Hearing(tokenizer.normalize(text), tokenizer.decode(heard.ids), round(contradiction, 4), tokens, words)
