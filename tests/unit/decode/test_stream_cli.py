"""`asr decode --stream`: what was heard is shown, whatever the source's end; what is no audio is refused."""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.decode import stream_cli
from asr.decode.recognizer import Recognizer
from tests.unit.decode.test_stream import RATE_HZ, audio, checkpoint

SAMPLES = (audio(1.0) * 16384).astype(np.int16)
HEARD = SAMPLES.astype(np.float32) * np.float32(1 / 32768)


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return Recognizer(checkpoint({"name": "gru", "bidirectional": False}), "cpu")


def run(recognizer: Recognizer, *sources: str) -> int:
    options = argparse.Namespace(
        audio=list(sources),
        microphone=False,
        json=False,
        endpoints=False,
        chunk_ms=160,
        sample_rate=None,
        realtime=False,
    )
    return stream_cli.run(recognizer, options)


def pipe(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Let `data` be standard input."""
    read, write = os.pipe()
    os.write(write, data)  # less than a pipe holds
    os.close(write)
    monkeypatch.setattr(sys, "stdin", os.fdopen(read))


@pytest.mark.parametrize("end", [b"", b"x"])
def test_samples_from_standard_input(
    end: bytes, recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, SAMPLES.astype("<i2").tobytes() + end)
    with sys.stdin:
        assert run(recognizer, "-") == len(end)
    said = capsys.readouterr()
    assert said.out.strip() == recognizer.transcribe(HEARD).text
    assert said.out.strip()
    assert ("odd number of bytes" in said.err) == bool(end)


@pytest.mark.parametrize("data", [b"", b"a", b"ab"])
def test_hardly_any_samples(
    data: bytes, recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, data)
    with sys.stdin:
        assert run(recognizer, "-") == len(data) % 2
    assert capsys.readouterr().out == ("" if len(data) % 2 else "\n")


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_a_file_that_is_piped_is_refused(
    suffix: str,
    tmp_path: Path,
    recognizer: Recognizer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    soundfile.write(tmp_path / f"a.{suffix}", SAMPLES, RATE_HZ)
    pipe(monkeypatch, (tmp_path / f"a.{suffix}").read_bytes())
    with sys.stdin:
        assert run(recognizer, "-") == 1
    said = capsys.readouterr()
    assert not said.out
    assert "expected raw samples (s16le, one channel); give the file instead" in said.err


def test_a_closed_standard_input(
    recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert run(recognizer, "-") == 1
    assert "standard input: is closed" in capsys.readouterr().err


def test_a_file_that_breaks_off(tmp_path: Path, recognizer: Recognizer, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cut.flac"
    soundfile.write(path, np.tile(SAMPLES, 20), RATE_HZ)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert run(recognizer, str(path), str(tmp_path / "none.flac")) == 1
    said = capsys.readouterr()
    name, text = said.out.split("\t")
    assert name == str(path)
    whole = recognizer.transcribe(np.tile(HEARD, 20)).text
    assert len(text.strip()) > 10
    assert whole.startswith(text.strip()[:-3])  # the end of what is there may be heard in another way
    assert "cut.flac: truncated" in said.err
    assert "none.flac: No such file" in said.err
