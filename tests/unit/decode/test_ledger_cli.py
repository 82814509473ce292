"""What `asr ledger` reads beside shards: the ledger of their making, and what they were made from."""

from pathlib import Path

import numpy as np
import pytest

import data_prep
from asr.config import Config
from asr.config.schema import Data
from asr.data.corpus import Corpus
from asr.data.ledger import Ledger
from asr.data.manifest import read_manifest
from asr.decode.ledger_cli import read_drops, write_clean
from asr.decode.suspects import Losses
from asr.errors import DataError
from asr.types import Drop
from data_prep import an4, make_shards
from tests.support.tones import RATE_HZ, write_corpus


def shards(folder: Path, name: str, *, cut: bool = False) -> Path:
    """Four utterances, made into shards by make_shards; the second's audio is cut off, if asked."""
    sung = write_corpus(folder / "wav", ["b", "ab", "abc", "a"], name)
    if cut:
        audio = Path(sung[1].audio)
        audio.write_bytes(audio.read_bytes()[:5000])
    assert make_shards.main([str(folder / "wav" / f"{name}.jsonl"), str(folder / "x"), "--workers", "1"]) == 0
    return folder / "x"


def test_shards_of_make_shards(tmp_path: Path) -> None:
    corpus = Corpus.open([shards(tmp_path / "a", "one", cut=True), shards(tmp_path / "b", "two")], RATE_HZ)
    (tmp_path / "b" / "ledger.jsonl").write_text("of something else\n")
    Ledger(tmp_path / "run" / "ledger.jsonl").add(Drop("two-003", "too_short", "", corpus.source(6)))
    drops = read_drops(tmp_path / "run", corpus.readers)
    assert [(drop.id, drop.reason) for drop in drops] == [("one-001", "truncated"), ("two-003", "too_short")]
    losses = Losses(corpus, np.ones(7), np.ones(7), tmp_path)
    write_clean(tmp_path / "clean.jsonl", losses, [1, 3])
    kept = [utterance.id for utterance in read_manifest(tmp_path / "clean.jsonl")]
    assert kept == ["one-000", "one-001", "one-003", "two-001", "two-002", "two-003"]
    (tmp_path / "b" / "x" / "plan.jsonl").unlink()
    with pytest.raises(DataError, match=r"b/x: --clean needs manifest\.jsonl or plan\.jsonl beside the shards"):
        write_clean(tmp_path / "clean.jsonl", losses, [1, 3])


def test_splits_of_a_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have one ledger together, and each its manifest, whose order is kept."""
    sung = {name: write_corpus(tmp_path / "wav", ["b", "ab", "abc"], name)[::-1] for name in ("train", "more")}
    for utterances in sung.values():
        Path(utterances[1].audio).unlink()
    monkeypatch.setattr(an4, "splits", lambda data, names, work, ledger: sung)
    data = Data(corpus="an4", cache=tmp_path / "cache", train=("train", "more"), validation=(), test=())
    folders = data_prep.prepare(Config(data=data))
    corpus = Corpus.open(list(folders.values()), RATE_HZ)
    drops = read_drops(tmp_path / "run", corpus.readers)
    assert [(drop.source, drop.id) for drop in drops] == [("train", "train-001"), ("more", "more-001")]
    write_clean(tmp_path / "clean.jsonl", Losses(corpus, np.ones(4), np.ones(4), tmp_path), [0, 3])
    ids = [utterance.id for utterance in read_manifest(tmp_path / "clean.jsonl")]
    assert ids == ["train-002", "train-001", "more-001", "more-000"]


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [shards(tmp_path / place, "one", cut=True) for place in ("a", "b")]
    corpus = Corpus.open(folders, RATE_HZ)
    assert [corpus.source(index) for index in (0, 3)] == [str(folder) for folder in folders]
    drops = read_drops(tmp_path / "run", corpus.readers)
    assert [(drop.source, drop.id) for drop in drops] == [(str(folder), "one-001") for folder in folders]
    assert {Corpus.open([folder] * 2, RATE_HZ).source(3) for folder in folders} == {"x"}
