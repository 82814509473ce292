"""This process's place among those of a run, as torchrun, SLURM or Lightning has told it.

It has to be known before Lightning's trainer is made, which says the same later.
"""

from __future__ import annotations

import os


def local_rank() -> int:
    """This process's number on its machine."""
    return _first("LOCAL_RANK", "SLURM_LOCALID")


def global_rank(devices: int) -> int:
    """This process's number in the run.

    Args:
        devices: processes on each machine.
    """
    if "LOCAL_RANK" in os.environ and "RANK" not in os.environ:  # a process that Lightning started
        return _first("NODE_RANK", "GROUP_RANK") * devices + local_rank()
    return _first("RANK", "SLURM_PROCID")


def _first(*names: str) -> int:
    """The value of the first of these environment variables that is set, else 0."""
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)
