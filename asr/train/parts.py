"""What a training is made of, each from the configuration; `asr doctor` makes the same."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

import numpy as np
import torch

from asr import checkpoint
from asr.audio import augment
from asr.config import Config
from asr.cores import num_cores
from asr.data.corpus import Corpus
from asr.data.loader import BatchDataset, BatchLoader
from asr.data.mixture import Mixture
from asr.data.plan import BatchPlan
from asr.errors import ConfigError
from asr.model import SpeechModel
from asr.text.tokenizer import Tokenizer, build_tokenizer
from asr.train.memory import keep_freed_memory
from asr.train.ranks import global_rank
from asr.train.task import CtcTask

# Warnings of Lightning's and torch's that tell a user nothing.
_IRRELEVANT = (
    "does not have many workers",
    "not part of single contig",
    "LeafSpec",
    "smaller than the logging interval",
    "`broadcast_buffers` is deprecated",  # its successor would still send the buffers around at the start
    "Grad strides do not match bucket view strides",
    "sync_dist=True",  # error rates are summed over ranks before they are logged
)


def set_up_process(config: Config) -> None:
    """Threads, determinism, and warnings that say nothing to a user."""
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    elif "OMP_NUM_THREADS" not in os.environ:  # which torch has followed already
        cores = num_cores()
        # A step's products are small: two threads are 1.7 times as fast as one, and more than four wait for each other.
        torch.set_num_threads(max(1, min(4, cores // config.trainer.devices)))
    keep_freed_memory()
    if config.trainer.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or matrix products on GPUs are refused
    torch.use_deterministic_algorithms(config.trainer.deterministic)
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU; no effect on a CPU
    for message in _IRRELEVANT:
        warnings.filterwarnings("ignore", f".*{message}")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # devices, advertisements
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)


def rank(config: Config) -> int:
    """This process's number in the run."""
    return global_rank(config.trainer.devices)


def make_tokenizer(config: Config, corpus: Corpus, resume_from: Path | None) -> Tokenizer:
    """Built from the training transcripts, or the one of the checkpoint that the run goes on from."""
    if resume_from is not None:
        return checkpoint.read_tokenizer(resume_from)
    return build_tokenizer(config.text, corpus.texts)


def make_task(config: Config, speech_model: SpeechModel, tokenizer: Tokenizer, *, steps_per_epoch: int) -> CtcTask:
    """The model's training, with its length in steps."""
    total_steps = steps_per_epoch * config.trainer.max_epochs
    if config.trainer.max_steps is not None:
        total_steps = min(total_steps, config.trainer.max_steps)
    return CtcTask(
        speech_model,
        tokenizer,
        config.optim,
        seed=config.seed,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        pieces=config.trainer.pieces,
    )


def make_loaders(
    config: Config, train: Corpus, validation: Corpus, tokenizer: Tokenizer
) -> tuple[BatchLoader, BatchLoader]:
    """This rank's loaders of training and validation.

    Raises:
        ConfigError: no batch can be made, or most would leave ranks with nothing to do.
    """
    data, mine, world_size = config.data, rank(config), config.trainer.world_size
    batch_samples = int(data.batch_seconds * data.sample_rate_hz)
    plan = BatchPlan(
        train.num_samples,
        seed=config.seed,
        batch_samples=batch_samples,
        max_items=data.max_batch_items,
        jitter=data.length_jitter,
        sorta_grad=data.sorta_grad,
        mixture=_mixture(config, train),
    )
    parts, usual = world_size * config.trainer.pieces, int(np.median(np.diff(plan.bounds)))
    if usual < parts:  # in a few batches some may have nothing to do
        pieces = f", each in {config.trainer.pieces} pieces" if config.trainer.pieces > 1 else ""
        if usual == data.max_batch_items:
            binding, way_out = "max_batch_items", f"raise data.max_batch_items to {parts} at least"
        else:
            binding, way_out = "batch_seconds", "raise data.batch_seconds or lower data.max_seconds"
        raise ConfigError(
            f"data.{binding}={getattr(data, binding)}: most global batches hold {usual} utterances at the most, "
            f"{world_size} ranks share each{pieces}; {way_out}"
        )
    longest = int(validation.num_samples.max())
    validation_plan = BatchPlan(
        validation.num_samples,
        seed=0,
        batch_samples=max(longest, batch_samples),
        max_items=data.max_batch_items,
        shuffle=False,
    )
    train_dataset = BatchDataset(
        train,
        plan,
        encode=tokenizer.encode,
        seed=config.seed,
        perturbation=augment.build(config.augment, data.sample_rate_hz),
        rank=mine,
        world_size=world_size,
        pieces=config.trainer.pieces,
    )
    validation_dataset = BatchDataset(
        validation, validation_plan, encode=lambda text: [], rank=mine, world_size=world_size
    )
    return (
        BatchLoader(train_dataset, num_workers=data.num_workers, pin_memory=on_gpu(config)),
        BatchLoader(validation_dataset, num_workers=0),
    )


def _mixture(config: Config, train: Corpus) -> Mixture | None:
    """How often an epoch draws the utterances of each training split; None: each once."""
    if not config.data.is_mixed:
        return None
    weights = [config.data.weights.get(name, 1.0) for name in config.data.train]
    return Mixture(
        train.num_samples, train.parts, weights=weights, temperature=config.data.temperature, seed=config.seed
    )


def on_gpu(config: Config) -> bool:
    """Whether training will be on GPUs."""
    accelerator = config.trainer.accelerator
    return accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())


def uses_bf16(precision: str, on_gpu: bool) -> bool:
    """Whether to compute in bf16: where asked, or by itself where the device has instructions for it."""
    if precision != "auto":
        return precision == "bf16"
    if on_gpu:  # old ones emulate it, at the speed of float32
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()
