"""Recordings that stand twice, found by their samples."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.data.shards import ShardReader
from asr.train.doctor import copies
from asr.train.doctor.copies import check_duplicates, check_leaks, recordings, sample_hashes
from asr.train.doctor.report import Verdict
from tests.support.damage import damage
from tests.support.doctor import split

SUNG = {f"u{i}": ("ab c", i) for i in range(6)}


def shifted(by: int) -> dict[str, tuple[str, int]]:
    """The same texts, other recordings and ids."""
    return {f"v{i}": ("ab c", i + by) for i in range(6)}


def test_the_hash_is_that_of_the_samples(tmp_path: Path) -> None:
    reader = split(tmp_path / "train", SUNG)
    expected = []
    for i in range(len(reader)):
        pcm, _ = soundfile.read(io.BytesIO(reader.read(i)), dtype="int16")
        expected.append(hashlib.md5(np.asarray(pcm, "<i2").tobytes()).digest())
    assert sample_hashes(recordings([reader])) == expected
    assert len(set(expected)) == len(reader)


def test_a_flac_without_a_hash_is_decoded(tmp_path: Path) -> None:
    reader = split(tmp_path / "train", SUNG)
    expected = sample_hashes(recordings([reader]))
    with (tmp_path / "train" / "shard-000000.tar").open("r+b") as tar:
        for i in (1, 3):
            tar.seek(int(reader.offset[i]) + copies.MD5_START)
            tar.write(bytes(16))
    assert sample_hashes(recordings([reader])) == expected
    with (tmp_path / "train" / "shard-000000.tar").open("r+b") as tar:
        tar.seek(int(reader.offset[2]))
        tar.write(b"xxxx")
    assert sample_hashes(recordings([reader])) == [*expected[:2], b"", *expected[3:]]


def test_duplicates(tmp_path: Path) -> None:
    one = split(tmp_path / "one", SUNG)
    assert check_duplicates([one, split(tmp_path / "two", shifted(6))]).verdict is Verdict.OK
    other = split(tmp_path / "other", {"copy": SUNG["u2"], "u5": ("cab", 9)})
    line = check_duplicates([one, other])
    assert (line.verdict, line.figures) == (Verdict.WARNING, {"copies": 1, "contradictions": 0})
    assert line.details == ("one u2 = other copy", "the id 'u5' more than once")
    line = check_duplicates([one, one])
    assert (line.verdict, line.figures["copies"]) == (Verdict.WARNING, 6)


def test_a_recording_with_two_transcripts(tmp_path: Path) -> None:
    """Case and spaces are no difference."""
    train = split(tmp_path / "train", {"a": ("ab c", 1), "b": ("AB c", 1)})
    assert check_duplicates([train]).figures == {"copies": 1, "contradictions": 0}
    index = tmp_path / "train" / "shard-000000.jsonl"
    index.write_text(index.read_text().replace("AB c", "ba c"))
    line = check_duplicates([ShardReader(tmp_path / "train")])
    assert line.figures == {"copies": 1, "contradictions": 1}
    assert "1 with another transcript" in line.message


@pytest.mark.parametrize("every", [False, True])
def test_leaks(tmp_path: Path, every: bool) -> None:
    train = split(tmp_path / "train", SUNG)
    sound = split(tmp_path / "sound", shifted(6))  # the same texts
    assert check_leaks([train], [sound], every=every).verdict is Verdict.OK
    line = check_leaks([train], [sound, split(tmp_path / "test", {"other": SUNG["u3"]})], every=every)
    assert (line.verdict, line.details) == (Verdict.ERROR, ("train u3 = test other",))
    assert "1 of 7 recordings" in line.message
    line = check_leaks([train], [split(tmp_path / "named", {"u3": ("ab c", 99)})], every=every)
    assert (line.verdict, line.details) == (Verdict.WARNING, ("u3",))


def test_only_a_look_at_every_recording_finds_it_under_another_text_and_id(tmp_path: Path) -> None:
    train = split(tmp_path / "train", SUNG)
    split(tmp_path / "test", {"other": SUNG["u3"]})
    index = tmp_path / "test" / "shard-000000.jsonl"
    index.write_text(index.read_text().replace('"ab c"', '"cc"'))
    test = ShardReader(tmp_path / "test")
    assert test.texts == ["cc"]
    assert check_leaks([train], [test], every=False).verdict is Verdict.OK
    line = check_leaks([train], [test], every=True)
    assert (line.verdict, line.details) == (Verdict.ERROR, ("train u3 = test other",))


def test_audio_that_cannot_be_read_is_no_copy(tmp_path: Path) -> None:
    train = split(tmp_path / "train", SUNG)
    for name in ("u1", "u2"):
        damage(tmp_path / "train", name)
    for i in (1, 2):
        with (tmp_path / "train" / "shard-000000.tar").open("r+b") as tar:
            tar.seek(int(train.offset[i]) + copies.MD5_START)
            tar.write(bytes(16))
    assert check_duplicates([train]).verdict is Verdict.OK
