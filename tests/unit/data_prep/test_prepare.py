"""From a configuration to shards: the right splits in the right folders, restartable, and clear where data lacks."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

import data_prep
from asr.config import Config
from asr.config.schema import Data
from asr.data.ledger import Reason
from asr.data.shards import ShardReader
from asr.errors import ConfigError, DataError
from asr.types import Drop, Utterance
from data_prep import an4, embedded, librispeech, prepare


def config(tmp_path: Path, **data: object) -> Config:
    return Config(data=Data.model_validate({"corpus": "an4", "cache": tmp_path / "cache"} | data))


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """An `an4` that has three splits of four utterances; gives the splits that it was asked for, call by call."""
    asked: list[tuple[str, ...]] = []

    def splits(data, names, work, ledger):
        asked.append(tuple(names))
        found = {}
        for name in names:
            found[name] = []
            for i in range(4):
                path = tmp_path / f"{name}-{i}.wav"
                if not path.exists():
                    soundfile.write(path, np.random.default_rng(i).uniform(-0.5, 0.5, 2000), 16_000)
                found[name].append(Utterance(f"{name}-{i}", str(path), "yes", 0.125))
            ledger.add(Drop(f"{name}-x", Reason.MISSING, "", name))
        return found

    monkeypatch.setattr(an4, "splits", splits)
    return asked


def test_only_the_named_splits_and_only_once(tmp_path: Path, corpus: list[tuple[str, ...]]) -> None:
    both = config(tmp_path, train=("a", "b"), validation=("b",), test=())
    folders = prepare(both)
    assert corpus == [("a", "b")]
    assert list(folders) == ["a", "b"]
    assert ShardReader(folders["b"]).ids == ["b-0", "b-1", "b-2", "b-3"]
    assert (folders["b"] / "manifest.jsonl").is_file()
    assert prepare(both) == folders
    assert corpus == [("a", "b")], "finished: not read again"
    prepare(config(tmp_path, train=("a",), validation=("b",), test=("c",)))
    assert corpus == [("a", "b"), ("c",)]
    assert len((folders["a"].parent / "ledger.jsonl").read_text().splitlines()) == 3


def test_an_interrupted_split_goes_on(tmp_path: Path, corpus: list[tuple[str, ...]], monkeypatch) -> None:
    settings = config(tmp_path, train=("a",), validation=(), test=())
    with monkeypatch.context() as patch:
        patch.setattr(data_prep, "write_manifest", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(settings)
    folder = prepare(settings)["a"]
    assert corpus == [("a",), ("a",)]
    assert len(ShardReader(folder)) == 4


def test_other_settings_never_meet(tmp_path: Path, corpus: list[tuple[str, ...]], monkeypatch) -> None:
    settings: dict[str, object] = {"train": ("a",), "validation": (), "test": ()}
    folders = {prepare(config(tmp_path, **settings))["a"]}
    folders.add(prepare(config(tmp_path, **settings, sample_rate_hz=8_000))["a"])
    folders.add(prepare(config(tmp_path, **settings, root=tmp_path))["a"])
    folders.add(prepare(config(tmp_path, **settings, root=tmp_path / "raw"))["a"])
    monkeypatch.setattr(an4, "VERSION", an4.VERSION + 1)
    folders.add(prepare(config(tmp_path, **settings))["a"])
    assert len(folders) == len(corpus) == 5
    assert {ShardReader(folder).sample_rate_hz for folder in folders} == {8_000, 16_000}


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.corpus: got 'an5', expected one of an4, embedded, .*; did you mean"):
        prepare(config(tmp_path, corpus="an5"))
    with pytest.raises(ConfigError, match=r"got the split 'trian', an4 has train, .*; did you mean train"):
        prepare(config(tmp_path, train=("trian",)))
    with pytest.raises(ConfigError, match="got the split 'train', librispeech has train-clean-100"):
        prepare(config(tmp_path, corpus="librispeech"))


@pytest.mark.parametrize("corpus_name", ["an4", "librispeech"])
def test_without_data_the_three_ways_on(tmp_path: Path, corpus_name: str) -> None:
    names = {"train": ("dev-clean",), "validation": (), "test": ()} if corpus_name == "librispeech" else {}
    for root, got in ((None, "data.root is not set"), (tmp_path, f"data.root={tmp_path} does not hold it")):
        with pytest.raises(ConfigError) as caught:
            prepare(config(tmp_path, corpus=corpus_name, root=root, **names))
        message = str(caught.value)
        for part in (got, "data.root=FOLDER", "data.download=true", "data=embedded", "openslr" if names else "cmu.edu"):
            assert part in message
    assert not (tmp_path / "cache").exists()


def test_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = "http://127.0.0.1:9"
    monkeypatch.setattr(an4, "URL", f"{nobody}/an4_sphere.tar.gz")
    monkeypatch.setattr(an4, "MIRRORS", ())
    monkeypatch.setattr(librispeech, "URL", nobody)
    monkeypatch.setattr(librispeech, "MIRRORS", (f"{nobody}/mirror",))
    with pytest.raises(DataError, match=r"an4_sphere\.tar\.gz could not be downloaded:\n  http://127\.0\.0\.1:9"):
        prepare(config(tmp_path, download=True))
    names = {"train": ("dev-clean",), "validation": (), "test": ()}
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/mirror/12/dev-clean\.tar\.gz: "):
        prepare(config(tmp_path, corpus="librispeech", download=True, **names))


def test_every_corpus_keeps_the_contract() -> None:
    for module in (an4, embedded, librispeech):
        assert isinstance(module.VERSION, int)
        assert callable(module.splits)


def test_paths_and_urls_are_taken_as_they_are(tmp_path: Path, corpus: list[tuple[str, ...]]) -> None:
    names = {"train": ("a", "/some/where"), "validation": ("http://host/x",), "test": ("./here",)}
    folders = prepare(config(tmp_path, **names))
    assert corpus == [("a",)]
    assert folders["/some/where"] == Path("/some/where")
    assert folders["http://host/x"] == "http://host/x"
    assert folders["./here"] == Path("here")
    names["train"] = ("/some/where",)
    assert "a" not in prepare(config(tmp_path, **names, corpus=""))  # no corpus is needed for them
