"""Utterances that turn out unreadable while a run goes on: entered in its ledger and named, each once."""

from __future__ import annotations

import sys
from typing import Any

import lightning

from asr.config import Config
from asr.data.corpus import Corpus, drop_unusable
from asr.data.ledger import Ledger
from asr.model import SpeechModel
from asr.text.tokenizer import Tokenizer
from asr.types import Batch, Drop


def leave_out(ledger: Ledger, drop: Drop) -> None:
    """Enter an utterance and say so, unless this or another rank has done it before."""
    if ledger.add(drop):
        print(
            f"left out {drop.id} of {drop.source}: {drop.reason}; {ledger.path} says why", file=sys.stderr, flush=True
        )


def drop_untrainable(config: Config, corpus: Corpus, tokenizer: Tokenizer, model: SpeechModel) -> list[Drop]:
    """Take out of `corpus` what `config` cannot train on; gives what was taken out, and why."""
    return drop_unusable(
        corpus,
        encode=tokenizer.encode,
        frame_count=model.frame_count,
        min_seconds=config.data.min_seconds,
        max_seconds=config.data.max_seconds,
        fastest_speed=max(config.augment.speeds),
    )


class LeftOut(lightning.Callback):
    """Does it for what batches could not hold; each rank for its own share of them."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        self._enter(batch)

    def on_validation_batch_start(
        self, trainer: lightning.Trainer, pl_module: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._enter(batch)

    def _enter(self, batch: Batch) -> None:
        for drop in batch.dropped:
            leave_out(self.ledger, drop)
