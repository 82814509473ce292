"""Shards: the same bytes whatever happens, the same samples back, and damage named by shard and offset."""

import gc
import io
import json
import multiprocessing
import os
import pickle
import tarfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.audio.io import read_audio
from asr.data import shards
from asr.data.ledger import Ledger, Reason
from asr.data.shard_writer import write_shards
from asr.data.shards import ShardReader, member_key
from asr.errors import DataError
from asr.types import Utterance
from tests.support.full_disk import full_disk

RATE_HZ = 16_000
Corpus = list[Utterance]


def noise(seed: int, num_samples: int = 4000) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, num_samples)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Ten utterances: flac, wav, stereo, another rate, ids that are no file names."""
    folder = tmp_path / "raw"
    folder.mkdir()
    kinds: list[tuple[str, str, int, int]] = [
        ("a-0", "flac", RATE_HZ, 1),
        ("a-1", "wav", RATE_HZ, 1),
        ("x/y.z", "wav", RATE_HZ, 1),
        ("x_y_z", "flac", RATE_HZ, 2),
        ("\u00fc" * 90, "flac", 8_000, 1),
        *((f"b-{i}", "flac", RATE_HZ, 1) for i in range(5)),
    ]
    utterances = []
    for i, (name, suffix, rate_hz, channels) in enumerate(kinds):
        path = folder / f"{i}.{suffix}"
        soundfile.write(path, np.stack([noise(i, 3000 + 500 * i)] * channels, axis=1), rate_hz, subtype="PCM_16")
        utterances.append(Utterance(name, str(path), f"text {i} \u00fc", 1.0, f"speaker {i % 2}"))
    return utterances


def make(utterances: Corpus, folder: Path, *, workers: int = 1, per_shard: int = 3) -> Ledger:
    ledger = Ledger(folder.parent / f"{folder.name}-ledger.jsonl")
    write_shards(
        utterances, folder, sample_rate_hz=RATE_HZ, ledger=ledger, utterances_per_shard=per_shard, workers=workers
    )
    return ledger


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_round_trip(corpus: Corpus, tmp_path: Path) -> None:
    ledger = make(corpus, tmp_path / "shards")
    assert len(ledger) == 0
    reader = ShardReader(tmp_path / "shards")
    by_id = {utterance.id: utterance for utterance in corpus}
    assert reader.ids == sorted(by_id)
    assert reader.shard.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert (reader.num_samples.dtype, reader.shard.dtype) == (np.int64, np.int32)
    for i, name in enumerate(reader.ids):
        utterance = by_id[name]
        assert (reader.texts[i], reader.speakers[i]) == (utterance.text, utterance.speaker)
        expected = read_audio(utterance.audio)
        got = reader.audio(i)
        assert got.shape == expected.shape == (reader.num_samples[i],)
        # 16-bit audio at the right rate comes back bit for bit; what was resampled is rounded to 16 bits.
        assert np.abs(got - expected).max() <= (0 if "\u00fc" not in name else 2**-16 + 1e-9)


def test_flac_is_taken_over_and_wav_is_not_rescaled(tmp_path: Path) -> None:
    pcm = np.arange(-32768, 32768, dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", pcm, RATE_HZ)
    soundfile.write(tmp_path / "b.flac", pcm, RATE_HZ)
    make([Utterance(name[0], str(tmp_path / name), "", 1) for name in ("a.wav", "b.flac")], tmp_path / "shards")
    reader = ShardReader(tmp_path / "shards")
    assert reader.read(1) == (tmp_path / "b.flac").read_bytes()
    for i in range(2):
        assert np.array_equal(soundfile.read(io.BytesIO(reader.read(i)), dtype="int16")[0], pcm)


def test_webdataset_reads_them(corpus: Corpus, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    make(corpus, tmp_path / "shards")
    reader = ShardReader(tmp_path / "shards")
    urls = sorted(str(path) for path in (tmp_path / "shards").glob("*.tar"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves closing its files to Python
        samples = list(webdataset.WebDataset(urls, shardshuffle=False))
        gc.collect()
    assert [json.loads(sample["json"])["id"] for sample in samples] == reader.ids
    for i, sample in enumerate(samples):
        assert set(sample) == {"__key__", "__url__", "__local_path__", "flac", "json"}
        assert sample["__key__"] == member_key(reader.ids[i])
        assert sample["flac"] == reader.read(i)
        assert json.loads(sample["json"]) == {
            "id": reader.ids[i],
            "text": reader.texts[i],
            "speaker": reader.speakers[i],
            "seconds": reader.num_samples[i] / RATE_HZ,
        }


def test_tar_says_nothing_of_the_machine(corpus: Corpus, tmp_path: Path) -> None:
    make(corpus, tmp_path / "shards")
    with tarfile.open(tmp_path / "shards" / "shard-000000.tar") as tar:
        members = tar.getmembers()
    assert len(members) == 6
    for member in members:
        assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
        assert member.mode == 0o644


def test_same_bytes_whatever_happens(corpus: Corpus, tmp_path: Path) -> None:
    make(corpus, tmp_path / "one")
    make(corpus[::-1], tmp_path / "two", workers=4)
    expected = contents(tmp_path / "one")
    assert len(expected) == 10  # with plan.jsonl and index.jsonl
    assert contents(tmp_path / "two") == expected

    # Killed: an index that was not written yet, a tar that is cut off, a leftover.
    (tmp_path / "two" / "shard-000001.jsonl").unlink()
    os.truncate(tmp_path / "two" / "shard-000002.tar", 700)
    (tmp_path / "two" / ".shard-000002.tar.99.tmp").write_bytes(b"half")
    untouched = tmp_path / "two" / "shard-000000.tar"
    before = untouched.stat().st_mtime_ns
    make(corpus, tmp_path / "two")
    assert contents(tmp_path / "two") == expected
    assert untouched.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "change",
    [
        lambda corpus: soundfile.write(corpus[0].audio, noise(99), RATE_HZ),  # the audio
        lambda corpus: corpus.__setitem__(0, Utterance("a-0", corpus[0].audio, "other text", 1.0)),
        lambda corpus: corpus.pop(),  # one utterance less, one shard less
    ],
)
def test_what_has_changed_is_made_anew(corpus: Corpus, tmp_path: Path, change: Callable[[Corpus], None]) -> None:
    make(corpus, tmp_path / "shards")
    change(corpus)
    make(corpus, tmp_path / "shards")
    make(corpus, tmp_path / "fresh")
    assert contents(tmp_path / "shards") == contents(tmp_path / "fresh")


def test_unusable_audio_goes_to_the_ledger(corpus: Corpus, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    whole = Path(corpus[1].audio).read_bytes()
    (raw / "cut.wav").write_bytes(whole[: len(whole) // 2])
    soundfile.write(raw / "nan.wav", np.full(100, np.nan), RATE_HZ, subtype="FLOAT")
    soundfile.write(raw / "none.wav", np.zeros(0), RATE_HZ)
    (raw / "text.flac").write_bytes(b"this is no audio")
    bad = {"cut.wav": "truncated", "nan.wav": "non_finite", "none.wav": "empty_audio", "text.flac": "unreadable"}
    bad |= {"gone.wav": "missing"}
    everything = corpus + [Utterance(name, str(raw / name), "", 1.0) for name in bad]
    counts = {Reason(reason): 1 for reason in bad.values()}
    for _ in range(2):  # a repeated run drops and counts the same
        assert make(everything, tmp_path / "shards").counts() == counts
        assert ShardReader(tmp_path / "shards").ids == sorted(utterance.id for utterance in corpus)
    (tmp_path / "shards-ledger.jsonl").unlink()  # the shards remember
    assert make(everything, tmp_path / "shards").counts() == counts


def test_nothing_usable(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of 1 utterances can be used: 1 missing"):
        make([Utterance("a", str(tmp_path / "a.wav"), "", 1.0)], tmp_path / "shards")
    with pytest.raises(DataError, match="there are no utterances"):
        make([], tmp_path / "other")


def test_two_of_one_id(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"got the id 'a-0' twice: .*0\.flac and .*0\.flac; rename one"):
        make([*corpus, corpus[0]], tmp_path / "shards")


def test_keys() -> None:
    names = ["a", "a.b", "a_b", "a/b", "a b", "\u00fc", "x" * 80, "x" * 81, "x" * 300, "", ".", "..", "/etc/passwd"]
    keys = [member_key(name) for name in names]
    assert len(set(keys)) == len(names)
    for key in keys:
        assert len(f"{key}.flac".encode()) <= 100
        assert not {".", "/", " "} & set(key)
    assert member_key("84-121123-0000") == "84-121123-0000"


def test_full_disk(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(corpus, tmp_path / "good", per_shard=5)
    with full_disk(tmp_path / "disk", monkeypatch) as folder:
        with pytest.raises(DataError, match=r"shard-00000\d\.(tar|jsonl): cannot be written: No space left on device"):
            make(corpus, folder / "shards", per_shard=5)
        assert not list((folder / "shards").glob(".*")), "no temporary file is left"
        for index in (folder / "shards").glob("shard-*.jsonl"):
            shards.read_index(index)  # what is there is whole


def read_all(folder: Path) -> list[np.ndarray]:
    reader = ShardReader(folder)
    return [reader.audio(i) for i in range(len(reader))]


def damaged(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_all(folder)
    assert str(folder) in str(caught.value)
    assert "remove the folder and prepare the data again" in str(caught.value) or "truncated" in str(caught.value)
    return str(caught.value)


def test_damage_is_named(corpus: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    make(corpus, folder)
    whole = contents(folder)

    def restore() -> None:
        for name, data in whole.items():
            (folder / name).unlink(missing_ok=True)  # another inode: no descriptor of the old file is taken
            (folder / name).write_bytes(data)

    os.truncate(folder / "shard-000001.tar", 3000)
    assert "shard-000001.tar: got 3000 bytes, expected" in damaged(folder)

    restore()
    (folder / "shard-000001.tar").unlink()
    assert "shard-000001.tar: got 0 bytes" in damaged(folder)

    restore()
    (folder / "shard-000003.jsonl").unlink()
    assert "got 3 shards" in damaged(folder)
    (folder / "shard-000001.jsonl").unlink()
    assert "expected shard-000001.jsonl: one is missing" in damaged(folder)

    restore()
    reader = ShardReader(folder)
    middle = int(reader.offset[4] + reader.size[4] // 2)
    flipped = bytearray(whole["shard-000001.tar"])
    flipped[middle] ^= 0xFF
    (folder / "shard-000001.tar").write_bytes(flipped)
    assert f"shard-000001.tar at byte {reader.offset[4]} ({reader.ids[4]})" in damaged(folder)

    restore()
    (folder / "shard-000001.tar").unlink()
    (folder / "shard-000001.tar").write_bytes(bytes(len(whole["shard-000001.tar"])))
    assert f"shard-000001.tar at byte 512 ({reader.ids[3]}): got" in damaged(folder)

    index = whole["shard-000001.jsonl"].splitlines(keepends=True)
    row = json.loads(index[1])
    changes: list[tuple[str, object]] = [
        ("offset", -512), ("offset", 2**40), ("size", 0), ("size", 2**62), ("size", "9"), ("num_samples", 1.5),
        ("id", None), ("text", 3),
    ]  # fmt: skip
    for key, value in changes:
        restore()
        line = json.dumps(row | {key: value}).encode() + b"\n"
        (folder / "shard-000001.jsonl").write_bytes(b"".join([index[0], line, *index[2:]]))
        assert "shard-000001.jsonl: damaged index after 0 utterances" in damaged(folder)
    for line in (b"{", b"[]\n", b"\xff\n", b"7\n"):
        (folder / "shard-000001.jsonl").write_bytes(index[0] + line)
        assert "damaged index" in damaged(folder)
        (folder / "shard-000001.jsonl").write_bytes(line)
        assert "damaged index" in damaged(folder)

    restore()
    (folder / "shard-000001.jsonl").write_bytes(b"".join([index[0], index[2], index[1], index[3]]))
    assert ShardReader(folder).ids[3:5] == [reader.ids[4], reader.ids[3]]  # another order is no damage
    swapped = json.dumps(row | {"id": "b-4"}).encode() + b"\n"
    (folder / "shard-000001.jsonl").write_bytes(b"".join([index[0], swapped, *index[2:]]))
    assert "expected" in damaged(folder)
    assert "'b-4.flac'" in damaged(folder)


def test_no_shards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no shards here; expected shard-000000\.tar"):
        ShardReader(tmp_path)


def _sums(reader: ShardReader, queue: "multiprocessing.Queue[list[float]]") -> None:
    queue.put([float(np.abs(reader.audio(i)).sum()) for i in range(len(reader))])


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_pickled_forked_and_threaded(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(corpus, tmp_path / "shards", per_shard=1)
    reader = ShardReader(tmp_path / "shards")
    expected = [float(np.abs(reader.audio(i)).sum()) for i in range(len(reader))]
    copy = pickle.loads(pickle.dumps(reader))  # noqa: S301 - our own
    assert [float(np.abs(copy.audio(i)).sum()) for i in range(len(copy))] == expected
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_sums, args=(reader, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=60) for _ in processes] == [expected, expected]
    for process in processes:
        process.join()
    with ThreadPoolExecutor(4) as pool:
        order = [i for _ in range(20) for i in range(len(reader))]
        sums = list(pool.map(lambda i: float(np.abs(reader.audio(i)).sum()), order))
    assert sums == expected * 20


def test_few_files_are_open(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", noise(0), RATE_HZ)
    count = 3 * shards.MAX_OPEN_SHARDS
    make([Utterance(f"u{i:03d}", str(tmp_path / "a.flac"), "", 1.0) for i in range(count)], tmp_path / "s", per_shard=1)
    reader = ShardReader(tmp_path / "s")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    first = reader.read(0)
    assert all(reader.read(i) == first for i in range(count))
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + shards.MAX_OPEN_SHARDS
