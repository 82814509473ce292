"""The GPU kernel of CTC's recursion, run by Triton's interpreter on the CPU."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from asr.heads import deterministic_ctc


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


def test_where_it_cannot_be_built_that_is_said_and_the_loss_is_computed_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    triton_ctc = pytest.importorskip("asr.heads._triton_ctc", reason="Triton comes with torch's CUDA builds only")

    def alphas(*args: object) -> None:
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setenv("TRITON_INTERPRET", "1")  # only so that the kernel is tried on a CPU
    monkeypatch.setattr(triton_ctc, "alphas", alphas)
    deterministic_ctc._tried.cache_clear()
    log_probs, lengths = torch.zeros(1, 3, 2).log_softmax(-1), torch.tensor([3])
    with pytest.warns(UserWarning, match="Failed to find C compiler"):
        loss = deterministic_ctc.deterministic_ctc_loss(log_probs, lengths, torch.tensor([[1]]), torch.tensor([1]))
    deterministic_ctc._tried.cache_clear()
    assert float(loss[0]) == pytest.approx(-math.log(6 / 8))
