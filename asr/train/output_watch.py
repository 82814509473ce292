"""Logs what the output looks like while a run goes on, and says it when the diagnosis changes."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import lightning
import numpy as np

from asr.config.schema import Optim
from asr.data.corpus import Corpus
from asr.train.diagnosis import Diagnosis, guessing_loss, patience_steps
from asr.train.explain import explain
from asr.train.measures import Measures
from asr.types import Batch

QUARTILES = (0.25, 0.5, 0.75)  # of the training utterances' lengths, where one bucket ends and the next begins
GUESSING_UTTERANCES = 2000  # enough for the entropy of tokens to two digits


class OutputWatch(lightning.Callback):
    """Looks every `every_steps` steps, when the progress line does; every rank at the same ones.

    It comes before the callback that saves checkpoints, so that those know of the step's look.

    Args:
        corpus: the training's.
        encode: text -> token ids.
        optim: for the diagnosis's advice.
        every_steps: how often to look.
        total_steps: of the whole training.
    """

    def __init__(
        self,
        corpus: Corpus,
        encode: Callable[[str], list[int]],
        optim: Optim,
        *,
        every_steps: int,
        total_steps: int,
    ) -> None:
        self.every_steps = every_steps
        spread = np.linspace(0, len(corpus) - 1, min(len(corpus), GUESSING_UTTERANCES)).astype(int)
        guessing = guessing_loss(encode(corpus.texts[index]) for index in spread)
        self.diagnosis = Diagnosis(guessing, patience=patience_steps(total_steps))
        self.optim = optim
        quartiles = np.quantile(corpus.num_samples, QUARTILES) / corpus.sample_rate_hz
        ends = sorted({round(float(seconds), 1) for seconds in quartiles})
        self.bounds = tuple(round(seconds * corpus.sample_rate_hz) for seconds in ends)
        self.names = [*(f"guard/loss_to_{seconds}s" for seconds in ends), f"guard/loss_above_{ends[-1]}s"]
        self._looked = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        pl_module.measures = Measures(self.bounds, pl_module.device)
        self._looked = trainer.global_step

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % self.every_steps or step == self._looked:  # or in the middle of the next step
            return
        self._looked = step
        window = pl_module.measures.read(step)
        figures = {
            "guard/blank_rate": window.blank_rate,
            "guard/spoken_per_token": window.spoken,
            "guard/entropy": window.entropy,
            "guard/gradient_norm": window.gradient_norm,
            "guard/loss": window.loss,
            **dict(zip(self.names, window.loss_by_length, strict=True)),
        }
        # Not by `log_dict`, which repeats the last value where a bucket is empty. Lightning counts steps from 0.
        for logger in trainer.loggers:
            logger.log_metrics({name: value for name, value in figures.items() if math.isfinite(value)}, step - 1)
        if self.diagnosis.add(window) and trainer.is_global_zero:
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            if said := explain(self.diagnosis, learning_rate=rate, optim=self.optim):
                print(said, file=sys.stderr, flush=True)

    def state_dict(self) -> dict[str, Any]:
        return self.diagnosis.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.diagnosis.load_state_dict(state_dict)
