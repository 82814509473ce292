"""Transcripts as the commands print them."""

from __future__ import annotations

import json
from dataclasses import asdict

from asr.types import Transcript


def as_json(name: str, transcript: Transcript) -> str:
    """One line: "audio", "text", "words", "log_prob", and "nbest" where there are several readings."""
    values = asdict(transcript)
    if not transcript.nbest:
        del values["nbest"]
    return json.dumps({"audio": name, **values}, ensure_ascii=False)


def as_text(name: str, transcript: Transcript) -> str:
    """The text, or a line for each reading: rank, score, text; a name stands before each, parted by tabs."""
    start = f"{name}\t" if name else ""
    if not transcript.nbest:
        return start + transcript.text
    return "\n".join(f"{start}{rank}\t{one.score:.3f}\t{one.text}" for rank, one in enumerate(transcript.nbest, 1))
