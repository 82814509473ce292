"""`train_tones` on a GPU for which some steps must not wait: `python -m ... [--wait] KEY=VALUE ...`.

Steps FIRST to LAST of the run, their data and all that callbacks do in them included, fail where torch sees that they
wait for the device. With --wait one does.
"""

import sys
from typing import Any

import lightning
import torch

from asr.train import fit
from asr.train.left_out import LeftOut
from asr.types import Batch
from tests.support import train_tones

FIRST, LAST = 11, 16  # steps taken; an epoch has 9, and what is made once is made in the first


class Strict(LeftOut):
    """The last of the callbacks, so that between its hooks all of a step lies."""

    waits = False

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if trainer.global_step == FIRST:
            torch.cuda.set_sync_debug_mode("error")
        if trainer.global_step == LAST - 1 and self.waits:
            print(float(batch.audio_lengths.sum()))

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.global_step == LAST:
            torch.cuda.set_sync_debug_mode("default")
            print(f"steps that did not wait: {LAST - FIRST}", flush=True)


def main(words: list[str]) -> None:
    Strict.waits = "--wait" in words
    fit.LeftOut = Strict  # type: ignore[misc]
    overrides = [word for word in words if word != "--wait"]
    train_tones.main([*overrides, "trainer.log_every_steps=1000"])  # then steps may wait


if __name__ == "__main__":
    main(sys.argv[1:])
