"""Features against kaldi-native-fbank, a plain DFT, and hand-worked values."""

import math

import kaldi_native_fbank
import numpy as np
import pytest
import soundfile
import torch

from asr.features.spectrum import LogMel, LogSpectrogram, mel_filters
from tests.support.shared_data import shared_data


def kaldi_fbank(samples: np.ndarray) -> torch.Tensor:
    """kaldi-native-fbank as sherpa-onnx 2.0.1 sets it up for NeMo models."""
    options = kaldi_native_fbank.FbankOptions()
    frame, mel = options.frame_opts, options.mel_opts
    frame.samp_freq, frame.dither, frame.snip_edges, frame.remove_dc_offset = 16000, 0, True, False
    frame.window_type, frame.preemph_coeff = "hann", 0.97
    mel.num_bins, mel.low_freq, mel.high_freq, mel.is_librosa, mel.norm = 80, 0, 0, True, "slaney"
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(16000, samples.tolist())
    fbank.input_finished()
    return torch.tensor(np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)]))


def log_mel() -> LogMel:
    return LogMel(window_samples=400, sample_rate_hz=16000, num_mels=80, preemphasis=0.97)


def frames(samples: torch.Tensor, window: int) -> torch.Tensor:
    return samples.unfold(0, window, 160)[None]


def test_log_mel_is_kaldi_native_fbanks_on_noise() -> None:
    samples = 0.1 * torch.randn(16000)
    assert float((log_mel()(frames(samples, 400))[0] - kaldi_fbank(samples.numpy())).abs().max()) < 2e-4


def test_log_mel_is_kaldi_native_fbanks_on_speech() -> None:
    files = sorted(shared_data("an4").rglob("*.flac"))[::200]
    assert files
    for file in files:
        samples, rate = soundfile.read(file, dtype="float32")
        assert rate == 16000
        got = log_mel()(frames(torch.from_numpy(samples), 400))[0]
        assert float((got - kaldi_fbank(samples)).abs().max()) < 1e-3


def test_log_mel_of_silence_is_the_floor() -> None:
    out = log_mel()(torch.zeros(1, 2, 400))
    assert torch.allclose(out, torch.full((1, 2, 80), math.log(2**-23)))


@pytest.mark.parametrize("bin_index", [1, 40, 159])
def test_log_spectrogram_of_a_tone(bin_index: int) -> None:
    """A sine of amplitude a at a bin's centre has power (a * sum(window) / 2)^2 there."""
    time = torch.arange(320, dtype=torch.float64)
    tone = 0.5 * torch.sin(2 * math.pi * bin_index / 320 * time + 0.3)
    out = LogSpectrogram(window_samples=320).double()(tone[None, None])[0, 0]
    assert out.shape == (161,)
    assert int(out.argmax()) == bin_index
    window_sum = 160.0  # of a periodic Hann window of 320
    # Near 0 Hz and half the rate the tone's mirror image leaks in through the window.
    tolerance = 1e-6 if bin_index == 40 else 0.7
    assert float(out[bin_index]) == pytest.approx(2 * math.log(0.5 * window_sum / 2), abs=tolerance)


def test_log_spectrogram_floor_is_what_rounding_to_16_bits_leaves() -> None:
    """The mean power of rounding noise in a bin is the floor, to a few percent."""
    spectrogram = LogSpectrogram(window_samples=320)
    signal = 0.5 * torch.rand(4000, 320, dtype=torch.float64)
    noise = (signal * 2**15).round() / 2**15 - signal
    window = spectrogram.window.double()
    power = torch.fft.rfft(noise * window).abs().square()[:, 1:-1].mean()
    assert float(power) == pytest.approx(spectrogram.floor, rel=0.05)
    assert float(spectrogram(torch.zeros(1, 1, 320)).max()) == pytest.approx(math.log(spectrogram.floor))


def test_mel_filters_have_slaney_area_and_cover_every_band() -> None:
    filters = mel_filters(80, 257, 16000)
    assert filters.shape == (257, 80)
    assert bool((filters >= 0).all())
    assert bool((filters.sum(0) > 0).all())
    wide = filters[:, 60:]  # narrow triangles are sampled too coarsely for their area to show
    assert torch.allclose(wide.sum(0) * 8000 / 256, torch.ones(20), atol=0.02)
