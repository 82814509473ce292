"""Synthetic speech: sentences that test what was not trained, words that are all learnt, the same audio each time."""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asr.audio.io import read_audio
from asr.config import Config
from asr.config.schema import Data
from asr.data.ledger import Ledger
from asr.data.shards import ShardReader
from asr.errors import DataError
from asr.text.normalize import normalize
from data_prep import _sentences, embedded, prepare


def engine() -> Any:
    pytest.importorskip("hibari", reason="needs the text-to-speech engine: pip install 'asr-toolkit[demo]'")
    return embedded.load_engine()


def test_no_sentence_is_in_two_splits() -> None:
    texts = {name: {line.text for line in lines} for name, lines in embedded.script().items()}
    assert {name: len(part) for name, part in texts.items()} == embedded.NUM_SENTENCES
    assert not texts["train"] & texts["validation"]
    assert not texts["train"] & texts["test"]
    assert not texts["validation"] & texts["test"]


def test_every_word_is_in_train_often() -> None:
    script = embedded.script()
    words = {name: Counter(word for line in lines for word in line.text.split()) for name, lines in script.items()}
    assert 250 < len(words["train"]) < 500
    assert min(words["train"].values()) >= 5
    assert set(words["test"]) | set(words["validation"]) <= set(words["train"])
    assert len(words["test"]) > 200


def test_texts_are_normal_and_short() -> None:
    for sentence in _sentences.sentences(500):
        assert sentence == normalize(sentence)
        assert _sentences.MIN_WORDS <= len(sentence.split()) <= _sentences.MAX_WORDS
        assert not any(character.isdigit() or character in "{}|" for character in sentence)


def test_sentences_do_not_depend_on_how_many() -> None:
    assert _sentences.sentences(300)[:100] == _sentences.sentences(100)


def test_slots_are_all_used_and_filled() -> None:
    grammar = _sentences.TEMPLATES + "".join(_sentences.SLOTS.values())
    assert {slot for slot in _sentences.SLOTS if f"{{{slot}}}" in grammar} == set(_sentences.SLOTS)


def test_speech(tmp_path: Path) -> None:
    speaker = engine()
    lines = embedded.script()["train"][:12]
    for line in lines:
        samples = embedded.speak(speaker, line, 16_000)
        assert samples.dtype == np.float32
        assert np.array_equal(samples, embedded.speak(speaker, line, 16_000))
        assert 0.1 < np.abs(samples).max() < 0.75, "neither faint nor clipped"
        assert 6 < len(line.text) / (len(samples) / 16_000) < 25, "characters a second"
        loud = np.flatnonzero(np.abs(samples) > embedded.SILENCE * np.abs(samples).max()) / 16_000
        assert 0.05 < loud[0] < 0.26
        assert 0.05 < len(samples) / 16_000 - loud[-1] < 0.26


def test_voices_differ_in_pitch() -> None:
    speaker = engine()
    low, high = (voice for voice in embedded.VOICES if voice.pitch in {0.85, 1.15})
    ratios = []
    for line in embedded.script()["train"][:6]:
        pitches = [median_pitch_hz(embedded.speak(speaker, replace(line, voice=v), 16_000)) for v in (low, high)]
        ratios.append(pitches[1] / pitches[0])
    assert 1.25 < np.median(ratios) < 1.45  # 1.15 / 0.85 = 1.35


def median_pitch_hz(samples: np.ndarray) -> float:
    """By autocorrelation of the loudest 40 ms frames, 80 to 400 Hz."""
    frames = samples[: len(samples) // 640 * 640].reshape(-1, 640)
    found = []
    for frame in frames[np.argsort(-(frames**2).sum(axis=1))[:20]]:
        correlation = np.correlate(frame, frame, "full")[639:]
        found.append(16_000 / (40 + int(correlation[40:200].argmax())))
    return float(np.median(found))


def test_prepared_and_restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine()
    monkeypatch.setattr(embedded, "NUM_SENTENCES", {"test": 3, "validation": 2, "train": 5})
    settings = Config(data=Data(corpus="embedded", cache=tmp_path))
    folders = prepare(settings)
    readers = {name: ShardReader(folder) for name, folder in folders.items()}
    assert {name: len(reader) for name, reader in readers.items()} == {"train": 5, "validation": 2, "test": 3}
    lines = {line.id: line for lines in embedded.script().values() for line in lines}
    for reader in readers.values():
        for i, name in enumerate(reader.ids):
            assert (reader.texts[i], reader.speakers[i]) == (lines[name].text, lines[name].voice.name)
    raw = tmp_path / "embedded" / "raw"
    made = {path: (path.stat().st_mtime_ns, read_audio(path)) for path in raw.rglob("*.flac")}
    assert len(made) == 10
    lost = sorted(made)[0]
    lost.unlink()
    embedded.splits(settings.data, ["train", "validation", "test"], raw, Ledger(tmp_path / "ledger.jsonl"))
    for path, (time, samples) in made.items():
        assert np.array_equal(read_audio(path), samples)
        assert (path.stat().st_mtime_ns == time) == (path != lost)


def test_without_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hibari", None)
    with pytest.raises(DataError, match=r"hibari-tts, which is not installed: pip install 'asr-toolkit\[demo\]'"):
        prepare(Config(data=Data(corpus="embedded", cache=tmp_path)))
