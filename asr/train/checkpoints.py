"""When checkpoints are written, which are kept, and how Lightning's state becomes our folder and back."""

from __future__ import annotations

import math
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
import torch.distributed as dist
from lightning.fabric.plugins import CheckpointIO

from asr.checkpoint import CONFIG, TRAINER, WEIGHTS, read_index, save, validation_wers, verify, write_index
from asr.config import Config, from_yaml
from asr.config.differences import differences
from asr.errors import CheckpointError
from asr.text.tokenizer import Tokenizer
from asr.train.ranks import PATIENCE
from asr.train.restart import restart_epoch_loop
from asr.train.task import CtcTask


class Interrupted(Exception):
    """A signal asked the run to stop; its state is saved."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class FolderIO(CheckpointIO):
    """Lightning's checkpoint dictionary <-> a folder of `asr.checkpoint`."""

    def __init__(self, task: CtcTask, config: Config, tokenizer: Tokenizer, provenance: Callable[[], dict[str, Any]]):
        self.task, self.config, self.tokenizer, self.provenance = task, config, tokenizer, provenance
        self._newest: Path | None = None  # that this process wrote, or began with

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        weights = {name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items()}
        if self.task.average is None:
            checkpoint = {**checkpoint, "state_dict": {}}  # resuming takes them from the weights for use
        else:
            weights |= self.task.average.tensors
        folder = Path(path)
        if folder == self._newest:  # the same step saved twice, at an epoch's end and by a signal
            return
        shutil.rmtree(folder, ignore_errors=True)  # damaged, or never entered in the index; the run began before it
        save(
            folder,
            weights=weights,
            config=self.config,
            tokenizer=self.tokenizer,
            provenance=self.provenance(),
            trainer=checkpoint,
        )
        self._newest = folder

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        from safetensors.torch import load_file

        folder = self._newest = Path(path)  # `newest_sound` has compared its checksums
        if not (folder / TRAINER).is_file():
            raise CheckpointError(f"{folder}: holds no {TRAINER}: it can be decoded with, not resumed")
        # To the CPU: it may be of a GPU that this machine does not have, or that the model now fills.
        state = torch.load(folder / TRAINER, map_location=map_location or "cpu", weights_only=True)
        if not state["state_dict"]:
            weights = load_file(folder / WEIGHTS)
            state["state_dict"] = {f"model.{name}": tensor for name, tensor in weights.items()}
        misfit = self._misfit(
            state["state_dict"], from_yaml((folder / CONFIG).read_text(), source=str(folder / CONFIG))
        )
        if misfit:
            raise CheckpointError(f"{folder}: cannot be resumed with other settings: {misfit}; see its {CONFIG}")
        step, steps_per_epoch = state["global_step"], self.task.steps_per_epoch
        settings = self.config.trainer
        is_last = step >= self.task.total_steps
        due = is_last or step // steps_per_epoch % settings.validate_every_epochs == 0
        state["loops"]["fit_loop"] = restart_epoch_loop(
            state["loops"]["fit_loop"],
            step=step,
            steps_per_epoch=steps_per_epoch,
            pieces=settings.pieces,
            is_last=is_last,
            validate=due and read_index(folder.parents[1]).get("epoch_ended_at") != step,
        )
        return state

    def _misfit(self, weights: dict[str, torch.Tensor], config: Config) -> str:
        """What the checkpoint's weights or `config` have that the run's settings do not allow; empty if nothing."""
        now = {name: tuple(tensor.shape) for name, tensor in self.task.state_dict().items()}
        before = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                return f"got {now.get(name, 'nothing')} for {name}, expected {before.get(name, 'nothing')}"
        if texts := differences(self.config, config, ["text"]):  # the run keeps the tokens that it began with
            return "; ".join(texts)
        if config.optim.name != self.config.optim.name:
            return f"got optim.name={self.config.optim.name}, expected {config.optim.name}"
        if bool(config.optim.ema_decay) != bool(self.config.optim.ema_decay):
            return f"got optim.ema_decay={self.config.optim.ema_decay}, expected {config.optim.ema_decay}"
        return ""

    def remove_checkpoint(self, path: Any) -> None:
        shutil.rmtree(path)


def newest_sound(run: Path, *, quiet: bool = False) -> Path | None:
    """The newest checkpoint of a run of which every byte is as it was written; None if the run has no checkpoint.

    Args:
        run: the run folder.
        quiet: do not name on stderr those that are damaged.

    Raises:
        CheckpointError: all of them are damaged.
    """
    index = read_index(run)
    names = list(dict.fromkeys([index["last"], *reversed(index.get("kept", []))])) if "last" in index else []
    for name in names:
        try:
            verify(run / name)
            return run / name
        except CheckpointError as error:
            if not quiet:
                print(f"{error}; the one before is taken, if there is one", file=sys.stderr, flush=True)
    if names:
        raise CheckpointError(f"{run}: all {len(names)} checkpoints are damaged; begin anew in another run_dir")
    return None


