"""The smallest Triton kernel, to see whether there can be others."""

from __future__ import annotations

import inspect

import torch
import triton
import triton.language as tl


def _fill(pointer):
    tl.store(pointer, 1.0)


def run(device: torch.device) -> None:
    """Build it and run it; raises whatever Triton raises."""
    triton.jit(inspect.unwrap(_fill))[(1,)](torch.empty(1, device=device))
