"""What a cluster is: one small schema for each kind, presets in `conf/cluster/` and a recipe's own `cluster/` folder.

A preset has a `kind`, which picks the schema, and values. On the command line a setting is `cluster.nodes=4`, or just
`nodes=4`: no setting of a recipe has such a name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, StringConstraints, ValidationError

from asr.config.fields import NonNegativeInt, PositiveInt, Section
from asr.config.presets import conf_folder
from asr.config.text import yaml_mistake
from asr.errors import ConfigError
from asr.messages import did_you_mean

# D-HH:MM:SS, HH:MM:SS, MM:SS or minutes, and the forms of sbatch between them.
_SbatchTime = Annotated[str, StringConstraints(pattern=r"^(\d+-)?\d+(:\d\d){0,2}$")]
_Word = Annotated[str, StringConstraints(pattern=r"^\S*$")]  # nothing that would begin another option
_Port = Annotated[int, Field(ge=1024, lt=65535)]  # the self-test takes the next one


class Cluster(Section):
    """What every kind of cluster has."""

    kind: str
    nodes: PositiveInt = Field(default=1, description="machines")
    gpus: NonNegativeInt = Field(
        default=0, description="GPUs of each node, a rank for each; 0: trainer.accelerator decides"
    )
    ranks_per_node: NonNegativeInt = Field(default=0, description="0: one for each GPU, at least one")
    cpus_per_rank: PositiveInt = Field(default=8, description="cores of a rank, its data workers included")
    python: str = Field(default="", description="of the nodes; none: the one that runs this command")
    work_dir: Path | None = Field(default=None, description="the toolkit's folder on the nodes; none: this folder")
    setup: tuple[str, ...] = Field(default=(), description="shell lines that go first, such as `module load cuda`")
    environment: dict[str, str] = Field(default={}, description="variables of every rank, such as NCCL_SOCKET_IFNAME")

    @property
    def ranks(self) -> int:
        """Processes on each node."""
        return self.ranks_per_node or max(1, self.gpus)


class Local(Cluster):
    """This machine."""

    cpus_per_rank: NonNegativeInt = Field(default=0, description="0: an equal share of this machine's cores")
    max_restarts: NonNegativeInt = Field(default=0, description="of several ranks, when one of them dies")


class Torchrun(Cluster):
    """Machines that a user can log in to."""

    hosts: tuple[str, ...] = Field(default=(), description="names of the nodes; the first one is where they meet")
    port: _Port = Field(default=29500, description="of the first host; the self-test takes the next one")
    max_restarts: NonNegativeInt = Field(default=3, description="of all ranks, when one of them dies")


class Slurm(Cluster):
    """SLURM: one task for each rank, under srun."""

    time: _SbatchTime = Field(default="24:00:00", description="limit of one start; a run may have any number of them")
    partition: _Word = ""
    account: _Word = ""
    qos: _Word = ""
    constraint: _Word = ""
    memory: _Word = Field(default="", description="of each node, as --mem has it; none: the partition's default")
    signal_seconds: PositiveInt = Field(default=120, description="before the limit, when the run saves and requeues")
    options: tuple[str, ...] = Field(default=(), description="further options of sbatch, such as --exclusive")


class Kubernetes(Cluster):
    """Kubernetes with Kubeflow Trainer >= 2.2."""

    image: str = Field(default="", description="container image with the toolkit's Python environment")
    namespace: _Word = "default"
    runtime: _Word = Field(default="torch-distributed", description="ClusterTrainingRuntime that runs torchrun")
    claim: _Word = Field(
        default="", description="PersistentVolumeClaim that all nodes write to, with this folder's files at work_dir"
    )
    mount: Path = Field(default=Path("/workspace"), description="where the claim is mounted")
    memory: _Word = Field(default="", description="of each node, such as 64Gi; none: no request")


KINDS: dict[str, type[Cluster]] = {
    "local": Local,
    "torchrun": Torchrun,
    "slurm": Slurm,
    "kubernetes": Kubernetes,
}
KEYS = frozenset(key for kind in KINDS.values() for key in kind.model_fields) - {"kind"}


def cluster_presets(recipe_dir: Path) -> dict[str, Path]:
    """The names that `--cluster` takes, and the file of each; a recipe's own come first."""
    folders = (conf_folder() / "cluster", recipe_dir / "cluster")
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def load_cluster(name: str, recipe_dir: Path, overrides: Mapping[str, str]) -> Cluster:
    """Read a preset and put the settings of the command line on top.

    Args:
        name: of the preset.
        recipe_dir: the recipe's folder.
        overrides: setting -> its value as text, in YAML where it is a list or a mapping.

    Raises:
        ConfigError: lists every mistake.
    """
    known = cluster_presets(recipe_dir)
    if name not in known:
        raise ConfigError(f"--cluster: got {name!r}, expected one of {', '.join(known)}{did_you_mean(name, known)}")
    values = _read(known[name].read_text(encoding="utf-8"), str(known[name]))
    if not isinstance(values, dict) or values.get("kind") not in KINDS:
        raise ConfigError(f"{known[name]}: expected a mapping with kind: one of {', '.join(KINDS)}")
    for key, text in overrides.items():
        outer, _, inner = key.partition(".")  # environment.NCCL_DEBUG=INFO
        value = _read(text, f"{key}={text}")
        section = values.get(outer, {})
        if inner and isinstance(section, dict):
            values[outer] = {**section, inner: value}
        else:
            values[key] = value  # gpus.x, where gpus is a number, is no setting
    schema = KINDS[values["kind"]]
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        lines = [_describe(details, schema) for details in error.errors(include_url=False)]
        source = " ".join([str(known[name]), *(f"{key}={text}" for key, text in overrides.items())])
        raise ConfigError("\n  ".join([f"{_count(lines)} in the cluster's settings from {source}", *lines])) from None


def _read(text: str, source: str) -> Any:
    # Scalars stay text, and the schema reads them: to YAML itself 24:00:00 is the number 86400.
    try:
        return yaml.load(text, yaml.BaseLoader)  # noqa: S506 -- makes text, lists and mappings only
    except yaml.YAMLError as error:
        raise ConfigError(yaml_mistake(error, source)) from None


def _describe(details: Mapping[str, Any], schema: type[Cluster]) -> str:
    key = ".".join(map(str, details["loc"]))
    if details["type"] == "extra_forbidden":
        others = [name for name, kind in KINDS.items() if key in kind.model_fields]
        hint = f"; {' and '.join(others)} has it" if others else did_you_mean(key, schema.model_fields)
        return f"cluster.{key}: no such setting of a cluster of this kind{hint}"
    expected = details["msg"].removeprefix("Input should be ").removeprefix("String should ")
    return f"cluster.{key}: got {details['input']!r}, expected {expected}"


def _count(lines: Sequence[str]) -> str:
    return "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
