"""The CTC loss against a sum over every alignment."""

import itertools
import math

import pytest
import torch

from asr.data.corpus import required_frames
from asr.heads.ctc import CtcHead, ctc_loss
from tests.support.ctc import brute_force_loss

TARGETS = [list(target) for size in range(4) for target in itertools.product((1, 2), repeat=size)]


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_equals_the_sum_over_alignments(targets: list[int]) -> None:
    torch.manual_seed(len(targets))
    log_probs = torch.randn(5, 3, dtype=torch.float64).log_softmax(-1)
    expected = brute_force_loss(log_probs, targets)
    padded = torch.tensor([[*targets, 0, 0]])
    loss = ctc_loss(log_probs[None], torch.tensor([5]), padded, torch.tensor([len(targets)]))
    assert float(loss[0]) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("targets", TARGETS, ids=str)
@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_required_frames_is_the_bound_of_feasibility(targets: list[int], frames: int) -> None:
    log_probs = torch.zeros(frames, 3).log_softmax(-1)
    feasible = math.isfinite(brute_force_loss(log_probs, targets))
    assert feasible == (required_frames(targets) <= frames)


def test_infeasible_is_infinite_and_not_hidden() -> None:
    log_probs = torch.zeros(1, 2, 3).log_softmax(-1)
    assert math.isinf(float(ctc_loss(log_probs, torch.tensor([2]), torch.tensor([[1, 1]]), torch.tensor([2]))[0]))


def test_gradient() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True)
    lengths, targets, target_lengths = torch.tensor([6, 4]), torch.tensor([[1, 1, 2], [3, 0, 0]]), torch.tensor([3, 1])
    assert torch.autograd.gradcheck(lambda x: ctc_loss(x.log_softmax(-1), lengths, targets, target_lengths), (logits,))


def test_head_is_float32_under_autocast() -> None:
    head = CtcHead(input_size=4, num_tokens=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = head(torch.randn(1, 2, 4).bfloat16())
    assert out.dtype == torch.float32
    assert torch.allclose(out.exp().sum(-1), torch.ones(1, 2))
