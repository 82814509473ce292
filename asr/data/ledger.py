"""The ledger: every utterance that could not be used, named, with the reason. Nothing vanishes."""

from __future__ import annotations

import json
from collections import Counter
from enum import StrEnum
from pathlib import Path

from asr.errors import DataError
from asr.types import Drop


class Reason(StrEnum):
    """Why an utterance cannot be used."""

    MISSING = "missing"  # the transcript names audio that is not there
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
    """Append-only JSON lines {"id", "reason", "detail", "source"}; each line is written as it comes.

    What a file holds already is read first and not entered again, so that a job that is repeated or resumed counts
    each utterance once.

    Args:
        path: the file; made with the first entry, so that a ledger without entries leaves no file.

    Raises:
        DataError: the file holds something else, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reasons: dict[tuple[str, str], Reason] = {}  # (source, id) -> reason
        self._torn = False
        if path.exists():
            self._read()

    def add(self, drop: Drop, source: str = "") -> None:
        """Enter an utterance; `source` says which list it stood in, such as a split or a manifest."""
        reason = Reason(drop.reason)
        if self._reasons.get((source, drop.id)) is reason:
            return
        self._reasons[source, drop.id] = reason
        entry = {"id": drop.id, "reason": reason.value, "detail": drop.detail, "source": source}
        line = "\n" * self._torn + json.dumps(entry, ensure_ascii=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as handle:
                handle.write(line.encode())
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written: {error.strerror}; make room and run again") from error
        self._torn = False

    def counts(self) -> dict[Reason, int]:
        """Reason -> utterances, the commonest first."""
        return dict(Counter(self._reasons.values()).most_common())

    def summary(self) -> str:
        """One line such as `3 too_long, 1 truncated (ledger.jsonl)`; `none` if there are none."""
        if not self._reasons:
            return "none"
        return ", ".join(f"{count} {reason}" for reason, count in self.counts().items()) + f" ({self.path})"

    def __len__(self) -> int:
        """Utterances in the ledger."""
        return len(self._reasons)

    def _read(self) -> None:
        lines = self.path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line) if line else None
                if entry is not None:
                    self._reasons[str(entry.get("source", "")), str(entry["id"])] = Reason(entry["reason"])
            except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
                if number == len(lines):  # cut off when its writer was killed; add() starts a new line after it
                    self._torn = True
                    return
                raise DataError(
                    f"{self.path}:{number}: not a ledger line: got {line[:80]!r}, expected "
                    '{"id", "reason", "detail", "source"} as JSON; move the file away to start a new ledger'
                ) from error
