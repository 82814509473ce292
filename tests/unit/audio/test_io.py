"""Reading audio: right samples from good files, a clear error from bad ones, never silently less."""

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.audio import io as audio_io
from asr.audio.io import AudioError, audio_info, read_audio
from asr.audio.resample import resample
from tests.support.shared_data import shared_data

SECONDS = np.arange(32_000) / 16_000
TONES = [0.1 * np.sin(2 * np.pi * hz * SECONDS) * np.sin(np.pi * hz * SECONDS / 400) for hz in (220, 700, 1900)]
SPEECH = np.asarray(TONES, dtype=np.float32).sum(axis=0)
FORMATS = {
    "wav": ("WAV", "PCM_16"), "wav24": ("WAV", "PCM_24"), "wav_float": ("WAV", "FLOAT"), "wavex": ("WAVEX", "PCM_16"),
    "rf64": ("RF64", "PCM_16"), "w64": ("W64", "PCM_16"), "aiff": ("AIFF", "PCM_16"), "au": ("AU", "PCM_16"),
    "caf": ("CAF", "PCM_16"), "sph": ("NIST", "PCM_16"), "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"), "mp3": ("MP3", "MPEG_LAYER_III"),
}  # fmt: skip
LOSSY = {"ogg", "opus", "mp3"}


def encode(name: str, samples: np.ndarray = SPEECH, rate_hz: int = 16_000) -> bytes:
    kind, subtype = FORMATS[name]
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=kind, subtype=subtype)
    return file.getvalue()


def fails(source: str | Path | bytes, reason: str, match: str) -> None:
    with pytest.raises(AudioError, match=match) as caught:
        read_audio(source)
    assert caught.value.reason == reason


@pytest.mark.parametrize("name", FORMATS)
def test_reads_each_format(name: str, tmp_path: Path) -> None:
    data = encode(name)
    path = tmp_path / "file"
    path.write_bytes(data)
    samples = read_audio(path)
    assert samples.dtype == np.float32
    assert samples.shape == SPEECH.shape
    assert np.abs(samples - SPEECH)[100:-100].max() < (0.1 if name in LOSSY else 1e-4)
    assert np.array_equal(samples, read_audio(data))
    info = audio_info(path)
    assert (info.num_frames, info.sample_rate_hz, info.num_channels, info.seconds) == (32_000, 16_000, 1, 2.0)


def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    path.write_bytes(encode("wav"))
    assert np.array_equal(read_audio(path), read_audio(encode("wav")))


def test_channels_are_averaged_and_rates_changed() -> None:
    stereo = np.stack([SPEECH, -0.5 * SPEECH], axis=1)
    assert np.abs(read_audio(encode("wav_float", stereo)) - 0.25 * SPEECH).max() < 1e-6
    for rate_hz in (8_000, 44_100, 192_000):
        data = encode("wav_float", SPEECH, rate_hz)
        assert np.array_equal(read_audio(data), resample(SPEECH, rate_hz, 16_000))
    assert np.array_equal(read_audio(encode("wav_float"), sample_rate_hz=8_000), resample(SPEECH, 16_000, 8_000))


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode("flac", SPEECH, 44_100)
    whole = read_audio(data)
    monkeypatch.setattr("asr.audio.sound.BLOCK_FRAMES", 997)
    assert np.array_equal(whole, read_audio(data))


@pytest.mark.parametrize("samples", [np.zeros(0), np.ones(1) * 0.5, np.zeros(399), np.zeros(16_000)])
def test_short_and_silent(samples: np.ndarray) -> None:
    read = read_audio(encode("wav_float", samples))
    assert read.dtype == np.float32
    assert np.array_equal(read, samples)


def test_beyond_full_scale() -> None:
    loud = np.array([0.5, 1.5, -3.0], dtype=np.float32)
    assert read_audio(encode("wav_float", loud)).tolist() == [0.5, 1.0, -1.0]
    fails(encode("wav_float", loud * 10_000), "unreadable", r"samples up to 30000, expected \[-1, 1\]")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite(bad: float) -> None:
    samples = SPEECH.copy()
    samples[20_000] = bad
    fails(encode("wav_float", samples), "non_finite", "NaN or infinite")


def test_no_audio_at_all(tmp_path: Path) -> None:
    fails(tmp_path / "none.wav", "missing", r"none\.wav: No such file or directory; expected an audio file")
    fails(b"", "unreadable", r"the file is empty \(0 bytes\)")
    fails(tmp_path, "unreadable", "a folder; expected an audio file")
    os.mkfifo(tmp_path / "pipe")
    fails(tmp_path / "pipe", "unreadable", "pipe: a pipe or device; expected an audio file")
    fails(b"some text", "unreadable", "not a sound file that libsndfile knows|not readable as audio")
    with pytest.raises(AudioError, match=r"theirs\.wav: "):
        read_audio(b"RIFF but no more", name="theirs.wav")


