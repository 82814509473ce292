"""Make shards: decode, code as flac, and pack, in parallel and restartable.

A shard is a pure function of its part of the plan and of the audio: whatever was killed, and with however many
workers, a repeated run gives the same bytes and makes only what is missing. `asr.data.shards` has the format.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import tarfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from asr.atomic import atomic_write
from asr.audio.header import AudioError
from asr.audio.io import audio_info, read_audio
from asr.data.ledger import Ledger
from asr.data.shard_plan import read_plan, read_shard_plan, write_plan
from asr.data.shards import (
    FORMAT,
    INDEX_FILE,
    TAR_BLOCK_BYTES,
    ShardHeader,
    member_key,
    read_index,
    shard_name,
)
from asr.data.workers import follow_parent
from asr.errors import DataError
from asr.types import Drop, Utterance

UTTERANCES_PER_SHARD = 256  # 10 to 60 MB each: small enough to redo, large enough for 1000 h in some thousand files

Progress = Callable[[int], None]  # called with the number of utterances done since the last call


def write_shards(
    utterances: Iterable[Utterance],
    folder: Path,
    *,
    sample_rate_hz: int,
    ledger: Ledger,
    utterances_per_shard: int = UTTERANCES_PER_SHARD,
    workers: int = 1,
    progress: Progress = lambda num_utterances: None,
) -> None:
    """Decode `utterances`, in the order of their ids, into shards in `folder`: plan, make each shard, finish.

    A shard that is there already is left alone if it was made from the same utterances and audio files (by size and
    time), and made anew otherwise. What cannot be read goes to the ledger and the rest goes on.

    Args:
        utterances: with absolute paths to their audio.
        folder: made if need be; holds these shards only.
        sample_rate_hz: of the shards' audio.
        ledger: what could not be used, under the folder's name.
        utterances_per_shard: the last shard has the rest.
        workers: processes.
        progress: see `Progress`.

    Raises:
        DataError: two utterances have one id, nothing is left to write, or the disk is full.
    """
    plan = write_plan(
        utterances,
        folder,
        sample_rate_hz=sample_rate_hz,
        utterances_per_shard=utterances_per_shard,
        replace=True,
    )
    make_shards(folder, range(plan.num_shards), workers=workers, progress=progress)
    finish(folder, ledger)


def make_shards(folder: Path, numbers: Sequence[int], *, workers: int, progress: Progress) -> None:
    """Make shards of the plan in `folder` in processes of this machine.

    Raises:
        DataError: the disk is full, or a process was killed; what is finished stays.
    """
    workers = min(workers, len(numbers))
    if workers <= 1:
        for number in numbers:
            progress(make_shard(folder, number).num_planned)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy locks of the progress bar's thread
    with ProcessPoolExecutor(workers, mp_context=context, initializer=follow_parent) as pool:
        try:
            for future in as_completed([pool.submit(make_shard, folder, number) for number in numbers]):
                progress(future.result().num_planned)
        except BrokenProcessPool as error:
            raise DataError(
                f"{folder}: one of {workers} processes was killed, maybe for want of memory; run again with fewer "
                "workers: what is finished stays"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def finish(folder: Path, ledger: Ledger) -> None:
    """When every shard is there: have the ledger name what could not be used, and write the index of them all.

    Removes what killed runs and longer plans have left.

    Raises:
        DataError: a shard is missing or damaged, or none has an utterance.
    """
    plan = read_plan(folder)
    headers: list[ShardHeader] = []
    used: set[str] = set()
    lacking: list[str] = []
    for number in range(plan.num_shards):
        try:
            header, rows = read_index(folder / f"{shard_name(number)}.jsonl")
        except DataError as error:
            lacking.append(str(error))
            continue
        headers.append(header)
        used.update(row["id"] for row in rows)
    if lacking:
        raise DataError(
            f"{folder}: got {len(headers)} of {plan.num_shards} shards; make the others first. The first that is "
            f"missing: {lacking[0]}"
        )
    ledger.forget(folder.name, used)  # audio that was mended since
    for drop in (drop for header in headers for drop in header.dropped):
        ledger.add(replace(Drop(**drop), source=folder.name))
    if all(header.num_utterances == 0 for header in headers):
        raise DataError(f"{folder}: none of {plan.num_utterances} utterances can be used: {ledger.summary()}")
    names = {shard_name(number) for number in range(plan.num_shards)}
    for stale in (*folder.glob(".*.tmp"), *(path for path in folder.glob("shard-*") if path.stem not in names)):
        stale.unlink()
    with atomic_write(folder / INDEX_FILE) as handle:
        for name in sorted(names):
            handle.write((folder / f"{name}.jsonl").read_bytes())


def _digest(utterances: Sequence[Utterance], num_shards: int, sample_rate_hz: int) -> str:
    lines = [f"{FORMAT} {num_shards} {sample_rate_hz}"]
    for utterance in utterances:
        try:
            status = Path(utterance.audio).stat()
            stamp = [status.st_size, status.st_mtime_ns]
        except OSError:
            stamp = []
        lines.append(json.dumps([*astuple(utterance), *stamp]))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def make_shard(folder: Path, number: int) -> ShardHeader:
    """Make shard `number` of the plan in `folder`, unless it is there; a pure function of the plan and the audio.

    Its index is written last and makes it count.

    Raises:
        DataError: there is no plan, or the disk is full.
    """
    plan, utterances = read_shard_plan(folder, number)
    path, index = folder / f"{shard_name(number)}.tar", folder / f"{shard_name(number)}.jsonl"
    digest = _digest(utterances, plan.num_shards, plan.sample_rate_hz)
    try:
        header, _ = read_index(index)
        if header.plan == digest:
            return header
    except DataError:
        pass  # absent or damaged: made anew
    (folder / INDEX_FILE).unlink(missing_ok=True)
    index.unlink(missing_ok=True)
    rows: list[dict[str, Any]] = []
    dropped: list[dict[str, str]] = []
    with atomic_write(path) as handle:
        with tarfile.open(fileobj=handle, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for utterance in utterances:
                try:
                    flac, num_samples = _as_flac(utterance, plan.sample_rate_hz)
                except AudioError as error:
                    dropped.append(asdict(Drop(utterance.id, error.reason, str(error))))
                    continue
                seconds = num_samples / plan.sample_rate_hz
                about = {"id": utterance.id, "text": utterance.text, "speaker": utterance.speaker}
                key = member_key(utterance.id)
                offset = _add(tar, f"{key}.flac", flac)
                _add(tar, f"{key}.json", json.dumps(about | {"seconds": seconds}, ensure_ascii=False).encode())
                rows.append(about | {"num_samples": num_samples, "offset": offset, "size": len(flac)})
        num_bytes = handle.tell()
    header = ShardHeader(FORMAT, digest, plan.sample_rate_hz, plan.num_shards, num_bytes, len(rows), dropped)
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
