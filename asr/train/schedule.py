"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler's state."""

from __future__ import annotations

import math

from asr.config.schema import Optim


def learning_rate(optim: Optim, *, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """Learning rate of optimiser step `step`, counted from 0.

    Args:
        optim: the settings.
        step: steps taken before this one.
        steps_per_epoch: batches in an epoch.
        total_steps: steps of the whole training.
    """
    peak = optim.learning_rate
    if step < optim.warmup_steps:
        return peak * (step + 1) / optim.warmup_steps
    if optim.schedule == "anneal":  # Deep Speech 2, section 4: divided after each epoch
        return peak / optim.anneal_factor ** (step // steps_per_epoch)
    if optim.schedule == "cosine":
        progress = (step - optim.warmup_steps) / max(1, total_steps - optim.warmup_steps)
        share = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return peak * (optim.final_fraction + (1 - optim.final_fraction) * share)
    return peak
