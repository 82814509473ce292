"""What a process that computes asks of the system first; before torch is imported."""

from __future__ import annotations

import ctypes
import os
import platform

KEPT_BLOCK_BYTES = 128 * 2**20  # the largest block that is kept when it is freed
KEPT_BYTES = 2**30  # at the top of the heap
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as glibc's malloc.h numbers them


def prepare_process() -> None:
    """Let threads that wait sleep, and keep freed memory for the next operation; what the user has set stays.

    Threads that wait for each other by spinning take the core that the one they wait for needs: beside one other busy
    process a step took eight times as long. OpenMP reads this when torch is loaded.

    glibc gives each block of some MB back to the system when it is freed, and takes it anew, page by page and filled
    with zeros, when the next operation wants one: half of the time that the transcription of short files took.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    chosen = any(name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"))
    if platform.libc_ver()[0] == "glibc" and not chosen:
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, KEPT_BLOCK_BYTES)
