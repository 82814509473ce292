"""What is done to training audio: speed and gain, drawn from the utterance's own seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asr.audio.resample import resample


@dataclass(frozen=True, slots=True)
class Perturbation:
    """Changes speed (tempo and pitch together, by resampling) and gain.

    speeds: factors, one drawn for each utterance; 1.1 makes it 10 % shorter. gain_db: drawn from U(-gain_db, gain_db).
    sample_rate_hz: of the audio.
    """

    speeds: tuple[float, ...]
    gain_db: float
    sample_rate_hz: int

    def __call__(self, audio: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
        """(N,) samples -> (about N / speed,) samples; a pure function of its arguments."""
        random = np.random.default_rng(seed)
        speed = self.speeds[random.integers(len(self.speeds))]
        gain = 10 ** (random.uniform(-self.gain_db, self.gain_db) / 20)
        if speed != 1.0:
            audio = resample(audio, round(self.sample_rate_hz * speed), self.sample_rate_hz)
        return audio * np.float32(gain) if gain != 1.0 else audio
