"""Build everything from the configuration, fit with Lightning, evaluate the best checkpoint."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from numpy.typing import NDArray

from asr import checkpoint, model
from asr.audio import augment
from asr.config import Config
from asr.cores import num_cores
from asr.data.corpus import Corpus
from asr.data.ledger import Ledger
from asr.data.loader import BatchDataset, BatchLoader
from asr.data.mixture import Mixture
from asr.data.plan import BatchPlan
from asr.data.utterance_losses import UtteranceLosses
from asr.decode.evaluate import evaluate_corpus, print_report
from asr.decode.recognizer import Recognizer
from asr.errors import ConfigError, DataError, TrainingError
from asr.model import SpeechModel
from asr.text.tokenizer import Tokenizer, build_tokenizer
from asr.train import warm_start
from asr.train.checkpoints import FolderIO, Interrupted, RunCheckpoints, newest_sound
from asr.train.doctor.start import warn_before_training
from asr.train.guard import SkippedSteps
from asr.train.left_out import LeftOut, drop_untrainable, leave_out
from asr.train.memory import keep_freed_memory
from asr.train.out_of_memory import SkippedBatches
from asr.train.output_watch import OutputWatch
from asr.train.progress import ProgressLine
from asr.train.ranks import PATIENCE, global_rank, is_lost_rank
from asr.train.task import CtcTask
from asr.train.utterance_losses import KeepUtteranceLosses
from asr.train.watchdog import Watchdog
from asr.types import Drop

NORMALIZATION_UTTERANCES = 1000  # enough for a mean and variance of each bin to three digits

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


def fit(config: Config, folders: Mapping[str, Path | str], run: Path) -> None:
    """Train what `config` describes on the shards in `folders` and leave everything in `run`.

    Raises:
        ConfigError, DataError: the data or a setting cannot be used; nothing has been trained.
    """
    set_up_process(config)
    ledger = Ledger(run / "ledger.jsonl")
    train_corpus = Corpus.open([folders[name] for name in config.data.train], config.data.sample_rate_hz)
    validation = Corpus.open([folders[name] for name in config.data.validation], config.data.sample_rate_hz)

    torch.manual_seed(config.seed)
    resume_from = newest_sound(run, quiet=bool(_rank(config))) if config.resume else None
    if config.resume and resume_from is None and not _rank(config):
        print(f"resume=true: {run} holds no checkpoint; training begins at step 0", file=sys.stderr)
    tokenizer = make_tokenizer(config, train_corpus, resume_from)
    speech_model = model.build(config, tokenizer.num_tokens)
    _drop_unusable(config, train_corpus, tokenizer, speech_model, ledger)
    warn_before_training(config, folders, run, tokenizer, speech_model, train_corpus, validation)
    speech_model.features.fit_normalization(_sample(train_corpus, config.seed, ledger))
    origin = warm_start.begin(config, speech_model, tokenizer, resume_from)

    loaders = make_loaders(config, train_corpus, validation, tokenizer, config.trainer.world_size)
    steps_per_epoch = len(loaders[0].dataset.plan)
    task = make_task(config, speech_model, tokenizer, steps_per_epoch=steps_per_epoch)
    _describe(
        config,
        run,
        speech_model,
        tokenizer,
        train_corpus,
        validation,
        loaders[0].dataset.plan,
        steps_per_epoch=steps_per_epoch,
        total_steps=task.total_steps,
    )

    callbacks: list[lightning.Callback] = [
        KeepUtteranceLosses(UtteranceLosses(train_corpus)),  # first, so that checkpoints hold each step's
        SkippedSteps(run, every_steps=config.trainer.log_every_steps, most_in_a_row=config.trainer.max_skipped_steps),
        SkippedBatches(run, loaders[0].dataset, most_in_a_row=config.trainer.max_skipped_steps),
        OutputWatch(train_corpus, tokenizer.encode, config.optim, every_steps=config.trainer.log_every_steps),
        RunCheckpoints(
            run,
            every_steps=config.trainer.checkpoint_every_steps,
            every_minutes=config.trainer.checkpoint_every_minutes,
            keep_last=config.trainer.keep_last,
            keep_best=config.trainer.keep_best,
        ),
        ProgressLine(config.trainer.log_every_steps),
        LeftOut(ledger),
    ]
    if config.trainer.stall_seconds:
        callbacks.insert(0, Watchdog(run, stall_seconds=config.trainer.stall_seconds))
    trainer = _trainer(config, run, task, tokenizer, callbacks, origin)
    # Lightning has rank 0 say in each step whether it got SIGTERM, and waits for the device. A callback does that.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    # Where the data goes on follows from the step, whatever Lightning makes of a checkpoint at an epoch's end.
    loaders[0].consumed = lambda: trainer.global_step * config.trainer.pieces
    try:
        trainer.fit(task, loaders[0], loaders[1], ckpt_path=resume_from)
    except Interrupted as stopped:
        print(f"stopped by {stopped}; to go on, add: run_dir={run} resume=true", file=sys.stderr)
        sys.exit(128 + stopped.signal_number)
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        raise TrainingError(
            f"rank {trainer.global_rank}: another rank is gone, see what it said itself; to go on from the last "
            f"checkpoint add: run_dir={run} resume=true ({str(error).splitlines()[0]})"
        ) from error
    if trainer.is_global_zero:
        _test(config, folders, run, ledger)


def _test(config: Config, folders: Mapping[str, Path | str], run: Path, ledger: Ledger) -> None:
    """Evaluate the best checkpoint on each test split; write results.json and a line for each utterance."""
    recognizer = Recognizer(checkpoint.load(run))
    results = {}
    for name in config.data.test:
        corpus = Corpus.open([folders[name]], config.data.sample_rate_hz)
        evaluation = evaluate_corpus(recognizer, corpus, batch_seconds=config.decode.batch_seconds)
        evaluation.write(run / f"test-{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)}.jsonl")  # a name may be a path or URL
        results[name] = evaluation.summary()
        print_report(name, evaluation)
        for index, utterance in enumerate(corpus.ids):
            drop = corpus.audio_or_drop(index) if utterance in evaluation.failures else None
            if isinstance(drop, Drop):
                leave_out(ledger, drop)
    (run / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"run folder: {run}")


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


def _rank(config: Config) -> int:
    return global_rank(config.trainer.devices)


def make_tokenizer(config: Config, corpus: Corpus, resume_from: Path | None) -> Tokenizer:
    """Built from the training transcripts, or the one of the checkpoint that the run goes on from."""
    if resume_from is not None:
        return checkpoint.read_tokenizer(resume_from)
    return build_tokenizer(config.text, corpus.texts)


def _drop_unusable(
    config: Config, corpus: Corpus, tokenizer: Tokenizer, speech_model: SpeechModel, ledger: Ledger
) -> None:
    drops = drop_untrainable(config, corpus, tokenizer, speech_model)
    for drop in drops:
        ledger.add(drop)
    if drops and not _rank(config):
        reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(drop.reason for drop in drops).most_common())
        total = len(drops) + len(corpus)
        print(f"left out {len(drops)} of {total} training utterances: {reasons}; {ledger.path} names each")


def _sample(corpus: Corpus, seed: int, ledger: Ledger) -> Iterator[NDArray[np.float32]]:
    """Audio of some utterances, the same on every rank, for the features' mean and variance."""
    order, usable = np.random.default_rng(seed).permutation(len(corpus))[:NORMALIZATION_UTTERANCES], 0
    for index in order:
        audio = corpus.audio_or_drop(int(index))
        if isinstance(audio, Drop):
            leave_out(ledger, audio)
        else:
            usable += 1
            yield audio
    if len(order) and not usable:
        raise DataError(f"none of {len(order)} training utterances can be read; {ledger.path} says why")


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


