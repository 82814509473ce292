"""Ends a run in which nothing goes on any more, and says which rank the others wait for.

A thread looks at what the training's callbacks have noted. Ranks tell each other through the store by which they met,
so it still works when every one of them waits in a sum over ranks. A rank in which not even that thread can run is
ended by a process beside it, `asr.train.heartbeat`.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch.distributed as dist
from torch._C._distributed_c10d import Store

from asr.nn.distributed import SUMS
from asr.train.heartbeat import STOPPED_PAUSES, Heartbeat
from asr.types import Batch

LOOKS = 20  # in the time that a rank may stand still
SHARED_SHARE = 0.5  # of that time, after which a rank looks at the others
SILENT_SHARE = 1.25  # of that time, after which one that says nothing is killed: the others have reported by then
_KEY = "asr/watchdog"


@dataclass
class Doing:
    """What a rank is at."""

    host: str = field(default_factory=socket.gethostname)
    step: int = 0
    what: str = "starting"
    ids: Sequence[str] = ()
    sums_begun: int = 0
    sums_ended: int = 0
    sum_size: int = 0
    noted: int = 0  # grows whenever something is noted
    looks: int = 0  # of the thread; a rank of which this stands still is gone or was itself stopped

    def look_at_sums(self) -> None:
        """Take in where this process stands with them."""
        self.sums_begun, self.sums_ended, self.sum_size = SUMS.begun, SUMS.ended, SUMS.size

    @property
    def progress(self) -> tuple[int, int]:
        """How far it is: on all ranks the same hooks come, and the same sums."""
        return self.noted, self.sums_begun

    def __str__(self) -> str:
        text = f"step {self.step}, {self.what}"
        if self.ids:
            text += f", utterances {' '.join(self.ids)}"
        if self.sums_begun:
            state = "in" if self.sums_begun > self.sums_ended else "after"
            text += f"; {state} sum {self.sums_begun} over ranks, of {self.sum_size} numbers"
        return text


class Watchdog(lightning.Callback):
    """Ends this process with status 1 when no hook of the training has come for some time, with a report on stderr.

    Args:
        stall_seconds: that time.
        run: the run folder; `stalled-RANK.txt` in it gets where each thread stood.
    """

    def __init__(self, run: Path, *, stall_seconds: float) -> None:
        self.run, self.stall_seconds = run, stall_seconds
        self.doing = Doing()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._heartbeat: Heartbeat | None = None
        self._store: Store | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._note(trainer, "reading the first batch")
        if trainer.world_size > 1:
            self._store = dist.distributed_c10d._get_default_store().clone()
        self._heartbeat = Heartbeat(seconds=SILENT_SHARE * self.stall_seconds, pause=self.stall_seconds / LOOKS)
        self._tell(trainer.global_rank)  # the next step may be the one that keeps the thread from it
        self._thread = threading.Thread(target=self._watch, args=(trainer.global_rank, trainer.world_size), daemon=True)
        self._thread.start()

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        self._note(trainer, "the forward pass", batch.ids)

    def on_before_backward(self, trainer: lightning.Trainer, pl_module: Any, loss: Any) -> None:
        self._note(trainer, "the backward pass, in which gradients are summed over ranks", self.doing.ids)

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Any) -> None:
        self._note(trainer, "the optimiser's step", self.doing.ids)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._note(trainer, "reading the next batch")

    def on_validation_batch_start(
        self, trainer: lightning.Trainer, pl_module: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._note(trainer, "validating", batch.ids)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._note(trainer, "the end of validation")

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._note(trainer, "writing a checkpoint")

    def teardown(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        self._ended.set()
        if self._thread is not None and self._heartbeat is not None:
            self._thread.join()
            self._heartbeat.stop()

    def _note(self, trainer: lightning.Trainer, what: str, ids: Sequence[str] = ()) -> None:
        doing = self.doing
        doing.step, doing.what, doing.ids, doing.noted = trainer.global_step, what, ids, doing.noted + 1
        if self._heartbeat is not None:
            doing.look_at_sums()
            self._heartbeat.note(f"rank {trainer.global_rank} on {doing.host}: {doing}")

    def _watch(self, rank: int, world_size: int) -> None:
        """The thread."""
        pause = self.stall_seconds / LOOKS
        others: dict[int, tuple[Doing, float]] = {}  # what each said, and when it last looked itself
        last, since, looked = self.doing.noted, time.monotonic(), time.monotonic()
        while not self._ended.wait(pause):
            now = time.monotonic()
            if now - looked > STOPPED_PAUSES * pause:  # this process itself was stopped, or its machine
                since = now
            looked = now
            if self.doing.noted != last:
                last, since = self.doing.noted, now
            self._tell(rank)
            if self._store is not None and now - since > SHARED_SHARE * self.stall_seconds:
                self._hear(others, world_size, self._store, now)
            if now - since > self.stall_seconds:
                self._end(rank, {number: (doing, now - heard) for number, (doing, heard) in others.items()}, world_size)

    def _tell(self, rank: int) -> None:
        self.doing.looks += 1
        self.doing.look_at_sums()
        assert self._heartbeat is not None
        self._heartbeat.beat()
        if self._store is None:
            return
        try:
            self._store.set(f"{_KEY}/{rank}", json.dumps(asdict(self.doing)))
        except (dist.DistError, RuntimeError):
            self._store = None  # whose rank is gone: the others' states stay as they were heard last

    def _hear(self, others: dict[int, tuple[Doing, float]], world_size: int, store: Store, now: float) -> None:
        for number in range(world_size):
            try:
                if not store.check([f"{_KEY}/{number}"]):
                    continue
                doing = Doing(**json.loads(store.get(f"{_KEY}/{number}")))
            except (dist.DistError, RuntimeError):
                return
            if number not in others or others[number][0].looks != doing.looks:
                others[number] = doing, now

    def _end(self, rank: int, others: Mapping[int, tuple[Doing, float]], world_size: int) -> None:
        path = self.run / f"stalled-{rank}.txt"
        try:
            text = report(rank, self.doing, others, self.stall_seconds, world_size=world_size)
            text += f"\n  {path}: where each thread of it stands"
            sys.stderr.write(text + "\n")  # at once: other ranks write there too
            sys.stderr.flush()
            with path.open("w", encoding="utf-8") as handle:
                print(text, file=handle, flush=True)
                faulthandler.dump_traceback(handle, all_threads=True)
            time.sleep(2 * self.stall_seconds / LOOKS)  # let the others hear of this rank, if it holds the store
        finally:
            os._exit(1)


def report(
    rank: int, doing: Doing, others: Mapping[int, tuple[Doing, float]], stall_seconds: float, *, world_size: int
) -> str:
    """Say what every rank is at, and which of them the others wait for.

    Args:
        rank: the one that reports.
        doing: what it is at.
        others: by rank, this one among them: what it is at, and how many seconds ago it last told so.
        stall_seconds: for which nothing went on.
        world_size: ranks that there are; some may never have told anything.
    """
    lines = [
        f"rank {rank} on {doing.host}: nothing has gone on for {stall_seconds:g} s (trainer.stall_seconds); the run "
        "ends; to go on from the last checkpoint add resume=true"
    ]
    if world_size == 1:
        return "\n".join([*lines, f"  {doing}"])
    others = others or {rank: (doing, 0.0)}  # the rank that holds the store is gone
    silent = [number for number, (_, heard) in others.items() if heard > stall_seconds / 4]
    silent += set(range(world_size)) - others.keys()
    furthest = max(other.progress for other, _ in others.values())
    behind = silent or [number for number, (other, _) in others.items() if other.progress < furthest]
    for number, (other, heard) in sorted(others.items()):
        state = f"; last heard of {heard:.0f} s before" if number in silent else ""
        lines.append(f"  rank {number} on {other.host}: {other}{state}")
    lines += [f"  rank {number}: never heard of" for number in range(world_size) if number not in others]
    names = ", ".join(map(str, sorted(behind)))
    lines.append(
        f"  the others wait for rank {names}"
        if behind
        else "  all are at the same place: look at the network between them, and at the disks they read from"
    )
    return "\n".join(lines)
