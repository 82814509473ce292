"""Who makes the shards of a plan: processes of this machine, Ray's workers, or the tasks of a SLURM array.

Each only says which process makes shard i; `asr.data.shard_writer` does the work, so that the bytes are the same.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from asr.atomic import atomic_write
from asr.data.shard_writer import Progress, make_shard
from asr.errors import AsrError, ConfigError, DataError

RAY_RETRIES = 3  # of a shard whose worker was killed


def make_with_ray(folder: Path, numbers: Sequence[int], *, workers: int | None, progress: Progress) -> None:
    """Make shards of the plan in `folder` as tasks of Ray, one CPU each; one whose worker dies is done again.

    Takes the cluster that RAY_ADDRESS names or that runs on this machine, else starts one here for as long as this
    takes. Every machine has to see `folder` and the audio under the same paths, and to have this toolkit installed.

    Args:
        folder: absolute.
        numbers: of the shards.
        workers: tasks at a time; None: as many as there are CPUs.
        progress: see `asr.data.shard_writer.Progress`.

    Raises:
        ConfigError: Ray is not installed.
        DataError: a shard cannot be made; what is finished stays.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ConfigError("--engine ray: Ray is not installed: pip install 'asr-toolkit[ray]'") from error
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:  # Ray waits for two minutes before it gives up
        raise DataError(
            f"RAY_ADDRESS={os.environ.get('RAY_ADDRESS', '')}: no Ray cluster answers there: {error}; without it one "
            "is started on this machine"
        ) from error
    try:
        task = ray.remote(max_retries=RAY_RETRIES)(make_shard)
        waiting = list(reversed(numbers))
        running: list[ray.ObjectRef] = []
        most = workers or len(waiting)
        while waiting or running:
            while waiting and len(running) < most:
                running.append(task.remote(folder, waiting.pop()))
            done, running = ray.wait(running)
            for header in ray.get(done):
                progress(header.num_planned)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, AsrError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise DataError(f"{folder}: Ray gave up: {error}; run again: what is finished stays") from error
    finally:
        ray.shutdown()


def write_slurm_scripts(
    manifest: Path, folder: Path, *, num_shards: int, workers: int, tasks: int, submit: bool
) -> list[str]:
    """Write a SLURM array that makes the shards of the plan in `folder`, and the job that finishes them.

    Partition, account and time come from sbatch's own environment variables (SBATCH_PARTITION, SBATCH_ACCOUNT,
    SBATCH_TIMELIMIT). A task that is requeued or submitted again goes on where it stopped.

    Args:
        manifest: absolute; for the command line only.
        folder: absolute, and seen by every node, as is the audio.
        num_shards: of the plan.
        workers: processes and CPUs of a task.
        tasks: of the array, at the most; each takes every so-manieth shard.
        submit: hand both jobs to sbatch, the second after the first.

    Returns:
        The lines to show: the numbers of the jobs, or the commands that submit them.

    Raises:
        ConfigError: there is no sbatch here.
        DataError: sbatch refuses, or a script cannot be written.
    """
    tasks = min(tasks, num_shards)
    logs = folder / "slurm"
    command = shlex.join([sys.executable, "-m", "data_prep.make_shards", str(manifest), str(folder)])
    share = f'{command} --workers {workers} --share "$SLURM_ARRAY_TASK_ID/{tasks}"'
    array = _script("make_shards", [f"--array=0-{tasks - 1}", f"--cpus-per-task={workers}"], logs / "%A_%a.log", share)
    last = _script("finish_shards", [], logs / "%j.log", f"{command} --finish")
    paths = [logs / "make_shards.sh", logs / "finish_shards.sh"]
    for path, script in zip(paths, (array, last), strict=True):
        with atomic_write(path) as handle:
            handle.write(script.encode())
    first, second = (shlex.quote(str(path)) for path in paths)
    if not submit:
        return [f"job=$(sbatch --parsable {first})", f'sbatch --dependency=afterok:"${{job%;*}}" {second}']
    if shutil.which("sbatch") is None:
        raise ConfigError(f"--submit: there is no sbatch on PATH; on a login node: sbatch --parsable {first}")
    job = _sbatch("--parsable", str(paths[0])).partition(";")[0]  # a cluster's name may follow
    return [f"job {job}: {tasks} tasks", _sbatch(f"--dependency=afterok:{job}", str(paths[1]))]


def _script(name: str, options: Sequence[str], log: Path, command: str) -> str:
    every = [f"--job-name={name}", *options, "--requeue", f'--output="{log}"']
    # Jobs start with the environment of their submission unless a site has it otherwise; PYTHONPATH may be all of it.
    path = f"export PYTHONPATH={shlex.quote(os.environ['PYTHONPATH'])}\n" if os.environ.get("PYTHONPATH") else ""
    directives = "".join(f"#SBATCH {option}\n" for option in every)
    return f"#!/bin/bash\n{directives}set -euo pipefail\n{path}{command}\n"


def _sbatch(*arguments: str) -> str:
    done = subprocess.run(["sbatch", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataError(f"sbatch {shlex.join(arguments)}: exit status {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()
