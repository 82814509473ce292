"""Recordings that stand twice: within training, or in training and in what it is judged on.

Two recordings are the same if their samples are: flac files hold an MD5 of these, so that 42 bytes of each are read.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from asr.data.shards import ShardReader
from asr.errors import DataError
from asr.train.doctor.report import Line, Verdict

# Of a flac file: "fLaC", four bytes of block header, STREAMINFO, whose last 16 bytes are the MD5 (RFC 9639, 8.2).
MAGIC = b"fLaC"
MD5_START, MD5_END = 26, 42
NO_MD5 = bytes(16)  # the encoder did not compute it


class Recording(NamedTuple):
    """An utterance and where it lies."""

    reader: ShardReader
    place: int

    @property
    def id(self) -> str:
        return self.reader.ids[self.place]

    @property
    def num_samples(self) -> int:
        return int(self.reader.num_samples[self.place])

    @property
    def words(self) -> str:
        """The transcript less case and spacing."""
        return " ".join(self.reader.texts[self.place].casefold().split())

    def __str__(self) -> str:
        return f"{self.reader.name} {self.id}"


def recordings(readers: Iterable[ShardReader]) -> list[Recording]:
    """All utterances of these shards."""
    return [Recording(reader, place) for reader in readers for place in range(len(reader))]


def check_duplicates(train: Sequence[ShardReader]) -> Line:
    """Find recordings, and ids, that training has more than once."""
    entries = recordings(train)
    copies: defaultdict[bytes, list[Recording]] = defaultdict(list)
    for entry, key in zip(entries, sample_hashes(entries), strict=True):
        if key:
            copies[key].append(entry)
    groups = [group for group in copies.values() if len(group) > 1]
    repeated = [name for name, count in Counter(entry.id for entry in entries).items() if count > 1]
    if not groups and not repeated:
        return Line("duplicates", Verdict.OK, f"{len(entries)} training recordings, no two the same")
    contradictions = [group for group in groups if len({entry.words for entry in group}) > 1]
    message = f"{sum(map(len, groups)) - len(groups)} training recordings are copies of others"
    message += f", {len(contradictions)} with another transcript" if contradictions else ""
    message += f"; {len(repeated)} ids stand in more than one split" if repeated else ""
    details = [" = ".join(map(str, group)) for group in groups]
    details += [f"the id {name!r} more than once" for name in repeated]
    return Line(
        "duplicates",
        Verdict.WARNING,
        message,
        "name each split of data.train once, and take the copies (those with the wrong transcript first) out of the "
        "corpus",
        tuple(details),
        {"copies": sum(map(len, groups)) - len(groups), "contradictions": len(contradictions)},
    )


def check_leaks(train: Sequence[ShardReader], held_out: Sequence[ShardReader], *, every: bool) -> Line:
    """Find recordings of training among those that it is judged on.

    Args:
        train: shards to train on.
        held_out: those of validation and test.
        every: compare every recording; else those only that share their id, or text and length, with one of the other
            side, which takes a second for a thousand hours.
    """
    seen, judged = recordings(train), recordings(held_out)
    ids = {entry.id for entry in seen} & {entry.id for entry in judged}
    num_seen, num_judged = len(seen), len(judged)
    if not every:
        shared = {_likeness(entry) for entry in seen} & {_likeness(entry) for entry in judged}
        seen, judged = (
            [entry for entry in side if entry.id in ids or _likeness(entry) in shared] for side in (seen, judged)
        )
    by_hash = {key: entry for entry, key in zip(seen, sample_hashes(seen), strict=True) if key}
    leaks = [(by_hash[key], entry) for entry, key in zip(judged, sample_hashes(judged), strict=True) if key in by_hash]
    if leaks:
        return Line(
            "leaks",
            Verdict.ERROR,
            f"{len(leaks)} of {num_judged} recordings of validation and test are trained on",
            "choose other splits (data.train, data.validation, data.test), or take these recordings out of training",
            tuple(f"{one} = {other}" for one, other in leaks),
            {"leaks": len(leaks)},
        )
    if ids:
        return Line(
            "leaks",
            Verdict.WARNING,
            f"{len(ids)} ids stand in training and in validation or test, of recordings that differ",
            "give each recording an id of its own: ledgers and results name utterances by it",
            tuple(sorted(ids)),
        )
    return Line("leaks", Verdict.OK, f"none of {num_judged} recordings of validation and test is among {num_seen}")


def _likeness(entry: Recording) -> tuple[int, str]:
    return entry.num_samples, entry.words


def sample_hashes(entries: Sequence[Recording]) -> list[bytes]:
    """A hash of the samples of each; empty for one that cannot be read, which another check names."""
    hashes = [b""] * len(entries)

    by_reader: defaultdict[ShardReader, list[int]] = defaultdict(list)
    for position, entry in enumerate(entries):
        by_reader[entry.reader].append(position)
    for reader, positions in by_reader.items():
        heads = reader.heads([entries[position].place for position in positions], MD5_END)
        for position, header in zip(positions, heads, strict=True):
            hashes[position] = _stated_md5(header) or _hash_of_samples(entries[position])
    return hashes


def _stated_md5(header: bytes | DataError) -> bytes:
    """The hash of its samples that a flac file carries; empty if it carries none."""
    if isinstance(header, DataError) or not header.startswith(MAGIC):
        return b""
    stated = header[MD5_START:MD5_END]
    return stated if len(stated) == len(NO_MD5) and stated != NO_MD5 else b""


def _hash_of_samples(entry: Recording) -> bytes:
    """The MD5 that the flac should have: of little-endian 16-bit samples, as shards have them."""
    try:
        audio = entry.reader.audio(entry.place)
    except DataError:
        return b""
    return hashlib.md5((audio * 32768).astype("<i2").tobytes(), usedforsecurity=False).digest()
