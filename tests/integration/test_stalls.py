"""A run in which nothing goes on ends by itself, and says why."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.integration.conftest import ROOT, Start, finish, other_ranks, wait_for_checkpoint

# The language of tones, where one rank does not come back from its third step's backward pass, or from reading. "held"
# is in C code that keeps the interpreter's lock, so that no other thread of Python's can run.
BACKWARD = "the backward pass, in which gradients are summed over ranks"
STALL = """
import ctypes, os, sys, time
import torch
from asr.data.loader import BatchDataset
from tests.support.train_tones import main

if os.environ["STALL"] in ("backward", "held"):
    from asr.train.task import CtcTask
    loss_of = CtcTask._loss

    class Stuck(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            while True:
                (ctypes.PyDLL(None) if os.environ["STALL"] == "held" else time).sleep(1000)

    def slow_loss(self, batch):
        stuck = self.global_step == 2 and self.global_rank == self.trainer.world_size - 1
        if not stuck:
            return loss_of(self, batch)
        hook = self.model.front_end.register_forward_hook(lambda module, given, out: (Stuck.apply(out[0]), out[1]))
        value = loss_of(self, batch)
        hook.remove()
        return value

    CtcTask._loss = slow_loss
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
    output = finish(start_stalling("backward", tmp_path, cache, "trainer.devices=2"), 1)
    reports = [line for line in output.splitlines() if "nothing has gone on for 4 s" in line]
    assert sorted(line.split(" on ")[0] for line in reports) == ["rank 0", "rank 1"]
    assert output.count("the others wait for rank 1") == 2
    assert output.count(f"step 2, {BACKWARD}, utterances train-") == 4  # of each rank, by each rank
    assert "; in sum " in output
    assert "stall.py" in (tmp_path / "run" / "stalled-1.txt").read_text()  # where its main thread stands


def test_a_rank_in_which_no_thread_can_run_is_named_and_ended(cache: Path, tmp_path: Path) -> None:
    """Its own log says it too, by a process beside it; and it does not outlive the others."""
    output = finish(
        start_stalling("held", tmp_path, cache, "trainer.devices=2"), 1
    )  # when all have closed their output
    said, _, threads = output.partition("  this process has not answered for 5 s: it was stopped, or C code in")
    assert "the others wait for rank 1" in said
    assert f"\nrank 1 on {socket.gethostname()}: step 2, {BACKWARD}, utterances train-" in said
    assert "stall.py" in threads


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
    output = finish(process, 1)  # when nobody has its standard output any more, that rank neither
    assert "the others wait for rank 1" in output
    assert "last heard of" in output
