"""Lightning's trainer, as a run needs it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

from asr import checkpoint
from asr.config import Config
from asr.text.tokenizer import Tokenizer
from asr.train.checkpoints import FolderIO
from asr.train.parts import on_gpu, uses_bf16
from asr.train.ranks import PATIENCE
from asr.train.task import CtcTask


def make_trainer(
    config: Config,
    run: Path,
    task: CtcTask,
    tokenizer: Tokenizer,
    callbacks: list[lightning.Callback],
    origin: Mapping[str, Any],
) -> lightning.Trainer:
    """Set up ranks, precision, loggers and where checkpoints go.

    Args:
        config: of the run.
        run: its folder.
        task: what is trained.
        tokenizer: goes into the checkpoints.
        callbacks: in the order in which they are called.
        origin: of the weights that the run begins with, for the checkpoints' provenance.
    """
    settings = config.trainer
    gpu = on_gpu(config)
    several = settings.world_size > 1
    strategy = DDPStrategy(
        process_group_backend="nccl" if gpu else "gloo",
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        # The watchdog says more than a collective that gives up, and has to come before it.
        timeout=timedelta(seconds=2 * settings.stall_seconds) if settings.stall_seconds else PATIENCE,
    )

    _keep_earlier_metrics(run / "metrics" / "metrics.csv")

    def provenance() -> dict[str, Any]:
        return {
            **checkpoint.versions(),
            **origin,
            "step": task.global_step,
            "epoch": task.current_epoch,
            "metrics": {name: float(value) for name, value in task.trainer.callback_metrics.items()},
        }

    plugins: list[Any] = [FolderIO(task, config, tokenizer, provenance)]
    if SLURMEnvironment.detect():  # its requeueing would save checkpoints of its own; ours is in the job's script
        plugins.append(SLURMEnvironment(auto_requeue=False))
    trainer = lightning.Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=strategy if several else "auto",
        precision="bf16-mixed" if uses_bf16(settings.precision, gpu) else 32,
        max_epochs=math.ceil(task.total_steps / task.steps_per_epoch),
        accumulate_grad_batches=settings.pieces,
        check_val_every_n_epoch=settings.validate_every_epochs,
        num_sanity_val_steps=0,
        log_every_n_steps=settings.log_every_steps,
        logger=[TensorBoardLogger(run, name="tensorboard", version=""), CSVLogger(run, name="metrics", version="")],
        callbacks=callbacks,
        plugins=plugins,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=run,
    )
    _validate_the_last_step(trainer, task)
    return trainer


def _validate_the_last_step(trainer: lightning.Trainer, task: CtcTask) -> None:
    """End the run at the task's last step, with a validation, wherever in an epoch that is.

    Lightning's `max_steps` would end it without one, so that its last weights are never compared with earlier ones.
    """
    epoch_loop = trainer.fit_loop.epoch_loop
    is_due = epoch_loop._should_check_val_fx

    def is_due_or_last(data_fetcher: Any) -> bool:
        is_last = trainer.global_step >= task.total_steps
        trainer.should_stop = trainer.should_stop or is_last  # another callback may have set it
        return is_last or is_due(data_fetcher)

    epoch_loop._should_check_val_fx = is_due_or_last


def _keep_earlier_metrics(path: Path) -> None:
    """Give the figures of a run that is resumed another name; Lightning's logger would delete them."""
    if path.exists():
        number = next(n for n in itertools.count(1) if not path.with_stem(f"{path.stem}-{n}").exists())
        with suppress(FileNotFoundError):  # another rank was here first
            path.rename(path.with_stem(f"{path.stem}-{number}"))
