"""Build everything from the configuration, fit with Lightning, evaluate the best checkpoint."""

from __future__ import annotations

import errno
import json
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import lightning
import numpy as np
import torch
from numpy.typing import NDArray

from asr import checkpoint, model
from asr.config import Config, from_yaml
from asr.config.differences import differences
from asr.data.corpus import Corpus, tell_apart
from asr.data.ledger import Ledger
from asr.data.plan import BatchPlan
from asr.data.utterance_losses import UtteranceLosses
from asr.decode.evaluate import evaluate_corpus, print_report
from asr.decode.recognizer import Recognizer
from asr.errors import ConfigError, DataError, TrainingError
from asr.model import SpeechModel
from asr.text.tokenizer import Tokenizer
from asr.train import warm_start
from asr.train.checkpoints import Interrupted, RunCheckpoints, newest_sound
from asr.train.doctor.device import check_device
from asr.train.doctor.report import Verdict
from asr.train.doctor.start import warn_before_training
from asr.train.guard import SkippedSteps
from asr.train.left_out import LeftOut, drop_untrainable, leave_out
from asr.train.out_of_memory import SkippedBatches, first_line, is_out_of_memory, run_is_short
from asr.train.output_watch import OutputWatch
from asr.train.parts import make_loaders, make_task, make_tokenizer, rank, set_up_process
from asr.train.progress import ProgressLine
from asr.train.ranks import is_lost_rank
from asr.train.task import CtcTask
from asr.train.trainer import make_trainer
from asr.train.utterance_losses import KeepUtteranceLosses
from asr.train.watchdog import Watchdog
from asr.types import Drop

# Settings that decide what weights a training comes to, beside ranks and the kind of device.
SHAPES_TRAINING = (
    *("seed", "text", "features", "augment", "front_end", "stack", "head", "optim"),
    *(f"trainer.{name}" for name in ("max_epochs", "max_steps", "pieces", "precision")),
    *(f"data.{name}" for name in ("train", "weights", "temperature", "sample_rate_hz", "min_seconds", "max_seconds")),
    *(f"data.{name}" for name in ("batch_seconds", "max_batch_items", "length_jitter", "sorta_grad")),
)
DISK_REFUSES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
NORMALIZATION_UTTERANCES = 1000  # enough for a mean and variance of each bin to three digits


def fit(config: Config, folders: Mapping[str, Path | str], run: Path) -> None:
    """Train what `config` describes on the shards in `folders` and leave everything in `run`.

    Raises:
        ConfigError, DataError: the data or a setting cannot be used; nothing has been trained.
    """
    device = check_device(config)
    if device.verdict is Verdict.ERROR:
        raise ConfigError(f"{device.message}; to mend it: {device.fix}")
    set_up_process(config)
    ledger = Ledger(run / "ledger.jsonl")
    train_corpus = Corpus.open([folders[name] for name in config.data.train], config.data.sample_rate_hz)
    validation = Corpus.open([folders[name] for name in config.data.validation], config.data.sample_rate_hz)
    tests = {name: Corpus.open([folders[name]], config.data.sample_rate_hz) for name in config.data.test}
    tell_apart([reader for corpus in (train_corpus, validation, *tests.values()) for reader in corpus.readers])

    torch.manual_seed(config.seed)
    resume_from = newest_sound(run, quiet=bool(rank(config))) if config.resume else None
    if config.resume and not rank(config):
        _say_what_is_resumed(config, run, resume_from)
    tokenizer = make_tokenizer(config, train_corpus, resume_from)
    speech_model = model.build(config, tokenizer.num_tokens)
    _drop_unusable(config, train_corpus, tokenizer, speech_model, ledger)
    warn_before_training(config, folders, run, tokenizer, speech_model, train_corpus, validation)
    speech_model.features.fit_normalization(_sample(train_corpus, config.seed, ledger))
    origin = warm_start.begin(config, speech_model, tokenizer, resume_from)

    loaders = make_loaders(config, train_corpus, validation, tokenizer)
    plan = loaders[0].dataset.plan
    task = make_task(config, speech_model, tokenizer, steps_per_epoch=len(plan))
    _describe(config, run, task, train_corpus, validation, plan)

    callbacks: list[lightning.Callback] = [
        KeepUtteranceLosses(UtteranceLosses(train_corpus)),  # first, so that checkpoints hold each step's
        SkippedSteps(run, every_steps=config.trainer.log_every_steps, most_in_a_row=config.trainer.max_skipped_steps),
        SkippedBatches(run, loaders[0].dataset, most_in_a_row=config.trainer.max_skipped_steps),
        OutputWatch(
            train_corpus,
            tokenizer.encode,
            config.optim,
            every_steps=config.trainer.log_every_steps,
            total_steps=task.total_steps,
        ),
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
    trainer = make_trainer(config, run, task, tokenizer, callbacks, origin)
    # Lightning has rank 0 say in each step whether it got SIGTERM, and waits for the device. A callback does that.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    # Where the data goes on follows from the step, whatever Lightning makes of a checkpoint at an epoch's end.
    loaders[0].consumed = lambda: trainer.global_step * config.trainer.pieces
    try:
        trainer.fit(task, loaders[0], loaders[1], ckpt_path=resume_from)
    except Interrupted as stopped:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # by which launchers end the other ranks when the first one ends
        print(f"stopped by {stopped}; to go on, add: run_dir={run} resume=true", file=sys.stderr)
        sys.exit(128 + stopped.signal_number)
    except OSError as error:
        if error.errno not in DISK_REFUSES:
            raise
        raise TrainingError(
            f"{error.filename or run}: cannot be written: {error.strerror}; make room, and to go on from the last "
            f"checkpoint add: run_dir={run} resume=true"
        ) from error
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise run_is_short(error, run=run, step=trainer.global_step, task=task) from error
        if not is_lost_rank(error):
            raise
        raise TrainingError(
            f"rank {trainer.global_rank}: another rank is gone, see what it said itself; to go on from the last "
            f"checkpoint add: run_dir={run} resume=true ({str(error).splitlines()[0]})"
        ) from error
    if trainer.is_global_zero:
        try:
            _test(config, tests, run, ledger)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                f"out of memory in the test at the end ({first_line(error)}); training is done. To evaluate only: "
                f"run_dir={run} resume=true decode.batch_seconds={config.decode.batch_seconds / 2:g}"
            ) from error


