"""Audio that libsndfile does not know (m4a, mp4, webm, aac, ...), through FFmpeg's libraries in PyAV."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr.audio.header import AudioError, AudioInfo, broken_off

PRIMING_SECONDS = 0.1  # encoders' delay and padding, by which a container's stated length may exceed what is decoded
ESTIMATED = {"aac", "amr", "amrnb", "amrwb"}  # raw streams: FFmpeg guesses their length from the bit rate


class MediaFile:
    """The first audio stream of a media file.

    Args:
        source: path, or the file's bytes.
        name: of the audio in messages.

    Raises:
        AudioError: PyAV is not installed, or the file is damaged or holds no audio.
    """

    def __init__(self, source: str | Path | bytes, name: str) -> None:
        try:
            import av  # an extra
            from av.error import FFmpegError
        except ImportError as error:
            raise AudioError(
                "unreadable",
                f"{name}: not a sound file that libsndfile knows (wav, flac, ogg, opus, mp3, aiff, au, sph, caf); "
                "m4a, mp4, webm and aac need: pip install 'asr-toolkit[media]'",
            ) from error
        self._ffmpeg_error = FFmpegError
        self._name = name
        try:
            self._container = av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source), "r")
        except (FFmpegError, OSError) as error:
            raise AudioError("unreadable", f"{name}: not readable as audio: {error}") from error
        if not self._container.streams.audio:
            self._container.close()
            raise AudioError("unreadable", f"{name}: holds no audio stream")
        self._stream = self._container.streams.audio[0]
        if self._stream.codec_context is None:
            self._container.close()
            raise AudioError("unreadable", f"{name}: its audio is coded in a way that FFmpeg does not know; convert it")
        self._resampler = av.AudioResampler(format="flt")  # packed float32, rate and channels as they are
        rate, microseconds = self._stream.rate, self._container.duration or 0
        self.info = AudioInfo(round(microseconds * rate / 1_000_000), rate, self._stream.channels)

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """(n, channels) pieces, about as many frames as the container states."""
        got = 0
        stated = 0 if self._container.format.name in ESTIMATED else self.info.num_frames
        try:
            for coded in self._container.decode(self._stream):
                for frame in self._resampler.resample(coded):
                    got += frame.samples
                    yield frame.to_ndarray().astype(np.float32, copy=False).reshape(-1, self.info.num_channels)
        except self._ffmpeg_error as error:
            raise broken_off(self._name, f"got {got} frames, its header says {stated} ({error})") from error
        except ValueError as error:  # the resampler's, which is set up for the first frame
            raise AudioError(
                "unreadable",
                f"{self._name}: its sample rate or channels change after {got} frames, expected the same throughout "
                "(files joined to one?); convert it anew",
            ) from error
        if got < stated - PRIMING_SECONDS * self.info.sample_rate_hz:
            raise broken_off(self._name, f"got {got} frames, its header says {stated}")

    def close(self) -> None:
        """Close the file."""
        self._container.close()
