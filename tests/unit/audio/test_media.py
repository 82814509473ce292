"""Formats that libsndfile lacks, through PyAV."""

import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asr.audio.io import AudioError, audio_info, read_audio

TONE = (0.3 * np.sin(2 * np.pi * 440 * np.arange(96_000) / 48_000)).astype(np.float32)


def encode(container: str, codec: str, options: dict[str, str], rate: int = 48_000, layout: str = "mono") -> bytes:
    av: Any = pytest.importorskip("av", reason="needs PyAV: pip install 'asr-toolkit[media]'")
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(TONE[None], format="fltp", layout="mono")
        frame.rate = 48_000
        frame.pts = 0
        fit = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
        for part in [*fit.resample(frame), *fit.resample(None)]:
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return file.getvalue()


KINDS = {
    "m4a": ("mp4", "aac", {}),
    "m4a_fragments": ("ipod", "aac", {"movflags": "frag_keyframe+empty_moov"}),
    "webm": ("webm", "libopus", {}),
    "aac": ("adts", "aac", {}),
}


@pytest.mark.parametrize("name", KINDS)
def test_reads(name: str) -> None:
    data = encode(*KINDS[name])
    samples = read_audio(data)
    assert abs(len(samples) - 32_000) < 1600
    assert abs(np.sqrt(np.mean(samples[4000:-4000] ** 2)) - 0.3 / np.sqrt(2)) < 0.01
    info = audio_info(data)
    assert (info.sample_rate_hz, info.num_channels) == (48_000, 1)
    assert abs(info.seconds - 2.0) < 0.1


@pytest.mark.parametrize("name", KINDS)
def test_truncated(name: str) -> None:
    data = encode(*KINDS[name])
    with pytest.raises(AudioError):
        read_audio(data[: len(data) * 6 // 10])


def test_random_bytes() -> None:
    pytest.importorskip("av", reason="needs PyAV: pip install 'asr-toolkit[media]'")
    for magic in (b"\0\0\0\x20ftypM4A ", b"\x1a\x45\xdf\xa3", b"\xff\xf1\x50\x80"):
        with pytest.raises(AudioError):
            read_audio(magic + np.random.default_rng(0).bytes(3000))


def test_audio_of_an_unknown_codec() -> None:
    data = encode("matroska", "aac", {}).replace(b"A_AAC", b"A_XYZ")
    with pytest.raises(AudioError, match=r"x\.mka: its audio is coded in a way that FFmpeg does not know"):
        audio_info(data, name="x.mka")


@pytest.mark.parametrize("change", [{"rate": 16_000}, {"layout": "stereo"}], ids=["rate", "channels"])
def test_files_of_different_make_joined_to_one(change: dict[str, Any]) -> None:
    parts = encode("adts", "aac", {}), encode("adts", "aac", {}, **change)
    for data in (parts[0] + parts[1], parts[1] + parts[0]):
        with pytest.raises(AudioError, match=r"x\.aac: its sample rate or channels change after \d+ frames") as caught:
            read_audio(data, name="x.aac")
        assert caught.value.reason == "unreadable"


def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.m4a")
    path.write_bytes(encode(*KINDS["m4a"]))
    assert audio_info(path).sample_rate_hz == 48_000


def test_without_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioError, match=r"talk\.m4a: .*pip install 'asr-toolkit\[media\]'"):
        read_audio(b"\0\0\0\x20ftypM4A " + bytes(100), name="talk.m4a")
