"""The fields of a TrainJob (trainer.kubeflow.org/v1alpha1) that Kubeflow Trainer 2.2 knows, written down as a schema.

From the API's types: spec.runtimeRef, spec.trainer and spec.runtimePatches, and of a pod what a patch may set. A field
that is not here would be refused by the cluster, or dropped in silence.
"""

# ruff: noqa: N815 -- names are the API's

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Name = Annotated[str, StringConstraints(min_length=1, max_length=253)]
# metadata.name: a label of RFC 1035, from which the controller makes longer names of up to 63 characters.
JobName = Annotated[str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
ReplicatedJobName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=253)]
Int32 = Annotated[int, Field(strict=True, ge=1, lt=1 << 31)]
# Kubernetes' quantities: 8, 500m, 64Gi.
Quantity = (
    Annotated[int, Field(strict=True, ge=0)]
    | Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?(m|[kMGTPE]i?)?$")]
)


class Fields(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Metadata(Fields):
    name: JobName
    namespace: Name


class RuntimeRef(Fields):
    name: Name
    apiGroup: Literal["trainer.kubeflow.org"] = "trainer.kubeflow.org"
    kind: Literal["ClusterTrainingRuntime", "TrainingRuntime"] = "ClusterTrainingRuntime"


class EnvVar(Fields):
    name: Name
    value: str


class Resources(Fields):
    requests: dict[Literal["cpu", "memory", "nvidia.com/gpu"], Quantity]
    limits: dict[Literal["cpu", "memory", "nvidia.com/gpu"], Quantity]


class Trainer(Fields):
    image: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    command: Annotated[list[str], Field(max_length=128)]
    args: list[str] = []
    env: list[EnvVar] = []
    numNodes: Int32
    numProcPerNode: Int32
    resourcesPerNode: Resources


class Claim(Fields):
    claimName: Name


class EmptyDir(Fields):
    medium: Literal["", "Memory"] = ""
    sizeLimit: Quantity | None = None


class Volume(Fields):
    name: Name
    persistentVolumeClaim: Claim | None = None
    emptyDir: EmptyDir | None = None


class VolumeMount(Fields):
    name: Name
    mountPath: Annotated[str, StringConstraints(pattern="^/")]


class ContainerPatch(Fields):
    """env is not allowed here for the trainer's container."""

    name: Name
    volumeMounts: list[VolumeMount] = []


class PodSpecPatch(Fields):
    volumes: list[Volume] = []
    containers: list[ContainerPatch] = []
    nodeSelector: dict[str, str] = {}


class PodTemplatePatch(Fields):
    spec: PodSpecPatch


class JobSpecPatch(Fields):
    template: PodTemplatePatch


class JobTemplatePatch(Fields):
    spec: JobSpecPatch


class ReplicatedJobPatch(Fields):
    name: ReplicatedJobName
    template: JobTemplatePatch


class JobSetSpecPatch(Fields):
    replicatedJobs: list[ReplicatedJobPatch]


class JobSetTemplatePatch(Fields):
    spec: JobSetSpecPatch


class RuntimeSpecPatch(Fields):
    template: JobSetTemplatePatch


class RuntimePatch(Fields):
    manager: Name
    trainingRuntimeSpec: RuntimeSpecPatch


class Spec(Fields):
    runtimeRef: RuntimeRef
    trainer: Trainer
    runtimePatches: Annotated[list[RuntimePatch], Field(max_length=16)] = []


class TrainJob(Fields):
    apiVersion: Literal["trainer.kubeflow.org/v1alpha1"]
    kind: Literal["TrainJob"]
    metadata: Metadata
    spec: Spec
