"""LibriSpeech's layout, from a small tree."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.config import Config
from asr.config.schema import Data
from asr.data.ledger import Ledger, Reason
from asr.data.shards import ShardReader
from asr.errors import ConfigError, DataError
from asr.types import Utterance
from data_prep import librispeech, prepare


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two parts, two speakers each, three utterances each."""
    root = tmp_path / "LibriSpeech"
    for part, speakers in (("dev-clean", (84, 174)), ("train-clean-5", (19, 26))):
        for speaker in speakers:
            folder = root / part / str(speaker) / "100"
            folder.mkdir(parents=True)
            for i in range(3):
                noise = np.random.default_rng(i).uniform(-0.5, 0.5, 3200)
                soundfile.write(folder / f"{speaker}-100-{i:04d}.flac", noise, 16_000)
            lines = [f"{speaker}-100-{i:04d} IT'S NUMBER {i}\n" for i in range(3)]
            (folder / f"{speaker}-100.trans.txt").write_text("".join(lines))
    return root


def read(root: Path, tmp_path: Path) -> tuple[dict[str, list[Utterance]], Ledger]:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    return librispeech.splits(Data(root=root), ["dev-clean", "train-clean-5"], tmp_path / "work", ledger), ledger


def test_reads_parts(root: Path, tmp_path: Path) -> None:
    found, ledger = read(root, tmp_path)
    assert len(ledger) == 0
    assert {name: len(part) for name, part in found.items()} == {"dev-clean": 6, "train-clean-5": 6}
    audio = str(root / "train-clean-5" / "19" / "100" / "19-100-0002.flac")
    assert Utterance("19-100-0002", audio, "IT'S NUMBER 2", 0.2, "19") in found["train-clean-5"]
    assert read(root.parent, tmp_path)[0] == found


def test_to_shards(root: Path, tmp_path: Path) -> None:
    data = Data(
        corpus="librispeech",
        root=root,
        cache=tmp_path / "cache",
        train=("train-clean-5",),
        validation=("dev-clean",),
        test=("dev-clean",),
    )
    folders = prepare(Config(data=data))
    reader = ShardReader(folders["dev-clean"])
    assert reader.speakers == ["174"] * 3 + ["84"] * 3
    assert reader.read(0) == (root / "dev-clean/174/100/174-100-0000.flac").read_bytes()


def test_nothing_vanishes(root: Path, tmp_path: Path) -> None:
    folder = root / "dev-clean" / "84" / "100"
    (folder / "84-100-0000.flac").unlink()
    (folder / "84-100-0001.flac").write_bytes((folder / "84-100-0001.flac").read_bytes()[:30])
    (folder / "84-100.trans.txt").write_bytes(
        b"84-100-0000 GONE\r\n84-100-0001 CUT\n84-100-0002 CAF\xc9\n84-100-0003\n84-100-0004 \n84-100-0005 NO AUDIO\n"
    )
    soundfile.write(folder / "84-100-0003.flac", np.zeros(3200), 16_000)
    soundfile.write(folder / "84-100-0004.flac", np.zeros(3200), 16_000)
    soundfile.write(folder / "84-100-0009.flac", np.zeros(3200), 16_000)
    found, ledger = read(root, tmp_path)
    assert len(found["dev-clean"]) == 3
    assert ledger.counts() == {
        Reason.EMPTY_TEXT: 2, Reason.MISSING: 2, Reason.UNREADABLE: 1, Reason.NOT_UTF8: 1, Reason.NO_TRANSCRIPT: 1,
    }  # fmt: skip
    entries = ledger.path.read_text()
    assert "84-100.trans.txt:1 names it; 84-100-0000.flac is not beside it" in entries
    assert "84-100-0009.flac: no line of 84-100.trans.txt names it" in entries


def test_chapters_without_transcripts(root: Path, tmp_path: Path) -> None:
    (root / "dev-clean/84/100/84-100.trans.txt").write_text("")
    (root / "dev-clean/174/100/174-100.trans.txt").unlink()
    found, ledger = read(root, tmp_path)
    assert found["dev-clean"] == []
    assert ledger.counts() == {Reason.NO_TRANSCRIPT: 6}
    entries = ledger.path.read_text()
    assert "84-100-0002.flac: no line of 84-100.trans.txt names it" in entries
    assert "174-100-0002.flac: no line of *.trans.txt, of which there is none, names it" in entries


def test_the_parts_that_lack_are_named_all_at_once(root: Path, tmp_path: Path) -> None:
    data = Data(root=root, cache=tmp_path / "cache")
    names = ["train-clean-5", "dev-clean-2", "test-clean"]
    with pytest.raises(ConfigError) as caught:
        librispeech.splits(data, names, tmp_path / "work", Ledger(tmp_path / "ledger.jsonl"))
    message = str(caught.value)
    assert f"data.root={root} does not hold it all" in message
    assert "PART: dev-clean-2, test-clean\n" in message
    assert f"fetches dev-clean-2, test-clean (0.5 GB) from {librispeech.URL} into data.cache={data.cache}" in message


def test_a_line_that_names_nothing(root: Path, tmp_path: Path) -> None:
    path = root / "dev-clean" / "84" / "100" / "84-100.trans.txt"
    path.write_text("84-100-0000 FINE\nHELLO THERE\n")
    with pytest.raises(DataError, match=re.escape(f"{path}:2: got b'HELLO THERE', expected a name such as")):
        read(root, tmp_path)


def test_checksums_are_checksums() -> None:
    assert len(librispeech.PARTS) == 9
    assert librispeech.MEGABYTES.keys() == set(librispeech.PARTS)
    for algorithm, sums in (("sha256", librispeech.SHA256), ("md5", librispeech.MD5)):
        length = 2 * hashlib.new(algorithm, usedforsecurity=False).digest_size
        assert all(re.fullmatch(f"[0-9a-f]{{{length}}}", value) for value in sums.values())


def test_checksums_are_torchaudios() -> None:
    torchaudio = pytest.importorskip("torchaudio.datasets.librispeech", exc_type=ImportError)
    theirs = {Path(url).name.removesuffix(".tar.gz"): value for url, value in torchaudio._CHECKSUMS.items()}
    assert theirs == librispeech.SHA256
