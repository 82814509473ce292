"""How exact float32 is on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def whole_float32() -> Iterator[None]:
    """Matrix products, convolutions and recurrences in float32 as it is on a CPU: without TF32.

    TF32 rounds factors to 10 bits, and torch allows it to cuDNN by default. By it, what comes out for an utterance
    depends in the third digit on the batch that it is in and on how its audio is cut. The setting is the process's, and
    is put back at the end. Nothing changes on other devices.
    """
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)  # type: ignore[attr-defined]
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value
