"""What becomes of a run when memory does not suffice.

A training batch is skipped, named, and left out again when the run is resumed; one of validation is taken in halves.
Everything else ends the run, with the reason and what makes room.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import lightning
import torch

from asr.data.loader import BatchDataset
from asr.errors import TrainingError
from asr.train.guard import write_skipped
from asr.types import Batch

REASON = "out of memory"  # in skipped-RANK.jsonl
# In what the CUDA driver, NCCL, Triton, torch's CPU allocator, the C++ library, cuBLAS, cuFFT and cuDNN say; of these
# torch makes errors that have no type of their own.
_WORDS = ("out of memory", "can't allocate memory", "std::bad_alloc", "_ALLOC_FAILED", "_ALLOCATION_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device or the machine has too little memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def first_line(error: BaseException) -> str:
    """What an error says, without torch's advice and stacks."""
    return (str(error) or type(error).__name__).splitlines()[0]


class SkippedBatches(lightning.Callback):
    """Writes down each batch that ran out of memory, and has the task leave out those that were written down before.

    A rank alone goes on with the next batch. Of several, the others wait in a collective that this one cannot join any
    more: all stop, and the resumed run leaves the batch out on every rank. It comes before the callback that saves
    checkpoints, so that no checkpoint is of after a batch that is not written down.

    Args:
        run: the run folder; its `skipped-RANK.jsonl` has a line for each such step.
        dataset: the training's.
        most_in_a_row: one more stops the run.
    """

    def __init__(self, run: Path, dataset: BatchDataset, *, most_in_a_row: int) -> None:
        self.run, self.dataset, self.most_in_a_row = run, dataset, most_in_a_row
        self.in_a_row = 0
        self._positions: set[tuple[int, int]] = set()  # of steps that ran out of memory, in this process or before
        self._batches: list[Batch] = []  # of this step so far

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        pl_module.may_skip = True
        # Rank 0's view: a step that some ranks left out and others did not would never end.
        positions = remembered(self.run, self.dataset) if trainer.is_global_zero else set()
        self._positions = trainer.strategy.broadcast(positions)

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        pl_module.leave_out = (trainer.current_epoch, batch_idx // trainer.accumulate_grad_batches) in self._positions

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._batches.append(batch)
        place, piece = divmod(batch_idx, trainer.accumulate_grad_batches)
        position = (trainer.current_epoch, place)
        failed = pl_module.guard.abandoned and not pl_module.leave_out
        more = piece + 1 < trainer.accumulate_grad_batches
        if more and not (failed and trainer.world_size > 1):
            return
        step = trainer.global_step + more  # Lightning counts a step at its end
        batches, self._batches = self._batches, []
        self.in_a_row = self.in_a_row + 1 if pl_module.guard.abandoned else 0
        if failed:
            self._write(trainer, batches, step, position)
            self._positions.add(position)
        elif pl_module.guard.abandoned and trainer.is_global_zero:
            _say(f"step {step} skipped: its batch ran out of memory before; {self._files} names it")
        if self.in_a_row > self.most_in_a_row:
            raise TrainingError(
                f"step {step}: {self.in_a_row} steps in a row ran out of memory; {self._files} names "
                "their utterances. Lower data.batch_seconds or data.max_seconds, or set trainer.precision=bf16; "
                "asr doctor says what fits"
            )

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if self._positions and trainer.is_global_zero:
            _say(
                f"steps of this run that were skipped because they ran out of memory: {len(self._positions)}; "
                f"{self._files} names their utterances. With a lower data.batch_seconds none would have been"
            )

    @property
    def _files(self) -> str:
        return f"{self.run}/skipped-*.jsonl"

    def _write(self, trainer: lightning.Trainer, batches: list[Batch], step: int, position: tuple[int, int]) -> None:
        """Into the file and onto the screen; raises if this rank is not alone."""
        ids = [name for batch in batches for name in batch.ids]
        seconds = max(int(batch.audio_lengths.max()) for batch in batches) / self.dataset.corpus.sample_rate_hz
        row = {"reason": REASON, "step": step, "epoch": position[0], "batch": position[1], "ids": ids}
        row |= {"seeds": torch.cat([batch.seeds for batch in batches]).tolist(), "longest_seconds": round(seconds, 3)}
        path = write_skipped(self.run, trainer.global_rank, row)
        what = _named(ids, seconds)
        if trainer.world_size == 1:
            _say(f"step {step} skipped: out of memory on {what}; nothing was changed; {path} names them")
            return
        raise TrainingError(
            f"step {step}: rank {trainer.global_rank} ran out of memory on {what}, and the other ranks cannot go on "
            f"without it. {path} names them: with resume=true run_dir={self.run} the run goes on and leaves this batch "
            "out. To train on all, lower data.batch_seconds or data.max_seconds, or set trainer.precision=bf16"
        )


def remembered(run: Path, dataset: BatchDataset) -> set[tuple[int, int]]:
    """Epoch and number in it of each step that ran out of memory before, on any rank.

    One whose utterances are not in that batch any more, because settings or data have changed since, is not among them.
    """
    batches_of = lru_cache(maxsize=1)(dataset.plan.batches)
    positions: set[tuple[int, int]] = set()
    for path in sorted(run.glob("skipped-*.jsonl")):
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            try:
                row = json.loads(line)
            except ValueError:
                _say(f"{path}:{number}: cut off; if that batch ran out of memory, it is not left out")
                continue
            if row.get("reason") != REASON:
                continue
            epoch, place, batches = row["epoch"], row["batch"], batches_of(row["epoch"])
            now = {dataset.corpus.ids[index] for index in batches[place]} if place < len(batches) else set()
            if now.issuperset(row["ids"]) and now:
                positions.add((epoch, place))
            else:
                _say(f"{path}:{number}: ran out of memory with other settings or data; it is not left out")
    return positions


def say_short_in_validation(batch: Batch) -> None:
    """Name a batch of validation, or an utterance, for which memory does not suffice."""
    longest = batch.seconds * int(batch.audio_lengths.max()) / max(1, int(batch.audio_lengths.sum()))
    what = _named(batch.ids, longest)
    if len(batch.ids) > 1:
        _say(f"validation: out of memory on {what}: taken in halves. A lower data.batch_seconds spares this detour")
    else:
        _say(
            f"validation: out of memory on {what}: counts as not recognised at all. Set trainer.precision=bf16, "
            "or cut it into shorter ones"
        )


def state_bytes(task: Any) -> int:
    """What a `CtcTask` holds whatever its batches are: weights, gradients, momenta, the average of weights."""
    momenta = 2 if task.optim.name == "adamw" else bool(task.optim.momentum)
    copies = 1 + 1 + momenta + bool(task.optim.ema_decay)
    return copies * sum(parameter.nbytes for parameter in task.model.parameters())


def state_size(task: Any) -> str:
    """The same in words."""
    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    held = "gradients, momenta and average" if task.optim.ema_decay else "gradients and momenta"
    return f"{state_bytes(task) / 2**30:.2f} GiB for {parameters / 1e6:.2f} M parameters, their {held}"


def run_is_short(error: BaseException, *, run: Path, step: int, task: Any) -> TrainingError:
    """What to tell of an error that no single batch is to blame for.

    Args:
        error: says that memory does not suffice.
        run: the run folder.
        step: the last one that was taken.
        task: what is trained, a `CtcTask`.
    """
    said = first_line(error)
    if not task.may_skip:  # training has not begun
        return TrainingError(
            f"out of memory before the first batch: training needs {state_size(task)} ({said}). Take a smaller model "
            "(asr stack compares them); optim.name=sgd has one momentum in place of two, optim.ema_decay=0 no average"
        )
    return TrainingError(
        f"step {step}: out of memory outside of the model's own passes ({said}). A lower data.batch_seconds leaves "
        f"room; to go on from the last checkpoint add: run_dir={run} resume=true"
    )


def _named(ids: Sequence[str], longest_seconds: float) -> str:
    count = f"{len(ids)} utterance{'s' if len(ids) != 1 else ''}"
    return f"{count} of up to {longest_seconds:.1f} s ({', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''})"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
