"""What `asr launch` writes: as the golden files have it, and as bash, SLURM and Kubernetes read it."""

import os
import shlex
import subprocess
from datetime import datetime
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from asr.config import load
from asr.launch.command import Artefact, make_artefact
from asr.launch.job import Job, make_job
from asr.launch.kubernetes import job_name
from tests.support.slurm import directives
from tests.support.trainjob import TrainJob

GOLDEN = Path(__file__).parent / "golden"
NOW = datetime(2026, 11, 25, 12, 30)
HOME = Path("/home/me/asr")
ON_NODES = [f"cluster.work_dir={HOME}", f"cluster.python={HOME}/.venv/bin/python"]
CASES = {
    "slurm": ("slurm", ["nodes=2", "gpus=8", "partition=gpu", "account=me", "model=ds2_5x800", *ON_NODES]),
    "slurm_all_settings": (
        "slurm",
        [
            *("nodes=1", "gpus=0", "ranks_per_node=2", "cpus_per_rank=3", "time=1-06:00:00", "qos=long", "memory=64G"),
            *("constraint=a100", "signal_seconds=300", "cluster.options=[--exclusive]", "data.num_workers=2"),
            *("setup=[module load cuda/12, source env.sh]", "cluster.environment.NCCL_SOCKET_IFNAME=ib0"),
            *("run_dir=/scratch/my runs/1", "data.root='/a b/c'", *ON_NODES),
        ],
    ),
    "torchrun": ("torchrun", ["nodes=2", "hosts=[gpu1,gpu2]", "port=29400", "seed=3", *ON_NODES]),
    "kubernetes": ("kubernetes", ["nodes=2", "image=registry/asr:1", "claim=speech", "memory=256Gi", "seed=3"]),
    "local": ("local", ["seed=3", *ON_NODES]),
    "local_two_ranks": ("local", ["ranks_per_node=2", "cpus_per_rank=2", "max_restarts=1", *ON_NODES]),
}


def written(name: str) -> tuple[Job, Artefact]:
    cluster, settings = CASES[name]
    recipe = Path("recipes/librispeech")
    job = make_job(recipe, cluster, settings, NOW)
    return job, make_artefact(job, Path("/home/me/asr/runs/launch"))


@pytest.mark.parametrize("name", CASES)
def test_as_the_golden_file_has_it(name: str) -> None:
    _, artefact = written(name)
    assert artefact.text == (GOLDEN / f"{name}.{artefact.name.partition('.')[2]}").read_text()


def test_every_golden_file_has_a_case() -> None:
    assert sorted(path.name.partition(".")[0] for path in GOLDEN.iterdir()) == sorted(CASES)


