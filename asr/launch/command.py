"""`asr launch RECIPE --cluster NAME [key=value ...]`: write, and with --submit start, a training job."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from asr.atomic import atomic_write
from asr.errors import ConfigError
from asr.launch.job import Job, make_job
from asr.launch.kubernetes import train_job
from asr.launch.settings import Kubernetes, Local, Slurm, Torchrun
from asr.launch.slurm import sbatch_script
from asr.launch.torchrun import local_script, node_lines, node_script

DESCRIPTION = """\
Write what trains a recipe on a cluster: a script, or a Kubernetes job. Each begins with a self-test of some seconds,
which names the rank and the host that is wrong. key=value is a setting of the cluster (nodes, gpus, partition,
account, time, image, ...: asr/launch/settings.py has them all) or of the recipe. More: docs/cluster.md.

  asr launch recipes/an4 --cluster local data.download=true --submit
  asr launch recipes/librispeech --cluster slurm nodes=2 gpus=8 partition=gpu account=me time=12:00:00 --submit
  asr launch recipes/librispeech --cluster torchrun nodes=2 'hosts=[gpu1,gpu2]' model=ds2_5x800
  asr launch recipes/librispeech --cluster kubernetes image=registry/asr:1 claim=speech nodes=2"""


@dataclass(frozen=True, slots=True)
class Artefact:
    """A file to write, and how it is started.

    Attributes:
        name: of the file.
        text: what stands in it.
        submit: the command that starts it; empty if one command cannot.
        by_hand: what a user types, a line each.
    """

    name: str
    text: str
    submit: tuple[str, ...]
    by_hand: tuple[str, ...]


def main(argv: Sequence[str]) -> int:
    """Write the job that the arguments name, and submit it if asked."""
    parser = argparse.ArgumentParser(
        prog="asr launch", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path, help="folder with train.py and config.yaml")
    parser.add_argument("settings", nargs="*", help="key=value of the cluster or the recipe, group=option")
    parser.add_argument("--cluster", required=True, help="local, torchrun, slurm, kubernetes, or a preset of yours")
    parser.add_argument("--submit", action="store_true", help="start it: sbatch, kubectl apply, or here")
    parser.add_argument("--output", type=Path, help="folder of the files (run_dir/launch)")
    options = parser.parse_intermixed_args(argv)
    job = make_job(options.recipe, options.cluster, options.settings, datetime.now())
    folder = options.output or job.run_dir / "launch"
    artefact = make_artefact(job, folder)
    if options.submit:
        _check_submit(artefact)
    path = folder / artefact.name
    with atomic_write(path) as handle:
        handle.write(artefact.text.encode())
    print(path)
    if not (job.config.trainer.checkpoint_every_steps or job.config.trainer.checkpoint_every_minutes):
        print(
            "note: trainer.checkpoint_every_steps=0: what a crash costs is up to an epoch (a signal saves at once)",
            file=sys.stderr,
        )
    if not options.submit:
        print("\n".join(["start it with:", *(f"  {line}" for line in artefact.by_hand)]))
        return 0
    # In this process's place, so that a signal to it reaches the training.
    sys.stdout.flush()
    os.execvp(artefact.submit[0], artefact.submit)


def make_artefact(job: Job, folder: Path) -> Artefact:
    """Write the job's file as text.

    Args:
        job: what it starts.
        folder: where the file will be.
    """
    cluster = job.cluster
    match cluster:
        case Slurm():
            name, text, submit = "train.sbatch", sbatch_script(job, cluster, folder), ["sbatch"]
        case Kubernetes():
            name, text, submit = "trainjob.yaml", train_job(job, cluster), ["kubectl", "apply", "--filename"]
        case Torchrun():
            name, text, submit = "node.sh", node_script(job, cluster, folder / "node.sh"), ["bash"]
        case Local():
            name, text, submit = "run.sh", local_script(job, cluster), ["bash"]
        case _:
            raise AssertionError(cluster.kind)
    command = (*submit, str(folder / name))
    if isinstance(cluster, Torchrun) and cluster.nodes > 1:
        return Artefact(name, text, (), tuple(node_lines(cluster, folder / name)))
    return Artefact(name, text, command, (shlex.join(command),))


def _check_submit(artefact: Artefact) -> None:
    if not artefact.submit:
        lines = "\n  ".join(artefact.by_hand)
        raise ConfigError(f"--submit: cannot start several machines; leave it out and type\n  {lines}")
    if shutil.which(artefact.submit[0]) is None:
        raise ConfigError(
            f"--submit: there is no {artefact.submit[0]} here; leave it out, and start the file where there is one"
        )
