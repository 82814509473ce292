"""What an audio file's header states, and the bounds within which it is believed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from asr.errors import DataError

MAX_CHANNELS = 8
MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 384_000
MAX_FRAMES_PER_BYTE = 8192  # flac codes 65535 frames of digital silence in 11 bytes, opus 5760 in 2
UNKNOWN_FRAMES = 1 << 62  # libsndfile's word for a header that states no length is the largest int64
EMPTY_FILE_BYTES = 4096  # a larger file has audio: if its header states none, its writer died before filling that in

AudioFault = Literal["missing", "unreadable", "truncated", "non_finite", "empty_audio", "too_long"]


class AudioError(DataError):
    """Audio cannot be used; `reason` is the value of an `asr.data.ledger.Reason`."""

    def __init__(self, reason: AudioFault, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason

    def __str__(self) -> str:
        return self.args[1]


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What the header of an audio file states."""

    num_frames: int
    sample_rate_hz: int
    num_channels: int

    @property
    def seconds(self) -> float:
        """Length of the audio."""
        return self.num_frames / self.sample_rate_hz


class AudioFile(Protocol):
    """An open audio file: its header, and its samples in pieces, so that memory is bounded by the reader."""

    info: AudioInfo

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """(n, channels) pieces. Raises AudioError where the audio breaks off or is damaged."""
        ...

    def close(self) -> None:
        """Give the file back."""
        ...


def check_header(info: AudioInfo, size: int, name: str) -> None:
    """Refuse a header that no speech has, before memory is taken on its word.

    Args:
        info: the header.
        size: bytes of the whole file.
        name: of the file in messages.

    Raises:
        AudioError: what is wrong with it, all at once.
    """
    wrong = []
    if info.num_frames >= UNKNOWN_FRAMES:
        wrong.append("states no length (written to a pipe?)")
    elif info.num_frames > size * MAX_FRAMES_PER_BYTE:
        wrong.append(f"states {info.num_frames} frames in a file of {size} bytes")
    elif info.num_frames == 0 and size > EMPTY_FILE_BYTES:
        wrong.append(f"states no frames in a file of {size} bytes")
    if not MIN_RATE_HZ <= info.sample_rate_hz <= MAX_RATE_HZ:
        wrong.append(f"states {info.sample_rate_hz} Hz, expected {MIN_RATE_HZ}..{MAX_RATE_HZ}")
    if not 1 <= info.num_channels <= MAX_CHANNELS:
        wrong.append(f"states {info.num_channels} channels, expected 1..{MAX_CHANNELS}")
    if wrong:
        raise AudioError("unreadable", f"{name}: its header {' and '.join(wrong)}; convert it anew")


def broken_off(name: str, detail: str) -> AudioError:
    """The error for audio that is shorter than its file says."""
    return AudioError("truncated", f"{name}: truncated or damaged: {detail}; fetch or convert it anew")
