"""Kill -9 of training, at any moment and again and again: it ends with the weights of a run that nothing disturbed."""

import csv
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from asr import checkpoint
from tests.integration.conftest import Start, assert_same, finish, other_ranks

EPOCHS, STEPS_PER_EPOCH = 3, 9
AT_RANDOM, WHILE_WRITING = 2, 1  # kills of a run
# All that could lose its place: augmentation, dropout, the average of weights, steps in pieces.
DISTURBED = [
    f"trainer.max_epochs={EPOCHS}",
    "trainer.checkpoint_every_steps=2",
    "trainer.pieces=2",
    "augment.speeds=[0.9,1.0,1.1]",
    "augment.noise.probability=0.5",
    "augment.reverberation.probability=0.3",
    "optim.ema_decay=0.9",
    "stack.dropout=0.1",
]


@pytest.mark.parametrize(("ranks", "workers"), [(1, 2), (2, 2)])
def test_killed_and_resumed_equals_uninterrupted(start: Start, tmp_path: Path, ranks: int, workers: int) -> None:
    common = [*DISTURBED, f"trainer.devices={ranks}"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    finish(start([f"run_dir={whole}", *common]))  # no workers: their number must not matter either
    overrides = [*common, f"run_dir={run}", f"data.num_workers={workers}"]
    seed = random.randrange(1 << 30)
    print(f"moments drawn with seed {seed}")  # pytest shows it if the test fails
    moments = random.Random(seed)
    left = {"at random": AT_RANDOM, "while writing": WHILE_WRITING}
    for attempt in count():
        assert attempt < 12, f"still to be killed: {left}"
        process = start([*overrides, *(["resume=true"] if attempt else [])])
        kind = "while writing" if left["while writing"] else "at random"
        killed = _kill_while_writing(run, process) if left["while writing"] else _kill(run, process, moments)
        process.communicate()  # and of all that wrote to the same pipe
        if not killed:
            break  # it was faster
        left[kind] -= 1
        if kind == "while writing":
            left[kind] += not list((run / "checkpoints").glob(".*.tmp"))  # it had just been renamed
        if not any(left.values()):
            break
    assert left["while writing"] == 0
    assert left["at random"] < AT_RANDOM
    finish(start([*overrides, "resume=true"]))
    assert_same(run, whole)
    assert not list((run / "checkpoints").glob(".*"))


def _kill_while_writing(run: Path, process: "subprocess.Popen[str]") -> bool:
    """Kill the rank that writes when a folder without its last name is there."""
    before = checkpoint.read_index(run).get("last", "")
    for _ in _while_running(process):
        # Not the first checkpoint: there has to be one to go back to, or the run just begins anew.
        if checkpoint.read_index(run).get("last", "") > before and list((run / "checkpoints").glob(".*.tmp")):
            process.kill()
            return True
    return False


def _kill(run: Path, process: "subprocess.Popen[str]", moments: random.Random) -> bool:
    """Kill the first or, of two, maybe the second rank, some time after this start's first checkpoint."""
    before = checkpoint.read_index(run).get("last", "")
    for _ in _while_running(process):
        if checkpoint.read_index(run).get("last", "") > before:
            time.sleep(moments.uniform(0.0, 0.5))
            os.kill(moments.choice([process.pid, *other_ranks(process)]), signal.SIGKILL)
            return process.wait() != 0
    return False


def _while_running(process: "subprocess.Popen[str]") -> Iterator[None]:
    deadline = time.monotonic() + 120
    while process.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint came"
        yield
        time.sleep(0.001)


@pytest.fixture(scope="module")
def all_kept(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed, with all its checkpoints."""
    run = tmp_path_factory.mktemp("kept") / "run"
    finish(start([f"run_dir={run}", *DISTURBED, "trainer.keep_last=99"]))
    return run


@pytest.mark.parametrize("cut_off", [False, True], ids=["after its validation", "before its validation"])
def test_the_end_of_an_epoch(start: Start, all_kept: Path, tmp_path: Path, cut_off: bool) -> None:
    """Where a run stops most often: going on, it neither repeats nor leaves out an epoch's data or its validation."""
    run, name = tmp_path / "run", f"checkpoints/step-{STEPS_PER_EPOCH:08d}"
    shutil.copytree(all_kept / name, run / name)
    checkpoint.write_index(run, {"last": name, "kept": [name]} | ({} if cut_off else {"epoch_ended_at": 9}))
    finish(start([f"run_dir={run}", *DISTURBED, "trainer.keep_last=99", "resume=true"]))
    assert_same(run, all_kept)
    expected, got = _validations(all_kept), _validations(run)
    assert len(expected) == EPOCHS
    assert got == (expected if cut_off else expected[1:])


def _validations(run: Path) -> list[float]:
    """Word error rates, as logged, of all processes that worked on the run."""
    logs = sorted((run / "metrics").glob("*.csv"))
    rows = [row for log in logs for row in csv.DictReader(log.read_text().splitlines())]
    return [float(row["validation/wer"]) for row in rows if row.get("validation/wer")]


def test_the_last_step_is_validated_once(start: Start, tmp_path: Path) -> None:
    """In the middle of an epoch that has no validation at its end; also where the run was killed in that validation."""
    run, name = tmp_path / "run", "checkpoints/step-00000005"
    overrides = [*DISTURBED, "trainer.max_steps=5", "trainer.validate_every_epochs=2", "data.test=[]"]
    finish(start([f"run_dir={run}", *overrides]))
    (wer,) = _validations(run)
    index = checkpoint.read_index(run)
    assert (index["best"], index["best_wer"]) == (name, pytest.approx(wer, abs=1e-6))
    finish(start([f"run_dir={run}", *overrides, "resume=true"]))
    assert (_validations(run), checkpoint.read_index(run)) == ([wer], index)
    checkpoint.write_index(run, {"last": name, "kept": index["kept"]})
    finish(start([f"run_dir={run}", *overrides, "resume=true"]))
    assert (_validations(run), checkpoint.read_index(run)) == ([wer, wer], index)


def test_a_run_that_had_come_to_its_end_goes_on(start: Start, all_kept: Path, tmp_path: Path) -> None:
    """In the middle of an epoch, at trainer.max_steps, with which the schedule is the same up to there."""
    run = tmp_path / "run"
    finish(start([f"run_dir={run}", *DISTURBED, "trainer.max_steps=5", "data.test=[]"]))
    output = finish(start([f"run_dir={run}", *DISTURBED, "resume=true", "data.test=[]"]))
    assert "would have ended: trainer.max_steps: got None, expected 5\n" in output
    assert_same(run, all_kept)


def test_going_on_with_other_batches(start: Start, all_kept: Path, tmp_path: Path) -> None:
    """In the middle of an epoch: the next ones come to their ends, each with its validation, and it is said."""
    run, name = tmp_path / "run", "checkpoints/step-00000012"
    shutil.copytree(all_kept / name, run / name)
    checkpoint.write_index(run, {"last": name, "kept": [name]})
    other = ["data.batch_seconds=16", "trainer.pieces=1", "data.test=[]"]  # 5 steps an epoch
    output = finish(start([f"run_dir={run}", *DISTURBED, *other, "trainer.max_epochs=4", "resume=true"]))
    assert "data.batch_seconds: got 16.0, expected 8.0; trainer." in output.replace("trainer.max_epochs", "trainer.")
    assert "trainer.pieces: got 1, expected 2" in output
    assert checkpoint.read_index(run)["last"] == "checkpoints/step-00000020"
    assert len(_validations(run)) == 2  # of epochs 3 and 4
