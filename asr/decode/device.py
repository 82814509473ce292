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
    if device is None or (device.type == "cuda" and (device.index or 0) >= len(gpus)):
        raise ConfigError(f"device: got {name}, expected one that torch finds here: {', '.join(['cpu', *gpus])}")
    return device
