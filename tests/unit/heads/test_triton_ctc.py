"""The GPU kernel of CTC's recursion, run by Triton's interpreter on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_kernel_computes_torchs_loss_and_gradient() -> None:
    pytest.importorskip("triton", reason="Triton comes with torch's CUDA builds only")
    result = subprocess.run(
        [sys.executable, "-m", "tests.support.triton_ctc"],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"TRITON_INTERPRET": "1"},  # read when the kernel is defined
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    errors = json.loads(result.stdout)
    assert len(errors) == 3
    assert max(max(pair) for pair in errors.values()) < 1e-10
