"""Keeps the running loss of each utterance while a run goes on, and in its checkpoints; `asr ledger` reads it."""

from __future__ import annotations

import sys
from typing import Any

import lightning

from asr.data.utterance_losses import KEY, UtteranceLosses
from asr.types import Batch


class KeepUtteranceLosses(lightning.Callback):
    """Has to come before the callback that saves checkpoints, so that those hold the step's losses too."""

    def __init__(self, losses: UtteranceLosses) -> None:
        self.losses = losses

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.losses.to(pl_module.device)

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        # Not at an epoch's start: that hook does not come if the run was resumed at the end of the epoch before.
        epoch = trainer.global_step // pl_module.steps_per_epoch
        if epoch != self.losses.epoch:
            self.losses.begin_epoch(epoch)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert batch.numbers is not None
        self.losses.add(batch.numbers, pl_module.losses, batch.target_lengths)

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.losses.merge()  # Lightning calls this on every rank
        checkpoint[KEY] = self.losses.state_dict()

    def on_load_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        # A checkpoint of before there were such losses is resumed without them.
        if (KEY not in checkpoint or not self.losses.load_state_dict(checkpoint[KEY])) and trainer.is_global_zero:
            print(
                "resuming: the training utterances are not those of the checkpoint, or not in that order: batches are "
                "others than the run would have had, and the losses by utterance begin anew",
                file=sys.stderr,
            )
