"""Masked batch norm against torch's own on the real frames alone, and against a folded projection written out."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from asr.nn.batch_norm import MaskedBatchNorm, NormalizedLinear
from asr.nn.masking import Padding, reverse_within_lengths, valid_mask, zero_padding

LENGTHS = torch.tensor([5, 2, 7])


def padded(*trailing: int) -> torch.Tensor:
    torch.manual_seed(0)
    hidden = torch.randn(3, 7, *trailing, dtype=torch.float64) * 3 + 1
    return hidden.masked_fill(~valid_mask(LENGTHS, 7).view(3, 7, *[1] * len(trailing)), 0.0)


@pytest.mark.parametrize("shape", [(4,), (6, 4)], ids=["B S C", "B S F C"])
@pytest.mark.parametrize("training", [True, False])
def test_equals_torch_on_the_real_rows(shape: tuple[int, ...], training: bool) -> None:
    ours, theirs = MaskedBatchNorm(4).double(), torch.nn.BatchNorm1d(4).double()
    torch.nn.init.normal_(ours.scale)
    torch.nn.init.normal_(ours.shift)
    with torch.no_grad():
        theirs.weight.copy_(ours.scale)
        theirs.bias.copy_(ours.shift)
    mask = valid_mask(LENGTHS, 7)
    hidden = padded(*shape).requires_grad_()
    ours.train(), theirs.train()
    ours(hidden.detach(), LENGTHS), theirs(hidden.detach()[mask].view(-1, 4))  # running statistics of one batch
    ours.train(training), theirs.train(training)
    out = ours(hidden, LENGTHS)
    expected = theirs(hidden[mask].view(-1, 4))
    assert torch.allclose(out[mask].view(-1, 4), expected, rtol=0, atol=1e-12)
    assert bool((out[~mask] == 0).all())
    assert torch.allclose(ours.running_mean, theirs.running_mean, rtol=0, atol=1e-12)
    assert torch.allclose(ours.running_variance, theirs.running_var, rtol=0, atol=1e-12)
    weights = torch.randn_like(expected)
    gradient = torch.autograd.grad((out[mask].view(-1, 4) * weights).sum(), [hidden, ours.scale, ours.shift])
    reference = torch.autograd.grad((expected * weights).sum(), [hidden, theirs.weight, theirs.bias])
    for got, want in zip(gradient, reference, strict=True):
        assert torch.allclose(got, want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("training", [True, False])
def test_folded_projection_equals_projection_then_norm(training: bool) -> None:
    torch.manual_seed(1)
    layer = NormalizedLinear(4, 6).double()
    plain = MaskedBatchNorm(6).double()
    for parameter in (layer.norm.scale, layer.norm.shift):
        torch.nn.init.normal_(parameter)
    plain.load_state_dict(layer.norm.state_dict())
    hidden = padded(4).requires_grad_()
    if not training:  # some statistics to use
        layer.folded(hidden, LENGTHS)
        plain(zero_padding(hidden @ layer.weight.T, LENGTHS), LENGTHS)
    layer.train(training), plain.train(training)
    inputs = zero_padding(hidden, LENGTHS)  # what every caller does: no gradient reaches padding
    weight, bias = layer.folded(inputs, LENGTHS)
    out = zero_padding(torch.nn.functional.linear(inputs, weight, bias), LENGTHS)
    expected = plain(zero_padding(inputs @ layer.weight.T, LENGTHS), LENGTHS)
    assert torch.allclose(out, expected, rtol=0, atol=1e-10)
    assert torch.allclose(layer.norm.running_mean, plain.running_mean, rtol=0, atol=1e-12)
    assert torch.allclose(layer.norm.running_variance, plain.running_variance, rtol=0, atol=1e-12)
    weights = torch.randn_like(out)
    gradient = torch.autograd.grad((out * weights).sum(), [hidden, layer.weight], retain_graph=True)
    reference = torch.autograd.grad((expected * weights).sum(), [hidden, layer.weight])
    for got, want in zip(gradient, reference, strict=True):
        assert torch.allclose(got, want, rtol=0, atol=1e-9)


def test_one_frame_is_no_division_by_zero() -> None:
    norm = MaskedBatchNorm(4)
    out = norm(torch.ones(1, 1, 4), torch.tensor([1]))
    assert bool(torch.isfinite(out).all())
    assert bool(torch.isfinite(norm.running_variance).all())
    norm(torch.zeros(1, 3, 4), torch.tensor([0]))  # a stand-in item alone
    assert bool(torch.isfinite(norm.running_variance).all())


def test_reverse_within_lengths() -> None:
    hidden = torch.arange(8.0).view(2, 4, 1)
    once = reverse_within_lengths(hidden, torch.tensor([3, 1]))
    assert once[..., 0].tolist() == [[2, 1, 0, 3], [4, 5, 6, 7]]
    assert torch.equal(reverse_within_lengths(once, torch.tensor([3, 1])), hidden)


@pytest.mark.parametrize(
    "arrange", [lambda t: t, lambda t: t.transpose(0, 1).contiguous().transpose(0, 1), lambda t: t.mT]
)
def test_reverse_within_lengths_in_any_layout_and_its_gradient(arrange: Callable[[Tensor], Tensor]) -> None:
    """The same bits as indexing by torch, whose gradient is a sum."""
    lengths = torch.tensor([0, 5, 3])
    hidden = arrange(torch.randn(3, 5, 5)).detach().requires_grad_()
    index = torch.tensor([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 1, 0, 3, 4]])
    got, expected = reverse_within_lengths(hidden, lengths), hidden[torch.arange(3)[:, None], index]
    assert torch.equal(got, expected)
    assert got.stride() == (hidden.stride() if hidden.transpose(0, 1).is_contiguous() else (25, 5, 1))
    weights = torch.randn(3, 5, 5)
    results = [
        torch.autograd.grad((out * weights).square().sum(), hidden, create_graph=True)[0] for out in (got, expected)
    ]
    assert torch.equal(*results)
    assert torch.equal(*(torch.autograd.grad(result.square().sum(), hidden)[0] for result in results))


@pytest.mark.parametrize("trailing", [(), (4,), (6, 4)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_padding_is_zeroed_by_a_mask_as_by_rows(trailing: tuple[int, ...], kind: torch.dtype) -> None:
    """As on a GPU, in memory as it was."""
    padding, hidden = Padding(LENGTHS, 7), torch.randn(3, 7, *trailing).to(kind)
    expected = padding.zero(hidden)
    padding.rows = None
    for given in (hidden, hidden.transpose(0, 1).contiguous().transpose(0, 1)):
        out = padding.zero(given)
        assert out.dtype == kind
        assert out.stride() == given.stride()
        assert torch.equal(out, expected)


def test_padding_may_hold_anything_and_gets_no_gradient() -> None:
    norm = MaskedBatchNorm(4, clip=20.0).double()
    clean, mask = padded(4), valid_mask(LENGTHS, 7)
    expected = norm(clean, LENGTHS, zeroed=True)
    hidden = clean.masked_fill(~mask[..., None], torch.nan).requires_grad_()
    for training in (True, False):
        norm.train(training)
        out = norm(hidden, LENGTHS)
        (gradient,) = torch.autograd.grad(out.square().sum(), hidden)
        assert not bool(out[~mask].any())
        assert not bool(gradient[~mask].any())
        if training:
            assert torch.equal(out, expected)


def test_a_batch_without_real_frames_moves_no_statistics() -> None:
    nothing, lengths = torch.zeros(2, 5, 4, dtype=torch.float64), torch.tensor([0, 0])
    norm, layer = MaskedBatchNorm(4).double(), NormalizedLinear(4, 4).double()
    for module in (norm, layer.norm):
        torch.nn.init.normal_(module.running_mean)
        torch.nn.init.uniform_(module.running_variance, 0.5, 2.0)
    before = [buffer.clone() for buffer in (*norm.buffers(), *layer.buffers())]
    norm(nothing, lengths), layer(nothing, lengths), layer.folded(nothing, lengths)
    for was, now in zip(before, (*norm.buffers(), *layer.buffers()), strict=True):
        assert torch.equal(was, now)
