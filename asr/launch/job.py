"""A job: a recipe with all its settings on a cluster, checked; what every script is written from."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from asr.config import Config, load, presets
from asr.cores import num_cores
from asr.errors import ConfigError
from asr.launch.settings import KEYS, Cluster, Kubernetes, Local, Torchrun, load_cluster
from asr.messages import did_you_mean

SELF_TEST = "asr.launch.self_test"
# What the cluster's settings decide.
_OURS = {
    "trainer.devices": "gpus=N or ranks_per_node=N",
    "trainer.num_nodes": "nodes=N",
    "resume": "run_dir=FOLDER, which every start of a job goes on with",
}


@dataclass(frozen=True, slots=True)
class Job:
    """What a script starts.

    Attributes:
        name: of the job: the recipe's.
        recipe: its folder, as the nodes see it from `work_dir`.
        overrides: all settings of a start, those that the cluster decides included.
        config: what they compose to.
        cluster: where it runs.
        run_dir: the run's folder, as the nodes see it.
        work_dir: the toolkit's folder there.
        python: the interpreter there.
        launched_as: the command that this comes from.
    """

    name: str
    recipe: str
    overrides: tuple[str, ...]
    config: Config
    cluster: Cluster
    run_dir: Path
    work_dir: Path
    python: str
    launched_as: str

    @property
    def train(self) -> str:
        """The recipe's script and its arguments, for a shell that has run `shell_lines`."""
        return f'{shlex.quote(f"{self.recipe}/train.py")} "${{settings[@]}}"'

    @property
    def self_test(self) -> str:
        """The self-test's module and its arguments, for the same."""
        return f'-m {SELF_TEST} {shlex.quote(self.recipe)} "${{settings[@]}}"'

    @property
    def exports(self) -> dict[str, str]:
        """Variables of every rank; the cluster's own ones win."""
        # Threads are said to OpenMP, or the run would count the cores of one task for all ranks; torchrun would set 1.
        # A rank that is alone on this machine chooses by itself.
        alone = isinstance(self.cluster, Local) and self.cluster.ranks == 1
        threads = {} if alone else {"OMP_NUM_THREADS": str(self._threads())}
        return threads | self.cluster.environment

    def _threads(self) -> int:
        """Of each rank; with the data workers no more than its cores."""
        cores = self.cluster.cpus_per_rank or num_cores() // self.cluster.ranks
        return self.config.trainer.threads or max(1, min(4, cores - self.config.data.num_workers))


def make_job(recipe_dir: Path, cluster_name: str, settings: Sequence[str], now: datetime) -> Job:
    """Compose and check everything.

    Args:
        recipe_dir: folder with train.py and config.yaml.
        cluster_name: of a preset.
        settings: `key=value` of the cluster and of the recipe.
        now: names the run folder if `run_dir` does not.

    Raises:
        ConfigError: lists every mistake.
    """
    for file in ("config.yaml", "train.py"):
        if not (recipe_dir / file).is_file():
            raise ConfigError(f"{recipe_dir}: has no {file}, expected a recipe's folder")
    ours, theirs, mistakes = _divide(settings, recipe_dir)
    cluster = config = None
    try:
        cluster = load_cluster(cluster_name, recipe_dir, ours)
        mistakes += _cluster_mistakes(cluster)
        theirs += [f"trainer.devices={cluster.ranks}", f"trainer.num_nodes={cluster.nodes}"]
        if cluster.gpus:
            mistakes += [f"{x}: gpus={cluster.gpus} means gpu" for x in theirs if "trainer.accelerator=" in x]
            theirs.append("trainer.accelerator=gpu")
    except ConfigError as error:
        mistakes.append(str(error))
    try:
        config = load(recipe_dir, theirs)
    except ConfigError as error:
        mistakes.append(str(error))
    if mistakes or cluster is None or config is None:
        raise ConfigError("\n".join(mistakes))
    name = config.recipe or recipe_dir.resolve().name
    run_dir = config.run_dir or Path("runs") / name / now.strftime("%Y-%m-%d_%H-%M-%S")
    if config.run_dir is None:
        theirs.append(f"run_dir={run_dir}")
    return Job(
        name=name,
        recipe=str(recipe_dir),
        overrides=(*theirs, "resume=true"),
        config=config,
        cluster=cluster,
        run_dir=run_dir,
        work_dir=cluster.work_dir or Path.cwd(),
        python=cluster.python or sys.executable,
        launched_as=shlex.join(["asr", "launch", str(recipe_dir), "--cluster", cluster_name, *settings]),
    )


def shell_lines(job: Job) -> list[str]:
    """What every script begins with: folder, set-up, variables, the interpreter, the recipe's settings."""
    return [
        f"cd {shlex.quote(str(job.work_dir))}",
        *job.cluster.setup,
        *(f"export {name}={shlex.quote(value)}" for name, value in job.exports.items()),
        f"python={shlex.quote(job.python)}",
        "settings=(",
        *(f"  {shlex.quote(text)}" for text in job.overrides),
        ")",
    ]


def _divide(settings: Sequence[str], recipe_dir: Path) -> tuple[dict[str, str], list[str], list[str]]:
    """Tell the cluster's settings from the recipe's; gives both, and what is neither."""
    ours: dict[str, str] = {}
    theirs, mistakes = [], []
    known = {*KEYS, *Config.model_fields, *presets(recipe_dir)}
    for text in settings:
        key, equals, value = text.partition("=")
        name = key.removeprefix("cluster.")
        if equals and (name != key or name in KEYS):
            ours[name] = value
        elif key.lstrip("+") in _OURS:
            mistakes.append(f"{text}: here it follows from {_OURS[key.lstrip('+')]}")
        elif "." not in key and key.isidentifier() and key not in known:
            mistakes.append(f"{key}: no such setting of a cluster or a recipe{did_you_mean(key, known)}")
        else:
            theirs.append(text)
    return ours, theirs, mistakes


def _cluster_mistakes(cluster: Cluster) -> list[str]:
    mistakes = []
    if isinstance(cluster, Local) and cluster.nodes > 1:
        mistakes.append(f"nodes: got {cluster.nodes}, expected 1: --cluster local is this machine")
    if isinstance(cluster, Torchrun) and len(cluster.hosts) != cluster.nodes and (cluster.hosts or cluster.nodes > 1):
        mistakes.append(f"hosts: got {len(cluster.hosts)}, expected one for each of nodes={cluster.nodes}: hosts=[a,b]")
    for name in cluster.environment:
        if not name.isidentifier():
            mistakes.append(f"cluster.environment: got {name!r}, expected the name of a variable")
    if isinstance(cluster, Kubernetes):
        if not cluster.image:
            mistakes.append("image: missing, expected a container image with the toolkit's Python environment")
        if not cluster.claim:
            mistakes.append("claim: missing, expected a PersistentVolumeClaim that all nodes write to")
        if cluster.work_dir is None or not cluster.work_dir.is_relative_to(cluster.mount):
            mistakes.append(
                f"work_dir: got {cluster.work_dir}, expected a folder of the claim, in mount={cluster.mount}"
            )
    return mistakes
