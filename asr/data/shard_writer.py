"""Make shards: decode, code as flac, and pack, in parallel and restartable.

A shard is a pure function of its part of the plan and of the audio: whatever was killed, and with however many
workers, a repeated run gives the same bytes and makes only what is missing. `asr.data.shards` has the format.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from asr.atomic import atomic_write
from asr.audio.header import AudioError
from asr.audio.io import audio_info, read_audio
from asr.data.ledger import Ledger
from asr.data.shards import FORMAT, TAR_BLOCK_BYTES, ShardHeader, member_key, read_index, shard_name
from asr.errors import DataError
from asr.types import Drop, Utterance

UTTERANCES_PER_SHARD = 256  # 10 to 60 MB each: small enough to redo, large enough for 1000 h in some thousand files


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

    def work(number: int) -> ShardHeader:
        header = _write_shard(folder, number, len(plan), plan[number], sample_rate_hz)
        progress(len(plan[number]))
        return header

    with ThreadPoolExecutor(workers) as pool:
        headers = list(pool.map(work, range(len(plan))))
    for drop in (drop for header in headers for drop in header.dropped):
        ledger.add(replace(Drop(**drop), source=folder.name))
    if all(header.num_utterances == 0 for header in headers):
        raise DataError(f"{folder}: none of {sum(map(len, plan))} utterances can be used: {ledger.summary()}")
    for stale in folder.glob("shard-*"):  # of an earlier, longer plan
        if stale.stem not in {shard_name(number) for number in range(len(plan))}:
            stale.unlink()


def _plan(utterances: Iterable[Utterance], folder: Path, utterances_per_shard: int) -> list[list[Utterance]]:
    ordered = sorted(utterances, key=lambda utterance: utterance.id)
    for one, other in pairwise(ordered):
        if one.id == other.id:
            raise DataError(f"{folder}: got the id {one.id!r} twice: {one.audio} and {other.audio}; rename one")
    if not ordered:
        raise DataError(f"{folder}: there are no utterances to write")
    return [ordered[i : i + utterances_per_shard] for i in range(0, len(ordered), utterances_per_shard)]


def _plan_digest(utterances: Sequence[Utterance], num_shards: int, sample_rate_hz: int) -> str:
    lines = [f"{FORMAT} {num_shards} {sample_rate_hz}"]
    for utterance in utterances:
        try:
            status = Path(utterance.audio).stat()
            stamp = [status.st_size, status.st_mtime_ns]
        except OSError:
            stamp = []
        lines.append(json.dumps([*astuple(utterance), *stamp]))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _write_shard(
    folder: Path, number: int, num_shards: int, utterances: Sequence[Utterance], sample_rate_hz: int
) -> ShardHeader:
    """Make one shard and its index, unless they are there; the index is written last and makes the shard count."""
    path, index = folder / f"{shard_name(number)}.tar", folder / f"{shard_name(number)}.jsonl"
    digest = _plan_digest(utterances, num_shards, sample_rate_hz)
    try:
        header, _ = read_index(index)
        if header.plan == digest:
            return header
    except DataError:
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
                key = member_key(utterance.id)
                offset = _add(tar, f"{key}.flac", flac)
                _add(tar, f"{key}.json", json.dumps(about | {"seconds": seconds}, ensure_ascii=False).encode())
                rows.append(about | {"num_samples": num_samples, "offset": offset, "size": len(flac)})
        num_bytes = handle.tell()
    header = ShardHeader(FORMAT, digest, sample_rate_hz, num_shards, num_bytes, len(rows), dropped)
    with atomic_write(index) as handle:
        for line in (asdict(header), *rows):
            handle.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    return header


def _as_flac(utterance: Utterance, sample_rate_hz: int) -> tuple[bytes, int]:
    """The utterance as a flac file, and its samples. A mono flac at the right rate is taken over as it is."""
    source: Path | bytes = Path(utterance.audio)
    if source.suffix.lower() == ".flac" and source.is_file():
        try:
            source = source.read_bytes()
        except OSError as error:
            raise AudioError("unreadable", f"{source}: {error.strerror}") from error
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
