"""Utterances in tar shards (webdataset format) with an index beside each, for random access by `os.pread`.

    shard-000000.tar      KEY.flac (mono, 16 bit) and KEY.json {"id", "text", "speaker", "seconds"} of each utterance
    shard-000000.jsonl    first line: what the shard was made from; then one line an utterance:
                          {"id", "text", "speaker", "num_samples", "offset", "size"}, the bytes of its flac in the tar

    index.jsonl           the lines of all of these files in order, so that a reader elsewhere needs this one only

Reading goes by the index: the tar's own directory is never walked, and nothing in it is extracted or unpickled.
`asr.data.shard_writer` makes shards.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from asr.audio.io import read_audio
from asr.data.remote import RemoteFolder, Span, Unreachable
from asr.errors import DataError

MAX_OPEN_SHARDS = 64  # well below the usual limit of 1024 open files
FORMAT = 1
INDEX_FILE = "index.jsonl"
TAR_BLOCK_BYTES = 512
AGAIN = "remove the folder and prepare the data again"
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")


class ShardReader:
    """Random access to the utterances of a folder of shards. Can be forked, pickled, and used from threads.

    Args:
        folder: as `write_shards` left it, on this machine or anywhere that fsspec reaches (`http://host/folder`).

    Raises:
        DataError: no shards here, one is missing or cut off, or an index is damaged.

    Attributes:
        name: the last part of the folder's name, or, where several in use have that, the location.
        location: the folder as an absolute path, or the URL.
        folder: the same where it is of this machine, else None.
        ids, texts, speakers: of each utterance.
        num_samples, offset, size: (n,) int64; the last two say where the flac lies in its tar, in bytes.
        shard: (n,) int32, the number of that tar.
        sample_rate_hz: of the audio.
    """

    def __init__(self, folder: Path | str) -> None:
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.speakers: list[str] = []
        numbers: list[tuple[int, int, int, int]] = []
        headers = []
        self._store, indexes = _open_store(folder)
        self.name = str(folder).rstrip("/").rpartition("/")[2]
        self.folder = _local_folder(folder)
        self.location = str(folder if self.folder is None else self.folder.absolute())
        for number, (header, rows) in enumerate(indexes):
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

    def __len__(self) -> int:
        """Utterances."""
        return len(self.ids)

    def read(self, index: int) -> bytes:
        """The flac file of one utterance.

        Raises:
            DataError: the tar does not hold it where the index says, or cannot be reached.
        """
        return _value(self.read_many([index])[0])

    def read_many(self, indices: Sequence[int]) -> list[bytes | DataError]:
        """The flac files of some utterances, fetched at the same time from another machine; or what is wrong with each.

        Raises:
            Unreachable: they lie elsewhere and cannot be fetched.
        """
        spans = []
        for index in indices:
            start, size = int(self.offset[index]) - TAR_BLOCK_BYTES, TAR_BLOCK_BYTES + int(self.size[index])
            spans.append(Span(f"{shard_name(int(self.shard[index]))}.tar", start, size))
        parts = self._store.read_spans(spans)
        return [self._checked(index, part) for index, part in zip(indices, parts, strict=True)]

    def heads(self, indices: Sequence[int], size: int) -> Sequence[bytes | DataError]:
        """The first `size` bytes of some utterances' flac files, unchecked; raises as `read_many`."""
        spans = [Span(f"{shard_name(int(self.shard[i]))}.tar", int(self.offset[i]), size) for i in indices]
        return self._store.read_spans(spans)

    def audio(self, index: int) -> NDArray[np.float32]:
        """Decode one utterance: (N,) float32 in [-1, 1].

        Raises:
            DataError: the shard or the flac in it is damaged.
        """
        return _value(self.audio_many([index])[0])

    def audio_many(self, indices: Sequence[int]) -> list[NDArray[np.float32] | DataError]:
        """Decode some utterances, or say what is wrong with each; raises as `read_many`."""
        return [self._decode(index, flac) for index, flac in zip(indices, self.read_many(indices), strict=True)]

    def _checked(self, index: int, data: bytes | DataError) -> bytes | DataError:
        if isinstance(data, DataError):
            return data
        name = data[:100].rstrip(b"\0").decode("ascii", "replace")
        expected, num_bytes = f"{member_key(self.ids[index])}.flac", TAR_BLOCK_BYTES + int(self.size[index])
        if name != expected or len(data) != num_bytes:
            return DataError(
                f"{self._where(index)}: got {len(data)} bytes of {name!r}, expected {num_bytes} of {expected!r}; "
                f"{AGAIN}"
            )
        return data[TAR_BLOCK_BYTES:]

    def _decode(self, index: int, flac: bytes | DataError) -> NDArray[np.float32] | DataError:
        if isinstance(flac, DataError):
            return flac
        try:
            samples = read_audio(flac, sample_rate_hz=self.sample_rate_hz, name=self._where(index))
        except DataError as error:
            return error
        if len(samples) != self.num_samples[index]:
            return DataError(
                f"{self._where(index)}: got {len(samples)} samples, expected {self.num_samples[index]}; {AGAIN}"
            )
        return samples

    def _where(self, index: int) -> str:
        tar = self._store.file(f"{shard_name(int(self.shard[index]))}.tar")
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

    @property
    def num_planned(self) -> int:
        """Utterances that the shard was to have."""
        return self.num_utterances + len(self.dropped)


