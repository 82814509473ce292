"""Forced alignment against all paths, against torchaudio, and through models."""

import math
import random
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.config.schema import Text
from asr.data.corpus import required_frames
from asr.decode import align
from asr.decode.align import Aligner, as_given, viterbi
from asr.errors import DataError
from asr.text.tokenizer import CharacterTokenizer
from asr.types import Word
from tests.support.align import FORWARD, best_path, runs, small_checkpoint


def random_log_probs(frames: int, tokens: int, seed: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(frames, tokens, generator=generator)).log_softmax(-1).numpy()


def check_path(path, log_probs: np.ndarray, ids: list[int], total: float, expected: tuple) -> None:
    assert path.ids == ids
    assert math.isclose(path.total, total, rel_tol=1e-9, abs_tol=1e-9)
    assert (path.ids, path.frames, path.ends) == expected
    for token, start, end, peak in zip(path.ids, path.frames, path.ends, path.log_probs, strict=True):
        assert peak == log_probs[start:end, token].max()


@given(st.integers(1, 7), st.lists(st.integers(1, 2), min_size=1, max_size=5), st.integers(0, 2**32))
def test_equals_the_best_of_all_paths(frames: int, ids: list[int], seed: int) -> None:
    log_probs = random_log_probs(frames, 3, seed)
    total, best = best_path(log_probs, ids)
    assert (total > -math.inf) == (frames >= required_frames(ids))
    if best:
        check_path(viterbi(log_probs, ids), log_probs, ids, total, runs(best))
    else:
        with pytest.raises(DataError, match=f"needs {required_frames(ids)} frames, got {frames}"):
            viterbi(log_probs, ids)


@given(st.integers(1, 700), st.floats(0, 1), st.integers(2, 30), st.integers(0, 2**32))
@settings(max_examples=40)
def test_equals_torchaudio(frames: int, density: float, tokens: int, seed: int) -> None:
    """From texts of one token to texts that fill the audio, with stretches of 16 frames and more."""
    functional = pytest.importorskip("torchaudio.functional")
    log_probs, source = random_log_probs(frames, tokens, seed), random.Random(seed)
    ids = [source.randrange(1, tokens) for _ in range(max(1, int(density * frames)))]
    while required_frames(ids) > frames:
        ids.pop()
    path, scores = functional.forced_align(torch.from_numpy(log_probs)[None], torch.tensor([ids], dtype=torch.int32))
    total = float(scores.double().sum())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(align, "NUM_SAVED", 7)
        found = viterbi(log_probs, ids)
    assert math.isclose(found.total, total, rel_tol=1e-6)
    assert (found.ids, found.frames, found.ends) == runs(tuple(path[0].tolist()))


def test_memory_is_linear() -> None:
    """4 times the audio and text take 4 times the memory, where a table of all scores would take 16 times."""
    peaks = []
    for frames in (8_000, 32_000):
        log_probs, ids = random_log_probs(frames, 5, 0), [1, 2, 3, 4] * (frames // 16)
        viterbi(log_probs[:1], [1])  # compiled by now
        tracemalloc.start()
        path = viterbi(log_probs, ids)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert path.ends[-1] <= frames
    assert peaks[1] < 4.2 * peaks[0]
    assert peaks[1] < 0.2 * 32_000 * 8_000  # bytes of that table at 2 bits each: 0.5


def test_impossible_text() -> None:
    log_probs = np.full((4, 3), -np.inf, np.float32)
    log_probs[:, 1] = 0
    assert viterbi(log_probs, [1]).total == 0
    with pytest.raises(DataError, match="no probability above 0"):
        viterbi(log_probs, [2])


def words(*texts: str) -> list[Word]:
    return [Word(text, i, i + 0.5, 0.5 + 0.1 * i) for i, text in enumerate(texts)]


def test_words_are_spelled_as_given() -> None:
    tokenizer = CharacterTokenizer("abcdefghijklmnopqrstuvwxyz' ", Text())
    text = '-- "Hello," she said: well-known -- yes!'
    said = tokenizer.normalize(text).split()
    assert said == ["hello", "she", "said", "well", "known", "yes"]
    found = as_given(words(*said), text, tokenizer)
    assert [word.text for word in found] == ['-- "Hello,"', "she", "said:", "well-known --", "yes!"]
    assert [(word.start_seconds, word.end_seconds) for word in found] == [
        (0, 0.5),
        (1, 1.5),
        (2, 2.5),
        (3, 4.5),
        (5, 5.5),
    ]
    assert found[3].confidence == round(math.sqrt(0.8 * 0.9), 4)
    assert as_given(words("a"), "a b", tokenizer) == tuple(words("a"))


@pytest.mark.parametrize(
    "stack", [FORWARD, FORWARD | {"bidirectional": True, "lookahead_frames": 0}], ids=lambda s: str(s["bidirectional"])
)
def test_audio_and_text(stack: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Long audio goes in pieces through a model that streams, else as a whole; the result is the same."""
    checkpoint = small_checkpoint(stack)
    aligner = Aligner(checkpoint)
    samples = 0.1 * torch.randn(40_000).numpy()
    found = aligner.align(samples, "Hello, all of you!")
    assert found.text == "hello all of you"
    assert [word.text for word in found.words] == ["Hello,", "all", "of", "you!"]
    assert "".join(token.text for token in found.tokens) == found.text
    assert found.seconds == 2.5
    times = [time for token in found.tokens for time in (token.start_seconds, token.end_seconds)]
    assert times == sorted(times)
    assert times[-1] <= 2.5
    assert found.words[0].start_seconds == found.tokens[0].start_seconds
    assert found.words[0].end_seconds == found.tokens[4].end_seconds

    with torch.inference_mode():
        log_probs = checkpoint.model(torch.from_numpy(samples)[None], torch.tensor([40_000]))[0][0].numpy()
    whole = viterbi(log_probs, checkpoint.tokenizer.encode(found.text))
    assert [round(frame * 0.04, 3) for frame in whole.frames] == [token.start_seconds for token in found.tokens]
    assert math.isclose(whole.total, found.log_prob, rel_tol=1e-6)

    monkeypatch.setattr(align, "LONG_SECONDS", 1.0)
    monkeypatch.setattr(align, "PIECE_SECONDS", 0.3)
    pieces = aligner._log_probs(samples, np.arange(log_probs.shape[1]))
    assert len(list(aligner._frames(torch.from_numpy(samples)[None]))) == (1 if stack["bidirectional"] else 10)
    np.testing.assert_allclose(pieces, log_probs, atol=1e-5)


def test_what_cannot_be_aligned() -> None:
    aligner = Aligner(small_checkpoint())
    samples = np.zeros(16_000, np.float32)

    def refused(text: str, message: str) -> None:
        with pytest.raises(DataError, match=message):
            aligner.align(samples, text)

    refused("", r"got the text '', expected words")
    refused("?!", r"got the text '\?!', expected words")
    refused(
        "na\u00efve caf\u00e9s",
        r"lacks characters of the text: .*U\+00E9.*: 1 times, first in 'caf\u00e9s'; .*U\+00EF.*'na\u00efve'",
    )
    refused("aa" * 10, r"needs 39 frames \(tokens: 20, blanks between equal ones: 19\), the 1\.00 s of audio have 25,")
