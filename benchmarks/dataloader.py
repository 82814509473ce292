"""Shards to training batches against bare soundfile decoding of the same files: hours of audio per second and core.

    python benchmarks/dataloader.py FOLDER_OF_SHARDS [--repeats 10]
    python benchmarks/dataloader.py --plan 10000000

One process, one thread; the candidates take turns. `share` is ours / bare, of medians. With --plan: time and memory of
the batch plan of an epoch of so many utterances with lengths like LibriSpeech's.
"""

import argparse
import io
import resource
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from common import emit, side_by_side, spread

from asr.audio import augment
from asr.audio.augment import Perturbation
from asr.config.schema import Augment, CodecOptions, Data, NoiseOptions, ReverberationOptions
from asr.data.corpus import Corpus
from asr.data.loader import BatchDataset, BatchLoader
from asr.data.plan import BatchPlan
from asr.train.memory import keep_freed_memory

RATE_HZ = 16000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, nargs="?")
    parser.add_argument("--plan", type=int, default=0, metavar="UTTERANCES")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--batch-seconds", type=float, default=320.0)
    options = parser.parse_args()
    if options.plan:
        return plan_epoch(options.plan)
    if options.shards is None:
        parser.error("got neither FOLDER_OF_SHARDS nor --plan")
    keep_freed_memory()  # as in training
    torch.set_num_threads(1)
    corpus = Corpus.open([options.shards], RATE_HZ)
    plan = BatchPlan(
        corpus.num_samples, seed=1, batch_samples=int(options.batch_seconds * RATE_HZ), max_items=512, jitter=0.1
    )
    flacs = [corpus.readers[0].read(i) for i in range(len(corpus))]
    speeds = augment.build(Augment(speeds=(0.9, 1.0, 1.1), gain_db=6.0), RATE_HZ)

    def bare() -> None:
        for flac in flacs:
            soundfile.read(io.BytesIO(flac), dtype="float32")

    noisy = augment.build(
        Augment(
            speeds=(0.9, 1.0, 1.1),
            gain_db=6.0,
            noise=NoiseOptions(probability=0.4),
            reverberation=ReverberationOptions(probability=0.2),
            codec=CodecOptions(probability=0.1),
        ),
        RATE_HZ,
    )  # conf/augment/noisy.yaml, at full strength

    def batches(perturbation: Perturbation | None) -> None:
        dataset = BatchDataset(corpus, plan, encode=lambda text: [ord(c) for c in text], perturbation=perturbation)
        for batch in BatchLoader(dataset, num_workers=0):
            assert batch.ids

    candidates = {
        "bare": bare,
        "batches": lambda: batches(None),
        "speed and gain": lambda: batches(speeds),
        "speed, gain, noise, rooms, codecs": lambda: batches(noisy),
    }
    times = side_by_side(candidates, repeats=options.repeats)
    hours = corpus.seconds / 3600
    summary = {name: spread(values) for name, values in times.items()}
    emit(
        benchmark="dataloader",
        corpus=f"{len(corpus)} utterances, {hours:.2f} h",
        padding_share=plan.padding_share(),
        hours_per_second_and_core={name: hours / s["median"] for name, s in summary.items()},
        seconds=summary,
        share={name: summary["bare"]["median"] / summary[name]["median"] for name in candidates if name != "bare"},
    )


def plan_epoch(num_utterances: int) -> None:
    """Seconds to plan a shuffled epoch, and the process's peak memory."""
    lengths = np.random.default_rng(0).normal(12.3, 3.8, num_utterances).clip(1.5, 24)
    num_samples = (RATE_HZ * lengths).astype(np.int64)
    start = time.perf_counter()
    plan = BatchPlan(num_samples, seed=1, batch_samples=600 * RATE_HZ, max_items=512, jitter=Data().length_jitter)
    batches = plan.batches(1)
    seconds = time.perf_counter() - start
    emit(
        benchmark="batch plan",
        utterances=num_utterances,
        batches=len(batches),
        seconds=seconds,
        peak_memory_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        padding_share=plan.padding_share(),
    )


if __name__ == "__main__":
    main()
