"""The progress line: loss, validation WER, audio-hours per hour, time left, share of time spent waiting for data."""

from __future__ import annotations

import time
from typing import Any

import lightning
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from asr.types import Batch


class ProgressLine(lightning.Callback):
    """One line on a terminal, else one printed line an epoch; also logs the same figures.

    The loss stays on the device and is fetched every `every_steps` steps only, so no step waits for it.
    """

    def __init__(self, every_steps: int) -> None:
        self.every_steps = every_steps
        self.bar: Progress | None = None
        self.validation = ""
        self.validation_start = 0.0
        self.figures: dict[str, float] = {}  # of the last `every_steps` steps

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._reset()
        self.last_end = time.perf_counter()
        if not trainer.is_global_zero:
            return
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        self.bar = Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[figures]}"))
        if self.bar.console.is_terminal:
            self.bar.start()
        total = trainer.estimated_stepping_batches
        self.row = self.bar.add_task("", total=total, completed=trainer.global_step, figures="")

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.waited += time.perf_counter() - self.last_end

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.last_end = time.perf_counter()
        self.seconds += batch.seconds
        self.losses.append(outputs["loss"].detach())
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and trainer.global_step % self.every_steps == 0:
            self.figures = self._figures(trainer)
            pl_module.log_dict(self.figures, batch_size=1)
            self._show(trainer, self.figures)
            self._reset()
        elif self.bar is not None:
            self.bar.update(self.row, completed=trainer.global_step)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.validation_start = time.perf_counter()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        metrics = trainer.callback_metrics
        if "validation/wer" in metrics:
            self.validation = f"WER {100 * float(metrics['validation/wer']):.2f} %"
        self.last_end = time.perf_counter()  # validation is neither training nor waiting for data
        self.start += self.last_end - self.validation_start

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.bar is not None and not self.bar.console.is_terminal:
            figures = self._figures(trainer) if self.losses else self.figures
            if figures:  # not if the run was resumed between the epoch's last step and its end
                text = ", ".join(self._words(figures, "audio hours/hour", "waiting for data"))
                epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
                print(f"{epoch} step {trainer.global_step}: {text}", flush=True)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if self.bar is not None:
            self.bar.stop()

    def _reset(self) -> None:
        self.start, self.waited, self.seconds = time.perf_counter(), 0.0, 0.0
        self.losses: list[torch.Tensor] = []

    def _figures(self, trainer: lightning.Trainer) -> dict[str, float]:
        elapsed = time.perf_counter() - self.start
        return {
            "train/loss": float(torch.stack(self.losses).nanmean()),
            "train/audio_hours_per_hour": self.seconds * trainer.world_size / elapsed,
            "train/waiting_share": self.waited / elapsed,
            "train/learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
        }

    def _words(self, figures: dict[str, float], hours: str, waiting: str) -> list[str]:
        return [
            f"loss {figures['train/loss']:.3f}",
            *([self.validation] if self.validation else []),
            f"{figures['train/audio_hours_per_hour']:.0f} {hours}",
            f"{100 * figures['train/waiting_share']:.0f} % {waiting}",
        ]

    def _show(self, trainer: lightning.Trainer, figures: dict[str, float]) -> None:
        if self.bar is None:
            return
        description = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        text = "  ".join(self._words(figures, "h/h", "waiting"))  # all of it fits 80 columns
        self.bar.update(self.row, description=description, completed=trainer.global_step, figures=text)
