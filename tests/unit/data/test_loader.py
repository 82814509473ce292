"""Batches from shards: shares of ranks, pieces, positions, and utterances that turn out unreadable."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from asr.data.corpus import Corpus
from asr.data.ledger import Ledger
from asr.data.loader import BatchDataset, BatchLoader
from asr.data.plan import BatchPlan
from asr.data.shard_writer import write_shards
from asr.errors import DataError
from asr.types import Batch, Drop
from tests.support.damage import damage
from tests.support.tones import RATE_HZ, write_corpus

SAYINGS = ["a", "ab", "abc", "abc a", "abc ab", "abc abc"]  # of increasing length


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two splits of three utterances each."""
    sung = write_corpus(tmp_path / "wav", SAYINGS, "song")
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder, utterances in zip(folders, (sung[:3], sung[3:]), strict=True):
        write_shards(utterances, folder, sample_rate_hz=RATE_HZ, ledger=Ledger(tmp_path / "ledger.jsonl"))
    return folders


def ones(text: str) -> list[int]:
    """As many tokens as letters; not a lambda, so that it can be pickled for workers."""
    return [1] * len(text)


def dataset_of(
    folders: list[Path], rank: int = 0, world_size: int = 1, pieces: int = 1, *, shuffle: bool = False
) -> BatchDataset:
    """Batches of two utterances each over all ranks."""
    corpus = Corpus.open(folders, RATE_HZ)
    corpus.num_tokens[:] = [len(text) for text in corpus.texts]
    plan = BatchPlan(corpus.num_samples, seed=0, batch_samples=10 * RATE_HZ, max_items=2, jitter=0.3, shuffle=shuffle)
    return BatchDataset(corpus, plan, encode=ones, rank=rank, world_size=world_size, pieces=pieces)


def batches(folders: list[Path], *place: int) -> list[Batch]:
    """The batches of an epoch."""
    dataset = dataset_of(folders, *place)
    return [item for k in range(len(dataset)) if isinstance(item := dataset[0, k], Batch)]


def test_ranks_share_each_batch(folders: list[Path]) -> None:
    whole = batches(folders)
    assert [batch.ids for batch in whole] == [(f"song-00{i}", f"song-00{i + 1}") for i in (0, 2, 4)]
    assert [batch.target_lengths.tolist() for batch in whole] == [[1, 2], [3, 5], [6, 7]]
    shares = [batches(folders, rank, 3) for rank in range(3)]
    for step, batch in enumerate(whole):
        assert tuple(name for share in shares for name in share[step].ids) == batch.ids
        assert sum(share[step].seconds for share in shares) == pytest.approx(batch.seconds)
        stand_in = shares[2][step]
        assert (stand_in.audio.shape, stand_in.audio_lengths.tolist(), stand_in.ids) == ((1, 1), [0], ())


def test_pieces_of_all_ranks_make_up_each_batch(folders: list[Path]) -> None:
    whole = batches(folders)
    assert [batch.step_tokens for batch in whole] == [3, 8, 13]
    pieces = batches(folders, 0, 1, 2)
    assert len(pieces) == 6
    for step, batch in enumerate(whole):
        assert pieces[2 * step].ids + pieces[2 * step + 1].ids == batch.ids
        assert [piece.step_tokens for piece in pieces[2 * step : 2 * step + 2]] == [batch.step_tokens] * 2
    both = [batches(folders, rank, 2, 2) for rank in range(2)]
    for mine, piece in zip(both[0], pieces, strict=True):  # a piece is that of one process, shared by the ranks
        assert mine.ids == piece.ids
    assert all(not batch.ids for batch in both[1])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_goes_on_from_any_place(folders: list[Path], num_workers: int) -> None:
    taken = 0

    def ids(loader: BatchLoader, count: int) -> list[tuple[str, ...]]:
        """Of the next batches, epoch after epoch."""
        nonlocal taken
        loader.consumed = lambda: taken
        found: list[tuple[str, ...]] = []
        while True:
            for batch in loader:
                found.append(batch.ids)
                taken += 1
                if len(found) == count:
                    return found

    expected = ids(BatchLoader(dataset_of(folders, shuffle=True), num_workers=0), 9)
    assert expected[:3] != expected[3:6]
    loader = BatchLoader(dataset_of(folders, shuffle=True), num_workers=num_workers)
    taken = 4  # in the middle of the second epoch
    assert ids(loader, 2) == expected[4:6]
    assert ids(loader, 3) == expected[6:]  # from an epoch's beginning, with the same workers
    taken = 3  # back, though they have read on
    assert ids(loader, 5) == expected[3:8]


@pytest.mark.parametrize("pause", [0.0, 1.0], ids=["at once", "when it has read on"])
def test_a_worker_that_is_killed_is_a_message(folders: list[Path], pause: float) -> None:
    loader, taken = BatchLoader(dataset_of(folders), num_workers=1), 0
    loader.consumed = lambda: taken

    def read() -> None:
        nonlocal taken
        while taken < 100:
            for _ in loader:
                if not taken:
                    time.sleep(pause)
                    (worker,) = cast(Any, loader._items)._workers
                    os.kill(worker.pid, signal.SIGKILL)
                taken += 1

    with pytest.raises(DataError, match=r"a process that reads audio is gone.*a lower data\.num_workers takes less"):
        read()
    assert taken < 100


READ = """
import multiprocessing, sys, time
from pathlib import Path
from asr.data.loader import BatchLoader
from tests.unit.data.test_loader import dataset_of

if __name__ == "__main__":
    batches = iter(BatchLoader(dataset_of([Path(sys.argv[1])]), num_workers=2))
    next(batches)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(60)
"""


def test_workers_end_with_a_process_that_is_killed(folders: list[Path], tmp_path: Path) -> None:
    (tmp_path / "read.py").write_text(READ)
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "read.py"), str(folders[0])],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    assert all(Path(f"/proc/{pid}").exists() for pid in workers)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers outlived the process that they read for"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(folders: list[Path]) -> None:
    path = damage(folders[0], "song-001")
    sound, bare = batches(folders)[1:], batches(folders)[0]
    assert bare.ids == ("song-000",)
    assert [(drop.id, drop.reason) for drop in bare.dropped] == [("song-001", "truncated")]
    assert str(path) in bare.dropped[0].detail
    assert all(not batch.dropped for batch in sound)


def test_a_batch_of_which_nothing_can_be_read_holds_a_stand_in(folders: list[Path]) -> None:
    for name in ("song-004", "song-005"):
        damage(folders[1], name)
    batch = batches(folders)[2]
    assert [drop.id for drop in batch.dropped] == ["song-004", "song-005"]
    assert (batch.ids, batch.texts, batch.seconds) == ((), (), 0.0)
    assert (batch.audio.shape, batch.audio_lengths.tolist()) == ((1, 1), [0])
    assert (batch.targets.shape, batch.target_lengths.tolist()) == ((1, 0), [0])


def test_a_corpus_knows_each_utterances_split(folders: list[Path]) -> None:
    corpus = Corpus.open([*folders, folders[0]], RATE_HZ)  # the same id may stand in two splits
    sources = [corpus.drop(i, "missing", "").source for i in range(9)]
    assert sources == ["first"] * 3 + ["second"] * 3 + ["first"] * 3
    corpus = Corpus.open(folders, RATE_HZ)
    corpus.keep(np.array([0, 5]))
    assert corpus.drop(1, "missing", "") == Drop("song-005", "missing", "", "second")
    damage(folders[1], "song-005")
    assert isinstance(corpus.audio_or_drop(0), np.ndarray)
    assert isinstance(corpus.audio_or_drop(1), Drop)