Rows = list[dict[str, Any]]
Index = tuple[ShardHeader, Rows]


class Store(Protocol):
    """Where the files lie."""

    def file(self, name: str) -> str:
        """How a file is called in messages."""
        ...

    def read_spans(self, spans: Sequence[Span]) -> Sequence[bytes | DataError]:
        """Parts of files, or what is wrong with them; what lies beyond a file's end is left out."""
        ...


class LocalFolder:
    """Tars on a file system of this machine.

    The inodes tell a tar from one made anew: open files are kept over readers.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._tars = {name: (folder / name, (folder / name).stat().st_ino) for name in names}

    def file(self, name: str) -> str:
        return str(self._tars[name][0])

    def read_spans(self, spans: Sequence[Span]) -> list[bytes | DataError]:
        return [self._read(*span) for span in spans]

    def _read(self, file: str, start: int, size: int) -> bytes | DataError:
        try:
            return os.pread(_open_tar(*self._tars[file]).descriptor, size, start)
        except OSError as error:
            return DataError(f"{self.file(file)}: {error.strerror}; {AGAIN}")


def _open_store(folder: Path | str) -> tuple[Store, list[Index]]:
    """Where the shards lie, and the index of each, checked against the sizes of the tars."""
    local = _local_folder(folder)
    if local is None:
        remote = RemoteFolder(str(folder))
        return remote, _remote_indexes(remote)
    indexes = [read_index(path) for path in _index_files(local)]
    return LocalFolder(local, [f"{shard_name(number)}.tar" for number in range(len(indexes))]), indexes


def _local_folder(folder: Path | str) -> Path | None:
    """The folder, or None if that is a URL of another machine."""
    address = str(folder)
    if "://" in address and not address.startswith("file://"):
        return None
    return Path(address.removeprefix("file://"))


def _remote_indexes(remote: RemoteFolder) -> list[Index]:
    path = remote.file(INDEX_FILE)
    try:
        lines = remote.read(INDEX_FILE).splitlines()
    except Unreachable as error:
        raise Unreachable(f"{error}; expected a finished folder of shards (data_prep/make_shards.py)") from error
    indexes: list[Index] = []
    while lines or not indexes:
        header = _parse_header(lines[:1], path)
        indexes.append(_parse_rows(header, lines[1 : header.num_utterances + 1], path))
        del lines[: header.num_utterances + 1]
    # A tar's last byte, and the next one, which there should not be: one request says whether the tar is all there.
    ends = [Span(f"{shard_name(number)}.tar", header.num_bytes - 1, 2) for number, (header, _) in enumerate(indexes)]
    for some in (ends[:1], ends[1:]):  # a server that gives whole tars is found out with the first
        for span, end in zip(some, remote.read_spans(some), strict=True):
            if len(end) != 1:
                raise DataError(
                    f"{remote.file(span.file)}: got {'more' if end else 'fewer'} bytes than the {span.start + 1} that "
                    f"{path} states; copy the folder anew"
                )
    return indexes


def _value(result: Any) -> Any:
    if isinstance(result, DataError):
        raise result
    return result


class _OpenTar:
    """A file descriptor that is closed with the last reference to it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

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


def read_index(path: Path) -> Index:
    """The header and rows of an index, checked against each other and the tar's size.

    Raises:
        DataError: the index is missing or damaged, or the tar is not the one that it describes.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: damaged index: {error.strerror}; {AGAIN}") from error
    header = _parse_header(lines[:1], path)
    _, rows = _parse_rows(header, lines[1:], path)
    tar = path.with_suffix(".tar")
    num_bytes = tar.stat().st_size if tar.is_file() else 0
    if num_bytes != header.num_bytes:
        raise DataError(f"{tar}: got {num_bytes} bytes, expected {header.num_bytes}; {AGAIN}")
    return header, rows


def _parse_header(lines: Sequence[bytes], path: Path | str) -> ShardHeader:
    try:
        header = ShardHeader(**json.loads(lines[0]))
    except (ValueError, TypeError, IndexError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: damaged index: its first line: {what}; {AGAIN}") from error
    if header.format != FORMAT:
        raise DataError(f"{path}: format {header.format}, this version reads {FORMAT}; {AGAIN}")
    return header


def _parse_rows(header: ShardHeader, lines: Sequence[bytes], path: Path | str) -> Index:
    rows: Rows = []
    try:
        for line in lines:
            row = json.loads(line)
            wrong = [name for name, kind in _ROW.items() if type(row[name]) is not kind]
            if wrong or not (TAR_BLOCK_BYTES <= row["offset"] <= header.num_bytes - row["size"] < header.num_bytes):
                raise ValueError(f"got {line[:200]!r}")
            rows.append(row)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: damaged index after {len(rows)} utterances: {what}; {AGAIN}") from error
    if len(rows) != header.num_utterances:
        raise DataError(f"{path}: got {len(rows)} utterances, expected {header.num_utterances}; {AGAIN}")
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