def _say_what_is_resumed(config: Config, run: Path, resume_from: Path | None) -> None:
    """Unless it is what the run was: the same settings, from its last step."""
    if resume_from is None:
        print(f"resume=true: {run} holds no checkpoint; training begins at step 0", file=sys.stderr)
        return
    before = from_yaml((resume_from / checkpoint.CONFIG).read_text(), source=str(resume_from / checkpoint.CONFIG))
    if others := differences(config, before, SHAPES_TRAINING):
        print(
            f"resume=true: other settings than {resume_from} has, so the run does not end where it would have ended: "
            + "; ".join(others),
            file=sys.stderr,
        )


def _test(config: Config, tests: Mapping[str, Corpus], run: Path, ledger: Ledger) -> None:
    """Evaluate the best checkpoint on each test split; write results.json and a line for each utterance."""
    recognizer = Recognizer(checkpoint.load(run))
    results = {}
    for name, corpus in tests.items():
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


def _drop_unusable(
    config: Config, corpus: Corpus, tokenizer: Tokenizer, speech_model: SpeechModel, ledger: Ledger
) -> None:
    drops = drop_untrainable(config, corpus, tokenizer, speech_model)
    for drop in drops:
        ledger.add(drop)
    if drops and not rank(config):
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


def _describe(config: Config, run: Path, task: CtcTask, train: Corpus, validation: Corpus, plan: BatchPlan) -> None:
    """Say what is about to be trained, on what, and where it goes."""
    if rank(config):
        return
    parameters = sum(p.numel() for p in task.model.parameters()) / 1e6
    frame_milliseconds = 1000 * task.model.frame_seconds
    padding = 100 * plan.padding_share()
    mixed = ""
    if plan.mixture is not None:
        parts = zip(config.data.train, plan.mixture.shares, plan.mixture.rates, strict=True)
        mixed = "; an epoch: " + ", ".join(f"{100 * share:.0f} % {name} ({rate:.2f}x)" for name, share, rate in parts)
    print(
        f"model: {config.stack.name}, {parameters:.2f} M parameters, {task.tokenizer.num_tokens} tokens, "
        f"{frame_milliseconds:.0f} ms frames, torch {version('torch')}\n"
        f"data: train {len(train)} utterances, {train.seconds / 3600:.2f} h; "
        f"validation {len(validation)}, {validation.seconds / 3600:.2f} h{mixed}\n"
        f"training: {task.total_steps} steps, {len(plan)} an epoch, {padding:.1f} % of them padding; "
        f"Ctrl-C saves and stops; run folder: {run}",
        flush=True,
    )
