"""Shards to training batches against bare soundfile decoding of the same files: hours of audio per second and core.

    python benchmarks/dataloader.py FOLDER_OF_SHARDS [--repeats 10]

One process, one thread; the two take turns. `share` is ours / bare, of medians.
"""

import argparse
import io
from pathlib import Path

import soundfile
import torch
from common import emit, side_by_side, spread

from asr.audio.augment import Perturbation
from asr.data.corpus import Corpus
from asr.data.loader import BatchDataset, BatchLoader
from asr.data.plan import BatchPlan
from asr.train.memory import keep_freed_memory

RATE_HZ = 16000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--batch-seconds", type=float, default=320.0)
    options = parser.parse_args()
    keep_freed_memory()  # as in training
    torch.set_num_threads(1)
    corpus = Corpus.open([options.shards], RATE_HZ)
    plan = BatchPlan(
        corpus.num_samples, seed=1, batch_samples=int(options.batch_seconds * RATE_HZ), max_items=512, jitter=0.1
    )
    flacs = [corpus.readers[0].read(i) for i in range(len(corpus))]
    speeds = Perturbation(speeds=(0.9, 1.0, 1.1), gain_db=6.0, sample_rate_hz=RATE_HZ)

    def bare() -> None:
        for flac in flacs:
            soundfile.read(io.BytesIO(flac), dtype="float32")

    def batches(perturbation: Perturbation | None) -> None:
        dataset = BatchDataset(corpus, plan, encode=lambda text: [ord(c) for c in text], perturbation=perturbation)
        for batch in BatchLoader(dataset, num_workers=0):
            assert batch.ids

    times = side_by_side(
        {"bare": bare, "batches": lambda: batches(None), "augmented": lambda: batches(speeds)}, repeats=options.repeats
    )
    hours = corpus.seconds / 3600
    summary = {name: spread(values) for name, values in times.items()}
    emit(
        benchmark="dataloader",
        corpus=f"{len(corpus)} utterances, {hours:.2f} h",
        padding_share=plan.padding_share(),
        hours_per_second_and_core={name: hours / s["median"] for name, s in summary.items()},
        seconds=summary,
        share={name: summary["bare"]["median"] / summary[name]["median"] for name in ("batches", "augmented")},
    )


if __name__ == "__main__":
    main()
