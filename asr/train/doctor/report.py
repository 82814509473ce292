"""One line a check: a verdict, what was found, and the command or setting that mends it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

MAX_LOST_SHARE = 0.1  # beyond a tenth of the utterances it is a setting that is wrong, and no longer the data
SHOWN_DETAILS = 5  # in print; JSON has all


class Verdict(StrEnum):
    """What a check came to: train; train, but look at this first; do not train."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Line:
    """What one check found.

    check: its name. message: what was found. fix: the command or setting that mends it; every verdict but ok has one.
    details: what it was found on, one by one. figures: name with unit -> number, for machines.
    """

    check: str
    verdict: Verdict
    message: str
    fix: str = ""
    details: tuple[str, ...] = ()
    figures: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.fix or self.verdict is Verdict.OK, self.check

    def __str__(self) -> str:
        margin = " " * 21
        message = self.message.replace("\n", f"\n{margin}")
        rows = [f"{self.verdict:<8}{self.check:<13}{message}"]
        rows += [f"{margin}{detail}" for detail in self.details[:SHOWN_DETAILS]]
        if len(self.details) > SHOWN_DETAILS:
            rows.append(f"{margin}and {len(self.details) - SHOWN_DETAILS} more; --json lists them")
        if self.fix:
            rows.append(f"{margin}fix: {self.fix}")
        return "\n".join(rows)

    def to_json(self) -> dict[str, Any]:
        """The line as JSON values."""
        return {
            "check": self.check,
            "verdict": self.verdict.value,
            "message": self.message,
            "fix": self.fix,
            "details": list(self.details),
            "figures": self.figures,
        }


def worst(lines: Iterable[Line]) -> Verdict:
    """The gravest verdict; ok of no lines."""
    order = list(Verdict)
    return max((line.verdict for line in lines), key=order.index, default=Verdict.OK)


def lost(num_lost: int, total: int) -> Verdict:
    """The verdict on utterances that cannot be used."""
    if not num_lost:
        return Verdict.OK
    return Verdict.ERROR if num_lost > MAX_LOST_SHARE * total else Verdict.WARNING


def gibibytes(num_bytes: float) -> str:
    """Such as `1.25 GiB`."""
    return f"{num_bytes / 2**30:.2f} GiB"


def duration(seconds: float) -> str:
    """Such as `41 s`, `12 min`, `3.4 h` or `5.2 days`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
