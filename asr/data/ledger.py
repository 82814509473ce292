"""The ledger: every utterance that could not be used, named, with the reason. Nothing vanishes."""

from __future__ import annotations

import fcntl
import json
from collections import Counter
from collections.abc import Container
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from asr.atomic import atomic_write
from asr.errors import DataError
from asr.types import Drop


class Reason(StrEnum):
    """Why an utterance cannot be used."""

    MISSING = "missing"  # the transcript names audio that is not there
    NO_TRANSCRIPT = "no_transcript"  # nothing says what the audio holds
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    NON_FINITE = "non_finite"
    EMPTY_AUDIO = "empty_audio"
    EMPTY_TEXT = "empty_text"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    INFEASIBLE = "infeasible"  # CTC needs more frames than the audio gives
    UNKNOWN_CHARACTERS = "unknown_characters"
    NOT_UTF8 = "not_utf8"


class Ledger:
    """JSON lines {"id", "reason", "detail", "source"}; each line is written as it comes.

    Several processes may enter in one file: each takes a lock and first reads what the others have entered. What the
    file holds already is not entered again, so that ranks which meet the same utterance, and a job that is repeated or
    resumed, count it once. A last line that was cut off when its writer was killed makes way for the next one.

    Args:
        path: the file; made with the first entry, so that a ledger without entries leaves no file.

    Raises:
        DataError: the file holds something else, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._drops: dict[tuple[str, str], Drop] = {}  # by (source, id)
        self._bytes = self._lines = 0  # read or written so far
        if path.exists():
            with path.open("rb") as handle:
                self._catch_up(handle)

    def add(self, drop: Drop) -> bool:
        """Enter an utterance.

        Returns:
            Whether it is new: False if it stands there already, whoever entered it.
        """
        line = _line(drop)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as handle:
                with suppress(OSError):  # some network file systems have no locks: a line may be there twice then
                    fcntl.flock(handle, fcntl.LOCK_EX)
                rest = self._catch_up(handle)
                known = self._drops.get((drop.source, drop.id))
                if known is not None and known.reason == drop.reason:
                    return False
                if rest:
                    handle.truncate(self._bytes)
                handle.write(line)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written: {error.strerror}; make room and run again") from error
        self._enter(line)
        return True

    def forget(self, source: str, ids: Container[str]) -> None:
        """Take out the utterances of `source` that can be used now. Nobody else may enter any meanwhile.

        Raises:
            DataError: the file cannot be written; it is as it was.
        """
        kept = {key: drop for key, drop in self._drops.items() if drop.source != source or drop.id not in ids}
        if len(kept) == len(self._drops):
            return
        lines = [_line(drop) for drop in kept.values()]
        with atomic_write(self.path) as handle:
            handle.writelines(lines)
        self._drops, self._bytes, self._lines = kept, sum(map(len, lines)), len(lines)

    @property
    def drops(self) -> list[Drop]:
        """What is in the ledger, each utterance once, in the order in which they came."""
        return list(self._drops.values())

    def counts(self) -> dict[Reason, int]:
        """Reason -> utterances, the commonest first."""
        return dict(Counter(Reason(drop.reason) for drop in self._drops.values()).most_common())

    def summary(self) -> str:
        """One line such as `3 too_long, 1 truncated (ledger.jsonl)`; `none` if there are none."""
        if not self._drops:
            return "none"
        return ", ".join(f"{count} {reason}" for reason, count in self.counts().items()) + f" ({self.path})"

    def __len__(self) -> int:
        """Utterances in the ledger."""
        return len(self._drops)

    def _catch_up(self, handle: BinaryIO) -> bytes:
        """Take in the lines that are new in the file; gives what comes after the last line's end."""
        handle.seek(self._bytes)
        *lines, rest = handle.read().split(b"\n")
        for line in lines:
            self._enter(line + b"\n")
        return rest

    def _enter(self, line: bytes) -> None:
        self._bytes += len(line)
        self._lines += 1
        if not line.strip():
            return
        try:
            entry = json.loads(line)
            name, source, detail = str(entry["id"]), str(entry.get("source", "")), str(entry.get("detail", ""))
            self._drops[source, name] = Drop(name, Reason(entry["reason"]).value, detail, source)
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise DataError(
                f"{self.path}:{self._lines}: not a ledger line: got {line.rstrip()[:80]!r}, expected "
                '{"id", "reason", "detail", "source"} as JSON; move the file away to start a new ledger'
            ) from error


def _line(drop: Drop) -> bytes:
    entry = {"id": drop.id, "reason": Reason(drop.reason).value, "detail": drop.detail, "source": drop.source}
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"
