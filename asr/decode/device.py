"""Which device a command or a recogniser runs on."""

from __future__ import annotations

import torch

from asr.errors import ConfigError


def choose_device(name: str | None) -> torch.device:
    """The device that `name` means to torch; None: a GPU if there is one, else the CPU.

    Raises:
        ConfigError: torch knows no such device, or does not find it here.
    """
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]
    try:
        device = torch.device(name or ("cuda" if gpus else "cpu"))
    except RuntimeError:  # torch's list of types, most of which no build has
        device = None
    if device is None or not ((device.index or 0) < len(gpus) if device.type == "cuda" else _can_compute(device)):
        raise ConfigError(f"device: got {name}, expected one that torch finds here: {', '.join(['cpu', *gpus])}")
    return device


def _can_compute(device: torch.device) -> bool:
    """Whether this build of torch can put tensors there, and they hold numbers."""
    try:
        return torch.empty(0, device=device).device.type != "meta"
    except (RuntimeError, AssertionError, ImportError):  # one or another, by the type of device
        return False
