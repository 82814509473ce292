"""Batches from shards: shares of ranks, and utterances that turn out unreadable."""

from pathlib import Path

import numpy as np
import pytest

from asr.data.corpus import Corpus
from asr.data.ledger import Ledger
from asr.data.loader import BatchDataset
from asr.data.plan import BatchPlan
from asr.data.shard_writer import write_shards
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


def batches(folders: list[Path], rank: int = 0, world_size: int = 1) -> list[Batch]:
    """The batches of an epoch, two utterances each over all ranks."""
    corpus = Corpus.open(folders, RATE_HZ)
    plan = BatchPlan(corpus.num_samples, seed=0, batch_samples=10 * RATE_HZ, max_items=2, shuffle=False)
    dataset = BatchDataset(corpus, plan, encode=lambda text: [1] * len(text), rank=rank, world_size=world_size)
    return [dataset[0, step] for step in range(len(dataset))]


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
