"""This process's place among those of a run, as torchrun, SLURM or Lightning has told it.

It has to be known before Lightning's trainer is made, which says the same later.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta

_ARRIVED, _LEAVING = "asr/ranks that are done", "asr/rank 0 is leaving"
_STRAGGLER_SECONDS = 60.0
PATIENCE = timedelta(days=7)  # where something else ends what hangs


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


def leave_group() -> None:
    """Wait until rank 0 has come here as well, then leave the process group; nothing, where there is none.

    Rank 0 still writes and evaluates when the others are done. A rank that ended before it would be missed: torchrun
    waits five minutes for other machines, and both it and srun end all ranks when one ends with an error. So rank 0
    waits as well, but not long, for the others. And a process that ends without leaving may be aborted for the group's
    threads, which is such an error.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        return
    # Not by a collective: those have a time-out, of 10 minutes on GPUs, and evaluating may take longer.
    store = dist.distributed_c10d._get_default_store()
    try:
        if dist.get_rank() == 0:
            deadline = time.monotonic() + _STRAGGLER_SECONDS
            while store.add(_ARRIVED, 0) < dist.get_world_size() - 1 and time.monotonic() < deadline:
                time.sleep(0.02)
            store.set(_LEAVING, "")
        else:
            store.add(_ARRIVED, 1)
            store.wait([_LEAVING], PATIENCE)
    except (dist.DistError, RuntimeError):
        pass  # rank 0, which may hold the store, has gone already
    dist.destroy_process_group()


def is_lost_rank(error: BaseException) -> bool:
    """Whether a collective failed because another rank is no longer there, as gloo or NCCL says it."""
    import torch.distributed as dist

    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
    return isinstance(error, dist.DistBackendError) or any(sign in str(error) for sign in signs)


def _first(*names: str) -> int:
    """The value of the first of these environment variables that is set, else 0."""
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)
