"""Python loops over arrays, compiled by numba at their first call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numba
from numba.core import event


def compiled(function: Callable[..., Any], fastmath: set[str] | bool = False) -> Callable[..., Any]:
    """Compile for the types of the first call; without the interpreter's lock, and dividing as numpy does.

    Kept on disk beside the function's file or, where that cannot be written, in ~/.cache/numba, until that file or one
    of this package's `_*.py` changes: what a function calls stands in one of them.

    Args:
        function: to be compiled.
        fastmath: LLVM's flags of what floating-point arithmetic need not keep.
    """
    function = inspect.unwrap(function)  # from what checks annotations in tests
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
    try:
        kernel = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder can be written
        return numba.njit(**options)(function)
    cached: Any = getattr(getattr(kernel, "_cache", None), "_cache_file", None)  # numba has no public way
    if hasattr(cached, "_source_stamp"):
        cached._source_stamp = (cached._source_stamp, _stamp())
    return kernel


@cache
def _stamp() -> str:
    """Of the contents of the files that may hold compiled functions."""
    files = sorted(Path(__file__).parent.rglob("_[!_]*.py"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


class _FirstCompilation(event.Listener):
    def __init__(self, announce: Callable[[], None]) -> None:
        self.announce: Callable[[], None] | None = announce

    def on_start(self, event: event.Event) -> None:
        if self.announce is not None:
            self.announce()
            self.announce = None

    def on_end(self, event: event.Event) -> None:
        pass


def before_compiling(announce: Callable[[], None]) -> None:
    """Call `announce` once, when something has to be compiled because it is not on disk yet."""
    event.register("numba:compile", _FirstCompilation(announce))
