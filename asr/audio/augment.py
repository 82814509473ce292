"""What is done to training audio, drawn from the utterance's own seed: speed, room, noise, codec, gain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from asr.audio.codec import Codec
from asr.audio.noise import Noise
from asr.audio.resample import resample
from asr.audio.reverberation import Reverberation
from asr.config.schema import Augment


def build(config: Augment, sample_rate_hz: int) -> Perturbation:
    """Make what `config` describes, for audio at `sample_rate_hz`.

    Raises:
        ConfigError: a folder of noises or rooms holds no audio, or audio that cannot be read.
    """
    noise, room, codec = config.noise, config.reverberation, config.codec
    return Perturbation(
        speeds=config.speeds,
        gain_db=config.gain_db,
        sample_rate_hz=sample_rate_hz,
        effects=(
            Reverberation.build(room, sample_rate_hz),
            Noise.build(noise, sample_rate_hz),
            Codec(codec.probability, codec.kinds, sample_rate_hz),
        ),
        curriculum_epochs=config.curriculum_epochs,
    )


@dataclass(frozen=True, slots=True)
class Perturbation:
    """Changes speed (tempo and pitch together, by resampling), then applies the effects, then gain.

    speeds: factors, one drawn for each utterance; 1.1 makes it 10 % shorter. gain_db: drawn from U(-gain_db, gain_db).
    sample_rate_hz: of the audio. effects: each draws from its own random numbers, so that one does not change another.
    curriculum_epochs: the effects' strength grows in equal steps from 0 in epoch 0 to 1 in this one; 0: always 1.
    """

    speeds: tuple[float, ...]
    gain_db: float
    sample_rate_hz: int
    effects: Sequence[Reverberation | Noise | Codec] = field(default=())
    curriculum_epochs: int = 0

    def __call__(self, audio: NDArray[np.float32], seed: int, epoch: int) -> NDArray[np.float32]:
        """(N,) samples -> (about N / speed,) samples; a pure function of its arguments."""
        random = np.random.default_rng(seed)
        speed = self.speeds[random.integers(len(self.speeds))]
        gain = 10 ** (random.uniform(-self.gain_db, self.gain_db) / 20)
        if speed != 1.0:
            audio = resample(audio, round(self.sample_rate_hz * speed), self.sample_rate_hz)
        strength = min(1.0, epoch / self.curriculum_epochs) if self.curriculum_epochs else 1.0
        for number, effect in enumerate(self.effects):
            own = np.random.default_rng((seed, number))
            if own.random() < effect.probability * strength and len(audio):
                audio = effect(audio, own, strength)
        return audio * np.float32(gain) if gain != 1.0 else audio
