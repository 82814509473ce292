"""Change the sample rate with soxr's HQ filter, whole or chunk by chunk: both give the same bits."""

from __future__ import annotations

import numpy as np
import soxr
from numpy.typing import NDArray


class StreamResampler:
    """Resamples audio that comes in chunks; the outputs put together equal `resample` of the whole, bit for bit.

    The filter looks 21 ms ahead (at 16 kHz), so `push` returns that much less than it was given until `finish`.

    Args:
        from_hz, to_hz: sample rates.
    """

    def __init__(self, from_hz: int, to_hz: int) -> None:
        self.from_hz, self.to_hz = from_hz, to_hz
        self._filter = None if from_hz == to_hz else soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32")
        self._finished = False

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take (N,) samples, N >= 0, and give those that are ready at the new rate."""
        return self._process(samples, last=False)

    def finish(self) -> NDArray[np.float32]:
        """Give what the filter still holds. Nothing can be pushed after it."""
        rest = self._process(np.zeros(0, dtype=np.float32), last=True)
        self._finished = True
        return rest

    def _process(self, samples: NDArray[np.float32], last: bool) -> NDArray[np.float32]:
        if self._finished:
            raise ValueError("StreamResampler: finish() ended this stream; make a new one for other audio")
        if samples.dtype != np.float32 or samples.ndim != 1:
            raise ValueError(f"samples: got {samples.dtype} of shape {samples.shape}, expected float32 of shape (N,)")
        if self._filter is None:
            return samples
        return self._filter.resample_chunk(samples, last=last)


def resample(samples: NDArray[np.float32], from_hz: int, to_hz: int) -> NDArray[np.float32]:
    """(N,) samples at `from_hz` -> (about N * to_hz / from_hz,) at `to_hz`. Loud audio can overshoot 1 a little."""
    stream = StreamResampler(from_hz, to_hz)
    return np.concatenate((stream.push(samples), stream.finish()))
