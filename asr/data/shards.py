"""Utterances in tar shards (webdataset format) with an index beside each, for random access by `os.pread`.

    shard-000000.tar      KEY.flac (mono, 16 bit) and KEY.json {"id", "text", "speaker", "seconds"} of each utterance
    shard-000000.jsonl    first line: what the shard was made from; then one line an utterance:
                          {"id", "text", "speaker", "num_samples", "offset", "size"}, the bytes of its flac in the tar

Reading goes by the index: the tar's own directory is never walked, and nothing in it is extracted or unpickled.
`asr.data.shard_writer` makes shards.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asr.audio.io import read_audio
from asr.errors import DataError

MAX_OPEN_SHARDS = 64  # well below the usual limit of 1024 open files
FORMAT = 1
TAR_BLOCK_BYTES = 512
AGAIN = "remove the folder and prepare the data again"
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")


class ShardReader:
    """Random access to the utterances of a folder of shards. Can be forked, pickled, and used from threads.

    Args:
        folder: as `write_shards` left it.

    Raises:
        DataError: no shards here, one is missing or cut off, or an index is damaged.

    Attributes:
        ids, texts, speakers: of each utterance.
        num_samples, offset, size: (n,) int64; the last two say where the flac lies in its tar, in bytes.
        shard: (n,) int32, the number of that tar.
        sample_rate_hz: of the audio.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.speakers: list[str] = []
        numbers: list[tuple[int, int, int, int]] = []
        headers = []
        for number, path in enumerate(_index_files(folder)):
            header, rows = read_index(path)
            headers.append(header)
            for row in rows:
                self.ids.append(row["id"])
                self.texts.append(row["text"])
                self.speakers.append(row["speaker"])
                numbers.append((row["num_samples"], row["offset"], row["size"], number))
        if len(headers) != headers[0].num_shards or len({header.sample_rate_hz for header in headers}) != 1:
            raise DataError(
                f"{folder}: got {len(headers)} shards at {sorted({h.sample_rate_hz for h in headers})} Hz, expected "
                f"{headers[0].num_shards} at one rate; {AGAIN}"
            )
        columns = np.asarray(numbers, dtype=np.int64).reshape(-1, 4).T
        self.num_samples, self.offset, self.size = (np.ascontiguousarray(column) for column in columns[:3])
        self.shard = columns[3].astype(np.int32)
        self.sample_rate_hz = headers[0].sample_rate_hz
        tars = [folder / f"{shard_name(number)}.tar" for number in range(len(headers))]
        self._tars = [(path, path.stat().st_ino) for path in tars]

    def __len__(self) -> int:
        """Utterances."""
        return len(self.ids)

    def read(self, index: int) -> bytes:
        """The flac file of one utterance.

        Raises:
            DataError: the tar does not hold it where the index says.
        """
        shard, offset, size = int(self.shard[index]), int(self.offset[index]), int(self.size[index])
        start = offset - TAR_BLOCK_BYTES
        tar = _open_tar(*self._tars[shard])
        data = os.pread(tar.descriptor, TAR_BLOCK_BYTES + size, start)
        name = data[:100].rstrip(b"\0").decode("ascii", "replace")
        expected = f"{member_key(self.ids[index])}.flac"
        if name != expected or len(data) != TAR_BLOCK_BYTES + size:
            raise DataError(
                f"{self._where(index)}: got {len(data)} bytes of {name!r}, expected {TAR_BLOCK_BYTES + size} of "
                f"{expected!r}; {AGAIN}"
            )
        return data[TAR_BLOCK_BYTES:]

    def audio(self, index: int) -> NDArray[np.float32]:
        """Decode one utterance: (N,) float32 in [-1, 1].

        Raises:
            DataError: the shard or the flac in it is damaged.
        """
        samples = read_audio(self.read(index), sample_rate_hz=self.sample_rate_hz, name=self._where(index))
        if len(samples) != self.num_samples[index]:
            raise DataError(
                f"{self._where(index)}: got {len(samples)} samples, expected {self.num_samples[index]}; {AGAIN}"
            )
        return samples

    def _where(self, index: int) -> str:
        tar, _ = self._tars[int(self.shard[index])]
        return f"{tar} at byte {self.offset[index]} ({self.ids[index]})"


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """First line of an index: what the shard was made from, and what it has to be."""

    format: int
    plan: str  # sha256 of the utterances, their audio files' sizes and times, and the rate
    sample_rate_hz: int
    num_shards: int
    num_bytes: int  # of the tar
    num_utterances: int
    dropped: list[dict[str, str]]


class _OpenTar:
    """A file descriptor that is closed with the last reference to it."""

    def __init__(self, path: Path) -> None:
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}; {AGAIN}") from error

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@lru_cache(MAX_OPEN_SHARDS)
def _open_tar(path: Path, inode: int) -> _OpenTar:
    """Open shards of this process, whatever readers it has; the inode tells a shard from one made anew.

    `pread` has no position, so threads and forks can share a descriptor.
    """
    return _OpenTar(path)


def shard_name(number: int) -> str:
    """Of its files, without suffix."""
    return f"shard-{number:06d}"


def member_key(utterance_id: str) -> str:
    """A name that tar and webdataset take as it is: dots end a key, slashes make folders, 100 bytes are the limit.

    Other ids get a digest, so that no two share a key.
    """
    if _PLAIN_KEY.fullmatch(utterance_id):
        return utterance_id
    digest = hashlib.blake2b(utterance_id.encode(), digest_size=8).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', utterance_id)[:60]}.{digest}".replace(".", "-")


def read_index(path: Path) -> tuple[ShardHeader, list[dict[str, Any]]]:
    """The header and rows of an index, checked against each other and the tar's size.

    Raises:
        DataError: the index is missing or damaged, or the tar is not the one that it describes.
    """
    rows: list[dict[str, Any]] = []
    try:
        first, *lines = path.read_bytes().splitlines() or [b""]
        header = ShardHeader(**json.loads(first))
        for line in lines:
            row = json.loads(line)
            wrong = [name for name, kind in _ROW.items() if type(row[name]) is not kind]
            if wrong or not (TAR_BLOCK_BYTES <= row["offset"] <= header.num_bytes - row["size"] < header.num_bytes):
                raise ValueError(f"got {line[:200]!r}")
            rows.append(row)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: damaged index after {len(rows)} utterances: {what}; {AGAIN}") from error
    if header.format != FORMAT:
        raise DataError(f"{path}: format {header.format}, this version reads {FORMAT}; {AGAIN}")
    tar = path.with_suffix(".tar")
    num_bytes = tar.stat().st_size if tar.is_file() else 0
    if num_bytes != header.num_bytes or len(rows) != header.num_utterances:
        raise DataError(
            f"{tar}: got {num_bytes} bytes and {len(rows)} utterances, expected {header.num_bytes} bytes and "
            f"{header.num_utterances} utterances; {AGAIN}"
        )
    return header, rows


_ROW = {"id": str, "text": str, "speaker": str, "num_samples": int, "offset": int, "size": int}


def _index_files(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("shard-*.jsonl"))
    if not paths:
        raise DataError(f"{folder}: no shards here; expected shard-000000.tar and shard-000000.jsonl")
    for number, path in enumerate(paths):
        if path.stem != shard_name(number):
            raise DataError(f"{folder}: got {path.name}, expected {shard_name(number)}.jsonl: one is missing; {AGAIN}")
    return paths
