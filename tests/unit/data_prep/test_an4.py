"""AN4 in both layouts, and by download."""

import hashlib
import io
import json
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.config import Config
from asr.config.schema import Data
from asr.data.ledger import Ledger, Reason
from asr.data.shards import ShardReader
from asr.errors import DataError
from asr.types import Utterance
from data_prep import an4, prepare
from tests.support.shared_data import shared_data

SPEAKERS = [f"f{a}{b}" for a in "abc" for b in "vwxyz"]


def sphere(seed: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(seed).uniform(-0.5, 0.5, 2000 + seed), 16_000, "PCM_16", format="NIST")
    return file.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """CMU's layout: 30 training utterances of 15 speakers, 4 test utterances of 2 others."""
    root = tmp_path / "an4"
    (root / "etc").mkdir(parents=True)
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for i, speaker in enumerate([*SPEAKERS, "mtst", "mtsu"]):
        part, folder = ("train", "an4_clstk") if i < len(SPEAKERS) else ("test", "an4test_clstk")
        for number in (1, 2):
            name = f"an{number}{i}-{speaker}-b"
            path = root / "wav" / folder / speaker / f"{name}.sph"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(sphere(i))
            lines[part].append(f"<s> YES {number} </s> ({name})" if part == "train" else f"NO ({name})")
    for part, content in lines.items():
        (root / "etc" / f"an4_{part}.transcription").write_text("\n".join(content) + "\n")
    return root


def read(root: Path, tmp_path: Path) -> tuple[dict[str, list[Utterance]], Ledger]:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    return an4.splits(Data(root=root), an4.SPLITS, tmp_path / "work", ledger), ledger


def test_cmu_layout(root: Path, tmp_path: Path) -> None:
    found, ledger = read(root, tmp_path)
    assert len(ledger) == 0
    assert {name: len(part) for name, part in found.items()} == {
        "train": 16, "validation": 14, "train_all": 30, "test": 4,
    }  # fmt: skip
    first = found["train_all"][0]
    assert first == Utterance("an10-fav-b", str(root / "wav/an4_clstk/fav/an10-fav-b.sph"), "YES 1", 0.125, "fav")
    assert {one.text for one in found["test"]} == {"NO"}
    assert read(root.parent, tmp_path)[0] == found, "the folder that the archive was unpacked in will do"


def test_speakers_are_in_one_split(root: Path, tmp_path: Path) -> None:
    found, _ = read(root, tmp_path)
    speakers = {name: {one.speaker for one in part} for name, part in found.items()}
    assert len(speakers["validation"]) == an4.NUM_VALIDATION_SPEAKERS
    assert not speakers["train"] & speakers["validation"]
    assert not speakers["train_all"] & speakers["test"]
    assert speakers["train"] | speakers["validation"] == speakers["train_all"] == set(SPEAKERS)


def test_manifest_layout_gives_the_same(root: Path, tmp_path: Path) -> None:
    found, _ = read(root, tmp_path)
    other = tmp_path / "other"
    lines = []
    for utterance in found["train_all"] + found["test"]:
        path = other / "flac" / Path(utterance.audio).relative_to(root / "wav").with_suffix(".flac")
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, *soundfile.read(utterance.audio, dtype="int16"))
        entry = {"audio": str(path.relative_to(other)), "text": utterance.text, "seconds": utterance.seconds}
        lines.append(json.dumps(entry | {"speaker": utterance.speaker, "split": "any"}))
    (other / "manifest.jsonl").write_text("\n".join(lines))
    same, _ = read(other, tmp_path)
    for name in an4.SPLITS:
        assert [(u.id, u.text, u.speaker) for u in same[name]] == [(u.id, u.text, u.speaker) for u in found[name]]


def test_faults(root: Path, tmp_path: Path) -> None:
    (root / "wav/an4_clstk/fav/an10-fav-b.sph").unlink()
    (root / "wav/an4_clstk/fav/an20-fav-b.sph").write_bytes(b"")
    found, ledger = read(root, tmp_path)
    assert len(found["train_all"]) == 28
    assert ledger.counts() == {Reason.MISSING: 1, Reason.UNREADABLE: 1}
    transcription = root / "etc" / "an4_test.transcription"
    transcription.write_text("NO (a)\nno name\n")
    with pytest.raises(DataError, match=r"an4_test\.transcription:2: got 'no name', expected words and then"):
        read(root, tmp_path)
    transcription.write_bytes(b"\xff (a)\n")
    with pytest.raises(DataError, match=r"an4_test\.transcription: cannot be read"):
        read(root, tmp_path)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Keep quiet."""


def test_download(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.delenv("HTTP_PROXY", raising=False)
    packed = tmp_path / "an4_sphere.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(root, "an4")
    monkeypatch.setattr(an4, "SHA256", hashlib.sha256(packed.read_bytes()).hexdigest())
    monkeypatch.setattr(an4, "MIRRORS", ())
    data = Data(corpus="an4", cache=tmp_path / "cache")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setattr(an4, "URL", f"http://127.0.0.1:{server.server_address[1]}/{packed.name}")
        folders = prepare(Config(data=data.model_copy(update={"download": True})))
        server.shutdown()
        thread.join()
    assert {name: len(ShardReader(folder)) for name, folder in folders.items()} == {
        "train": 16, "validation": 14, "test": 4,
    }  # fmt: skip
    # What was fetched is found again, with or without the download asked for, and no server.
    assert prepare(Config(data=data)) == folders
    everything = data.model_copy(update={"train": ("train_all",)})
    assert set(prepare(Config(data=everything))) == {"train_all", "validation", "test"}


def test_the_real_one(tmp_path: Path) -> None:
    found, ledger = read(shared_data("an4"), tmp_path)
    assert len(ledger) == 0
    assert {name: len(part) for name, part in found.items()} == {
        "train": 859, "validation": 89, "train_all": 948, "test": 130,
    }  # fmt: skip
    speakers = {name: {one.speaker for one in part} for name, part in found.items()}
    assert sorted(speakers["validation"]) == VALIDATION
    assert not speakers["test"] & speakers["train_all"]


# Figures published on this split depend on these names.
VALIDATION = ["fbbh", "fjam", "fkdo", "mcel", "mmaf", "mnjl", "mtje"]
