"""Running losses of utterances: what they are, that ranks share them, and that a checkpoint holds them all."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from asr.data.corpus import Corpus
from asr.data.ledger import Ledger
from asr.data.shard_writer import write_shards
from asr.data.utterance_losses import DECAY, UtteranceLosses
from tests.support.tones import RATE_HZ, write_corpus

SAYINGS = ["a", "b", "c", "ab", "bc", "ca", "abc"]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    sung = write_corpus(folder / "wav", SAYINGS, "song")
    for name, utterances in (("first", sung[:3]), ("second", sung[3:])):
        write_shards(utterances, folder / name, sample_rate_hz=RATE_HZ, ledger=Ledger(folder / "ledger.jsonl"))
    return Corpus.open([folder / "first", folder / "second"], RATE_HZ)


def epoch_batches(seed: int) -> list[Batch]:
    """All utterances but one, three at a time, with random losses; one batch ends with a stand-in, as ranks get them.

    A loss in four is infinite or not a number.
    """
    random = np.random.default_rng(seed)
    batches = []
    for part in np.array_split(random.permutation(len(SAYINGS))[1:], 2):
        losses = random.exponential(20.0, 4)
        losses[:3][random.random(3) < 0.25] = random.choice([np.inf, np.nan])
        lengths = np.array([*random.integers(1, 9, 3), 0])
        batches.append(tuple(map(torch.from_numpy, (np.array([*part, 0]), losses.astype(np.float32), lengths))))
    return batches


def expected(epochs: int) -> dict[int, tuple[float, float]]:
    """Sums of losses and weights by utterance, one number after the other."""
    totals = dict.fromkeys(range(len(SAYINGS)), (0.0, 0.0))
    for epoch in range(epochs):
        for batch in epoch_batches(epoch):
            for number, loss, length in zip(*(column.tolist() for column in batch), strict=True):
                if length and np.isfinite(loss):
                    weight = DECAY ** (epochs - 1 - epoch)
                    totals[number] = totals[number][0] + weight * loss / length, totals[number][1] + weight
    return totals


def train(losses: UtteranceLosses, epochs: range, rank: int = 0, world_size: int = 1) -> None:
    for epoch in epochs:
        losses.begin_epoch(epoch)
        for numbers, values, lengths in epoch_batches(epoch):
            share = slice(rank, None, world_size)
            losses.add(numbers[share], values[share], lengths[share])


def test_equals_a_sum_over_everything(corpus: Corpus) -> None:
    losses = UtteranceLosses(corpus)
    train(losses, range(5))
    losses.merge()
    wanted = torch.tensor(list(expected(5).values()), dtype=torch.float64).T
    assert (wanted[1] > 0).all()
    assert float((losses.totals - wanted).abs().max()) <= 1e-5


def test_a_checkpoint_at_any_step_changes_nothing(corpus: Corpus, tmp_path: Path) -> None:
    whole = UtteranceLosses(corpus)
    train(whole, range(3))
    whole.merge()
    for stop in range(2):  # in the middle of the last epoch, and at its end
        first = UtteranceLosses(corpus)
        train(first, range(2))
        first.begin_epoch(2)
        for batch in epoch_batches(2)[: stop + 1]:
            first.add(*batch)
        first.merge()
        torch.save(first.state_dict(), tmp_path / "state.pt")
        second = UtteranceLosses(corpus)
        assert second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        second.begin_epoch(2)  # as Lightning does again
        for batch in epoch_batches(2)[stop + 1 :]:
            second.add(*batch)
        second.merge()
        assert torch.equal(second.totals, whole.totals)


def test_another_corpuss_state_is_refused(corpus: Corpus) -> None:
    losses = UtteranceLosses(corpus)
    train(losses, range(1))
    losses.merge()
    other = UtteranceLosses(Corpus(corpus.readers[::-1], RATE_HZ))
    assert not other.load_state_dict(losses.state_dict())
    assert not other.totals.any()


def test_numbers_outlast_what_is_left_out(corpus: Corpus) -> None:
    fewer = Corpus(corpus.readers, RATE_HZ)
    fewer.keep(np.array([1, 4, 6]))
    assert fewer.numbers.tolist() == [1, 4, 6]
    assert UtteranceLosses(fewer).load_state_dict(UtteranceLosses(corpus).state_dict())


def work(rank: int, world_size: int, folder: str, corpus: Corpus) -> None:
    """One rank's process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    losses = UtteranceLosses(corpus)
    train(losses, range(3), rank, world_size)
    losses.merge()
    torch.save(losses.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_ranks_equal_one_process(corpus: Corpus, tmp_path: Path) -> None:
    """Every rank ends with the very totals of one process, whoever had which utterance."""
    whole = UtteranceLosses(corpus)
    train(whole, range(3))
    whole.merge()
    mp.spawn(work, args=(2, str(tmp_path), corpus), nprocs=2)
    for rank in range(2):
        state: dict[str, Any] = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(state["totals"], whole.totals)
        assert state["epoch"] == 2
