"""Sweeps through Hydra's submitit launcher: each job is a process of its own, with its own command line and folder."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = """
import sys
from asr.config import Config, run_recipe

def train(config: Config) -> None:
    with open(f"said-{config.seed}", "w") as handle:
        print(config.run_dir, config.resume, config.stack.name, *sys.argv[1:], file=handle)

if __name__ == "__main__":
    run_recipe(__file__, train)
"""

pytestmark = pytest.mark.skipif(
    not (find_spec("submitit") and find_spec("hydra_plugins")),
    reason="needs the extra `sweeps`, which is not installed",
)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "train.py").write_text(SCRIPT)
    (folder / "config.yaml").write_text("defaults:\n  - base\n  - override /data: an4\n  - _self_\nrecipe: mine\n")
    return folder


def start(recipe: Path, *arguments: str) -> str:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(recipe / "train.py"), *arguments],
        cwd=recipe.parent,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_jobs_are_processes_with_folders_of_their_own(recipe: Path) -> None:
    start(recipe, "-m", "hydra/launcher=submitit_local", "seed=1,2", "stack=gru_streaming", "resume=true")
    said = [(recipe.parent / f"said-{seed}").read_text().split() for seed in (1, 2)]
    for number, (run_dir, resume, stack, *argv) in enumerate(said):
        assert (resume, stack) == ("True", "gru")
        assert run_dir.startswith("runs/mine/sweep_")
        assert run_dir.endswith(f"/{number}")
        assert argv == [f"++seed={number + 1}", "stack=gru_streaming", "++resume=True", f"++run_dir={run_dir}"]


def test_the_preset_is_one_of_the_launcher(recipe: Path) -> None:
    shown = start(recipe, "hydra/launcher=slurm", "hydra.launcher.partition=gpu", "--cfg", "hydra")
    launcher = shown.partition("  launcher:\n")[2].partition("\n  sweeper:")[0]
    for line in ("submitit_launcher.SlurmLauncher", "partition: gpu", "gpus_per_node: 1", "max_num_timeout: 20"):
        assert line in launcher
