"""Whether an Ogg file is whole (RFC 3533): libsndfile passes over damaged and missing pages in silence."""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

HEADER = struct.Struct("<4sBBqIIIB")  # "OggS", version, flags, position, stream, page number, checksum, segments
END_OF_STREAM = 4
CHECKSUM_AT = 22
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def what_is_wrong(handle: BinaryIO) -> str:
    """Walk an Ogg file's pages, and say where it is damaged or cut; empty if it is whole.

    Every page has to follow the last one, with the right checksum and number, and every stream has to come to its end.
    What follows that end is ignored.
    """
    next_page: dict[int, int] = {}  # of each stream that has not ended
    position, started = 0, False
    while next_page or not started:
        header = handle.read(HEADER.size)
        if len(header) < HEADER.size:
            return f"it breaks off at byte {position}, before the end of its stream"
        magic, _, flags, _, stream, number, checksum, num_segments = HEADER.unpack(header)
        if magic != b"OggS":
            return f"no Ogg page at byte {position}, where the next one has to be"
        table = handle.read(num_segments)
        body = handle.read(sum(table))
        page = header[:CHECKSUM_AT] + bytes(4) + header[CHECKSUM_AT + 4 :] + table + body
        if len(table) < num_segments or len(body) < sum(table):
            return f"it breaks off in the Ogg page at byte {position}"
        if _checksum(page) != checksum:
            return f"wrong checksum of the Ogg page at byte {position}"
        if next_page.get(stream, number) != number:
            return f"Ogg page {next_page[stream]} is missing at byte {position}"
        next_page[stream] = number + 1
        if flags & END_OF_STREAM:
            del next_page[stream]
        started = True
        position += len(page)
    return ""


def _checksum(page: bytes) -> int:
    """Ogg's CRC-32: zlib's polynomial, but from each byte's high bit down, starting at 0 and not inverted."""
    crc = zlib.crc32(page.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)
