"""Resampling: chunked equals whole, and the filter does what it should."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.audio.resample import StreamResampler, resample

RATES = [(44_100, 16_000), (8_000, 16_000), (48_000, 16_000), (17_600, 16_000), (16_000, 16_000)]


def tone(hz: float, rate_hz: int, seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz).astype(np.float32)


@given(st.sampled_from(RATES), st.lists(st.sampled_from([0, 1, 7, 160, 1601, 5000]), max_size=12))
def test_chunked_equals_whole(rates: tuple[int, int], chunks: list[int]) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, sum(chunks)).astype(np.float32)
    stream = StreamResampler(*rates)
    parts, start = [], 0
    for size in chunks:
        parts.append(stream.push(samples[start : start + size]))
        start += size
    streamed = np.concatenate([*parts, stream.finish()])
    assert streamed.dtype == np.float32
    assert np.array_equal(streamed, resample(samples, *rates))


@pytest.mark.parametrize("rates", RATES)
def test_length(rates: tuple[int, int]) -> None:
    assert abs(len(resample(np.zeros(rates[0] * 3, np.float32), *rates)) - rates[1] * 3) <= 1


def test_passband_is_kept_and_aliases_are_not() -> None:
    inside = resample(tone(1000, 48_000), 48_000, 16_000)
    assert np.abs(inside - tone(1000, 16_000))[1000:-1000].max() < 1e-3
    alias = resample(tone(8500, 48_000), 48_000, 16_000)
    assert np.abs(alias[1000:-1000]).max() < 1e-4  # -80 dB


def test_misuse() -> None:
    stream = StreamResampler(8_000, 16_000)
    with pytest.raises(ValueError, match="got float64 of shape"):
        stream.push(np.zeros(3))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"shape \(3, 1\)"):
        stream.push(np.zeros((3, 1), np.float32))
    stream.finish()
    with pytest.raises(ValueError, match="ended this stream"):
        stream.push(np.zeros(3, np.float32))
