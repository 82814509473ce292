"""Batch norm's kernels on a GPU: the CPU's float64 results, the same bits twice, and nothing that waits."""

import pytest
import torch
from torch import Tensor

from asr.config.schema import ConvLayer
from asr.nn import batch_norm_on_gpu
from asr.nn.batch_norm import MaskedBatchNorm
from asr.nn.front_end import ConvFrontEnd
from asr.nn.masking import reverse_within_lengths
from asr.nn.precision import whole_float32
from tests.support.triton_batch_norm import difference, difference_of_folded, made
from tests.support.waiting import nothing_waits

pytestmark = pytest.mark.gpu
SHAPES = ((5, 300, 9, 32), (5, 40, 1), (3, 700, 100), (3, 70, 41, 3), (4, 300, 800))
CASES = [(shape, 20.0, kind) for shape in SHAPES for kind in (torch.float32, torch.bfloat16)]
CASES += [(SHAPES[0], None, torch.float32), (SHAPES[0], None, torch.float16)]  # a few: each takes seconds to compile


@pytest.mark.parametrize(("shape", "clip", "narrow"), CASES)
def test_equals_the_cpu_in_float64(shape: tuple[int, ...], clip: float | None, narrow: torch.dtype) -> None:
    hidden, lengths = made(*shape)
    for name, error in difference(hidden.cuda().to(narrow), lengths, clip=clip).items():
        rounding = torch.finfo(narrow).eps / 2 if name in ("y", "d x") else 0.0
        assert error < rounding + 2e-5, name


def test_neighbours_in_memory_that_are_not_so_in_shape() -> None:
    def crossed(hidden: Tensor) -> Tensor:
        return hidden.cuda().transpose(1, 2).contiguous().transpose(1, 2)

    hidden, lengths = made(5, 40, 3, 32, arrange=crossed)
    assert not hidden.is_contiguous()
    assert max(difference(hidden, lengths, clip=20.0).values()) < 2e-5


@pytest.mark.parametrize("narrow", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frames_first", [False, True])
def test_folded_into_a_projection_it_is_the_cpus(narrow: torch.dtype, frames_first: bool) -> None:
    inputs, lengths = made(5, 300, 72)
    inputs = inputs.cuda().to(narrow)
    if frames_first:
        inputs = inputs.transpose(0, 1).contiguous().transpose(0, 1)
    with whole_float32():
        errors = difference_of_folded(inputs, lengths)
    for name, error in errors.items():
        assert error < (torch.finfo(narrow).eps / 2 if name == "d x" else 0.0) + 2e-5, name


def test_a_batch_without_real_frames() -> None:
    norm = MaskedBatchNorm(32, clip=20.0).cuda()
    hidden = torch.randn(2, 9, 32, device="cuda", requires_grad=True)
    before = [buffer.clone() for buffer in norm.buffers()]
    out = norm(hidden, torch.zeros(2, dtype=torch.int64, device="cuda"))
    (gradient,) = torch.autograd.grad(out.sum(), hidden)
    assert not bool(out.any() | gradient.any())
    assert all(torch.equal(was, now) for was, now in zip(before, norm.buffers(), strict=True))


def training_step(front_end: ConvFrontEnd, features: Tensor, lengths: Tensor) -> list[Tensor]:
    """Outputs and gradients under autocast."""
    with torch.autocast("cuda", torch.bfloat16):
        out, _ = front_end(features, lengths)
    parameters = list(front_end.parameters())
    return [out, *torch.autograd.grad(out.square().sum(), parameters)]


def test_a_step_uses_them_gives_the_same_bits_twice_and_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = (ConvLayer(channels=32, time_kernel=11, frequency_kernel=41, time_stride=2, frequency_stride=2),) * 2
    front_end = ConvFrontEnd(num_features=161, layers=layers).cuda()
    features, lengths = torch.randn(4, 300, 161, device="cuda"), torch.tensor([300, 1, 0, 211], device="cuda")
    calls: list[torch.dtype] = []

    def normalize(hidden: Tensor, *args: Tensor, **options: object) -> tuple[Tensor, ...]:
        result = original(hidden, *args, **options)
        calls.extend((hidden.dtype, result[0].dtype))
        return result

    original = batch_norm_on_gpu.normalize
    monkeypatch.setattr(batch_norm_on_gpu, "normalize", normalize)
    torch.use_deterministic_algorithms(True)  # of cuDNN, too
    try:
        training_step(front_end, features, lengths)  # compiles
        with nothing_waits():
            first, second = (training_step(front_end, features, lengths) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert calls == [torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.float32] * 3
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert all(bool(value.isfinite().all()) for value in first)


@pytest.mark.parametrize("narrow", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("time_first", [False, True])
def test_reversing_is_its_own_gradient(narrow: torch.dtype, time_first: bool) -> None:
    hidden, lengths = torch.randn(5, 40, 72).to(narrow), torch.tensor([0, 40, 17, 1, 39])
    given = hidden.cuda()
    if time_first:
        given = given.transpose(0, 1).contiguous().transpose(0, 1)
    out = reverse_within_lengths(given.requires_grad_(), lengths.cuda())
    assert torch.equal(out.cpu(), reverse_within_lengths(hidden, lengths))
    (gradient,) = torch.autograd.grad(out, given, hidden.cuda())
    assert torch.equal(gradient.cpu(), reverse_within_lengths(hidden, lengths))
