"""Speech made on this machine: sentences of a small grammar, spoken by a text-to-speech engine in six voices.

For trying the whole way from data to a trained model without a download. The engine (hibari-tts, extra `demo`,
Apache-2.0) has one voice in its package; the six are that one, slower or faster, and up to 15 % lower or higher in
pitch and formants. Sentences of `validation` and `test` never occur in `train`; every voice occurs in every split.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
from numpy.typing import NDArray

from asr.atomic import atomic_write
from asr.audio.io import audio_info
from asr.audio.resample import resample
from asr.config.schema import Data
from asr.data.ledger import Ledger
from asr.data.progress import progress_bar
from asr.errors import DataError
from asr.types import Utterance
from data_prep import check_splits
from data_prep._sentences import sentences

if TYPE_CHECKING:
    from hibari import Hibari

VERSION = 1
NUM_SENTENCES = {"test": 120, "validation": 90, "train": 1200}  # about 4, 3 and 45 minutes
ENGINE_HZ = 24_000
WORKERS = 4  # threads: one waits for the disk while another speaks
RATE_JITTER = 0.08  # nobody speaks each sentence equally fast
SILENCE = 0.02  # of an utterance's peak; what is below it at the ends is silence
MARGIN_SECONDS = (0.06, 0.25)  # of silence left at each end, drawn from this range; the engine makes 0.3 to 0.5
PEAK_DBFS = (-18.0, -3.0)  # of the loudest sample, drawn from this range


@dataclass(frozen=True, slots=True)
class Voice:
    """A speaker: `pitch` scales the engine's pitch and formants, `rate` its speed."""

    name: str
    pitch: float
    rate: float


VOICES = (
    Voice("ada", 1.00, 0.90),
    Voice("ben", 0.85, 0.85),
    Voice("cleo", 1.15, 0.98),
    Voice("dan", 0.90, 1.00),
    Voice("eva", 1.08, 0.83),
    Voice("finn", 0.95, 0.94),
)


@dataclass(frozen=True, slots=True)
class Line:
    """A sentence to be spoken: its split and place there, its words, and who speaks."""

    split: str
    number: int
    text: str
    voice: Voice

    @property
    def id(self) -> str:
        return f"{self.split}-{self.number:04d}-{self.voice.name}"

    @property
    def seed(self) -> int:
        """Depends on all that is spoken; names the file too, so that no other sentence's audio is taken for this."""
        return int.from_bytes(hashlib.blake2b(json.dumps(asdict(self)).encode(), digest_size=6).digest())


def splits(data: Data, names: Sequence[str], work: Path, ledger: Ledger) -> dict[str, list[Utterance]]:
    """The utterances of the splits in `names`; see `data_prep`. Speech that is in `work` already is not made again."""
    check_splits(names, tuple(NUM_SENTENCES), "embedded")
    folder = work.absolute() / f"v{VERSION}-{data.sample_rate_hz}hz"
    files = {line: folder / f"{line.id}-{line.seed:012x}.flac" for name in names for line in script()[name]}
    lacking = [line for line, path in files.items() if not path.is_file()]
    if lacking:
        engine = load_engine()
        with progress_bar("embedded: speaking", len(lacking)) as progress, ThreadPoolExecutor(WORKERS) as pool:

            def make(line: Line) -> None:
                samples = speak(engine, line, data.sample_rate_hz)
                flac = io.BytesIO()  # and not the file: soundfile swallows the error of a full disk
                soundfile.write(flac, samples, data.sample_rate_hz, format="FLAC", subtype="PCM_16")
                with atomic_write(files[line]) as handle:
                    handle.write(flac.getvalue())
                progress(1)

            list(pool.map(make, lacking))
    utterances: dict[str, list[Utterance]] = {name: [] for name in names}
    for line, path in files.items():
        utterance = Utterance(line.id, str(path), line.text, audio_info(path).seconds, line.voice.name)
        utterances[line.split].append(utterance)
    return utterances


def script() -> dict[str, list[Line]]:
    """Split -> what is spoken in it; no sentence is in two splits."""
    drawn = iter(sentences(sum(NUM_SENTENCES.values())))
    return {
        name: [Line(name, i, next(drawn), VOICES[i % len(VOICES)]) for i in range(count)]
        for name, count in NUM_SENTENCES.items()
    }


def speak(engine: Hibari, line: Line, sample_rate_hz: int) -> NDArray[np.float32]:
    """(N,) samples of a line; the same ones each time."""
    return speak_and_cut(engine, line, sample_rate_hz)[0]


def speak_and_cut(
    engine: Callable[..., NDArray[np.float32]], line: Line, sample_rate_hz: int
) -> tuple[NDArray[np.float32], int]:
    """`speak`, and how many samples of silence were cut off before its first one."""
    random = np.random.default_rng(line.seed)
    rate = line.voice.rate * random.uniform(1 - RATE_JITTER, 1 + RATE_JITTER)
    # Spoken slower or faster, then played faster or slower: the rate comes out as asked, pitch and formants move.
    spoken = engine(f"{line.text}.", speed=rate / line.voice.pitch, seed=line.seed)
    samples = resample(spoken, round(ENGINE_HZ * line.voice.pitch), sample_rate_hz)
    loud = np.flatnonzero(np.abs(samples) > SILENCE * np.abs(samples).max())
    before, after = (random.uniform(*MARGIN_SECONDS, size=2) * sample_rate_hz).astype(int)
    start = max(0, int(loud[0]) - int(before))
    samples = samples[start : loud[-1] + after]
    return samples * np.float32(10 ** (random.uniform(*PEAK_DBFS) / 20) / np.abs(samples).max()), start


def load_engine() -> Hibari:
    """The text-to-speech engine.

    Raises:
        DataError: it is not installed.
    """
    try:
        from hibari import Hibari
    except ImportError as error:
        raise DataError(
            "data=embedded makes speech with hibari-tts, which is not installed: pip install 'asr-toolkit[demo]'"
        ) from error
    return Hibari(voice="heart")  # the one in the package; others would be downloaded
