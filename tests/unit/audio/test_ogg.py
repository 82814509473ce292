"""Ogg's page structure, against files that libsndfile wrote and a checksum worked out bit by bit."""

import io
import struct

import numpy as np
import pytest
import soundfile

from asr.audio.ogg import what_is_wrong


def encode(seconds: int = 4) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000 * seconds)
    soundfile.write(file, noise, 16_000, format="OGG", subtype="OPUS")
    return file.getvalue()


def pages(data: bytes) -> list[bytes]:
    parts = data.split(b"OggS")[1:]
    return [b"OggS" + part for part in parts]


def slow_checksum(page: bytes) -> int:
    """RFC 3533: CRC-32 with polynomial 0x04c11db7, from 0, high bit first, not inverted."""
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    return crc


def check(data: bytes) -> str:
    return what_is_wrong(io.BytesIO(data))


def test_whole_files_are() -> None:
    assert len(pages(encode())) >= 5
    assert check(encode()) == ""
    assert check(encode() + b"an ID3 tag") == ""
    assert check(encode() + encode()[:100]) == ""  # what follows the end is not looked at


def test_checksum() -> None:
    page = bytearray(pages(encode())[-1])
    page[22:26] = bytes(4)
    page[14:18] = (77).to_bytes(4, "little")  # another stream
    page[18:22] = bytes(4)
    page[5] |= 2
    page[22:26] = struct.pack("<I", slow_checksum(bytes(page)))
    assert check(bytes(page)) == ""


def test_every_cut_and_flip_is_found() -> None:
    data = encode()
    for position in np.random.default_rng(1).integers(0, len(data) - 1, 200):
        assert check(data[:position])
        flipped = bytearray(data)
        flipped[position] ^= 1 << int(position) % 8
        assert check(bytes(flipped))


def test_lost_page() -> None:
    parts = pages(encode())
    assert check(b"".join(parts[:3] + parts[4:])).startswith("Ogg page 3 is missing at byte ")


@pytest.mark.parametrize("data", [b"", b"OggS", b"fLaC" + bytes(100), bytes(1000)])
def test_no_ogg(data: bytes) -> None:
    assert check(data)
