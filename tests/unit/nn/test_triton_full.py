"""The GPU time loops of full recurrences, run by Triton's interpreter on the CPU against the CPU's own loops."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.triton_full import KINDS


def test_kernels_compute_what_the_cpu_computes() -> None:
    pytest.importorskip("triton", reason="Triton comes with torch's CUDA builds only")
    result = subprocess.run(
        [sys.executable, "-m", "tests.support.triton_full"],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"TRITON_INTERPRET": "1"},  # read when the kernels are defined
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    errors = json.loads(result.stdout)
    assert {name.partition(",")[0] for name in errors} == set(KINDS)
    for name, error in errors.items():
        assert error < 5e-6, name