def with_checkpoint(
    index: dict[str, Any], name: str, wer: float | None, *, keep_last: int, keep_best: int
) -> dict[str, Any]:
    """A run's index after checkpoint `name` was written.

    Args:
        index: the one before.
        name: `checkpoints/step-NNNNNNNN`, newer than all that are in the index and sound.
        wer: its validation word error rate; None or NaN: it has none and is never among the best.
        keep_last: how many of the newest stay.
        keep_best: how many of the lowest word error rate stay besides; of equal ones the earlier is the better.
    """
    # A run that goes on from before a damaged checkpoint writes that step anew; until then it is not to be counted.
    written = [other for other in index.get("kept", []) if other < name] + [name]
    wers = validation_wers(index)
    if wer is not None and not math.isnan(wer):
        wers = wers | {name: wer}
    best = sorted((other for other in written if other in wers), key=wers.__getitem__)[:keep_best]
    kept = [other for other in written if other in {*best, *written[-keep_last:]}]
    result: dict[str, Any] = {
        "last": name,
        "kept": kept,
        "wers": {other: wers[other] for other in kept if other in wers},
    }
    return {"best": best[0], "best_wer": wers[best[0]]} | result if best else result


class RunCheckpoints(lightning.Callback):
    """Saves at each epoch's end, every n steps or minutes if asked, and when a signal asks to stop, also in validation.

    Args:
        run: the run folder; checkpoints go to `run/checkpoints/step-NNNNNNNN`.
        every_steps: also save every so many steps; 0: not.
        every_minutes: also save when the last checkpoint is so old, by rank 0's clock; 0: not.
        keep_last: how many of the newest to keep.
        keep_best: how many of the lowest word error rate to keep besides.
    """

    def __init__(
        self, run: Path, *, every_steps: int, keep_last: int, every_minutes: float = 0.0, keep_best: int = 1
    ) -> None:
        self.run, self.every_steps, self.every_minutes = run, every_steps, every_minutes
        self.keep_last, self.keep_best = keep_last, keep_best
        self.signal_number = 0
        self._wer: float | None = None  # of a validation whose epoch is not over
        self._saved_at_seconds = 0.0
        self._group: Any = None  # of all ranks, over the CPU's network
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # After Lightning has set up its own handler of SIGTERM, which would exit with status 0 and nothing saved if the
        # signal came between two of its hooks.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._handlers[number] = signal.signal(number, self._on_signal)
        if trainer.world_size > 1:
            self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
        if trainer.is_global_zero:
            for stale in (self.run / "checkpoints").glob(".step-*.tmp"):  # the run was killed while it wrote it
                shutil.rmtree(stale, ignore_errors=True)
        self._saved_at_seconds = time.monotonic()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:  # within a step, of which nothing can be kept
            return
        signal_number, is_due = self._asked(trainer)
        if signal_number or is_due:
            self._save(trainer)
        if signal_number:
            raise Interrupted(signal_number)

    def on_validation_batch_start(
        self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if signal_number := self._asked(trainer)[0]:
            pl_module.leave_validation()
            self._save(trainer)  # of the epoch's last step; the resumed run validates it
            raise Interrupted(signal_number)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._wer = float(trainer.callback_metrics["validation/wer"])  # which stays there in epochs without validation

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        wer, self._wer = self._wer, None
        self._save(trainer, wer, ended=True)
        if signal_number := self._asked(trainer)[0]:  # it came in the last batch of validation
            raise Interrupted(signal_number)

    def _asked(self, trainer: lightning.Trainer) -> tuple[int, bool]:
        """The signal that asked any rank to stop, 0 if none did, and whether a checkpoint is due."""
        is_due = bool(self.every_steps) and trainer.global_step % self.every_steps == 0
        if self.every_minutes and trainer.is_global_zero:
            is_due |= time.monotonic() - self._saved_at_seconds >= 60 * self.every_minutes
        if trainer.world_size == 1:
            return self.signal_number, is_due
        # All alike: ranks that decided for themselves would save while others wait in the next step. The tensor is the
        # CPU's and so is the group, or each step would wait for the GPU to end the one before.
        asked = torch.tensor([self.signal_number, is_due])
        dist.all_reduce(asked, dist.ReduceOp.MAX, group=self._group)
        signal_number, is_due = asked.tolist()
        return signal_number, bool(is_due)

    def _save(self, trainer: lightning.Trainer, wer: float | None = None, *, ended: bool = False) -> None:
        name = f"checkpoints/step-{trainer.global_step:08d}"
        trainer.save_checkpoint(self.run / name)
        self._saved_at_seconds = time.monotonic()
        if not trainer.is_global_zero:
            return
        before = read_index(self.run)
        after = with_checkpoint(before, name, wer, keep_last=self.keep_last, keep_best=self.keep_best)
        write_index(self.run, after | ({"epoch_ended_at": trainer.global_step} if ended else {}))
        # Only now: whenever the run is killed, what the index names is there.
        for stale in set(before.get("kept", [])) - set(after["kept"]):
            shutil.rmtree(self.run / stale, ignore_errors=True)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number:
            if number == signal.SIGINT:  # Ctrl-C again: at once
                raise KeyboardInterrupt
            return  # launchers pass on what the process has been sent already
        self.signal_number = number
        print(f"\n{signal.Signals(number).name}: saving after this step, then stopping", file=sys.stderr, flush=True)
