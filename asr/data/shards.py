"""Utterances in tar shards (webdataset format) with an index beside each, for random access by `os.pread`.

    shard-000000.tar      KEY.flac (mono, 16 bit) and KEY.json {"id", "text", "speaker", "seconds"} of each utterance
    shard-000000.jsonl    first line: what the shard was made from; then one line an utterance:
                          {"id", "text", "speaker", "num_samples", "offset", "size"}, the bytes of its flac in the tar

A shard is a pure function of its part of the plan and of the audio: whatever was killed, and with however many
workers, a repeated run gives the same bytes and makes only what is missing. Nothing is ever extracted to disk.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from asr.atomic import atomic_write
from asr.audio.header import AudioError
from asr.audio.io import audio_info, read_audio
from asr.data.ledger import Ledger
from asr.errors import DataError
from asr.types import Drop, Utterance

UTTERANCES_PER_SHARD = 256  # 10 to 60 MB each: small enough to redo, large enough for 1000 h in some thousand files
MAX_OPEN_SHARDS = 64  # well below the usual limit of 1024 open files
FORMAT = 1
TAR_BLOCK_BYTES = 512
_AGAIN = "remove the folder and prepare the data again"
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")


def write_shards(
    utterances: Iterable[Utterance],
    folder: Path,
    *,
    sample_rate_hz: int,
    ledger: Ledger,
    utterances_per_shard: int = UTTERANCES_PER_SHARD,
    workers: int = 1,
    progress: Callable[[int], None] = lambda num_utterances: None,
) -> None:
    """Decode `utterances`, in the order of their ids, into shards in `folder`.

    A shard that is there already is left alone if it was made from the same utterances and audio files (by size and
    time), and made anew otherwise. What cannot be read goes to the ledger and the rest goes on.

    Args:
        utterances: with absolute paths to their audio.
        folder: made if need be; holds these shards only.
        sample_rate_hz: of the shards' audio.
        ledger: what could not be used, under the folder's name.
        utterances_per_shard: the last shard has the rest.
        workers: threads; decoding and encoding run outside of Python's lock.
        progress: called with the number of utterances done since the last call.

    Raises:
        DataError: two utterances have one id, nothing is left to write, or the disk is full.
    """
    plan = _plan(utterances, folder, utterances_per_shard)
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".*.tmp"):  # of a killed run
        leftover.unlink()

    def work(number: int) -> _Header:
        header = _write_shard(folder, number, len(plan), plan[number], sample_rate_hz)
        progress(len(plan[number]))
        return header

    with ThreadPoolExecutor(workers) as pool:
        headers = list(pool.map(work, range(len(plan))))
    for drop in (drop for header in headers for drop in header.dropped):
        ledger.add(Drop(**drop), source=folder.name)
    if all(header.num_utterances == 0 for header in headers):
        raise DataError(f"{folder}: none of {sum(map(len, plan))} utterances can be used: {ledger.summary()}")
    for stale in folder.glob("shard-*"):  # of an earlier, longer plan
        if stale.stem not in {_stem(number) for number in range(len(plan))}:
            stale.unlink()


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
            header, rows = _read_index(path)
            headers.append(header)
            for row in rows:
                self.ids.append(row["id"])
                self.texts.append(row["text"])
                self.speakers.append(row["speaker"])
                numbers.append((row["num_samples"], row["offset"], row["size"], number))
        if len(headers) != headers[0].num_shards or len({header.sample_rate_hz for header in headers}) != 1:
            raise DataError(
                f"{folder}: got {len(headers)} shards at {sorted({h.sample_rate_hz for h in headers})} Hz, expected "
                f"{headers[0].num_shards} at one rate; {_AGAIN}"
            )
        columns = np.asarray(numbers, dtype=np.int64).reshape(-1, 4).T
        self.num_samples, self.offset, self.size = (np.ascontiguousarray(column) for column in columns[:3])
        self.shard = columns[3].astype(np.int32)
        self.sample_rate_hz = headers[0].sample_rate_hz
        tars = [folder / f"{_stem(number)}.tar" for number in range(len(headers))]
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
        expected = f"{_key(self.ids[index])}.flac"
        if name != expected or len(data) != TAR_BLOCK_BYTES + size:
            raise DataError(
                f"{self._where(index)}: got {len(data)} bytes of {name!r}, expected {TAR_BLOCK_BYTES + size} of "
                f"{expected!r}; {_AGAIN}"
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
                f"{self._where(index)}: got {len(samples)} samples, expected {self.num_samples[index]}; {_AGAIN}"
            )
        return samples

    def _where(self, index: int) -> str:
        return f"{self.folder / _stem(int(self.shard[index]))}.tar at byte {self.offset[index]} ({self.ids[index]})"


@dataclass(frozen=True, slots=True)
class _Header:
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
            raise DataError(f"{path}: {error.strerror}; {_AGAIN}") from error

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@lru_cache(MAX_OPEN_SHARDS)
def _open_tar(path: Path, inode: int) -> _OpenTar:  # noqa: ARG001 - the inode tells a shard from one made anew
    """Open shards of this process, whatever readers it has. `pread` has no position, so threads and forks can share."""
    return _OpenTar(path)


def _stem(number: int) -> str:
    return f"shard-{number:06d}"


def _key(utterance_id: str) -> str:
    """A name that tar and webdataset take as it is: dots end a key, slashes make folders, 100 bytes are the limit.

    Other ids get a digest, so that no two share a key.
    """
    if _PLAIN_KEY.fullmatch(utterance_id):
        return utterance_id
    digest = hashlib.blake2b(utterance_id.encode(), digest_size=8).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', utterance_id)[:60]}.{digest}".replace(".", "-")


def _plan(utterances: Iterable[Utterance], folder: Path, utterances_per_shard: int) -> list[list[Utterance]]:
    ordered = sorted(utterances, key=lambda utterance: utterance.id)
    for one, other in zip(ordered, ordered[1:], strict=False):
        if one.id == other.id:
            raise DataError(f"{folder}: two utterances have the id {one.id!r}: {one.audio} and {other.audio}; rename one")
    if not ordered:
        raise DataError(f"{folder}: there are no utterances to write")
    return [ordered[i : i + utterances_per_shard] for i in range(0, len(ordered), utterances_per_shard)]


def _plan_digest(utterances: Sequence[Utterance], num_shards: int, sample_rate_hz: int) -> str:
    lines = [f"{FORMAT} {num_shards} {sample_rate_hz}"]
    for utterance in utterances:
        try:
            status = os.stat(utterance.audio)
            stamp = [status.st_size, status.st_mtime_ns]
        except OSError:
            stamp = []
        lines.append(json.dumps([*astuple(utterance), *stamp]))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _write_shard(
    folder: Path, number: int, num_shards: int, utterances: Sequence[Utterance], sample_rate_hz: int
) -> _Header:
    """Make one shard and its index, unless they are there; the index is written last and makes the shard count."""
    path, index = folder / f"{_stem(number)}.tar", folder / f"{_stem(number)}.jsonl"
    digest = _plan_digest(utterances, num_shards, sample_rate_hz)
    try:
        header, _ = _read_index(index)
        if header.plan == digest:
            return header
    except (DataError, OSError):
        pass  # absent or damaged: made anew
    index.unlink(missing_ok=True)
    rows: list[dict[str, Any]] = []
    dropped: list[dict[str, str]] = []
    with atomic_write(path) as handle:
        with tarfile.open(fileobj=handle, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for utterance in utterances:
                try:
                    flac, num_samples = _as_flac(utterance, sample_rate_hz)
                except AudioError as error:
                    dropped.append(asdict(Drop(utterance.id, error.reason, str(error))))
                    continue
                seconds = num_samples / sample_rate_hz
                about = {"id": utterance.id, "text": utterance.text, "speaker": utterance.speaker}
                key = _key(utterance.id)
                offset = _add(tar, f"{key}.flac", flac)
                _add(tar, f"{key}.json", json.dumps(about | {"seconds": seconds}, ensure_ascii=False).encode())
                rows.append(about | {"num_samples": num_samples, "offset": offset, "size": len(flac)})
        num_bytes = handle.tell()
    header = _Header(FORMAT, digest, sample_rate_hz, num_shards, num_bytes, len(rows), dropped)
    with atomic_write(index) as handle:
        for line in (asdict(header), *rows):
            handle.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    return header


def _as_flac(utterance: Utterance, sample_rate_hz: int) -> tuple[bytes, int]:
    """The utterance as a flac file, and its samples. A mono flac at the right rate is taken over as it is."""
    path = Path(utterance.audio)
    is_flac = path.suffix.lower() == ".flac" and path.is_file()
    source = path.read_bytes() if is_flac else path
    samples = read_audio(source, sample_rate_hz=sample_rate_hz, name=utterance.audio)
    if not len(samples):
        raise AudioError("empty_audio", f"{utterance.audio}: has no samples")
    if isinstance(source, bytes):
        info = audio_info(source)
        if info.num_channels == 1 and info.sample_rate_hz == sample_rate_hz:
            return source, len(samples)
    # Scaled here, by a power of two, and not by libsndfile, so that 16-bit audio comes back bit for bit.
    pcm = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
    flac = io.BytesIO()
    soundfile.write(flac, pcm, sample_rate_hz, format="FLAC", subtype="PCM_16")
    return flac.getvalue(), len(samples)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a member and give the offset of its data. TarInfo's defaults are fixed: time, user and group 0."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    offset = tar.offset + TAR_BLOCK_BYTES
    tar.addfile(member, io.BytesIO(data))
    return offset


def _index_files(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("shard-*.jsonl"))
    if not paths:
        raise DataError(f"{folder}: no shards here; expected shard-000000.tar and shard-000000.jsonl")
    for number, path in enumerate(paths):
        if path.stem != _stem(number):
            raise DataError(f"{folder}: got {path.name}, expected {_stem(number)}.jsonl: one is missing; {_AGAIN}")
    return paths


def _read_index(path: Path) -> tuple[_Header, list[dict[str, Any]]]:
    """The header and rows of an index, checked against each other and the tar's size."""
    first, *lines = path.read_bytes().splitlines() or [b""]
    number = 1
    try:
        header = _Header(**json.loads(first))
        rows = []
        for number, line in enumerate(lines, 2):
            row = json.loads(line)
            rows.append({name: kind(row[name]) for name, kind in _ROW.items()})
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}:{number}: damaged index: {type(error).__name__} {error}; {_AGAIN}") from error
    if header.format != FORMAT:
        raise DataError(f"{path}: format {header.format}, this version reads {FORMAT}; {_AGAIN}")
    tar = path.with_suffix(".tar")
    num_bytes = tar.stat().st_size if tar.is_file() else 0
    if num_bytes != header.num_bytes or len(rows) != header.num_utterances:
        raise DataError(
            f"{tar}: got {num_bytes} bytes and {len(rows)} utterances, expected {header.num_bytes} bytes and "
            f"{header.num_utterances} utterances; {_AGAIN}"
        )
    return header, rows


_ROW: dict[str, Callable[[Any], Any]] = {
    "id": str, "text": str, "speaker": str, "num_samples": int, "offset": int, "size": int,
}  # fmt: skip
