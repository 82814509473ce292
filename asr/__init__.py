"""End-to-end speech recognition of the Deep Speech 2 family.

`asr.load("runs/mine").transcribe("a.flac").text` recognises a file; `asr --help` and docs/ have the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from asr.decode.recognizer import Recognizer

__all__ = ["__version__", "load"]

__version__ = "0.1.0"


def load(model: str | Path, device: str | None = None) -> Recognizer:
    """Load a recogniser; torch is imported now, not with `import asr`.

    Args:
        model: run folder (its best checkpoint is taken) or checkpoint folder.
        device: "cpu", "cuda", "cuda:1", ...; none: a GPU if there is one.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    from asr import checkpoint
    from asr.decode.recognizer import Recognizer

    return Recognizer(checkpoint.load(model), device)
