"""Runs our Triton kernels in Triton's interpreter, which decides when kernels are defined: in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def errors_of(module: str) -> dict[str, Any]:
    """What `python -m tests.support.MODULE` prints as JSON under the interpreter; skips where there is no Triton."""
    pytest.importorskip("triton", reason="Triton comes with torch's CUDA builds only")
    result = subprocess.run(
        [sys.executable, "-m", f"tests.support.{module}"],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
