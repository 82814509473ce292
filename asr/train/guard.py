"""A step whose gradient is not finite changes nothing, is written down for replay, and ends the run if many follow.

Whether it is finite stays on the device, where the optimiser looks at it: no step waits for the answer.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from asr.errors import TrainingError
from asr.nn.batch_norm import MaskedBatchNorm
from asr.types import Batch


class StepGuard:
    """Lets steps with a finite gradient pass.

    The others leave weights, the optimiser's state and batch norm's running statistics as they were, bit for bit.

    Args:
        model: its batch norms are watched.
    """

    def __init__(self, model: nn.Module) -> None:
        norms = [module for module in model.modules() if isinstance(module, MaskedBatchNorm)]
        self._names = [(norm, name) for norm in norms for name, _ in norm.named_buffers(recurse=False)]
        self._before: list[Tensor] = []
        self.skipped = torch.zeros(())  # 1.0 if the last step was, on the training's device
        self.abandoned = False  # this step has to be skipped, whatever its gradient: memory did not suffice

    @torch.no_grad()
    def begin(self) -> None:
        """Remember the statistics; before the forward pass."""
        self.abandoned = False
        self._before = [getattr(norm, name).clone() for norm, name in self._names]

    @torch.no_grad()
    def end(self, optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
        """Say whether the optimiser may step; after the backward pass.

        Args:
            optimizer: a fused one, which reads `found_inf`.
            norm: of the whole gradient, the same on every rank.
        """
        refused = ~norm.isfinite()
        self.skipped = refused.to(torch.float32)
        optimizer.found_inf = self.skipped  # type: ignore[attr-defined]
        for (module, name), before in zip(self._names, self._before, strict=True):
            buffer = getattr(module, name)
            buffer.copy_(torch.where(refused, before, buffer))


def write_skipped(run: Path, rank: int, row: Mapping[str, Any]) -> Path:
    """Add a line to the file in which a rank names the steps that it skipped; gives the file."""
    path = run / f"skipped-{rank}.jsonl"
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    with path.open("a+b") as handle:
        if handle.seek(0, os.SEEK_END) and os.pread(handle.fileno(), 1, handle.tell() - 1) != b"\n":
            line = b"\n" + line  # the last one was cut off when its writer was killed
        handle.write(line)
    return path


class SkippedSteps(lightning.Callback):
    """Says which steps the guard refused, and stops the run if one follows the other.

    Looks every `every_steps` steps and whenever a checkpoint is written. `run/skipped-RANK.jsonl` has a line for each
    refused step with its utterances and their seeds, from which alone the batch follows.

    Args:
        run: the run folder.
        every_steps: how often to look.
        most_in_a_row: one more stops the run.
    """

    def __init__(self, run: Path, *, every_steps: int, most_in_a_row: int) -> None:
        self.run, self.every_steps, self.most_in_a_row = run, every_steps, most_in_a_row
        self.total = self.in_a_row = 0
        self._ids: list[str] = []  # of this step so far
        self._seeds: list[Tensor] = []
        self._waiting: list[tuple[Tensor, dict[str, Any], list[Tensor]]] = []  # refused or not, what it was, seeds

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._ids += batch.ids
        self._seeds.append(batch.seeds)
        pieces = trainer.accumulate_grad_batches
        if (batch_idx + 1) % pieces:
            return
        what = {"step": trainer.global_step, "epoch": trainer.current_epoch, "batch": batch_idx // pieces}
        if not pl_module.guard.abandoned:  # those are `SkippedBatches`'
            self._waiting.append((pl_module.guard.skipped, what | {"ids": self._ids}, self._seeds))
        self._ids, self._seeds = [], []
        if trainer.global_step % self.every_steps == 0:
            self._look(trainer)

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._look(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._look(trainer)

    def _look(self, trainer: lightning.Trainer) -> None:
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        for refused, (_, what, seeds) in zip(torch.stack([row[0] for row in waiting]).tolist(), waiting, strict=True):
            self.in_a_row = self.in_a_row + 1 if refused else 0
            if refused:
                self.total += 1
                self._write(trainer, what, seeds)
            if self.in_a_row > self.most_in_a_row:
                raise TrainingError(
                    f"step {what['step']}: {self.in_a_row} steps in a row had a loss or gradient that is not finite; "
                    f"{self.run}/skipped-*.jsonl name their utterances. Usual reasons: optim.learning_rate too high, "
                    "no optim.gradient_clip, damaged audio"
                )

    def _write(self, trainer: lightning.Trainer, what: dict[str, Any], seeds: list[Tensor]) -> None:
        row = {"reason": "not finite", **what, "seeds": torch.cat(seeds).tolist()}
        path = write_skipped(self.run, trainer.global_rank, row)
        if trainer.is_global_zero:
            print(
                f"step {what['step']} skipped: its loss or gradient is not finite; nothing was changed; {path} names "
                f"its utterances ({self.total} skipped so far)",
                file=sys.stderr,
                flush=True,
            )
