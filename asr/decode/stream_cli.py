"""`asr decode MODEL --stream FILE...`, `--stream -`, `--microphone`: text while the audio comes."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from asr.audio.io import audio_blocks
from asr.decode.output import as_json, as_text
from asr.errors import AsrError, ConfigError, DataError

if TYPE_CHECKING:
    from asr.decode.recognizer import Recognizer
    from asr.types import Transcript

Chunks = Iterator[NDArray[Any]]

FILE_MARKS = (b"RIFF", b"fLaC", b"OggS", b"ID3")  # how files begin that people pipe in the place of samples


def run(recognizer: Recognizer, options: argparse.Namespace) -> int:
    """Transcribe the sources that `options` name, one after the other; exit status 1 if one could not be read."""
    failures = 0
    sources = ["microphone"] if options.microphone else options.audio
    for source in sources:
        try:
            rate, chunks = _open(source, recognizer, options)
            _transcribe(recognizer, source, rate, chunks, options, named=len(sources) > 1)
        except AsrError as error:
            failures += 1
            print(f"asr decode: {error}", file=sys.stderr, flush=True)
    return 1 if failures else 0


def _transcribe(
    recognizer: Recognizer, source: str, rate: int, chunks: Chunks, options: argparse.Namespace, *, named: bool
) -> None:
    stream = recognizer.stream(rate)
    broken: AsrError | None = None
    show = _Json(source) if options.json else _Lines(source if named else "")
    try:
        for chunk in chunks:
            stream.accept_waveform(chunk)
            result = stream.result()
            for segment in result.segments:
                show.final(segment)
            show.partial(result.stable, result.unstable)
    except KeyboardInterrupt:  # what was heard is not lost
        print(file=sys.stderr)
    except AsrError as error:  # nor here
        broken = error
    last = stream.finish()
    for segment in stream.result().segments:
        show.final(segment)
    if last.text or not (options.endpoints or broken):
        show.final(last)
    if broken:
        raise broken


class _Lines:
    """Finished segments on standard output; the running text redrawn on one line of a terminal's standard error."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.shown = ""
        self.redraw = sys.stderr.isatty()

    def partial(self, stable: str, unstable: str) -> None:
        text = (stable + unstable)[-self._width() :]
        if self.redraw and text != self.shown:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
            self.shown = text

    def final(self, transcript: Transcript) -> None:
        if self.redraw:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self.shown = ""
        print(as_text(self.name, transcript), flush=True)

    def _width(self) -> int:
        import shutil

        return max(20, shutil.get_terminal_size().columns - 1)


class _Json:
    """One object a line: "partial" and "stable" when the text has changed, the transcript at its end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.shown: tuple[str, str] | None = None

    def partial(self, stable: str, unstable: str) -> None:
        if (stable, unstable) != self.shown:
            self.shown = (stable, unstable)
            values = {"audio": self.name, "partial": stable + unstable, "stable": stable}
            print(json.dumps(values, ensure_ascii=False), flush=True)

    def final(self, transcript: Transcript) -> None:
        self.shown = None
        print(as_json(self.name, transcript), flush=True)


def _open(source: str, recognizer: Recognizer, options: argparse.Namespace) -> tuple[int, Chunks]:
    """The rate of a source's audio, and its chunks of `--chunk-ms`."""
    seconds = options.chunk_ms / 1000
    if source == "microphone" and options.microphone:
        rate = options.sample_rate or recognizer.sample_rate_hz
        return rate, _microphone(rate, round(seconds * rate))
    if source == "-":
        rate = options.sample_rate or recognizer.sample_rate_hz
        return rate, _standard_input(round(seconds * rate))
    rate = recognizer.sample_rate_hz
    return rate, _file(source, rate, round(seconds * rate), seconds if options.realtime else 0.0)


def _file(path: str, rate: int, size: int, seconds: float) -> Chunks:
    """Chunks of a file, each one when it would have been recorded if `seconds` is not 0."""
    start, number = time.monotonic(), 0
    for block in audio_blocks(path, sample_rate_hz=rate):
        for position in range(0, len(block), size):
            number += 1
            if seconds:
                time.sleep(max(0.0, start + number * seconds - time.monotonic()))
            yield block[position : position + size]


def _standard_input(size: int) -> Chunks:
    """Signed 16-bit little-endian samples, one channel, as they come; at most `size` of them at a time."""
    if sys.stdin is None:
        raise DataError("standard input: is closed, expected 16-bit samples (s16le, one channel)")
    source, begin, rest = sys.stdin.fileno(), b"", b""
    while len(begin) < 4 and (piece := os.read(source, 4 - len(begin))):
        begin += piece
    if begin.startswith(FILE_MARKS):
        raise DataError(
            f"standard input: got a file ({begin!r}), expected raw samples (s16le, one channel); give the file instead"
        )
    for piece in chain([begin], iter(lambda: os.read(source, 2 * size), b"")):
        piece = rest + piece
        even = len(piece) & ~1
        rest = piece[even:]
        yield np.frombuffer(piece[:even], dtype="<i2").astype(np.int16, copy=False)
    if rest:
        raise DataError("standard input: got an odd number of bytes, expected 16-bit samples (s16le, one channel)")


def _microphone(rate: int, size: int) -> Chunks:
    try:
        import sounddevice  # type: ignore[import-not-found]
    except (ImportError, OSError) as error:  # OSError: PortAudio is missing
        raise ConfigError(
            f"--microphone needs sounddevice and PortAudio ({error}): pip install 'asr-toolkit[microphone]'; or record "
            "with another program: arecord -f S16_LE -r 16000 -c 1 | asr decode MODEL --stream -"
        ) from None
    with sounddevice.InputStream(samplerate=rate, channels=1, dtype="int16") as device:
        print("listening; Ctrl-C ends", file=sys.stderr, flush=True)
        while True:
            samples, _ = device.read(size)
            yield samples[:, 0]
