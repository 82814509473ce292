"""An sbatch script: self-test, then training, one task a rank; back into the queue when the time is over."""

from __future__ import annotations

import shlex
from pathlib import Path

from asr.launch.job import Job, shell_lines
from asr.launch.settings import Slurm


def sbatch_script(job: Job, settings: Slurm, folder: Path) -> str:
    """Write the script that `sbatch` takes; its log goes to `folder`, which has to be there when the job starts."""
    options = {
        "job-name": job.name,
        "nodes": settings.nodes,
        "ntasks-per-node": settings.ranks,
        "cpus-per-task": settings.cpus_per_rank,
        "gres": f"gpu:{settings.gpus}" if settings.gpus else "",
        "mem": settings.memory,
        "time": settings.time,
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
        "chdir": job.work_dir,
        "output": folder.absolute() / "slurm-%j.out",  # the job's number, which stays when it is requeued
        "open-mode": "append",
        "signal": f"USR1@{settings.signal_seconds}",
    }
    directives = [f"--{name}={shlex.quote(str(value))}" for name, value in options.items() if value != ""]
    lines = [
        "#!/bin/bash",
        f"# {job.launched_as}",
        "# Submit it with sbatch. It can be submitted again: every start goes on with the run where it stopped.",
        *(f"#SBATCH {words}" for words in [*directives, "--requeue", *settings.options]),
        "",
        "set -uo pipefail",
        *shell_lines(job),
        'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "export MASTER_PORT=$((10000 + SLURM_JOB_ID % 10000 * 2))",
        "",
        f"srun=(srun --kill-on-bad-exit=1 --cpus-per-task={settings.cpus_per_rank})",
        "trap : USR1 TERM  # the ranks act on them; this shell has to outlive them",
        f'MASTER_PORT=$((MASTER_PORT + 1)) "${{srun[@]}}" "$python" {job.self_test} &&',
        f'  "${{srun[@]}}" "$python" {job.train}',
        "status=$?",
        "",
        "# 128 + SIGUSR1 or SIGTERM: the run was told to stop and has saved its state. It goes back into the queue,",
        "# unless someone cancelled the job. Where SLURM itself does that after a pre-emption, it comes to the same.",
        "if [[ $status == 138 || $status == 143 ]]; then",
        '  state=$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")',
        "  if [[ $state == RUNNING ]]; then",
        '    echo "stopped with status $status; requeued"',
        '    scontrol requeue "$SLURM_JOB_ID"',
        "  fi",
        "fi",
        "exit $status",
    ]
    return "\n".join(lines) + "\n"
