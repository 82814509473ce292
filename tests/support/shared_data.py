"""Real speech for tests, where it is at hand; it is not part of the toolkit."""

import os
from pathlib import Path

import pytest


def shared_data(name: str) -> Path:
    """The folder of a data set in $ASR_SHARED_DATA or ../shared/data; skips the test if it is not there."""
    root = Path(os.environ.get("ASR_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (root / name).exists():
        pytest.skip(f"needs the data set {name}: no {root / name}, and ASR_SHARED_DATA names no other folder")
    return root / name
