"""The spectrogram, computed from samples inside the model, offline and streaming."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, overload

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from asr.config.schema import Features
from asr.errors import ConfigError, NotStreamable
from asr.features.normalize import FeatureStatistics, GlobalNormalization, NoNormalization, UtteranceNormalization
from asr.features.spectrum import LogMel, LogSpectrogram


def build(config: Features, sample_rate_hz: int) -> FeatureExtractor:
    """Make what `config` describes, for audio at `sample_rate_hz`.

    Raises:
        ConfigError: the window or the hop is not a whole number of samples, the hop is longer than the window, or
            there are more mel bins than the DFT can tell apart.
    """
    window = _whole_samples("features.window_seconds", config.window_seconds, sample_rate_hz)
    hop = _whole_samples("features.hop_seconds", config.hop_seconds, sample_rate_hz)
    if hop > window:
        raise ConfigError(
            f"features.hop_seconds: got {config.hop_seconds} s, expected at most features.window_seconds "
            f"({config.window_seconds} s); samples between two windows would go unheard"
        )
    if config.kind == "log_mel":
        spectrum: LogMel | LogSpectrogram = LogMel(
            window_samples=window,
            sample_rate_hz=sample_rate_hz,
            num_mels=config.num_mels,
            preemphasis=config.preemphasis,
        )
        empty = int((spectrum.filters == 0).all(0).sum())
        if empty:
            raise ConfigError(
                f"features.num_mels: got {config.num_mels}, of which {empty} lie between two bins of the DFT and would "
                "always be silent; expected fewer, or a longer features.window_seconds"
            )
    else:
        spectrum = LogSpectrogram(window_samples=window)
    return FeatureExtractor(
        spectrum=spectrum,
        window_samples=window,
        hop_samples=hop,
        sample_rate_hz=sample_rate_hz,
        normalization=config.normalization,
    )


class FeatureState(NamedTuple):
    """samples: (B, w), those that the next frames still need."""

    samples: Tensor


class FeatureExtractor(nn.Module):
    """Frames, spectrum, normalisation. Frame t covers samples [t * hop, t * hop + window) and depends on no other.

    Attributes:
        num_features: F.
        not_streamable: why it cannot stream and what does; empty if it can.
    """

    def __init__(
        self,
        *,
        spectrum: LogMel | LogSpectrogram,
        window_samples: int,
        hop_samples: int,
        sample_rate_hz: int,
        normalization: Literal["global", "utterance", "none"],
    ) -> None:
        super().__init__()
        self.spectrum = spectrum
        self.num_features = spectrum.num_features
        self.window_samples, self.hop_samples, self.sample_rate_hz = window_samples, hop_samples, sample_rate_hz
        self.normalization: nn.Module
        self.not_streamable = ""
        if normalization == "global":
            self.normalization = GlobalNormalization(self.num_features)
        elif normalization == "utterance":
            self.normalization = UtteranceNormalization()
            self.not_streamable = (
                "features.normalization=utterance needs the whole utterance for its mean and variance. "
                "Streamable: features.normalization=global"
            )
        else:
            self.normalization = NoNormalization()

    @property
    def hop_seconds(self) -> float:
        """Time between two frames."""
        return self.hop_samples / self.sample_rate_hz

    @property
    def window_seconds(self) -> float:
        """Time that a frame covers."""
        return self.window_samples / self.sample_rate_hz

    @overload
    def frame_count(self, num_samples: int) -> int: ...
    @overload
    def frame_count(self, num_samples: Tensor) -> Tensor: ...
    def frame_count(self, num_samples: int | Tensor) -> int | Tensor:
        """Frames of utterances of `num_samples` samples; 0 if they are shorter than a window."""
        frames = (num_samples - self.window_samples) // self.hop_samples + 1
        return frames.clamp(min=0) if isinstance(frames, Tensor) else max(0, frames)

    def forward(
        self, audio: Float[Tensor, "B N"], audio_lengths: Int[Tensor, "B"]
    ) -> tuple[Float[Tensor, "B T F"], Int[Tensor, "B"]]:
        """Samples in [-1, 1] -> normalised features and their frame counts; padding frames hold 0.

        There is always at least one frame, which is padding if no utterance is as long as a window.
        """
        audio = F.pad(audio, (0, max(0, self.window_samples - audio.shape[1])))
        lengths = self.frame_count(audio_lengths)
        features = self._features(audio)
        return self.normalization(features, lengths), lengths

    def fit_normalization(self, utterances: Iterable[NDArray[np.float32]]) -> None:
        """Set the global mean and standard deviation from (N,) samples each; nothing to do for the other kinds."""
        if not isinstance(self.normalization, GlobalNormalization):
            return
        statistics = FeatureStatistics(self.num_features)
        for samples in utterances:
            if len(samples) >= self.window_samples:
                statistics.add(self._features(torch.from_numpy(samples)[None].to(self.normalization.mean.device))[0])
        self.normalization.fit(statistics)

    def initial_state(self, batch_size: int, like: Tensor) -> FeatureState:
        """State before the first sample.

        Raises:
            NotStreamable: the normalisation needs the whole utterance.
        """
        self._require_streamable()
        return FeatureState(like.new_zeros(batch_size, 0))

    def step(self, samples: Float[Tensor, "B n"], state: FeatureState) -> tuple[Tensor, FeatureState]:
        """Take n >= 0 samples of each stream, give the frames that are complete: (B, t, F).

        Raises:
            NotStreamable: the normalisation needs the whole utterance.
        """
        self._require_streamable()
        waiting = torch.cat((state.samples, samples), 1)
        ready = self.frame_count(waiting.shape[1])
        kept = waiting[:, ready * self.hop_samples :]
        if not ready:
            return waiting.new_zeros(waiting.shape[0], 0, self.num_features), FeatureState(kept)
        features = self._features(waiting)
        lengths = torch.full((waiting.shape[0],), ready, device=waiting.device)
        return self.normalization(features, lengths), FeatureState(kept)

    def _require_streamable(self) -> None:
        if self.not_streamable:
            raise NotStreamable(self.not_streamable)

    def _features(self, audio: Tensor) -> Tensor:
        with torch.autocast(audio.device.type, enabled=False):
            return self.spectrum(audio.unfold(1, self.window_samples, self.hop_samples))


def _whole_samples(key: str, seconds: float, sample_rate_hz: int) -> int:
    samples = seconds * sample_rate_hz
    if round(samples) < 1 or abs(samples - round(samples)) > 1e-6:
        raise ConfigError(
            f"{key}: got {seconds} s, {samples:g} samples at {sample_rate_hz} Hz; expected a whole number"
        )
    return round(samples)
