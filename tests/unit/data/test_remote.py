"""Shards on another machine: the same audio as from the local disk, and networks that fail."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.data import remote
from asr.data.corpus import Corpus
from asr.data.ledger import Ledger
from asr.data.loader import BatchDataset, BatchLoader
from asr.data.plan import BatchPlan
from asr.data.remote import Unreachable
from asr.data.shard_writer import write_shards
from asr.data.shards import ShardReader
from asr.errors import DataError
from asr.types import Drop, Utterance
from tests.support.damage import damage
from tests.support.range_server import RangeServer, range_server

RATE_HZ = 16_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine utterances in three shards."""
    utterances = []
    for i in range(9):
        path = tmp_path / f"u{i}.flac"
        soundfile.write(path, np.random.default_rng(i).uniform(-0.5, 0.5, 1000 + 100 * i), RATE_HZ)
        utterances.append(Utterance(f"u{i}", str(path), f"text {i}", 0.1))
    folder = tmp_path / "served" / "some"
    write_shards(
        utterances, folder, sample_rate_hz=RATE_HZ, ledger=Ledger(tmp_path / "ledger.jsonl"), utterances_per_shard=3
    )
    return folder


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    monkeypatch.setattr(remote, "BACK_OFF_SECONDS", 0.001)
    with range_server(folder.parent) as server:
        yield server


def test_same_as_local(folder: Path, server: RangeServer) -> None:
    local, other = ShardReader(folder), ShardReader(f"{server.url}/some/")
    assert (other.ids, other.texts, other.name) == (local.ids, local.texts, "some")
    assert np.array_equal(other.num_samples, local.num_samples)
    server.requests.clear()
    for i, audio in enumerate(other.audio_many(range(9))):
        assert np.array_equal(audio, local.audio(i))
        assert other.read(i) == local.read(i)
    assert sum(server.requests.values()) == 18
    copy = pickle.loads(pickle.dumps(other))  # noqa: S301 - our own
    assert np.array_equal(copy.audio(4), local.audio(4))
    assert ShardReader(f"file://{folder}").read(3) == local.read(3)


def one_token(text: str) -> list[int]:
    """Not a lambda, so that it can be pickled for workers."""
    return [1]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_loader(folder: Path, server: RangeServer, num_workers: int) -> None:
    """Batches of a local and a remote corpus, in this process and in forked workers."""

    def batches(*folders: Path | str) -> list[tuple[tuple[str, ...], np.ndarray]]:
        corpus = Corpus.open(folders, RATE_HZ)
        plan = BatchPlan(corpus.num_samples, seed=0, batch_samples=8000, max_items=4)
        loader = BatchLoader(BatchDataset(corpus, plan, encode=one_token), num_workers=num_workers)
        return [(batch.ids, batch.audio.numpy().copy()) for batch in loader]

    expected, got = batches(folder, folder), batches(f"{server.url}/some", folder)
    assert len(expected) > 2
    for (ids, audio), (expected_ids, expected_audio) in zip(got, expected, strict=True):
        assert ids == expected_ids
        assert np.array_equal(audio, expected_audio)


def test_dropped_connections_and_busy_servers_are_asked_again(folder: Path, server: RangeServer) -> None:
    reader = ShardReader(f"{server.url}/some")
    local = ShardReader(folder)
    server.failures = ["drop", 503, "drop", 429]
    assert reader.read(8) == local.read(8)
    assert not server.failures
    server.failures = ["drop", 500, 502]
    assert reader.read_many([0, 4, 8]) == [local.read(i) for i in (0, 4, 8)]
    server.failures = [503] * 5
    with pytest.raises(Unreachable, match=rf"^{server.url}/some/shard-000002.tar: HTTP status 503 .*attempt 5 of 5"):
        reader.read(8)
    server.failures = [403]
    with pytest.raises(Unreachable, match=r"shard-000002\.tar: HTTP status 403 Forbidden$"):
        reader.read(8)


def test_a_server_without_ranges(server: RangeServer) -> None:
    server.ranges = False
    with pytest.raises(Unreachable, match=r"shard-000000\.tar: got \d+ bytes, expected at most the 2 .* byte ranges"):
        ShardReader(f"{server.url}/some")
    assert server.requests["/some/shard-000001.tar"] == 0, "one whole tar is enough"


def test_what_is_not_there(folder: Path, server: RangeServer) -> None:
    with pytest.raises(Unreachable, match=r"/other/index\.jsonl: not found; .*make_shards\.py"):
        ShardReader(f"{server.url}/other")
    tar = folder / "shard-000001.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=rf"shard-000001\.tar: got fewer bytes than the {len(whole)} that .*index"):
        ShardReader(f"{server.url}/some")
    tar.write_bytes(whole + b"x")
    with pytest.raises(DataError, match="got more bytes"):
        ShardReader(f"{server.url}/some")
    tar.unlink()
    with pytest.raises(Unreachable, match=r"shard-000001\.tar: not found"):
        ShardReader(f"{server.url}/some")
    with pytest.raises(Unreachable, match=r"^http://127\.0\.0\.1:9/x/index\.jsonl: .*attempt 5 of 5"):
        ShardReader("http://127.0.0.1:9/x")
    with pytest.raises(DataError, match=r"^gopher://x: .*expected a URL that fsspec knows"):
        ShardReader("gopher://x")


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_damage_drops_an_utterance_and_an_outage_stops(folder: Path, server: RangeServer, num_workers: int) -> None:
    corpus = Corpus.open([f"{server.url}/some"], RATE_HZ)
    damage(folder, "u4")
    found = corpus.audio_or_drop_many(range(9))
    drops = [one for one in found if isinstance(one, Drop)]
    assert [(drop.id, drop.source) for drop in drops] == [("u4", "some")]
    assert f"{server.url}/some/shard-000001.tar at byte" in drops[0].detail
    (folder / "shard-000001.tar").unlink()
    plan = BatchPlan(corpus.num_samples, seed=0, batch_samples=3000, max_items=4)
    loader = BatchLoader(BatchDataset(corpus, plan, encode=one_token), num_workers=num_workers)
    with pytest.raises(Unreachable, match=r"shard-000001\.tar: not found$"):
        list(loader)


def test_another_rate_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"some: got shards at 16000 Hz, data\.sample_rate_hz is 8000"):
        Corpus.open([folder], 8000)
