"""A language of tones: each letter is a short tone of its own pitch. Small enough to be learnt in seconds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from asr.config import Config
from asr.data.ledger import Ledger
from asr.data.manifest import write_manifest
from asr.data.shard_writer import write_shards
from asr.types import Utterance

RATE_HZ = 16000
PITCHES_HZ = {"a": 440.0, "b": 880.0, "c": 1760.0, " ": 0.0}


def sing(text: str, seed: int = 0) -> NDArray[np.float32]:
    """0.12 s of tone for each letter with 0.04 s of near silence after it."""
    random = np.random.default_rng(seed)
    pieces = [0.01 * random.standard_normal(1600)]
    for letter in text:
        time = np.arange(int(random.uniform(0.10, 0.14) * RATE_HZ)) / RATE_HZ
        pieces += [0.3 * np.sin(2 * np.pi * PITCHES_HZ[letter] * time), np.zeros(640)]
    audio = np.concatenate([*pieces, np.zeros(1600)])
    return (audio + 0.003 * random.standard_normal(len(audio))).astype(np.float32)


def texts(count: int, seed: int) -> list[str]:
    """Texts of 1 to 3 words of 1 to 3 letters."""
    random = np.random.default_rng(seed)
    return [
        " ".join("".join(random.choice(list("abc"), random.integers(1, 4))) for _ in range(random.integers(1, 4)))
        for _ in range(count)
    ]


def write_corpus(folder: Path, sayings: Sequence[str], name: str) -> list[Utterance]:
    """Sing `sayings` into wav files in `folder`, with a manifest beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    utterances = []
    for i, text in enumerate(sayings):
        path = folder / f"{name}-{i:03d}.wav"
        audio = sing(text, seed=i)
        soundfile.write(path, audio, RATE_HZ)
        utterances.append(Utterance(path.stem, str(path), text, len(audio) / RATE_HZ, speaker="tone"))
    write_manifest(folder / f"{name}.jsonl", utterances)
    return utterances


def prepare(config: Config) -> dict[str, Path]:
    """Shards of 48 training and 8 validation and test utterances, in `data.cache`."""
    folders = {}
    for name, count, seed in (("train", 48, 1), ("validation", 8, 2), ("test", 8, 3)):
        folders[name] = config.data.cache / name
        if not folders[name].is_dir():
            sung = write_corpus(config.data.cache / "wav", texts(count, seed), name)
            ledger = Ledger(config.data.cache / "ledger.jsonl")
            write_shards(sung, folders[name], sample_rate_hz=RATE_HZ, ledger=ledger)
    return folders
