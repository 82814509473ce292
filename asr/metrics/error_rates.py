"""Word and character error rates: edits are summed over all utterances, then divided by the reference's length."""

from __future__ import annotations

from collections.abc import Sequence
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


def matching_words(reference: Sequence[str], hypothesis: Sequence[str]) -> list[tuple[int, int]]:
    """Places (in the reference, in the hypothesis) of the words that a shortest list of edits leaves alone."""
    if not reference:
        return []
    pairs = []
    for part in _aligned(reference, hypothesis).alignments[0]:
        if part.type == "equal":
            length = part.ref_end_idx - part.ref_start_idx
            pairs += [(part.ref_start_idx + i, part.hyp_start_idx + i) for i in range(length)]
    return pairs


def _edits(reference: Sequence[str], hypothesis: Sequence[str]) -> Edits:
    if not reference:  # jiwer refuses an empty reference
        return Edits(insertions=len(hypothesis))
    out = _aligned(reference, hypothesis)
    return Edits(out.substitutions, out.deletions, out.insertions, len(reference))


def _aligned(reference: Sequence[str], hypothesis: Sequence[str]) -> jiwer.CharacterOutput:
    # jiwer splits texts itself; one symbol a token keeps that from cutting ours.
    symbols = {token: chr(0xE000 + i) for i, token in enumerate(dict.fromkeys([*reference, *hypothesis]))}
    return jiwer.process_characters(
        "".join(map(symbols.__getitem__, reference)), "".join(map(symbols.__getitem__, hypothesis))
    )
