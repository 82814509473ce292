"""Batch norm's GPU kernels, run by Triton's interpreter on the CPU against float64."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_kernels_compute_what_float64_gives() -> None:
    pytest.importorskip("triton", reason="Triton comes with torch's CUDA builds only")
    result = subprocess.run(
        [sys.executable, "-m", "tests.support.triton_batch_norm"],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"TRITON_INTERPRET": "1"},  # read when the kernels are defined
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    errors = json.loads(result.stdout)
    assert len(errors) == 6 * (4 * 2 * 3 + 4) + 8 * 4
    for name, error in errors.items():
        truncated = "bfloat16: y" in name or "bfloat16: d x" in name  # so does the interpreter; a GPU rounds
        assert error < (2**-7 if truncated else 1e-5), name
