"""Products and convolutions on a CPU: against torch's in float64, and each output by itself."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from asr.nn import _numba_calls, _numba_products, products

pytestmark = pytest.mark.skipif(not products.runs_here(), reason="products are torch's where there is no AVX2")

ROWS, DEPTH = _numba_products.ROWS_AT_A_TIME, _numba_products.DEPTH
Case = tuple[Callable[[Tensor, Tensor, Tensor], Tensor], Callable[[Tensor, Tensor, Tensor], Tensor]]


def conv2d(frames: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(frames.permute(0, 3, 1, 2), weight, bias, (2, 3)).permute(0, 2, 3, 1)


def dilated(frames: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv1d(frames.mT, weight.mT, bias, dilation=3).mT


CASES: dict[str, tuple[Case, tuple[int, ...], tuple[int, ...]]] = {  # ours and torch's, sizes of input and weight
    "one row": ((products.linear, F.linear), (1, 7), (5, 7)),
    "a panel": ((products.linear, F.linear), (9, 64), (48, 64)),
    "more than a block": ((products.linear, F.linear), (ROWS + 13, 2 * DEPTH + 3), (70, 2 * DEPTH + 3)),
    "sequences": ((products.linear, F.linear), (3, 11, 20), (33, 20)),
    "one channel": ((lambda x, w, b: products.convolve(x, w, b, (2, 3)), conv2d), (2, 12, 41, 1), (32, 1, 5, 11)),
    "channels": ((lambda x, w, b: products.convolve(x, w, b, (2, 3)), conv2d), (3, 25, 14, 20), (20, 20, 3, 5)),
    "dilated, many items": (
        (lambda x, w, b: products.dilated_convolve(x, w, b, 3), dilated),
        (11, 12, 12),
        (30, 4, 12),
    ),
    "dilated": ((lambda x, w, b: products.dilated_convolve(x, w, b, 3), dilated), (2, ROWS + 20, 12), (30, 4, 12)),
}


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> tuple[Case, Tensor, Tensor, Tensor]:
    functions, size, weight_size = CASES[request.param]
    generator = torch.Generator().manual_seed(0)
    inputs, weight = (torch.randn(shape, generator=generator) for shape in (size, weight_size))
    return functions, inputs, weight, torch.randn(weight_size[0], generator=generator)


@torch.no_grad()
def test_equals_torch(case: tuple[Case, Tensor, Tensor, Tensor]) -> None:
    """In float64 to 1e-12; in float32 not further from that than twice what torch's own float32 is."""
    (ours, theirs), *tensors = case
    exact = theirs(*(tensor.double() for tensor in tensors))
    assert float((ours(*(tensor.double() for tensor in tensors)) - exact).abs().max()) < 1e-12 * exact.abs().max()
    error, usual = (float((function(*tensors) - exact).abs().max()) for function in (ours, theirs))
    assert error < max(2 * usual, 2e-6)


@torch.no_grad()
def test_an_item_does_not_depend_on_the_others_nor_on_threads(
    case: tuple[Case, Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    (ours, _), inputs, weight, bias = case
    together = ours(inputs, weight, bias)
    for item in range(0, len(inputs), 7):
        assert torch.equal(ours(inputs[item : item + 1], weight, bias)[0], together[item])
    monkeypatch.setattr(_numba_calls, "WORTH_A_THREAD", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(ours(inputs, weight, bias), together)
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def test_pieces_of_a_convolution_are_its_parts() -> None:
    frames, weight, bias = torch.randn(2, 40, 30, 8), torch.randn(32, 8, 5, 7), torch.randn(32)
    whole = products.convolve(frames, weight, bias, (2, 2))
    pieces = [products.convolve(frames[:, start : start + 9], weight, bias, (2, 2)) for start in (0, 6, 12)]
    assert torch.equal(torch.cat(pieces, 1), whole[:, :9])
    each = torch.randn(30, 6)
    filtered = products.convolve_each_unit(frames[..., 0], each)
    exact = F.conv1d(frames[..., 0].double().mT, each.double()[:, None], groups=30).mT
    assert float((filtered - exact).abs().max()) < 1e-5
    assert torch.equal(products.convolve_each_unit(frames[:1, 3:19, :, 0], each), filtered[:1, 3:14])


@torch.no_grad()
def test_a_weight_is_laid_out_once() -> None:
    """And anew where the layer has moved to another type since."""
    layer = products.Linear(20, 30)
    inputs = torch.randn(4, 20)
    expected = layer(inputs)
    layer.fold_norm()
    packed = layer.packed
    assert packed is not None
    assert torch.equal(layer(inputs), expected)
    packed.zero_()
    assert torch.equal(layer(inputs), layer.bias.expand(4, 30))
    assert float((layer.double()(inputs.double()) - expected).abs().max()) < 1e-5


@torch.no_grad()
def test_a_transposed_view_is_not_copied() -> None:
    inputs, weight = torch.randn(6, 5, 20).transpose(0, 1), torch.randn(16, 20)
    out = products.linear(inputs, weight)
    assert out.transpose(0, 1).is_contiguous()
    assert torch.equal(out, products.linear(inputs.contiguous(), weight))


def test_gradients_where_torch_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "torch_is_slow", lambda: True)
    monkeypatch.setattr(products, "LARGE", 1)
    inputs = torch.randn(7, 90, 50).transpose(0, 1).requires_grad_()
    weight, bias = torch.randn(33, 50, requires_grad=True), torch.randn(33, requires_grad=True)
    for parameters in ((weight, bias), (weight,)):
        got = products.linear(inputs, *parameters)
        assert type(got.grad_fn).__name__ in ("_LinearBackward", "TransposeBackward0")
        ours = torch.autograd.grad(got.sin().sum(), (inputs, *parameters))
        double = [tensor.detach().double().requires_grad_() for tensor in (inputs, *parameters)]
        theirs = torch.autograd.grad(F.linear(*double).sin().sum(), double)
        for one, other in zip(ours, theirs, strict=True):
            assert float((one - other).abs().max() / other.abs().max()) < 2e-6
    left, right = torch.randn(500, 40), torch.randn(500, 21)
    exact = left.double().mT @ right.double()
    assert float((products.transposed_product(left, right) - exact).abs().max()) < 1e-4


def test_small_or_watched_products_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "torch_is_slow", lambda: True)
    inputs = torch.randn(30, 20)
    assert not products.ours(inputs, products.LARGE - 1)
    assert products.ours(inputs, products.LARGE)
    assert not products.ours(inputs.double(), products.LARGE)
    with torch.no_grad():
        assert products.ours(inputs)
        assert products.ours(inputs.double())
        assert not products.ours(inputs.half())
        assert not products.ours(inputs[:0])
        with torch.autocast("cpu", torch.bfloat16):
            assert not products.ours(inputs)
            assert products.linear(inputs, torch.randn(5, 20)).dtype == torch.bfloat16
        with FlopCounterMode(display=False) as counter:
            products.linear(inputs, torch.randn(5, 20))
        assert counter.get_total_flops() == 2 * 30 * 20 * 5
        exported = torch.export.export(products.Linear(20, 5), (inputs,))
        assert "linear" in exported.graph_module.code
    monkeypatch.setattr(products, "torch_is_slow", lambda: False)
    assert not products.ours(inputs, products.LARGE)
