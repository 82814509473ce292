"""Forced alignment: where in the audio each word of a known text was said."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from asr.checkpoint import Checkpoint
from asr.compiled import compiled
from asr.data.corpus import required_frames
from asr.decode.decoder import TokenPath
from asr.decode.device import choose_device
from asr.decode.words import words_of
from asr.errors import DataError
from asr.nn.folding import fold_norms
from asr.nn.precision import whole_float32
from asr.text.tokenizer import Tokenizer, unknown_characters
from asr.types import Word

LONG_SECONDS = 60.0  # longer audio goes through a model that streams piece by piece
PIECE_SECONDS = 20.0
NUM_SAVED = 256  # frames whose scores are kept; those between two of them are computed anew
MIN_STRETCH = 16  # frames between two of them


@dataclass(frozen=True, slots=True)
class Alignment:
    """A text laid over its audio.

    words: spelled as in the text that was given. tokens: the model's own units. Both have seconds, and as confidence
        the geometric mean of their tokens' probabilities, each at the token's best frame.
    text: as the model spells it. seconds: of the audio. log_prob: of the best path that spells the text.
    """

    text: str
    words: tuple[Word, ...]
    tokens: tuple[Word, ...]
    seconds: float
    log_prob: float


class Aligner:
    """Aligns texts with audio by the best CTC path, in memory linear in the audio's length.

    Audio of more than a minute goes through the model piece by piece if it streams, else as a whole.

    Args:
        checkpoint: from `asr.checkpoint.load`; its model is this aligner's from now on (`asr.nn.folding`).
        device: torch's name of it; None: a GPU if there is one.
    """

    def __init__(self, checkpoint: Checkpoint, device: str | None = None) -> None:
        self.device = choose_device(device)
        self.model = checkpoint.model.to(self.device)
        fold_norms(self.model)
        self.tokenizer = checkpoint.tokenizer
        self.sample_rate_hz = checkpoint.config.data.sample_rate_hz

    def align(self, samples: NDArray[np.float32], text: str) -> Alignment:
        """Align (N,) samples in [-1, 1] at the model's rate with what is said in them.

        Raises:
            DataError: the text is empty, has characters that the model lacks, or is too long for the audio.
        """
        ids = self._ids(text)
        seconds, frame_seconds = len(samples) / self.sample_rate_hz, self.model.frame_seconds
        needed, frames = required_frames(ids), self.model.frame_count(len(samples))
        if needed > frames:
            raise DataError(
                f"the text needs {needed} frames (tokens: {len(ids)}, blanks between equal ones: {needed - len(ids)}), "
                f"the {seconds:.2f} s of audio have {frames}, one each {1000 * frame_seconds:g} ms; "
                "is it the text of this audio?"
            )
        # What is kept of each frame: the blank and the tokens that occur.
        kept, columns = np.unique(np.array([0, *ids]), return_inverse=True)
        path = viterbi(self._log_probs(samples, kept), columns[1:].tolist())._replace(ids=ids)
        tokens = tuple(
            Word(self.tokenizer.pieces[token], *_seconds(start, end, frame_seconds), _confidence(log_prob))
            for token, start, end, log_prob in zip(path.ids, path.frames, path.ends, path.log_probs, strict=True)
        )
        words = as_given(words_of(path, self.tokenizer, frame_seconds), text, self.tokenizer)
        return Alignment(self.tokenizer.normalize(text), words, tokens, seconds, path.total)

    def _ids(self, text: str) -> list[int]:
        unknown = unknown_characters(self.tokenizer, [(repr(word), word) for word in text.split()])
        if unknown:
            raise DataError(f"the model lacks characters of the text: {'; '.join(map(str, unknown))}")
        ids = self.tokenizer.encode(text)
        if not ids:
            raise DataError(f"got the text {text[:60]!r}, expected words")
        return ids

    @torch.inference_mode()
    @whole_float32()
    def _log_probs(self, samples: NDArray[np.float32], kept: NDArray[np.int64]) -> NDArray[np.float32]:
        """(S, len(kept)): the log-probabilities of the tokens in `kept`."""
        audio = torch.from_numpy(samples)[None]
        columns = torch.from_numpy(kept).to(self.device)
        parts = [frames[0, :, columns].cpu().numpy() for frames in self._frames(audio)]
        return np.ascontiguousarray(np.concatenate(parts), np.float32)

    def _frames(self, audio: torch.Tensor) -> Iterator[torch.Tensor]:
        """(1, N) samples -> (1, n, V) log-probabilities, in one piece or several."""
        model = self.model
        long = audio.shape[1] > LONG_SECONDS * self.sample_rate_hz
        if not long or model.not_streamable:
            yield model(audio.to(self.device), torch.tensor([audio.shape[1]], device=self.device))[0]
            return
        state = model.initial_state(1, audio[:, :0].to(self.device))
        for piece in audio.split(int(PIECE_SECONDS * self.sample_rate_hz), 1):
            frames, state = model.step(piece.to(self.device), state)
            yield frames
        yield model.flush(state)


def as_given(words: Sequence[Word], text: str, tokenizer: Tokenizer) -> tuple[Word, ...]:
    """Spell aligned words as `text` does, which is as they were before the tokenizer normalised them.

    A word such as "well-known" that is aligned as two comes back as one; what has no word in it, as a dash, goes to
    the word before it, or to the first one.
    """
    pieces: list[tuple[list[str], int]] = []  # spelling, how many words
    for given in text.split():
        count = len(tokenizer.normalize(given).split())
        if pieces and (not count or not pieces[-1][1]):
            pieces[-1] = ([*pieces[-1][0], given], pieces[-1][1] + count)
        else:
            pieces.append(([given], count))
    if sum(count for _, count in pieces) != len(words):  # the tokenizer parts words by its own rules
        return tuple(words)
    result, position = [], 0
    for spelling, count in pieces:
        group = words[position : position + count]
        position += count
        confidence = math.prod(word.confidence for word in group) ** (1 / count)
        result.append(Word(" ".join(spelling), group[0].start_seconds, group[-1].end_seconds, round(confidence, 4)))
    return tuple(result)


def viterbi(log_probs: NDArray[np.float32], ids: Sequence[int], blank: int = 0) -> TokenPath:
    """The most probable CTC path that spells `ids` (Graves et al. 2006; Viterbi 1967).

    Scores of all tokens are kept at NUM_SAVED frames; from the last one back, the frames between two of them are
    computed anew, and only for tokens that the path can come from. So memory is NUM_SAVED * 16 bytes a token and a
    few bytes a frame, and time that of one pass.

    Args:
        log_probs: (S, V).
        ids: U tokens, none of them blank.
        blank: its column.

    Raises:
        DataError: there are too few frames, or no path has a probability above 0.
    """
    num_frames, needed = len(log_probs), required_frames(ids)
    if needed > num_frames:
        raise DataError(f"the text needs {needed} frames, got {num_frames}")
    labels = np.array(ids, np.int64)
    # Added where a token follows another one without a blank: impossible if they are equal, or before the first.
    joins = np.zeros(len(labels), np.float64)
    joins[1:][labels[1:] == labels[:-1]] = -np.inf
    stretch = max(MIN_STRETCH, -(-num_frames // NUM_SAVED))
    # Scores of the best path so far that ends with u tokens and a blank, and with the u-th token itself (0: none).
    saved = np.full((-(-num_frames // stretch), 2, len(labels) + 1), -np.inf)
    final = np.empty((2, len(labels) + 1))
    _forward(log_probs, labels, joins, blank, stretch, saved, final)
    total = float(final[:, -1].max())
    if not total > -np.inf:
        raise DataError("the model gives the text no probability above 0")
    begins, ends = np.zeros((2, len(labels)), np.int64)
    peaks = np.full(len(labels), -np.inf)
    _trace(log_probs, labels, joins, blank, stretch, saved, final, begins, ends, peaks)
    return TokenPath(list(ids), begins.tolist(), ends.tolist(), peaks.tolist(), total)


def _seconds(start: int, end: int, frame_seconds: float) -> tuple[float, float]:
    return round(start * frame_seconds, 3), round(end * frame_seconds, 3)


def _confidence(log_prob: float) -> float:
    return round(min(1.0, math.exp(log_prob)), 4)


@compiled
def _forward(log_probs, labels, joins, blank, stretch, saved, final):
    """Fill `saved` with the scores before every `stretch`-th frame, and `final` with those after the last."""
    num_frames, num_tokens = len(log_probs), len(labels)
    blanks, tokens = np.full(num_tokens + 1, -np.inf), np.full(num_tokens + 1, -np.inf)
    new_blanks, new_tokens = blanks.copy(), tokens.copy()
    emitted = np.empty(num_tokens)
    blanks[0] = 0.0  # before the first frame
    for t in range(num_frames):
        if t % stretch == 0:
            saved[t // stretch, 0] = blanks
            saved[t // stretch, 1] = tokens
        row = log_probs[t]
        # Tokens that can be reached by now, and from which the end can still be.
        first, end = max(0, num_tokens - num_frames + t), min(num_tokens, t + 1)
        _gather(row, labels[first:end], emitted[first:end])
        _after_tokens(
            tokens[first : end + 1],
            blanks[first:end],
            joins[first:end],
            emitted[first:end],
            new_tokens[first : end + 1],
        )
        _after_blanks(blanks[first : end + 1], tokens[first : end + 1], row[blank], new_blanks[first : end + 1])
        blanks, new_blanks = new_blanks, blanks
        tokens, new_tokens = new_tokens, tokens
    final[0] = blanks
    final[1] = tokens


# Loops of their own, without max(), become vector instructions.


@compiled
def _gather(row, labels, emitted):
    for u in range(len(labels)):
        emitted[u] = row[labels[u]]


@compiled
def _after_tokens(tokens, blanks, joins, emitted, new_tokens):
    for u in range(len(emitted)):
        stay, blank_before, joined = tokens[u + 1], blanks[u], tokens[u] + joins[u]
        best = stay if stay > blank_before else blank_before
        new_tokens[u + 1] = (best if best > joined else joined) + emitted[u]


@compiled
def _after_blanks(blanks, tokens, silence, new_blanks):
    for u in range(len(new_blanks)):
        blank_before, token_before = blanks[u], tokens[u]
        new_blanks[u] = (blank_before if blank_before > token_before else token_before) + silence


@compiled
def _trace(log_probs, labels, joins, blank, stretch, saved, final, begins, ends, peaks):
    """Follow the best path from the end; fills each token's first frame, frame after its last, and best score."""
    num_frames, num_tokens = len(log_probs), len(labels)
    u = num_tokens  # tokens so far
    on_token = final[1, u] >= final[0, u]
    first_of_last = (len(saved) - 1) * stretch
    for first in range(first_of_last, -1, -stretch):
        end = min(first + stretch, num_frames)
        low = max(0, u - (end - first))  # what the path can come from
        to_blank = np.zeros((end - first, u - low + 1), np.bool_)  # a token came before this blank
        to_token = np.zeros((end - first, u - low + 1), np.uint8)  # before this token: 0 itself, 1 a blank, 2 another
        blanks, tokens = saved[first // stretch]
        for t in range(first, end):
            row = log_probs[t]
            for v in range(u, low - 1, -1):
                if v > 0:
                    best, move = tokens[v], 0
                    if blanks[v - 1] > best:
                        best, move = blanks[v - 1], 1
                    if tokens[v - 1] + joins[v - 1] > best:
                        best, move = tokens[v - 1] + joins[v - 1], 2
                    to_token[t - first, v - low] = move
                    came = tokens[v] > blanks[v]
                    to_blank[t - first, v - low] = came
                    blanks[v] = (tokens[v] if came else blanks[v]) + row[blank]
                    tokens[v] = best + row[labels[v - 1]]
                else:
                    blanks[0] += row[blank]
        for t in range(end - 1, first - 1, -1):
            if on_token:
                token = u - 1
                score = log_probs[t, labels[token]]
                if ends[token] == 0:
                    ends[token] = t + 1
                begins[token] = t
                peaks[token] = max(peaks[token], score)
                move = to_token[t - first, u - low]
                on_token = move != 1
                u -= move > 0
            else:
                on_token = to_blank[t - first, u - low]
