"""Two texts above each other, word by word, for people to compare."""

from __future__ import annotations

from collections.abc import Sequence

import jiwer
from rich.cells import cell_len, set_cell_size

MARKS = {"equal": "", "substitute": "S", "delete": "D", "insert": "I"}
LABELS = ("REF:", "HYP:", "", "log p")
LABEL_COLUMNS = max(map(len, LABELS))


def aligned_lines(text: str, heard: str, word_log_probs: Sequence[float], width: int) -> list[str]:
    """A transcript and what was heard, as jiwer shows them, with log-probabilities below the transcript's words.

    Args:
        text: words parted by spaces, at least one.
        heard: any number of words.
        word_log_probs: of the words of `text`; not shown if they are not as many.
        width: of a line, in columns of a terminal; longer texts take several.
    """
    said, got = text.split(), heard.split()
    shown = [f"{value:.2f}" for value in word_log_probs] if len(word_log_probs) == len(said) else [""] * len(said)
    columns: list[tuple[str, str, str, str]] = []
    for chunk in jiwer.process_words(text, heard).alignments[0]:
        references = range(chunk.ref_start_idx, chunk.ref_end_idx)
        hypotheses = range(chunk.hyp_start_idx, chunk.hyp_end_idx)
        for offset in range(max(len(references), len(hypotheses))):
            reference = said[references[offset]] if references else ""
            hypothesis = got[hypotheses[offset]] if hypotheses else ""
            stars = "*" * cell_len(reference or hypothesis)
            log_prob = shown[references[offset]] if references else ""
            columns.append((reference or stars, hypothesis or stars, MARKS[chunk.type], log_prob))

    blocks: list[list[str]] = []
    for column in columns:
        size = max(map(cell_len, column))
        if not blocks or cell_len(blocks[-1][0]) + 1 + size > width:
            blocks.append([set_cell_size(label, LABEL_COLUMNS) for label in LABELS])
        blocks[-1] = [f"{row} {set_cell_size(cell, size)}" for row, cell in zip(blocks[-1], column, strict=True)]
    return [line for block in blocks for line in map(str.rstrip, block) if line not in ("", LABELS[-1])]
