"""A run in which nothing goes on ends by itself, and says why."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.integration.conftest import ROOT, Start, finish, other_ranks, wait_for_checkpoint

# The language of tones, where one rank does not come back from its third step's forward pass, or from reading.
STALL = """
import os, sys, time
from asr.data.loader import BatchDataset
from tests.support.train_tones import main

if os.environ["STALL"] == "step":
    from asr.train.task import CtcTask
    step = CtcTask.training_step

    def slow_step(self, batch, batch_idx):
        if self.global_rank == 1 and self.global_step == 2:
            time.sleep(1000)
        return step(self, batch, batch_idx)

    CtcTask.training_step = slow_step
else:
    read = BatchDataset.__getitem__

    def slow_read(self, position):
        if position == (0, 2):
            time.sleep(1000)
        return read(self, position)

    BatchDataset.__getitem__ = slow_read

if __name__ == "__main__":
    main(sys.argv[1:])
"""


def start_stalling(where: str, folder: Path, cache: Path, *overrides: str) -> "subprocess.Popen[str]":
    (folder / "stall.py").write_text(STALL)
    settings = [f"data.cache={cache}", f"run_dir={folder}/run", "trainer.stall_seconds=4", *overrides]
    return subprocess.Popen(
        [sys.executable, str(folder / "stall.py"), *settings],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "STALL": where},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_a_rank_that_does_not_come_is_named_by_every_rank(cache: Path, tmp_path: Path) -> None:
    output = finish(start_stalling("step", tmp_path, cache, "trainer.devices=2"), 1)
    reports = [line for line in output.splitlines() if "nothing has gone on for 4 s" in line]
    assert sorted(line.split(" on ")[0] for line in reports) == ["rank 0", "rank 1"]
    assert output.count("the others wait for rank 1") == 2
    assert "step 2, the forward pass, utterances train-" in output
    assert "; in sum " in output
    assert "slow_step" in (tmp_path / "run" / "stalled-1.txt").read_text()  # where its main thread stands


def test_reading_that_does_not_come_back_ends_a_run_of_one(cache: Path, tmp_path: Path) -> None:
    """In a worker: the process that waits for it reports."""
    output = finish(start_stalling("read", tmp_path, cache, "data.num_workers=1"), 1)
    assert "step 2, reading the next batch" in output
    assert "asr/data/loader.py" in (tmp_path / "run" / "stalled-0.txt").read_text()


def test_a_rank_that_is_stopped_is_named(start: Start, tmp_path: Path) -> None:
    """By SIGSTOP, as a machine that is gone: it says nothing any more."""
    run = tmp_path / "run"
    process = start([f"run_dir={run}", "trainer.devices=2", "trainer.max_epochs=500", "trainer.stall_seconds=4"])
    wait_for_checkpoint(run, process)
    (rank,) = other_ranks(process)
    os.kill(rank, signal.SIGSTOP)
    try:
        process.wait(60)
    finally:
        os.kill(rank, signal.SIGKILL)
    output = finish(process, 1)
    assert "the others wait for rank 1" in output
    assert "last heard of" in output
