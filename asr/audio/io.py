"""Read audio that nobody vouches for: bounded before memory is taken, and never silently short.

`asr.audio.sound` says what is checked in each format, and what cannot be.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr.audio.header import AudioError, AudioFile, AudioInfo, check_header
from asr.audio.resample import StreamResampler
from asr.audio.sound import SoundFile, UnknownFormat

__all__ = ["MEDIA_SUFFIXES", "SOUND_SUFFIXES", "AudioError", "AudioInfo", "audio_blocks", "audio_info", "read_audio"]

# As what folders are searched for: formats of libsndfile, and those that need FFmpeg.
SOUND_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".oga", ".mp3", ".aiff", ".aif", ".au", ".sph", ".w64", ".caf"}
MEDIA_SUFFIXES = {".m4a", ".mp4", ".aac", ".webm", ".mka"}

MAX_SECONDS = 4 * 3600.0  # 0.9 GB as float32 at 16 kHz
MAX_PEAK = 16.0  # float audio above this (+24 dBFS) was never scaled to [-1, 1]


def audio_info(source: str | Path | bytes, *, name: str | None = None) -> AudioInfo:
    """Read the header of a file, or of one in memory; the audio itself is not looked at.

    Raises:
        AudioError: the file is missing, empty, not audio, or its header states what no speech has.
    """
    with closing(_open(source, _name(source, name))) as file:
        return file.info


def read_audio(
    source: str | Path | bytes,
    *,
    sample_rate_hz: int = 16_000,
    max_seconds: float = MAX_SECONDS,
    name: str | None = None,
) -> NDArray[np.float32]:
    """Read a file, or one in memory, as mono: the mean of its channels, resampled with soxr HQ.

    Samples beyond [-1, 1] in the file (float formats, overshoot of lossy codecs) are clipped, as playing them would;
    resampling loud audio can overshoot 1 a little and is left alone.

    Args:
        source: path, or the file's bytes.
        sample_rate_hz: of the result.
        max_seconds: longer audio is refused.
        name: of the audio in messages; default the path.

    Returns:
        (N,) float32; N = 0 for a sound file without audio in it.

    Raises:
        AudioError: the file is missing, empty, not audio, truncated, damaged, too long, or holds NaN or infinity.
    """
    parts = list(audio_blocks(source, sample_rate_hz=sample_rate_hz, max_seconds=max_seconds, name=name))
    parts = [part for part in parts if len(part)] or parts[:1]
    return np.concatenate(parts) if len(parts) > 1 else np.ascontiguousarray(parts[0])


def audio_blocks(
    source: str | Path | bytes,
    *,
    sample_rate_hz: int = 16_000,
    max_seconds: float = math.inf,
    name: str | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Read as `read_audio` does, block by block, in memory that does not depend on the length.

    Raises:
        AudioError: likewise; damage is found when it is reached.
    """
    name = _name(source, name)
    with closing(_open(source, name)) as file:
        info, frames = file.info, 0
        _check_length(info, max_seconds, name)
        resampler = StreamResampler(info.sample_rate_hz, sample_rate_hz)
        for block in file.blocks():
            frames += len(block)
            _check_length(AudioInfo(frames, info.sample_rate_hz, info.num_channels), max_seconds, name)
            yield resampler.push(_mono(block, name))
        yield resampler.finish()


def _name(source: str | Path | bytes, name: str | None) -> str:
    return name or ("<bytes>" if isinstance(source, bytes) else str(source))


def _open(source: str | Path | bytes, name: str) -> AudioFile:
    """Open with libsndfile, else with FFmpeg, and check the header."""
    size = len(source) if isinstance(source, bytes) else _file_size(Path(source), name)
    if size == 0:
        raise AudioError("unreadable", f"{name}: the file is empty (0 bytes); expected audio")
    try:
        file = SoundFile(source, name)
    except UnknownFormat:
        from asr.audio.media import MediaFile

        file = MediaFile(source, name)
    try:
        check_header(file.info, size, name)
    except AudioError:
        file.close()
        raise
    return file


def _file_size(path: Path, name: str) -> int:
    try:
        status = path.stat()
    except OSError as error:
        raise AudioError("missing", f"{name}: {error.strerror}; expected an audio file") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or device"
        raise AudioError("unreadable", f"{name}: {kind}; expected an audio file")
    return status.st_size


def _check_length(info: AudioInfo, max_seconds: float, name: str) -> None:
    if info.seconds > max_seconds:
        raise AudioError("too_long", f"{name}: {info.seconds:.1f} s long, the limit is {max_seconds:g} s; split it")


def _mono(block: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """(n, channels) -> (n,) in [-1, 1]."""
    if check_samples(block, name) > 1.0:
        block = block.clip(-1.0, 1.0)
    return block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)


def check_samples(block: NDArray[np.float32], name: str) -> float:
    """Refuse samples that are no audio's; else their peak, which can be a little above 1.

    Raises:
        AudioError: there is NaN or infinity among them, or they were never scaled to [-1, 1].
    """
    peak = max(block.max(initial=0.0), -block.min(initial=0.0))  # NaN if there is one
    if not np.isfinite(peak):
        raise AudioError("non_finite", f"{name}: has NaN or infinite samples; expected numbers in [-1, 1]")
    if peak > MAX_PEAK:
        raise AudioError("unreadable", f"{name}: has samples up to {peak:g}, expected [-1, 1]; divide by full scale")
    return float(peak)
