"""The callback that keeps losses by utterance: checkpoints of before, and of other data, are resumed without them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from asr.data.corpus import Corpus
from asr.data.ledger import Ledger
from asr.data.shard_writer import write_shards
from asr.data.utterance_losses import KEY, UtteranceLosses
from asr.train.utterance_losses import KeepUtteranceLosses
from tests.support.tones import RATE_HZ, write_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    sung = write_corpus(tmp_path / "wav", ["a", "b", "c"], "song")
    write_shards(sung, tmp_path / "train", sample_rate_hz=RATE_HZ, ledger=Ledger(tmp_path / "ledger.jsonl"))
    return Corpus.open([tmp_path / "train"], RATE_HZ)


def test_what_a_checkpoint_holds_comes_back(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    """Also what the last step before it brought; and only if it is of the same utterances."""
    corpus.keep(np.array([0, 2]))
    first, trainer = KeepUtteranceLosses(UtteranceLosses(corpus)), SimpleNamespace(is_global_zero=True, current_epoch=0)
    first.on_train_epoch_start(trainer, None)  # type: ignore[arg-type]
    batch = SimpleNamespace(numbers=torch.from_numpy(corpus.numbers), target_lengths=torch.tensor([2, 4]))
    task = SimpleNamespace(losses=torch.tensor([6.0, 8.0]))
    first.on_train_batch_end(trainer, task, None, batch, 0)  # type: ignore[arg-type]
    saved: dict[str, Any] = {}
    first.on_save_checkpoint(trainer, task, saved)  # type: ignore[arg-type]
    assert saved[KEY]["totals"].tolist() == [[3.0, 0.0, 2.0], [1.0, 0.0, 1.0]]

    second = KeepUtteranceLosses(UtteranceLosses(corpus))
    second.on_load_checkpoint(trainer, None, saved)  # type: ignore[arg-type]
    assert torch.equal(second.losses.totals, saved[KEY]["totals"])
    assert capsys.readouterr().err == ""

    for foreign in ({}, {KEY: {**saved[KEY], "digest": "of others"}}):
        third = KeepUtteranceLosses(UtteranceLosses(corpus))
        third.on_load_checkpoint(trainer, None, foreign)  # type: ignore[arg-type]
        assert not third.losses.totals.any()
        assert "the losses by utterance begin anew" in capsys.readouterr().err
