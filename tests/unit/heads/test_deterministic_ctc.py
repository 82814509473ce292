"""The loss and gradient that a GPU computes alike in each run, against torch's on the CPU."""

import math

import pytest
import torch
from torch import Tensor

from asr.data.corpus import required_frames
from asr.heads import ctc
from asr.heads.deterministic_ctc import deterministic_ctc_loss
from tests.support.ctc import brute_force_loss

# Repeats, one token, none, as many frames as needed, a stand-in of no frames.
TARGETS = [[1, 1, 2, 3, 3], [3], [], [2, 2, 1], []]
LENGTHS = [19, 7, 5, required_frames([2, 2, 1]), 0]


def batch(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    logits = torch.randn(5, 20, 4, dtype=dtype)
    targets = torch.nn.utils.rnn.pad_sequence([torch.tensor(t, dtype=torch.int64) for t in TARGETS], batch_first=True)
    return logits, torch.tensor(LENGTHS), targets, torch.tensor([len(t) for t in TARGETS])


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_equals_torchs(dtype: torch.dtype, error: float) -> None:
    results = []
    for loss in (deterministic_ctc_loss, ctc.ctc_loss):
        logits, *rest = batch(dtype)
        logits.requires_grad_()
        losses = loss(logits.log_softmax(-1), *rest)
        weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0], dtype=dtype)
        (losses * weights).sum().backward()
        assert logits.grad is not None
        results.append((losses.detach(), logits.grad))
    for got, expected in zip(*results, strict=True):
        assert float((got - expected).abs().max()) <= error
    assert float(results[0][1].abs().max()) > 0.1


def test_equals_the_sum_over_alignments() -> None:
    torch.manual_seed(0)
    log_probs = torch.randn(1, 5, 3, dtype=torch.float64).log_softmax(-1)
    for targets in ([], [1], [1, 1], [2, 1, 2]):
        loss = deterministic_ctc_loss(
            log_probs, torch.tensor([5]), torch.tensor([[*targets, 0]]), torch.tensor([len(targets)])
        )
        assert float(loss[0]) == pytest.approx(brute_force_loss(log_probs[0], targets), abs=1e-10)


def test_gradient_by_differences() -> None:
    logits, *rest = batch(torch.float64)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: deterministic_ctc_loss(x.log_softmax(-1), *rest), (logits,))


def test_infeasible_is_infinite_and_not_hidden() -> None:
    log_probs = torch.zeros(1, 2, 3).log_softmax(-1).requires_grad_()
    loss = deterministic_ctc_loss(log_probs, torch.tensor([2]), torch.tensor([[1, 1]]), torch.tensor([2]))
    assert math.isinf(float(loss[0].detach()))
    loss.sum().backward()
    assert log_probs.grad is not None
    assert bool(log_probs.grad.isnan().any())


def test_padding_does_not_matter() -> None:
    logits, lengths, targets, target_lengths = batch(torch.float64)
    alone = deterministic_ctc_loss(logits[1:2, :7].log_softmax(-1), lengths[1:2], targets[1:2, :1], target_lengths[1:2])
    logits[1, 7:] = 1e6
    targets[1, 1:] = 3
    together = deterministic_ctc_loss(logits.log_softmax(-1), lengths, targets, target_lengths)
    assert float((together[1] - alone[0]).abs()) <= 1e-10
