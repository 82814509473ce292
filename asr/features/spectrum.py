"""From frames of samples to spectra: each frame by itself, so offline and streaming cannot differ.

`LogSpectrogram` is Deep Speech 2's (20 ms windows, 161 bins at 16 kHz). `LogMel` is NeMo's, as sherpa-onnx 2.0.1 and
kaldi-native-fbank (`is_librosa`) compute it: Hann window, Slaney mel filters, pre-emphasis in each frame.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from asr.nn import products

# 16-bit samples in [-1, 1) are rounded to steps of 2^-15; the rounding has the variance of a uniform error of one step.
QUANTIZATION_POWER = (2.0**-15) ** 2 / 12
MEL_FLOOR = 2.0**-23  # float32's epsilon, kaldi-native-fbank's floor


class LogSpectrogram(nn.Module):
    """log power of each DFT bin; floored at the power that 16-bit rounding puts there.

    Args:
        window_samples: W; there are W // 2 + 1 bins.
    """

    def __init__(self, *, window_samples: int) -> None:
        super().__init__()
        self.num_features = window_samples // 2 + 1
        self.window: Tensor
        self.register_buffer("window", _hann(window_samples), persistent=False)
        self.floor = QUANTIZATION_POWER * float(self.window.square().sum())

    def forward(self, frames: Float[Tensor, "B T W"]) -> Float[Tensor, "B T F"]:
        """Samples in [-1, 1] -> log power."""
        return _power(frames * self.window.to(frames.dtype), frames.shape[-1]).clamp(min=self.floor).log()


class LogMel(nn.Module):
    """log power in mel bands from 0 Hz to half the sample rate.

    Args:
        window_samples: W; frames are zero-padded to the next power of 2 for the DFT.
        sample_rate_hz: of the audio.
        num_mels: bands F.
        preemphasis: y[n] = x[n] - preemphasis x[n - 1] within each frame, with x[-1] = x[0].
    """

    def __init__(self, *, window_samples: int, sample_rate_hz: int, num_mels: int, preemphasis: float) -> None:
        super().__init__()
        self.num_features = num_mels
        self.preemphasis = preemphasis
        self.dft_size = 2 ** math.ceil(math.log2(window_samples))
        self.window: Tensor
        self.filters: Tensor
        self.register_buffer("window", _hann(window_samples), persistent=False)
        filters = mel_filters(num_mels, self.dft_size // 2 + 1, sample_rate_hz)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, frames: Float[Tensor, "B T W"]) -> Float[Tensor, "B T F"]:
        """Samples in [-1, 1] -> log mel power."""
        previous = torch.cat((frames[..., :1], frames[..., :-1]), -1)
        windowed = torch.sub(frames, previous, alpha=self.preemphasis) * self.window.to(frames.dtype)
        power = products.linear(_power(windowed, self.dft_size), self.filters.to(frames.dtype).mT)
        return power.clamp(min=MEL_FLOOR).log()


def mel_filters(num_mels: int, num_bins: int, sample_rate_hz: int) -> Float[Tensor, "bins mels"]:
    """Triangles on Slaney's mel scale, each of area 2 / its width in Hz (Slaney 1998, Auditory Toolbox; librosa).

    The scale is linear below 1000 Hz (15 mels) and logarithmic above, 27 mels for a factor of 6.4.
    """
    mels_a_hz, break_mel, break_hz, log_step = 3 / 200, 15.0, 1000.0, math.log(6.4) / 27
    top = break_mel + math.log(sample_rate_hz / 2 / break_hz) / log_step
    mels = torch.linspace(0, top, num_mels + 2, dtype=torch.float64)
    edges = torch.where(mels < break_mel, mels / mels_a_hz, break_hz * torch.exp((mels - break_mel) * log_step))
    hz = torch.linspace(0, sample_rate_hz / 2, num_bins, dtype=torch.float64)[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    triangles = torch.minimum((hz - low) / (centre - low), (high - hz) / (high - centre)).clamp(min=0.0)
    return (triangles * 2 / (high - low)).float()


def _hann(size: int) -> Tensor:
    return torch.hann_window(size, periodic=True, dtype=torch.float64).float()


def _power(frames: Tensor, dft_size: int) -> Tensor:
    spectrum = torch.fft.rfft(frames, n=dft_size)
    return spectrum.real.square() + spectrum.imag.square()
