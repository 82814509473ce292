"""Whether the ranks of this machine reach each other: a sum over them, and who is missing if it does not come."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from asr.config import Config
from asr.train.doctor.child import run_children
from asr.train.doctor.report import Line, Verdict

TIMEOUT_SECONDS = 60.0  # of which importing torch takes a few
ELEMENTS = 1 << 20  # 4 MiB, about a bucket of gradients

FIX = (
    "NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME=INTERFACE picks the network (`ip addr` lists them); NCCL_DEBUG=INFO says "
    "more; trainer.devices=1 trains without"
)


def check_all_reduce(
    config: Config,
    *,
    on_gpu: bool,
    timeout_seconds: float = TIMEOUT_SECONDS,
    work: Callable[..., None] | None = None,
) -> Line:
    """Sum a tensor over ranks on this machine, as each step does with its gradients.

    Args:
        config: how many ranks.
        on_gpu: NCCL between the GPUs, else gloo.
        timeout_seconds: for all of it.
        work: what each rank does; `sum_over_ranks`.
    """
    trainer = config.trainer
    if trainer.world_size == 1:
        return Line("all-reduce", Verdict.OK, "one device: nothing to sum over")
    # One GPU cannot be two ranks of NCCL; the ranks of several nodes meet over the network that gloo takes too.
    backend, ranks = ("nccl", trainer.devices) if on_gpu and trainer.devices > 1 else ("gloo", max(2, trainer.devices))
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{Path(folder) / 'meet'}"
        # A rank gives up before it is stopped, so that it can say whom it waited for.
        arguments = [(rank, ranks, backend, meeting, timeout_seconds / 2) for rank in range(ranks)]
        children = run_children(work or sum_over_ranks, arguments, timeout_seconds=timeout_seconds)
    expected = ranks * (ranks + 1) / 2
    faults = []
    for rank, child in enumerate(children):
        if child.failure:
            faults.append((1 if child.timed_out else 0, f"rank {rank}: {child.failure}"))
        elif child.said != [expected]:
            faults.append((2, f"rank {rank}: got {', '.join(map(str, child.said))}, expected {expected}"))
    faults.sort()  # who died comes first, then who hangs: the others fail because they wait for it
    what = f"{backend} over {ranks} ranks of this machine"
    if faults:
        details = tuple(fault for _, fault in faults)
        return Line("all-reduce", Verdict.ERROR, f"{what} failed: {details[0]}", FIX, details)
    rest = f"; the other {trainer.num_nodes - 1} nodes are not tested" if trainer.num_nodes > 1 else ""
    return Line("all-reduce", Verdict.OK, f"{what}: each got the sum{rest}")


def sum_over_ranks(
    say: Callable[[Any], None], rank: int, ranks: int, backend: str, meeting: str, timeout_seconds: float
) -> None:
    """Say the sum of rank + 1 over all ranks, or what went wrong."""
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    try:
        if backend == "nccl":
            torch.cuda.set_device(device)
        dist.init_process_group(
            backend, init_method=meeting, rank=rank, world_size=ranks, timeout=timedelta(seconds=timeout_seconds)
        )
        value = torch.full((ELEMENTS,), rank + 1.0, device=device)
        dist.all_reduce(value)
        low, high = float(value.min()), float(value.max())
        say(low if low == high else [low, high])
        dist.destroy_process_group()
    except RuntimeError as error:  # DistBackendError and DistNetworkError too
        say(str(error).splitlines()[0])
