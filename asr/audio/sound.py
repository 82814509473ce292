"""Sound files through libsndfile, with the checks that it leaves out.

libsndfile returns fewer samples than a file once had without a word, so each format is checked here:

    flac                      decoded frames against the header's
    wav, aiff, au, caf, w64   the stated size of the audio against the file's
    sph (NIST)                sample_count against the file's size
    ogg (vorbis, opus)        every page's checksum and number, to the end of the stream (`asr.audio.ogg`)
    mp3                       decoded frames against the Xing/Info header. Without one (some constant bit rate encoders)
                              a cut cannot be told from the end; damage inside a frame can go unnoticed in any mp3
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from asr.audio import ogg
from asr.audio.header import AudioError, AudioInfo, broken_off

BLOCK_FRAMES = 65_536
NIST_HEADER_BYTES = 1024

# libsndfile's log where a header states more bytes than the file has: data (wav, caf), SSND (aiff), Data Size (au),
# Riff size (rf64), riff (w64).
_STATED_BYTES = re.compile(r"^ *(?:data|SSND|Data Size|Riff size|riff) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNSTATED_BYTES = 0x7FFF_0000  # programs that write to a pipe state about 2 or 4 GiB
_NIST_COUNT = re.compile(rb"NIST_1A.*?\nsample_count -i (\d+)\n", re.DOTALL)


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
        # As bytes, since soundfile cannot encode a name that is not UTF-8; its types do not say that it takes them.
        opened: Any = io.BytesIO(source) if isinstance(source, bytes) else os.fsencode(source)
        try:
            self._file = soundfile.SoundFile(opened)
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
            with self._reopened() as handle:
                match = _NIST_COUNT.match(handle.read(NIST_HEADER_BYTES))
            if match and self.info.num_frames < int(match[1]):
                raise broken_off(self._name, _frames(self.info.num_frames, int(match[1])))
        elif self._file.format == "OGG":
            with self._reopened() as handle:
                wrong = ogg.what_is_wrong(handle)
            if wrong:
                raise broken_off(self._name, f"got {self.info.num_frames} frames; {wrong}")

    def _reopened(self) -> BinaryIO:
        return io.BytesIO(self._source) if isinstance(self._source, bytes) else Path(self._source).open("rb")


class UnknownFormat(Exception):
    """A sign to try another decoder: libsndfile does not know the format. No user sees it."""


def _frames(got: int, stated: int) -> str:
    return f"got {got} frames, its header says {stated}"


def _words(error: Exception) -> str:
    """What libsndfile says, without the file's name that soundfile puts before it."""
    return str(getattr(error, "error_string", error)).rstrip(".")