@pytest.mark.parametrize("kept", [0.1, 0.6, 0.97])
@pytest.mark.parametrize("name", FORMATS)
def test_truncated(name: str, kept: float) -> None:
    data = encode(name)
    with pytest.raises(AudioError) as caught:
        read_audio(data[: int(kept * len(data))])
    assert caught.value.reason in {"truncated", "unreadable"}  # the latter where its header is cut, too
    if kept == 0.6 and name in {"wav", "ogg", "opus", "mp3", "flac", "sph"}:
        assert caught.value.reason == "truncated"
        assert "got " in str(caught.value)


@pytest.mark.parametrize("name", FORMATS)
def test_flipped_bytes_are_an_error_or_keep_the_length(name: str) -> None:
    data = encode(name)
    for position in np.random.default_rng(0).integers(len(data) // 10, len(data), 8):
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        try:
            samples = read_audio(bytes(damaged))
        except AudioError:
            continue
        assert samples.shape == SPEECH.shape
        assert np.isfinite(samples).all()
        assert name not in {"flac", "ogg", "opus"}, "these have checksums"


def test_random_bytes_never_raise_anything_else() -> None:
    random = np.random.default_rng(0)
    for magic in (b"", b"RIFF", b"fLaC", b"OggS", b"ID3\x03", b"NIST_1A\n   1024\n", b"FORM", b".snd"):
        for size in (1, 20, 3000):
            with pytest.raises(AudioError):
                read_audio(magic + random.bytes(size))


def with_flac_total(data: bytes, total: int) -> bytes:
    """The same file with another number of samples in STREAMINFO, the last 36 of its bits 100 to 163."""
    field = int.from_bytes(data[18:26], "big") >> 36 << 36 | total
    return data[:18] + field.to_bytes(8, "big") + data[26:]


def test_lying_flac_headers() -> None:
    data = encode("flac")
    fails(with_flac_total(data, 2**36 - 1), "unreadable", r"states 68719476735 frames in a file of \d+ bytes")
    fails(with_flac_total(data, 0), "unreadable", "states no length")
    fails(with_flac_total(data, 40_000), "truncated", "got .* frames, its header says 40000")


def wav_header(channels: int = 1, rate_hz: int = 16_000, data_bytes: int = 2000, stated: int | None = None) -> bytes:
    stated = data_bytes if stated is None else stated
    block = 2 * channels
    riff = struct.pack("<4sI4s", b"RIFF", min(stated + 36, 0xFFFFFFFF), b"WAVE")
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate_hz, rate_hz * block & 0xFFFFFFFF, block, 16)
    return riff + form + struct.pack("<4sI", b"data", stated) + bytes(data_bytes)


def test_headers_beyond_speech() -> None:
    fails(wav_header(channels=1000), "unreadable", r"states 1000 channels, expected 1\.\.8")
    fails(wav_header(rate_hz=1), "unreadable", r"states 1 Hz, expected 4000\.\.384000")
    fails(wav_header(rate_hz=2**31 - 1), "unreadable", "states 2147483647 Hz")


def test_wav_whose_writer_could_not_state_its_length() -> None:
    for stated in (0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000):
        assert read_audio(wav_header(stated=stated)).shape == (1000,)
    fails(wav_header(data_bytes=20_000, stated=0), "unreadable", "states no frames in a file of 20044 bytes")


def test_too_long() -> None:
    data = encode("flac")
    assert len(read_audio(data, max_seconds=2.0)) == 32_000
    with pytest.raises(AudioError, match=r"2\.0 s long, the limit is 1\.9 s") as caught:
        read_audio(data, max_seconds=1.9)
    assert caught.value.reason == "too_long"


def test_no_file_is_left_open(tmp_path: Path) -> None:
    path = tmp_path / "bad.wav"
    path.write_bytes(wav_header(channels=1000))
    for _ in range(2000):  # more than a process may have open
        with pytest.raises(AudioError):
            audio_info(path)


@pytest.mark.parametrize("name", ["an4", "librispeech_part", "speechocean762_train"])
def test_real_files_are_whole(name: str) -> None:
    folder = shared_data(name)
    paths = [path for path in sorted(folder.rglob("*.*")) if path.suffix in {".flac", ".ogg", ".opus"}][::40]
    assert paths
    for path in paths:
        assert len(read_audio(path)) == audio_io.audio_info(path).num_frames
