"""Sound files through libsndfile, with the checks that it leaves out.

libsndfile returns fewer samples than a file once had without a word, so each format is checked here:

    flac                      decoded frames against the header's
    wav, aiff, au, caf, w64   the stated size of the audio against the file's
    sph (NIST)                sample_count against the file's size
    ogg (vorbis, opus)        the last page has to carry the end-of-stream flag, and no page may be lost
    mp3                       decoded frames against the Xing/Info header. Without one (some constant bit rate encoders)
                              a cut cannot be told from the end; damage inside a frame can go unnoticed in any mp3
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from asr.audio.header import AudioError, AudioInfo, broken_off

BLOCK_FRAMES = 65_536

# libsndfile's log where a header states more bytes than the file has: data (wav, caf), SSND (aiff), Data Size (au),
# Riff size (rf64), riff (w64).
_STATED_BYTES = re.compile(r"^ *(?:data|SSND|Data Size|Riff size|riff) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNSTATED_BYTES = 0x7FFF_0000  # programs that write to a pipe state about 2 or 4 GiB
_NIST_COUNT = re.compile(rb"NIST_1A.*?\nsample_count -i (\d+)\n", re.DOTALL)
_OGG_PAGE_BYTES = 27 + 255 + 255 * 255  # the largest page: header, segment table, segments
_OGG_END_OF_STREAM = 4


class SoundFile:
    """An open file of a format that libsndfile knows.

    Args:
        source: path, or the file's bytes.
        name: of the audio in messages.

    Raises:
        AudioError: the file is damaged.
        UnknownFormat: libsndfile does not know what it is.
    """

    def __init__(self, source: str | Path | bytes, name: str) -> None:
        self._source, self._name = source, name
        try:
            self._file = soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source)
        except (soundfile.SoundFileError, OSError) as error:
            if "Format not recognised" in str(error):
                raise UnknownFormat from error
            raise AudioError("unreadable", f"{name}: not readable as audio: {_words(error)}") from error
        self.info = AudioInfo(self._file.frames, self._file.samplerate, self._file.channels)

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """(n, channels) pieces, as many frames in all as the header states."""
        self._check_complete()
        stated, got = self.info.num_frames, 0
        while got < stated:
            try:
                block = self._file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)
            except soundfile.SoundFileError as error:
                raise broken_off(self._name, f"{_frames(got, stated)} ({_words(error)})") from error
            if not len(block):
                raise broken_off(self._name, _frames(got, stated))
            got += len(block)
            yield np.asarray(block, dtype=np.float32)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _check_complete(self) -> None:
        """Find the cut where libsndfile takes the file's end for the audio's."""
        for stated, found in _STATED_BYTES.findall(self._file.extra_info):
            if int(found) < int(stated) < _UNSTATED_BYTES:
                raise broken_off(self._name, f"got {found} bytes of audio, its header says {stated}")
        if self._file.format == "NIST":
            match = _NIST_COUNT.match(self._read(0, 1024))
            if match and self.info.num_frames < int(match[1]):
                raise broken_off(self._name, _frames(self.info.num_frames, int(match[1])))
        elif self._file.format == "OGG" and not _ends_stream(self._read(-2 * _OGG_PAGE_BYTES, 2 * _OGG_PAGE_BYTES)):
            got = self.info.num_frames
            raise broken_off(self._name, f"got {got} frames, and the last Ogg page does not end the stream")

    def _read(self, start: int, count: int) -> bytes:
        """Bytes of the file; a negative start counts from its end."""
        with io.BytesIO(self._source) if isinstance(self._source, bytes) else Path(self._source).open("rb") as handle:
            size = handle.seek(0, io.SEEK_END)
            handle.seek(max(0, size + start) if start < 0 else start)
            return handle.read(count)


class UnknownFormat(Exception):
    """A sign to try another decoder: libsndfile does not know the format. No user sees it."""


def _ends_stream(tail: bytes) -> bool:
    """Whether the last Ogg page in `tail` is whole and flagged as its stream's end (RFC 3533, section 6)."""
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if len(page) < 27 or not page[5] & _OGG_END_OF_STREAM:
        return False
    num_segments = page[26]
    return len(page) >= 27 + num_segments + sum(page[27 : 27 + num_segments])


def _frames(got: int, stated: int) -> str:
    return f"got {got} frames, its header says {stated}"


def _words(error: Exception) -> str:
    """What libsndfile says, without the file's name that soundfile puts before it."""
    return str(getattr(error, "error_string", error)).rstrip(".")
