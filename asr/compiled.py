"""Python loops over arrays, compiled by numba at their first call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any], fastmath: set[str] | bool = False) -> Callable[..., Any]:
    """Compile for the types of the first call; without the interpreter's lock, and dividing as numpy does.

    Kept on disk beside the function's file or, where that cannot be written, in ~/.cache/numba. A changed function is
    compiled anew if the change is in its own file: what it calls in another file is not looked at.

    Args:
        function: to be compiled.
        fastmath: LLVM's flags of what floating-point arithmetic need not keep.
    """
    function = inspect.unwrap(function)  # from what checks annotations in tests
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder can be written
        return numba.njit(**options)(function)
