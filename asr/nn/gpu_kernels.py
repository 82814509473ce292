"""Whether our own kernels run on a GPU."""

from __future__ import annotations

import os
import warnings
from functools import lru_cache

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's interpreter runs them on a CPU: for tests


def runs_on(like: Tensor) -> bool:
    """Whether Triton builds and runs kernels where `like` is. Else torch's operations, or cuDNN's, have to do.

    They are written for NVIDIA's GPUs; AMD's go by the same name.
    """
    nvidia = like.is_cuda and torch.version.hip is None
    return nvidia and not torch.compiler.is_compiling() and _tried(like.device)


def are_run(like: Tensor) -> bool:
    """The same, or they are interpreted."""
    return INTERPRETED or runs_on(like)


@lru_cache
def _tried(device: torch.device) -> bool:
    """Try the smallest one. torch brings Triton along on Linux only, and Triton wants a C compiler."""
    try:
        from asr.nn import triton_kernel

        triton_kernel.trial(device)
    except ImportError:
        return False
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Triton has no type for all of its own; whatever it is, there is another way
        reason = str(error).partition("\n")[0]
        warnings.warn(
            f"Triton cannot build our kernels ({reason}), for which it needs a C compiler and Python's headers; "
            "without them training on this GPU takes several times as long",
            stacklevel=2,
        )
        return False
    return True
