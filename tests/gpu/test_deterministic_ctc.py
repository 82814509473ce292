"""In deterministic mode a GPU computes CTC's loss and gradient, and twice the same."""

from contextlib import nullcontext

import pytest
import torch

from asr.heads.ctc import ctc_loss
from tests.support.waiting import nothing_waits

pytestmark = pytest.mark.gpu


def test_twice_the_same_and_as_on_the_cpu() -> None:
    torch.manual_seed(0)
    logits = torch.randn(16, 400, 30)
    targets, lengths = torch.randint(1, 30, (16, 80)), torch.randint(200, 400, (16,))
    target_lengths = torch.randint(40, 80, (16,))
    results = []
    torch.use_deterministic_algorithms(True)
    try:
        for device, dtype in (("cuda", torch.float32), ("cuda", torch.float32), ("cpu", torch.float64)):
            mine = logits.to(device, dtype, copy=True).requires_grad_()
            ctc_loss(mine.log_softmax(-1), *(t.to(device) for t in (lengths, targets, target_lengths))).sum().backward()
            assert mine.grad is not None
            results.append(mine.grad.cpu())
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(results[0], results[1])
    assert float((results[0] - results[2]).abs().max()) <= 1e-5  # torch's own in float32 is off by 5e-4


def test_nothing_waits_for_the_device() -> None:
    lengths, target_lengths = torch.tensor([50, 43], device="cuda"), torch.tensor([20, 0], device="cuda")
    logits = torch.randn(2, 50, 30, device="cuda", requires_grad=True)
    targets = torch.randint(1, 30, (2, 20), device="cuda")
    for watched in (nullcontext, nothing_waits):  # first it is compiled
        with watched():
            ctc_loss(logits.log_softmax(-1), lengths, targets, target_lengths).sum().backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
