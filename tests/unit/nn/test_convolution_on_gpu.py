"""Convolutions in another order: the same sums and the same gradients. They run on any device."""

import pytest
import torch
import torch.nn.functional as F

from asr.nn.convolution_on_gpu import CHANNELS, convolve, convolve_dilated, convolve_few_channels, convolve_few_filters


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("frames", "kernel", "dilation"), [(40, 5, 1), (40, 5, 8), (43, 4, 8), (3, 3, 1), (13, 5, 3)])
def test_dilated(frames: int, kernel: int, dilation: int, bias: bool) -> None:
    padded = torch.randn(2, frames, 6, requires_grad=True)
    weight = torch.randn(7, kernel, 6, requires_grad=True)
    shift = torch.randn(7, requires_grad=True) if bias else None
    expected = F.conv1d(padded.mT, weight.mT, shift, dilation=dilation).mT
    assert_same(convolve_dilated(padded, weight, shift, dilation), expected, padded, weight)


def test_dilated_frames_of_whole_rows_are_not_copied() -> None:
    out = convolve_dilated(torch.randn(2, 48, 8), torch.randn(8, 5, 8), None, 8)
    assert out.shape == (2, 16, 8)
    assert out.is_contiguous()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("channels", "size", "kernel", "stride", "padding"),
    [
        (1, (30, 161), (11, 41), (2, 2), (5, 20)),  # the first layer of Deep Speech 2
        (1, (30, 161), (11, 161), (3, 1), (5, 0)),  # over all frequencies at once
        (1, (30, 160), (11, 41), (2, 2), (0, 20)),
        (8, (30, 81), (11, 21), (1, 2), (5, 10)),  # its second layer
        (8, (30, 80), (3, 21), (2, 2), (1, 10)),
        (8, (30, 20), (3, 3), (1, 1), (1, 1)),  # a pair needs a kernel of twice the size
        (3, (25, 20), (5, 4), (1, 3), (2, 1)),
        (1, (11, 41), (11, 41), (2, 2), (0, 0)),
        (2, (24, 9), (3, 3), (4, 4), (1, 1)),  # moves by more than the kernel
    ],
)
def test_images(
    channels: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    bias: bool,
) -> None:
    frames = torch.randn(2, *size, channels, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, channels, *kernel, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(5, dtype=torch.float64, requires_grad=True) if bias else None
    expected = F.conv2d(frames.permute(0, 3, 1, 2), weight, shift, stride, padding).permute(0, 2, 3, 1)
    for way in (convolve_few_channels, convolve_few_filters, convolve):
        assert_same(way(frames, weight, shift, stride, padding), expected, frames, weight)


def test_few_channels_become_as_many_as_a_tensor_core_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    convolve = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda image, *rest: seen.append(image) or convolve(image, *rest))
    convolve_few_channels(torch.randn(2, 30, 161, 1), torch.randn(5, 1, 11, 41), None, (2, 2), (5, 20))
    (image,) = seen
    assert image.shape == (2, 24, 15, 101)
    assert image.shape[1] % CHANNELS == 0
    assert image.is_contiguous(memory_format=torch.channels_last)


def assert_same(out: torch.Tensor, expected: torch.Tensor, *leaves: torch.Tensor) -> None:
    """Results, and the gradients of some sum of them."""
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(expected)
    gradients = torch.autograd.grad((out * weights).sum(), leaves, retain_graph=True)
    torch.testing.assert_close(
        gradients, torch.autograd.grad((expected * weights).sum(), leaves, retain_graph=True), rtol=1e-5, atol=1e-5
    )
