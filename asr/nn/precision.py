"""How exact float32 is on an NVIDIA GPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_lock = threading.Lock()
_before: list[list[str]] = []  # one item for each `whole_float32` that has begun and not ended: what they found


def float32_settings() -> tuple[Any, ...]:
    """Of matrix products, convolutions and recurrences: torch's objects whose `fp32_precision` is "ieee" or "tf32"."""
    return torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn  # type: ignore[attr-defined]


@contextmanager
def whole_float32() -> Iterator[None]:
    """Matrix products, convolutions and recurrences in float32 as it is on a CPU: without TF32.

    TF32 rounds factors to 10 bits, and torch allows it to cuDNN by default. By it, what comes out for an utterance
    depends in the third digit on the batch that it is in and on how its audio is cut. The setting is the process's: the
    first thread in changes it, and the last one out puts it back. Nothing changes on other devices.
    """
    settings = float32_settings()
    with _lock:
        _before.append(_before[0] if _before else [setting.fp32_precision for setting in settings])
        for setting in settings:
            setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        with _lock:
            before = _before.pop()
            if not _before:
                for setting, value in zip(settings, before, strict=True):
                    setting.fp32_precision = value
