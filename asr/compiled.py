"""Python loops over arrays, compiled by numba at their first call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numba
from numba.core import event


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
