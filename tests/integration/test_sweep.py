"""A sweep whose jobs train with ranks: each starts its own, and one that cannot train is not the end of the others."""

import os
import subprocess
import sys
from pathlib import Path

from asr import checkpoint
from tests.integration.conftest import ROOT, finish
from tests.support import train_tones


def test_jobs_with_two_ranks(recipe: Path, cache: Path, tmp_path: Path) -> None:
    own = [f"data.cache={cache}", f"hydra.sweep.dir={tmp_path}/sweep", "trainer.devices=2", "trainer.max_steps=2"]
    command = [
        sys.executable,
        str(recipe / "train.py"),
        "-m",
        *train_tones.SETTINGS,
        *own,
        "data.batch_seconds=0.1,7,8",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    output = finish(
        subprocess.Popen(
            command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ),
        1,
    )
    assert "train.py: job 0: the job's process ended with status " in output
    assert output.count("raise data.batch_seconds") >= 1  # the job has said why
    for number in (1, 2):
        index = checkpoint.read_index(tmp_path / "sweep" / str(number))
        assert index["last"] == "checkpoints/step-00000002"
