"""When checkpoints are written, which are kept, and how Lightning's state becomes our folder and back."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import CheckpointIO

from asr.checkpoint import CONFIG, TRAINER, WEIGHTS, read_index, save, verify, write_index
from asr.config import Config, from_yaml
from asr.errors import CheckpointError
from asr.text.tokenizer import Tokenizer
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

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        weights = {name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items()}
        if self.task.average is None:
            checkpoint = {**checkpoint, "state_dict": {}}  # resuming takes them from the weights for use
        else:
            weights |= self.task.average.tensors
        if not Path(path).exists():  # else the same step is saved twice, at an epoch's end and by a signal
            save(
                Path(path),
                weights=weights,
                config=self.config,
                tokenizer=self.tokenizer,
                provenance=self.provenance(),
                trainer=checkpoint,
            )

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        from safetensors.torch import load_file

        folder = Path(path)
        verify(folder)
        if not (folder / TRAINER).is_file():
            raise CheckpointError(f"{folder}: holds no {TRAINER}: it can be decoded with, not resumed")
        state = torch.load(folder / TRAINER, map_location=map_location, weights_only=True)
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
        due = step // steps_per_epoch % settings.validate_every_epochs == 0
        state["loops"]["fit_loop"] = restart_epoch_loop(
            state["loops"]["fit_loop"],
            step=step,
            steps_per_epoch=steps_per_epoch,
            pieces=settings.pieces,
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


class RunCheckpoints(lightning.Callback):
    """Saves at each epoch's end, every n steps if asked, and when a signal asks to stop; keeps the best and the last.

    Args:
        run: the run folder; checkpoints go to `run/checkpoints/step-NNNNNNNN`.
        every_steps: also save every so many steps; 0: not.
        keep_last: how many of the newest to keep besides the best one.
    """

    def __init__(self, run: Path, *, every_steps: int, keep_last: int) -> None:
        self.run, self.every_steps, self.keep_last = run, every_steps, keep_last
        self.signal_number = 0
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # After Lightning has set up its own handler of SIGTERM, which would exit with status 0 and nothing saved if the
        # signal came between two of its hooks.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._handlers[number] = signal.signal(number, self._on_signal)
        if trainer.is_global_zero:
            for unfinished in (self.run / "checkpoints").glob(".*.tmp"):  # of a process that was killed
                shutil.rmtree(unfinished, ignore_errors=True)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:  # within a step, of which nothing can be kept
            return
        # A rank decides alone only if it is alone: otherwise all ask rank 0, or one would save and the others wait.
        asked = int(trainer.strategy.broadcast(self.signal_number)) if trainer.world_size > 1 else self.signal_number
        if asked or (self.every_steps and trainer.global_step % self.every_steps == 0):
            self._save(trainer)
        if asked:
            # All is saved. What ends the other ranks when the first one leaves must not change how they end.
            self._handlers |= dict.fromkeys((signal.SIGTERM, signal.SIGUSR1), signal.SIG_IGN)
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, signal.SIG_IGN)
            raise Interrupted(asked)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        value = trainer.callback_metrics.get("validation/wer")
        self._save(trainer, None if value is None else float(value), ended=True)

    def _save(self, trainer: lightning.Trainer, value: float | None = None, *, ended: bool = False) -> None:
        name = f"checkpoints/step-{trainer.global_step:08d}"
        trainer.save_checkpoint(self.run / name)
        if not trainer.is_global_zero:
            return
        index = read_index(self.run)
        last = [kept for kept in index.get("kept", []) if kept != name] + [name]
        if value is not None and value < index.get("best_wer", float("inf")):
            index |= {"best": name, "best_wer": value}
        if ended:
            index["epoch_ended_at"] = trainer.global_step
        keep = set(last[-self.keep_last :]) | {index.get("best", name)}
        write_index(self.run, index | {"last": name, "kept": [kept for kept in last if kept in keep]})
        for stale in set(last) - keep:
            shutil.rmtree(self.run / stale, ignore_errors=True)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number:  # asked twice: stop at once
            raise KeyboardInterrupt
        self.signal_number = number
        print(f"\n{signal.Signals(number).name}: saving after this step, then stopping", file=sys.stderr, flush=True)
