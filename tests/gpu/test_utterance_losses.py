"""Losses by utterance on a GPU: a training step does not wait for the device."""

from pathlib import Path

import pytest
import torch

from asr.data.corpus import Corpus
from asr.data.ledger import Ledger
from asr.data.shard_writer import write_shards
from asr.data.utterance_losses import UtteranceLosses
from tests.support.tones import RATE_HZ, write_corpus
from tests.support.waiting import nothing_waits

pytestmark = pytest.mark.gpu


def test_adding_does_not_wait_for_the_device(tmp_path: Path) -> None:
    sung = write_corpus(tmp_path / "wav", ["a", "b", "c"], "song")
    write_shards(sung, tmp_path / "train", sample_rate_hz=RATE_HZ, ledger=Ledger(tmp_path / "ledger.jsonl"))
    losses = UtteranceLosses(Corpus.open([tmp_path / "train"], RATE_HZ))
    device = torch.device("cuda")
    losses.to(device)
    batch = [torch.tensor(values, device=device) for values in ([2, 0, 1], [4.0, 0.0, torch.inf], [2, 0, 1])]
    with nothing_waits():
        losses.add(*batch)
    losses.merge()
    assert losses.state_dict()["totals"].tolist() == [[0.0, 0.0, 2.0], [0.0, 0.0, 1.0]]
