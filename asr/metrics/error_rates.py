"""Word and character error rates: edits are summed over all utterances, then divided by the reference's length."""

from __future__ import annotations

from dataclasses import dataclass

import jiwer


@dataclass(frozen=True, slots=True)
class Edits:
    """Edits that turn references into hypotheses, and the references' length, in words or characters."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    reference_length: int = 0

    @property
    def total(self) -> int:
        """All edits."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Edits / reference length; 0 if both are empty, infinite if only the references are."""
        if not self.reference_length:
            return float("inf") if self.total else 0.0
        return self.total / self.reference_length

    def __add__(self, other: Edits) -> Edits:
        return Edits(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.reference_length + other.reference_length,
        )


def word_edits(reference: str, hypothesis: str) -> Edits:
    """Edits between the words of two texts."""
    return _edits(reference.split(), hypothesis.split())


def character_edits(reference: str, hypothesis: str) -> Edits:
    """Edits between the characters of two texts; runs of white space count as one space."""
    return _edits(list(" ".join(reference.split())), list(" ".join(hypothesis.split())))


def _edits(reference: list[str], hypothesis: list[str]) -> Edits:
    if not reference:  # jiwer refuses an empty reference
        return Edits(insertions=len(hypothesis))
    # jiwer splits texts itself; one symbol a token keeps that from cutting ours.
    symbols = {token: chr(0xE000 + i) for i, token in enumerate(dict.fromkeys([*reference, *hypothesis]))}
    out = jiwer.process_characters(
        "".join(map(symbols.__getitem__, reference)), "".join(map(symbols.__getitem__, hypothesis))
    )
    return Edits(out.substitutions, out.deletions, out.insertions, len(reference))
