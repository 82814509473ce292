"""Batches that run out of memory, on one rank and on two; what the training guard says and logs, as a user sees it."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from asr import checkpoint
from tests.integration.conftest import ROOT, Start, finish
from tests.integration.test_training import assert_same


def start_short(faults: Sequence[str], overrides: Sequence[str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.support.train_short_of_memory", *faults, *overrides]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def skipped(run: Path) -> list[dict[str, object]]:
    lines = [line for path in sorted(run.glob("skipped-*.jsonl")) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def looks(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv that the training guard has written."""
    with (run / "metrics" / "metrics.csv").open() as handle:
        return [row for row in csv.DictReader(handle) if row["guard/blank_rate"]]


def go_back(run: Path, step: int) -> None:
    """As if the run had been killed after the checkpoint of that step."""
    index = checkpoint.read_index(run)
    last = f"checkpoints/step-{step:08d}"
    assert last in index["kept"]
    for name in index["kept"]:
        if name > last:
            shutil.rmtree(run / name)
    kept = [name for name in index["kept"] if name <= last]
    (run / "checkpoints.json").write_text(json.dumps(index | {"last": last, "kept": kept, "best": kept[-1]}))


def test_a_run_that_was_short_of_memory_is_resumed_as_it_was(start: Start, cache: Path, tmp_path: Path) -> None:
    """Memory suffices when it is resumed, and yet the batches are left out: they are a part of the run."""
    run, copy = tmp_path / "run", tmp_path / "copy"
    overrides = ["trainer.max_epochs=4", "trainer.checkpoint_every_steps=2", "trainer.keep_last=40", "data.test=[]"]
    faults = ["train-003:1:forward", "train-010:2:backward", "train-020:3:inside"]
    output = finish(start_short(faults, [f"data.cache={cache}", f"run_dir={run}", *overrides]))
    rows = skipped(run)
    assert [row["reason"] for row in rows] == ["out of memory"] * 3
    assert all(f"step {row['step']} skipped: out of memory on" in output for row in rows)
    assert "steps of this run that were skipped because they ran out of memory: 3;" in output
    shutil.copytree(run, copy)
    go_back(copy, 10)
    output = finish(start([f"run_dir={copy}", "resume=true", *overrides]))
    assert output.count("its batch ran out of memory before") == 3
    assert_same(copy, run)
    assert skipped(copy) == rows


def test_of_two_ranks_both_stop_and_the_resumed_run_goes_on(start: Start, cache: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    overrides = [f"data.cache={cache}", f"run_dir={run}", "trainer.devices=2", "trainer.max_epochs=2", "data.test=[]"]
    output = finish(start_short(["train-003:1:forward"], overrides), 1)
    (row,) = skipped(run)
    assert f"step {row['step']}: rank " in output
    assert f"with resume=true run_dir={run} the run goes on and leaves this batch out" in " ".join(output.split())
    output = finish(start([*overrides, "resume=true"]))
    assert output.count(f"step {row['step']} skipped: its batch ran out of memory before") == 1
    assert "skipped because they ran out of memory: 1;" in output
    assert skipped(run) == [row]
    assert [int(look["step"]) for look in looks(run)] == [9, 11, 13, 15, 17]  # both at the same, counted from 0


def test_validation_that_is_short_of_memory_says_so_and_validates(cache: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    overrides = [f"data.cache={cache}", f"run_dir={run}", "trainer.max_epochs=2", "data.test=[]"]
    output = finish(start_short(["validation-003:1:validation"], overrides))
    assert "validation: out of memory on " in output
    assert "taken in halves" in output
    assert len(checkpoint.read_index(run)["wers"]) == 2


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("momenta", "train_tones: out of memory before the first batch: training needs 0.00 GiB for 0.01 M parameters"),
        ("look", "train_tones: step 2: out of memory outside of the model's own passes ("),
        ("disk", "/run: cannot be written: No space left on device; make room, and to go on from the last checkpoint"),
    ],
    ids=["the optimiser", "a sum over ranks", "what is logged"],
)
def test_no_room_for_anything_else_ends_the_run_with_the_reason(
    where: str, message: str, cache: Path, tmp_path: Path
) -> None:
    output = finish(start_short([f"all:0:{where}"], [f"data.cache={cache}", f"run_dir={tmp_path}/run"]), 1)
    assert message in output
    assert "Traceback" not in output


def test_a_collapse_is_said_with_its_reason(start: Start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    overrides = [f"run_dir={run}", "data.test=[]", "stack.hidden_size=32"]
    output = finish(start([*overrides, "trainer.max_epochs=6"]))
    assert "COLLAPSE" not in output
    seen = looks(run)
    assert len(seen) == 27  # every second step of 54
    assert {name for name in seen[0] if name.startswith("guard/")} >= {
        "guard/blank_rate",
        "guard/entropy",
        "guard/gradient_norm",
        "guard/loss",
        "guard/spoken_per_token",
    }
    assert float(seen[-1]["guard/loss"]) < 0.5 * float(seen[0]["guard/loss"])
    broken = ["resume=true", "trainer.max_epochs=12", "optim.learning_rate=3", "optim.gradient_clip=0"]
    output = finish(start([*overrides, *broken]))
    assert output.count("COLLAPSE: the output") == 1
    assert "It had learnt" in output
    assert "set optim.gradient_clip, which is off" in output