@pytest.mark.parametrize("name", CASES)
def test_bash_can_read_it(name: str, tmp_path: Path) -> None:
    _, artefact = written(name)
    script = artefact.text
    if artefact.name.endswith(".yaml"):
        script = yaml.safe_load(script)["spec"]["trainer"]["command"][2]
    (tmp_path / "script").write_text(script)
    done = subprocess.run(["bash", "-n", tmp_path / "script"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", CASES)
def test_the_settings_survive_the_shell(name: str) -> None:
    """What bash makes of the script's list composes to the configuration that was checked."""
    job, artefact = written(name)
    script = artefact.text
    if artefact.name.endswith(".yaml"):
        script = yaml.safe_load(script)["spec"]["trainer"]["command"][2]
    lines = script.splitlines()
    start = lines.index("settings=(")
    array = lines[start : lines.index(")", start) + 1]
    printing = "\n".join([*array, "printf '%s\\0' \"${settings[@]}\""])
    done = subprocess.run(["bash", "-c", printing], capture_output=True, text=True, check=True)
    settings = done.stdout.split("\0")[:-1]
    assert settings == list(job.overrides)
    config = load(job.recipe, settings)
    assert (config.run_dir, config.resume) == (job.run_dir, True)
    assert (config.trainer.devices, config.trainer.num_nodes) == (job.cluster.ranks, job.cluster.nodes)
    assert config.model_copy(update={"run_dir": None, "resume": False}) == job.config.model_copy(
        update={"run_dir": None}
    )


@pytest.mark.parametrize("name", ["slurm", "slurm_all_settings"])
def test_sbatch_knows_every_directive(name: str) -> None:
    job, artefact = written(name)
    found = directives(artefact.text)
    assert found["nodes"] == str(job.cluster.nodes)
    assert found["ntasks-per-node"] == str(job.cluster.ranks)
    assert found["output"] == "/home/me/asr/runs/launch/slurm-%j.out"
    assert found["signal"].startswith("USR1@")
    assert "requeue" in found
    assert ("gres" in found) == bool(job.cluster.gpus)


@pytest.mark.parametrize("line", ["#SBATCH --gpu=8", "#SBATCH --time=soon", "#SBATCH -N 2", "#SBATCH --requeue=1"])
def test_the_directives_check_can_fail(line: str) -> None:
    with pytest.raises(ValueError, match=r"unrecognized option|invalid argument"):
        directives(f"#!/bin/bash\n{line}\n")
    assert directives(f"#!/bin/bash\ntrue\n{line}\n") == {}  # sbatch stops reading at the first command


def test_kubernetes_knows_every_field() -> None:
    job, artefact = written("kubernetes")
    document = TrainJob.model_validate(yaml.safe_load(artefact.text))
    assert document.spec.trainer.numNodes == job.cluster.nodes
    assert document.spec.trainer.numProcPerNode == job.cluster.ranks
    pod = (
        document.spec.runtimePatches[0].trainingRuntimeSpec.template.spec.replicatedJobs[0].template.spec.template.spec
    )
    assert {mount.name for mount in pod.containers[0].volumeMounts} == {volume.name for volume in pod.volumes}


def test_the_schema_can_fail() -> None:
    document = yaml.safe_load(written("kubernetes")[1].text)
    document["spec"]["trainer"]["numProcPerNode"] = "8"
    document["spec"]["trainer"]["gpus"] = 8
    with pytest.raises(ValidationError, match="2 validation errors"):
        TrainJob.model_validate(document)


@pytest.mark.parametrize(
    ("recipe", "run", "expected"),
    [
        ("librispeech", "2026-11-25_12-30-00", "librispeech-2026-11-25-12-30-00"),
        ("4th_Recipe!", "Run (A)", "th-recipe-run-a"),
        ("x" * 80, "1", "x" * 50),
    ],
)
def test_names_are_such_as_kubernetes_takes(recipe: str, run: str, expected: str) -> None:
    job, _ = written("kubernetes")
    renamed = Job(**{slot: getattr(job, slot) for slot in Job.__slots__} | {"name": recipe, "run_dir": Path(run)})
    assert job_name(renamed) == expected


def test_a_rank_gets_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    job = make_job(Path("recipes/an4"), "local", ["ranks_per_node=2", "data.num_workers=1"], NOW)
    assert job.exports == {"OMP_NUM_THREADS": "3"}
    job = make_job(Path("recipes/an4"), "local", ["ranks_per_node=8"], NOW)
    assert job.exports == {"OMP_NUM_THREADS": "1"}
    assert make_job(Path("recipes/an4"), "local", [], NOW).exports == {}  # alone: the run looks for itself
    settings = ["ranks_per_node=2", "trainer.threads=7", "cluster.environment.OMP_NUM_THREADS=2"]
    assert make_job(Path("recipes/an4"), "local", settings[:2], NOW).exports == {"OMP_NUM_THREADS": "7"}
    assert make_job(Path("recipes/an4"), "local", settings, NOW).exports == {"OMP_NUM_THREADS": "2"}


def test_the_command_is_written_down() -> None:
    _, artefact = written("slurm_all_settings")
    words = shlex.split(artefact.text.splitlines()[1].removeprefix("# "))
    assert words == ["asr", "launch", "recipes/librispeech", "--cluster", "slurm", *CASES["slurm_all_settings"][1]]
