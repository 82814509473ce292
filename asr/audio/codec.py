"""Speech that came through a telephone or a lossy file format."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import soundfile
from numpy.typing import NDArray

from asr.audio.resample import resample

TELEPHONE_HZ = 8000
MU = 255.0  # of ITU-T G.711, 8 bits
FORMATS = {"vorbis": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"), "mp3": ("MP3", "MPEG_LAYER_III")}


@dataclass(frozen=True, slots=True)
class Codec:
    """Encodes and decodes; length and timing stay.

    probability: share of the utterances. kinds: each as likely as the others: telephone (8 kHz, mu-law), vorbis, opus,
    mp3, of a drawn quality. sample_rate_hz: of the speech; 8, 12, 16, 24 or 48 kHz for opus.
    """

    probability: float
    kinds: tuple[str, ...]
    sample_rate_hz: int

    def __call__(
        self, audio: NDArray[np.float32], random: np.random.Generator, strength: float = 1.0
    ) -> NDArray[np.float32]:
        """(N,) -> (N,), N > 0. At less than full strength the lowest qualities are not drawn."""
        kind = self.kinds[random.integers(len(self.kinds))]
        compression = random.uniform(0.0, strength)
        if kind == "telephone":
            narrow = mu_law(resample(audio, self.sample_rate_hz, TELEPHONE_HZ))
            decoded = resample(narrow, TELEPHONE_HZ, self.sample_rate_hz)
        else:
            container, subtype = FORMATS[kind]
            file = io.BytesIO()
            soundfile.write(
                file, audio, self.sample_rate_hz, format=container, subtype=subtype, compression_level=compression
            )
            file.seek(0)
            decoded = soundfile.read(file, dtype="float32")[0].astype(np.float32, copy=False)
        return np.pad(decoded[: len(audio)], (0, max(0, len(audio) - len(decoded))))


def mu_law(audio: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round samples in [-1, 1] to the 256 values of a logarithmic scale."""
    clipped = np.clip(audio, -1.0, 1.0)
    companded = np.sign(clipped) * np.log1p(MU * np.abs(clipped)) / np.log1p(MU)
    rounded = np.round((companded + 1.0) * 127.5) / 127.5 - 1.0
    return (np.sign(rounded) * np.expm1(np.abs(rounded) * np.log1p(MU)) / MU).astype(np.float32)
