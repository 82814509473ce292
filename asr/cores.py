"""How many CPU cores there are for this process."""

from __future__ import annotations

import os


def num_cores() -> int:
    """Cores that the process may run on, which can be fewer than the machine has; where that is not known, all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
