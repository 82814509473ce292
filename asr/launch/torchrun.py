"""A script for this machine, or one for each of several that torchrun joins."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from asr.launch.job import Job, shell_lines
from asr.launch.settings import Local, Torchrun

VARIABLES = (
    # torchrun passes SIGTERM on and kills what is left after 30 seconds, if nothing else is said.
    "export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120  # seconds for a step and a checkpoint after SIGTERM",
    # Else ranks that are started again meet in the store of the start before, where a rank that is faster than rank 0
    # finds the address of a process that is gone, and the others wait for it.
    "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # each start has a store of its own",
)


def local_script(job: Job, settings: Local) -> str:
    """Write the script for this machine: the plain command for one rank, torchrun for several."""
    if settings.ranks == 1:
        return _script(job, ["Start it with bash."], [f'"$python" {job.self_test}', f'exec "$python" {job.train}'])
    ranks = f"--standalone --nproc-per-node={settings.ranks}"
    starts = [*VARIABLES, _torchrun(ranks, job.self_test), "exec " + _torchrun(ranks, job.train, settings.max_restarts)]
    return _script(job, ["Start it with bash."], starts)


def node_script(job: Job, settings: Torchrun, path: Path) -> str:
    """Write the script that is started on every node, the same on each; they meet at the first host.

    Args:
        job: what it starts.
        settings: the nodes.
        path: of the script, on a file system that all nodes see.
    """
    host = settings.hosts[0] if settings.hosts else "localhost"
    starts = [*VARIABLES]
    for program, port, restarts in (
        (job.self_test, settings.port + 1, 0),
        (job.train, settings.port, settings.max_restarts),
    ):
        # The identifier tells jobs apart that use the same port one after another; torchrun names a folder after it.
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", f"{job.name}-{job.run_dir.name}-{port}")
        meeting = f"--rdzv-backend=c10d --rdzv-endpoint={host}:{port} --rdzv-id={name}"
        ranks = f"--nnodes={settings.nodes} --nproc-per-node={settings.ranks} {meeting}"
        starts.append(_torchrun(ranks, program, restarts))
    starts[-1] = f"exec {starts[-1]}"
    return _script(job, ["Start it with bash on every node:", *node_lines(settings, path)], starts)


def node_lines(settings: Torchrun, path: Path) -> list[str]:
    """The line that starts each node's part."""
    script = shlex.quote(str(path.absolute()))
    return [f"ssh {host} bash {script}" for host in settings.hosts] or [f"bash {script}"]


def _torchrun(ranks: str, program: str, restarts: int = 0) -> str:
    return f'"$python" -m torch.distributed.run {ranks} --max-restarts={restarts} {program}'


def _script(job: Job, notes: list[str], starts: list[str]) -> str:
    lines = [
        "#!/bin/bash",
        f"# {job.launched_as}",
        *(f"# {note}" for note in notes),
        "# It can be started again: it goes on with the run where it stopped.",
        "set -euo pipefail",
        *shell_lines(job),
        *starts,
    ]
    return "\n".join(lines) + "\n"
