"""Broken data and broken ranks for the tests of `asr doctor`."""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from asr.config import Config
from asr.data.corpus import Corpus
from asr.data.ledger import Ledger
from asr.data.manifest import write_manifest
from asr.data.shard_writer import write_shards
from asr.data.shards import ShardReader
from asr.types import Utterance
from tests.support.tones import RATE_HZ, sing

Sung = Mapping[str, tuple[str, int]]  # id -> its text, and the seed of its audio


def split(
    folder: Path, sung: Sung, *, source_rate_hz: int = RATE_HZ, rate_hz: int = RATE_HZ, seconds: float | None = None
) -> ShardReader:
    """Shards in `folder`, with the manifest and recordings that they were made from.

    Args:
        folder: named after the split.
        sung: what is in it.
        source_rate_hz: of the recordings.
        rate_hz: of the shards.
        seconds: of each recording, in place of what its text takes.
    """
    raw = folder.parent / "raw" / folder.name
    raw.mkdir(parents=True)
    utterances = []
    for name, (text, seed) in sung.items():
        path = raw / f"{name}.wav"
        audio = sing("a" if seconds else text.lower().replace("q", "a"), seed)
        audio = np.resize(audio, int(seconds * RATE_HZ)) if seconds else audio
        soundfile.write(path, audio, source_rate_hz)
        utterances.append(Utterance(name, str(path), text, len(audio) / source_rate_hz))
    write_shards(utterances, folder, sample_rate_hz=rate_hz, ledger=Ledger(folder.parent / "ledger.jsonl"))
    write_manifest(folder / "manifest.jsonl", utterances)
    return ShardReader(folder)


def tiny_config(**sections: Any) -> Config:
    """A model of some hundred weights; sections are merged into it."""
    layer = {"channels": 2, "time_kernel": 3, "time_stride": 2, "frequency_kernel": 3, "frequency_stride": 2}
    values: dict[str, Any] = {
        "recipe": "tones",
        "data": {"batch_seconds": 6.0, "num_workers": 0},
        "features": {"num_mels": 12},
        "front_end": {"layers": [layer]},
        "stack": {"name": "gru", "num_layers": 1, "hidden_size": 4},
        "trainer": {"accelerator": "cpu", "precision": "float32", "threads": 1},
    }
    for name, value in sections.items():
        values[name] = values.get(name, {}) | value if isinstance(value, dict) else value
    return Config.model_validate(values)


Say = Callable[[Any], None]


def speak(say: Say, *words: Any) -> None:
    for word in words:
        say(word)


def leave(say: Say, status: int) -> None:
    say("before")
    sys.exit(status)


def be_killed(say: Say, number: int) -> None:
    os.kill(os.getpid(), signal.Signals(number))


def hang(say: Say, seconds: float) -> None:
    say("before")
    time.sleep(seconds)


def rank_1_leaves(say: Say, rank: int, *arguments: Any) -> None:
    """Rank 1 dies before it has met the others."""
    from asr.train.doctor.all_reduce import sum_over_ranks

    if rank == 1:
        sys.exit(3)
    sum_over_ranks(say, rank, *arguments)


def rank_1_hangs(say: Say, rank: int, *arguments: Any) -> None:
    if rank == 1:
        time.sleep(600)
    say("timed out waiting for the others")


def rank_1_sums_wrongly(say: Say, rank: int, *arguments: Any) -> None:
    say(3.0 - rank)


class FakeCorpus(Corpus):
    """Utterances of given lengths that hold no audio."""

    def __init__(self, num_samples: list[int]) -> None:
        self.sample_rate_hz = RATE_HZ
        self.ids = [f"u{i}" for i in range(len(num_samples))]
        self.texts = ["abc"] * len(num_samples)
        self.num_samples = np.array(num_samples, dtype=np.int64)
