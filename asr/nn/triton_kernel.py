"""What every Triton kernel of ours is made by. Imported only where there is Triton."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl


def kernel(function: Callable[..., Any], **options: Any) -> Any:
    """Make a kernel; in tests annotations are checked by a wrapper, from which it is taken out."""
    return triton.jit(inspect.unwrap(function), **options)


def _fill(pointer):
    tl.store(pointer, 1.0)


def trial(device: torch.device) -> None:
    """Build the smallest kernel and run it; raises whatever Triton raises."""
    kernel(_fill)[(1,)](torch.empty(1, device=device))
