"""Noise under speech (Deep Speech 2, section 5.1: 40 % of the utterances, at 0 to 30 dB)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from asr.audio.io import SOUND_SUFFIXES, AudioInfo, audio_info
from asr.audio.resample import resample
from asr.config.schema import NoiseOptions
from asr.errors import ConfigError, DataError

STEEPEST = 2.0  # of the power spectrum's slope: 0 is white noise, 1 pink, 2 brown


@dataclass(frozen=True, slots=True)
class Noise:
    """Adds recorded noise, or where there are no recordings, noise of a drawn colour.

    probability: share of the utterances. snr_db: lowest and highest ratio of the powers of speech and noise.
    files: recordings, each as likely as the others. sample_rate_hz: of the speech.
    """

    probability: float
    snr_db: tuple[float, float]
    files: tuple[tuple[str, AudioInfo], ...]
    sample_rate_hz: int

    @classmethod
    def build(cls, options: NoiseOptions, sample_rate_hz: int) -> Noise:
        """Make what `options` describe.

        Raises:
            ConfigError: the folder holds no audio, or audio that cannot be read.
        """
        files = audio_files("augment.noise.folder", options.folder)
        return cls(options.probability, options.snr_db, files, sample_rate_hz)

    def __call__(
        self, audio: NDArray[np.float32], random: np.random.Generator, strength: float = 1.0
    ) -> NDArray[np.float32]:
        """(N,) -> (N,), N > 0. At less than full strength the lowest ratios are not drawn."""
        low, high = self.snr_db
        snr_db = random.uniform(high - strength * (high - low), high)
        noise = self._recorded(len(audio), random) if self.files else coloured(len(audio), random)
        power, noise_power = np.square(audio).mean(dtype=np.float64), np.square(noise).mean(dtype=np.float64)
        if not power or not noise_power:  # silence has no ratio to noise
            return audio
        return (audio + noise * np.sqrt(power / noise_power / 10 ** (snr_db / 10))).astype(np.float32)

    def _recorded(self, length: int, random: np.random.Generator) -> NDArray[np.float32]:
        """`length` samples from a random place of a random recording, which begins anew where it ends."""
        path, info = self.files[random.integers(len(self.files))]
        wanted = -(-length * info.sample_rate_hz // self.sample_rate_hz) + 1
        start = int(random.integers(info.num_frames))
        try:
            with soundfile.SoundFile(path) as file:
                file.seek(start)
                noise = file.read(wanted, dtype="float32", always_2d=True).mean(1)
                if len(noise) < wanted:
                    file.seek(0)
                    whole = file.read(min(info.num_frames, wanted - len(noise)), dtype="float32", always_2d=True).mean(
                        1
                    )
                    noise = np.concatenate((noise, np.resize(whole, wanted - len(noise))))
        except (OSError, soundfile.SoundFileError) as error:
            raise DataError(f"{path}: this noise cannot be read any more: {error}") from error
        return resample(noise, info.sample_rate_hz, self.sample_rate_hz)[:length]


def coloured(length: int, random: np.random.Generator) -> NDArray[np.float32]:
    """(length,) Gaussian noise whose power falls as 1 / frequency ** U(0, 2)."""
    size = 1 << (length - 1).bit_length()  # a size whose Fourier transform is fast
    spectrum = np.fft.rfft(random.standard_normal(size, dtype=np.float32))
    frequencies = np.arange(1, len(spectrum), dtype=np.float32)
    spectrum[1:] *= frequencies ** np.float32(-0.5 * random.uniform(0.0, STEEPEST))
    spectrum[0] = 0.0
    return np.fft.irfft(spectrum, size)[:length].astype(np.float32)


def audio_files(key: str, folder: Path | None) -> tuple[tuple[str, AudioInfo], ...]:
    """The audio files below a folder, in the order of their names, with their headers; none without a folder.

    Raises:
        ConfigError: there is none, or one cannot be read.
    """
    if folder is None:
        return ()
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SOUND_SUFFIXES)
    if not paths:
        raise ConfigError(f"{key}={folder}: got no audio there, expected files of {' '.join(sorted(SOUND_SUFFIXES))}")
    files = []
    for path in paths:
        try:
            info = audio_info(path)
        except DataError as error:
            raise ConfigError(f"{key}: {error}") from error
        if not info.num_frames:
            raise ConfigError(f"{key}: {path}: has no samples")
        files.append((str(path), info))
    return tuple(files)