def on_gpu(config: Config) -> bool:
    """Whether training will be on GPUs."""
    accelerator = config.trainer.accelerator
    return accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())


def make_loaders(
    config: Config, train: Corpus, validation: Corpus, tokenizer: Tokenizer, world_size: int
) -> tuple[BatchLoader, BatchLoader]:
    data, rank = config.data, _rank(config)
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
        raise ConfigError(
            f"data.batch_seconds={data.batch_seconds}: most global batches hold {usual} utterances at the most, "
            f"{world_size} ranks share each{pieces}; raise data.batch_seconds or lower data.max_seconds"
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
        rank=rank,
        world_size=world_size,
        pieces=config.trainer.pieces,
    )
    validation_dataset = BatchDataset(
        validation, validation_plan, encode=lambda text: [], rank=rank, world_size=world_size
    )
    return (
        BatchLoader(train_dataset, num_workers=data.num_workers, pin_memory=torch.cuda.is_available()),
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


def _trainer(
    config: Config,
    run: Path,
    task: CtcTask,
    tokenizer: Tokenizer,
    callbacks: list[lightning.Callback],
    origin: Mapping[str, Any],
) -> lightning.Trainer:
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

    keep_earlier_metrics(run / "metrics" / "metrics.csv")

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
    return lightning.Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=strategy if several else "auto",
        precision="bf16-mixed" if uses_bf16(settings.precision, gpu) else 32,
        max_epochs=settings.max_epochs,
        max_steps=settings.max_steps or -1,
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


def keep_earlier_metrics(path: Path) -> None:
    """Give the figures of a run that is resumed another name; Lightning's logger would delete them."""
    if path.exists():
        number = next(n for n in itertools.count(1) if not path.with_stem(f"{path.stem}-{n}").exists())
        with suppress(FileNotFoundError):  # another rank was here first
            path.rename(path.with_stem(f"{path.stem}-{number}"))


def uses_bf16(precision: str, on_gpu: bool) -> bool:
    """Whether to compute in bf16: where asked, or by itself where the device has instructions for it."""
    if precision != "auto":
        return precision == "bf16"
    return torch.cuda.is_bf16_supported() if on_gpu else torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _describe(
    config: Config,
    run: Path,
    speech_model: SpeechModel,
    tokenizer: Tokenizer,
    train: Corpus,
    validation: Corpus,
    plan: BatchPlan,
    *,
    steps_per_epoch: int,
    total_steps: int,
) -> None:
    """Say what is about to be trained, on what, and where it goes."""
    if _rank(config):
        return
    parameters = sum(p.numel() for p in speech_model.parameters()) / 1e6
    frame_milliseconds = 1000 * speech_model.frame_seconds
    padding = 100 * plan.padding_share()
    mixed = ""
    if plan.mixture is not None:
        parts = zip(config.data.train, plan.mixture.shares, plan.mixture.rates, strict=True)
        mixed = "; an epoch: " + ", ".join(f"{100 * share:.0f} % {name} ({rate:.2f}x)" for name, share, rate in parts)
    print(
        f"model: {config.stack.name}, {parameters:.2f} M parameters, {tokenizer.num_tokens} tokens, "
        f"{frame_milliseconds:.0f} ms frames, torch {version('torch')}\n"
        f"data: train {len(train)} utterances, {train.seconds / 3600:.2f} h; "
        f"validation {len(validation)}, {validation.seconds / 3600:.2f} h{mixed}\n"
        f"training: {total_steps} steps, {steps_per_epoch} an epoch, {padding:.1f} % of them padding; "
        f"Ctrl-C saves and stops; run folder: {run}",
        flush=True,
    )
