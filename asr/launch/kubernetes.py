"""A TrainJob of Kubeflow Trainer (trainer.kubeflow.org/v1alpha1, >= 2.2), on a runtime that prepares torchrun."""

from __future__ import annotations

import re
from typing import Any

import yaml

from asr.launch.job import Job, shell_lines
from asr.launch.settings import Kubernetes
from asr.launch.torchrun import VARIABLES

NAME_LENGTH = 50  # the controller makes names of 63 characters at the most out of it
CONTAINER = "node"  # the trainer's container and job in Kubeflow's own runtimes
MANAGER = "asr-toolkit"  # whose patch it is, for other controllers that patch the same job


def train_job(job: Job, settings: Kubernetes) -> str:
    """Write the TrainJob as YAML."""
    resources: dict[str, Any] = {"cpu": settings.ranks * settings.cpus_per_rank}
    if settings.memory:
        resources["memory"] = settings.memory
    if settings.gpus:
        resources["nvidia.com/gpu"] = settings.gpus
    document = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": job_name(job), "namespace": settings.namespace},
        "spec": {
            "runtimeRef": {"name": settings.runtime},
            "trainer": {
                "image": settings.image,
                "command": ["bash", "-c", _script(job)],
                "numNodes": settings.nodes,
                "numProcPerNode": settings.ranks,
                "resourcesPerNode": {"requests": resources, "limits": dict(resources)},
            },
            "runtimePatches": [
                {"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": _patches(settings)}}},
            ],
        },
    }
    text = yaml.dump(document, Dumper=_BlockDumper, sort_keys=False, width=120)
    return f"# {job.launched_as}\n# kubectl apply --filename THIS_FILE\n{text}"


def job_name(job: Job) -> str:
    """The run's name as Kubernetes allows it: lower case letters, digits and dashes, a letter first."""
    name = re.sub(r"[^a-z0-9]+", "-", f"{job.name}-{job.run_dir.name}".lower())
    return re.sub(r"^[^a-z]+", "", name)[:NAME_LENGTH].strip("-") or "asr"


def _patches(settings: Kubernetes) -> dict[str, Any]:
    """The volume that holds shards and runs, and enough shared memory for data workers, which is 64 MB otherwise."""
    pod = {
        "volumes": [
            {"name": "work", "persistentVolumeClaim": {"claimName": settings.claim}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
        ],
        "containers": [
            {
                "name": CONTAINER,
                "volumeMounts": [
                    {"name": "work", "mountPath": str(settings.mount)},
                    {"name": "shared-memory", "mountPath": "/dev/shm"},
                ],
            }
        ],
    }
    return {"replicatedJobs": [{"name": CONTAINER, "template": {"spec": {"template": {"spec": pod}}}}]}


def _script(job: Job) -> str:
    """The runtime says to torchrun where the nodes meet (PET_MASTER_ADDR, PET_MASTER_PORT, PET_NODE_RANK, ...)."""
    lines = [
        "set -euo pipefail",
        *shell_lines(job),
        *VARIABLES,
        f'PET_MASTER_PORT=$((PET_MASTER_PORT + 1)) "$python" -m torch.distributed.run {job.self_test}',
        f'exec "$python" -m torch.distributed.run {job.train}',
    ]
    return "\n".join(lines) + "\n"


class _BlockDumper(yaml.SafeDumper):
    """Writes a script as lines, and does not replace equal values by references."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_BlockDumper.add_representer(str, _represent_text)
