"""Triton's kernels of the element-wise recurrences on a GPU, against float64 on the CPU."""

import pytest
import torch
from torch import Tensor

from asr.nn.cells import elementwise

pytestmark = pytest.mark.gpu
CELLS = {"rnn": (1, 1), "gru": (3, 1), "lstm": (4, 2)}  # gates, states


def gradients(results: tuple[Tensor, ...], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (result.cpu().double() * torch.randn(result.shape, dtype=torch.float64, generator=generator)).sum()
        for result in results
    )
    assert isinstance(loss, Tensor)
    return torch.autograd.grad(loss, inputs)


def assert_relatively_close(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    for one, other in zip(got, expected, strict=True):
        error = (one.detach().cpu().double() - other.detach()).abs().max() / other.detach().abs().max()
        assert float(error) < tolerance


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("narrow", "sizes"),
    [
        (torch.float32, (1, 1, 1, 1)),
        (torch.float32, (2, 300, 5, 130)),
        (torch.bfloat16, (2, 300, 5, 130)),
        (torch.float16, (1, 201, 16, 130)),
    ],
)
def test_equals_the_cpu_in_float64(cell: str, narrow: torch.dtype, sizes: tuple[int, ...]) -> None:
    gates, number = CELLS[cell]
    chains, frames, batch, size = sizes
    made = [torch.randn(chains, gates * size) * 0.3, *(torch.randn(chains, batch, size) for _ in range(number))]
    made += [torch.randn(frames, batch, gates * size).to(narrow) for _ in range(chains)]
    on_gpu = [tensor.cuda().requires_grad_() for tensor in made]
    exact = [tensor.double().requires_grad_() for tensor in made]
    results = []
    for inputs in (on_gpu, exact):
        outputs, last = elementwise.recur(cell, inputs[0], tuple(inputs[1 : number + 1]), inputs[number + 1 :])
        results.append((outputs, *last))
    assert elementwise._loops(on_gpu[0]).__name__.endswith("_triton")
    assert_relatively_close(*results, tolerance=1e-3)
    got, expected = gradients(results[0], on_gpu), gradients(results[1], exact)
    assert_relatively_close(got[: number + 1], expected[: number + 1], tolerance=1e-3)
    rounding = max(1e-3, torch.finfo(narrow).eps)  # of the projections' gradients to their type
    assert_relatively_close(got[number + 1 :], expected[number + 1 :], tolerance=rounding)


def test_linear_recurrence_equals_the_cpu_in_float64() -> None:
    made = [torch.rand(2, 300, 3, 130), torch.randn(2, 300, 3, 130), torch.randn(2, 3, 130)]
    on_gpu = [tensor.cuda().requires_grad_() for tensor in made]
    exact = [tensor.double().requires_grad_() for tensor in made]
    got, expected = (elementwise.linear_recurrence(*on_gpu),), (elementwise.linear_recurrence(*exact),)
    assert_relatively_close(got, expected, tolerance=1e-3)
    assert_relatively_close(gradients(got, on_gpu), gradients(expected, exact), tolerance=1e-3)
