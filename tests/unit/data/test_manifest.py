"""Manifests: what is written is read, and what is wrong is named by file and line."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.data.manifest import read_manifest, write_manifest
from asr.errors import DataError
from asr.types import Utterance
from tests.support.shared_data import shared_data

GOOD = {"audio": "b/one.flac", "text": "hello", "seconds": 1.5}


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "manifest.jsonl"
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))
    return path


def test_round_trip(tmp_path: Path) -> None:
    utterances = [
        Utterance("a", "/data/a.flac", "hello", 1.5, "ann"),
        Utterance("b", "/data/b.flac", "\u00fc\u4f60\u2028 \"'\\", 0.0),
    ]
    path = tmp_path / "new" / "manifest.jsonl"
    write_manifest(path, utterances)
    assert read_manifest(path) == utterances


def test_defaults_and_foreign_keys(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD | {"mood": 3}, b"", GOOD | {"id": "x", "audio": "/abs/two.wav", "seconds": 2})
    assert read_manifest(path) == [
        Utterance("b/one", str(tmp_path / "b" / "one.flac"), "hello", 1.5),
        Utterance("x", "/abs/two.wav", "hello", 2.0),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not JSON"),
        (b"[1]", "expected an object"),
        (b'{"audio": "\xff"}', "got byte 0xff, expected UTF-8"),
        ({"audio": "a", "seconds": 1}, "'text' is missing, expected"),
        (GOOD | {"text": None}, "'text' is missing"),
        (GOOD | {"text": 3}, "'text': got 3, expected a string"),
        (GOOD | {"seconds": "1"}, "'seconds': got '1', expected a number"),
        (GOOD | {"seconds": True}, "'seconds': got True, expected a number"),
        (GOOD | {"seconds": float("nan")}, "seconds nan, expected a path and a length >= 0"),
        (GOOD | {"seconds": -1}, r"seconds -1\.0, expected"),
        (GOOD | {"audio": ""}, "got audio ''"),
        (GOOD | {"audio": "."}, r"got audio '\.'"),
        (GOOD | {"audio": "/"}, "got audio '/'"),
        (GOOD | {"audio": "a\0b"}, r"'audio': got 'a\\x00b', expected text without NUL"),
        (GOOD | {"seconds": 10**400}, "seconds inf, expected a path and a length >= 0"),
        (GOOD | {"seconds": -(10**400)}, "seconds -inf, expected a path and a length >= 0"),
        (GOOD | {"text": "\ud800"}, "half a surrogate pair"),
        (GOOD | {"id": "b/one"}, "got the id 'b/one', which line 1 has"),
        (b"[" * 100_000, "not JSON"),
        (b'{"audio": "a", "text": "b", "seconds": 1' + b"0" * 5000 + b"}", "not JSON|length"),
    ],
)
def test_wrong_lines(tmp_path: Path, line: Any, message: str) -> None:
    path = write(tmp_path, GOOD, line)
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(f"{path}:2: ")


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: No such file or directory; expected a manifest"):
        read_manifest(tmp_path / "none.jsonl")


@given(st.binary(max_size=60))
def test_nothing_but_data_errors(line: bytes) -> None:
    path = Path(__file__).parent / "in_memory.jsonl"  # only its name is used
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda self: line)
        with contextlib.suppress(DataError):
            read_manifest(path)


def test_shared_manifests() -> None:
    utterances = read_manifest(shared_data("an4") / "manifest.jsonl")
    assert len(utterances) == 1078
    assert all(Path(utterance.audio).is_file() for utterance in utterances)
