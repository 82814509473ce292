"""Speech in a room: convolution with a recorded or simulated impulse response (Ko et al. 2017, ICASSP)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asr.audio.header import AudioInfo
from asr.audio.io import read_audio
from asr.audio.noise import audio_files
from asr.config.schema import ReverberationOptions

DIRECT_TO_REVERBERANT_DB = (0.0, 12.0)  # a speaker at arm's length to one across the room
DECAY_NEPERS = 3 * np.log(10.0)  # amplitude falls by 60 dB in the reverberation time


@dataclass(frozen=True, slots=True)
class Reverberation:
    """Convolves with a room's impulse response; the direct sound stays where it was, and the power as it was.

    probability: share of the utterances. rt60_seconds: shortest and longest time in which a simulated room's sound
    falls by 60 dB. files: recorded responses to take instead. sample_rate_hz: of the speech.
    """

    probability: float
    rt60_seconds: tuple[float, float]
    files: tuple[tuple[str, AudioInfo], ...]
    sample_rate_hz: int

    @classmethod
    def build(cls, options: ReverberationOptions, sample_rate_hz: int) -> Reverberation:
        """Make what `options` describe.

        Raises:
            ConfigError: the folder holds no audio, or audio that cannot be read.
        """
        files = audio_files("augment.reverberation.folder", options.folder)
        return cls(options.probability, options.rt60_seconds, files, sample_rate_hz)

    def __call__(
        self, audio: NDArray[np.float32], random: np.random.Generator, strength: float = 1.0
    ) -> NDArray[np.float32]:
        """(N,) -> (N,), N > 0. At less than full strength the longest reverberation times are not drawn."""
        response = self._recorded(random) if self.files else self._simulated(random, strength)
        size = 1 << (len(audio) + len(response) - 2).bit_length()
        wet = np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(response, size), size)[: len(audio)]
        power = np.square(wet).mean()
        return (wet * np.sqrt(np.square(audio).mean(dtype=np.float64) / power) if power else wet).astype(np.float32)

    def _simulated(self, random: np.random.Generator, strength: float) -> NDArray[np.float32]:
        """A direct sound, and noise that decays exponentially."""
        low, high = self.rt60_seconds
        seconds = random.uniform(low, low + strength * (high - low))
        length = max(2, round(seconds * self.sample_rate_hz))
        tail = random.standard_normal(length) * np.exp(-DECAY_NEPERS * np.arange(length) / length)
        tail[0] = 0.0
        ratio = 10 ** (random.uniform(*DIRECT_TO_REVERBERANT_DB) / 10)
        tail /= np.sqrt(np.square(tail).sum() * ratio)
        tail[0] = 1.0
        return tail.astype(np.float32)

    def _recorded(self, random: np.random.Generator) -> NDArray[np.float32]:
        """A recorded response from its direct sound, the highest peak, on."""
        path, _ = self.files[random.integers(len(self.files))]
        response = read_audio(path, sample_rate_hz=self.sample_rate_hz)
        return response[np.abs(response).argmax() :]
