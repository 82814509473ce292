"""Utterances that turn out unreadable while a run goes on: entered in its ledger and named, each once."""

from __future__ import annotations

import sys
from typing import Any

import lightning

from asr.data.ledger import Ledger
from asr.types import Batch, Drop


def leave_out(ledger: Ledger, drop: Drop) -> None:
    """Enter an utterance and say so, unless this or another rank has done it before."""
    if ledger.add(drop):
        print(
            f"left out {drop.id} of {drop.source}: {drop.reason}; {ledger.path} says why", file=sys.stderr, flush=True
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
