"""Training on a GPU: bit for bit the same, killed or not; no step waits for the device; a full memory costs a step.

The trainings of a test run side by side, as each spends most of its time beginning.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT, Start, assert_same, finish, wait_for_checkpoint
from tests.integration.test_guard import go_back, skipped

pytestmark = pytest.mark.gpu
ON_GPU = ("trainer.accelerator=gpu", "trainer.precision=bf16", "data.test=[]")
# All that could differ or lose its place: augmentation, dropout, the average of weights, steps in pieces.
EXACT = (
    *ON_GPU, "trainer.deterministic=true", "trainer.max_epochs=3", "trainer.checkpoint_every_steps=2",
    "trainer.pieces=2", "augment.speeds=[0.9,1.0,1.1]",
)  # fmt: skip
STACKS = {
    "gru": (),
    "tcn": ("stack=tcn", "stack.num_layers=2", "stack.batch_norm=true", "optim=ds2_sgd", "optim.learning_rate=1e-3"),
    "lstm": ("stack=lstm", "stack.num_layers=2", "stack.residual=identity", "stack.batch_norm=input"),
}


def start_support(module: str, words: Sequence[str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", f"tests.support.{module}", *words]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_killed_or_not_the_weights_are_the_same(start: Start, tmp_path: Path) -> None:
    first, again, killed = (tmp_path / name for name in ("first", "again", "killed"))
    processes = [start([f"run_dir={run}", *EXACT]) for run in (first, again)]
    process = start([f"run_dir={killed}", *EXACT, "data.num_workers=2"])
    wait_for_checkpoint(killed, process)
    process.kill()
    process.communicate()
    resumed = start([f"run_dir={killed}", *EXACT, "data.num_workers=2", "resume=true"])
    for each in (*processes, resumed):
        finish(each)
    assert_same(first, again)
    assert_same(first, killed)


def test_a_step_does_not_wait_for_the_device(cache: Path, tmp_path: Path) -> None:
    common = [f"data.cache={cache}", *ON_GPU, "trainer.max_epochs=2"]
    ones = [
        start_support("train_without_waiting", [f"run_dir={tmp_path / name}", *common, *overrides])
        for name, overrides in STACKS.items()
    ]
    other = start_support("train_without_waiting", ["--wait", f"run_dir={tmp_path / 'waits'}", *common])
    for process in ones:
        assert "steps that did not wait: 5" in finish(process)
    assert "synchronizing CUDA operation" in finish(other, 1)  # or the others would say nothing


def test_a_full_memory_costs_a_step_and_is_remembered(start: Start, cache: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    overrides = [*ON_GPU, "trainer.max_epochs=3", "trainer.checkpoint_every_steps=2", "trainer.keep_last=40"]
    faults = ["train-003:1:forward", "train-010:2:backward"]
    output = finish(start_support("train_full_gpu", [*faults, f"data.cache={cache}", f"run_dir={run}", *overrides]))
    rows = skipped(run)
    assert [row["reason"] for row in rows] == ["out of memory"] * 2
    for row, fault in zip(rows, faults, strict=True):
        assert fault.partition(":")[0] in row["ids"]  # type: ignore[operator]
        assert f"step {row['step']} skipped: out of memory on" in output
    assert "skipped because they ran out of memory: 2;" in output
    go_back(run, 10)
    output = finish(start([f"run_dir={run}", "resume=true", *overrides]))
    assert output.count("its batch ran out of memory before") == 2
    assert skipped(run) == rows
