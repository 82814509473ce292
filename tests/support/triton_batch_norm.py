"""Runs batch norm's GPU kernels under Triton's interpreter, on the CPU, and prints the errors.

    TRITON_INTERPRET=1 python -m tests.support.triton_batch_norm

One JSON object: name -> largest difference from float64, relative to the largest value.
"""

import json
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from asr.nn import batch_norm_on_gpu
from asr.nn.batch_norm import MaskedBatchNorm, NormalizedLinear

UNITS = (1, 32, 100, 200)
FREQUENCIES = ((), (3,))
CLIPS = {"none": None, "20": 20.0, "inf": float("inf")}


def main() -> None:
    errors: dict[str, float] = {}
    for units, frequencies, (name, clip) in product(UNITS, FREQUENCIES, CLIPS.items()):
        case = f"{len(frequencies) + 3}D, {units}, {name}"
        hidden, lengths = made(5, 40, *frequencies, units)
        errors |= {f"{case}: {key}": error for key, error in difference(hidden, lengths, clip=clip).items()}
    long, lengths = made(2, 600, 41, 4)  # of several programs an item
    errors |= {f"long: {key}": error for key, error in difference(long, lengths, clip=20.0).items()}
    crossed, lengths = made(5, 40, 3, 32, arrange=lambda t: t.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3))
    assert not crossed.is_contiguous()
    errors |= {f"not contiguous: {key}": error for key, error in difference(crossed, lengths, clip=20.0).items()}
    crossed, lengths = made(5, 40, 32, arrange=lambda hidden: hidden.transpose(0, 1).contiguous().transpose(0, 1))
    errors |= {f"frames first: {key}": error for key, error in difference(crossed, lengths, clip=20.0).items()}
    narrow, lengths = made(5, 40, 3, 32)
    for key, error in difference(narrow.bfloat16(), lengths, clip=20.0).items():
        errors[f"bfloat16: {key}"] = error
    for kind in (torch.float32, torch.bfloat16):
        inputs, lengths = made(5, 40, 20)
        for frames_first in (False, True):
            given = inputs.to(kind).transpose(0, 1).contiguous().transpose(0, 1) if frames_first else inputs.to(kind)
            for key, error in difference_of_folded(given, lengths).items():
                errors[f"folded, {frames_first}, {kind}: {key}"] = error
    print(json.dumps(errors))


def made(*shape: int, arrange: Callable[[Tensor], Tensor] = lambda hidden: hidden) -> tuple[Tensor, Tensor]:
    """Activations whose mean is not 0 and whose padding holds NaN, and lengths: none, all and some of the frames."""
    torch.manual_seed(0)
    hidden = 3 * torch.randn(shape) + 5 * torch.randn(shape[-1])
    lengths = torch.tensor([0, shape[1], *torch.randint(1, shape[1], (shape[0] - 2,)).tolist()])
    padding = torch.arange(shape[1]) >= lengths[:, None]
    return arrange(hidden.masked_fill(padding[(..., *[None] * (len(shape) - 2))], torch.nan)), lengths


def difference(hidden: Tensor, lengths: Tensor, *, clip: float | None) -> dict[str, float]:
    """Of outputs, gradients and running statistics of the kernels from torch's operations in float64."""
    exact = hidden.detach().cpu().double()
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2)).to(hidden.dtype)
    if clip is not None:  # at the bends a gradient is one thing or another by the last digit of y
        y = norm_of(hidden, None).double()(exact, lengths)
        weights = weights * ((y.abs() > 1e-3) & ((y - clip).abs() > 1e-3))
    norm = norm_of(hidden, clip).to(hidden.device)
    inputs = hidden.detach().requires_grad_()
    assert batch_norm_on_gpu.fits(inputs, norm.scale)
    with torch.autocast(hidden.device.type, hidden.dtype, enabled=hidden.dtype != torch.float32):
        out = norm(inputs, lengths.to(hidden.device))
    got = outputs_and_gradients(norm, inputs, out, weights)
    assert got["y"].dtype == got["d x"].dtype == hidden.dtype
    if clip == 20.0 and hidden.numel() > 1000:
        assert bool((out == clip).any())
        assert bool((out == 0).any())
    norm, inputs = norm_of(hidden, clip).double(), exact.requires_grad_()
    expected = outputs_and_gradients(norm, inputs, norm(inputs, lengths), weights)
    return {
        name: float((got[name].cpu().double() - value).abs().max() / value.abs().max())
        for name, value in expected.items()
    }


def difference_of_folded(inputs: Tensor, lengths: Tensor) -> dict[str, float]:
    """The same of a projection into which batch norm is folded."""
    generator = torch.Generator().manual_seed(2)
    padding = torch.arange(inputs.shape[1]) >= lengths[:, None]
    results: list[dict[str, Tensor]] = []
    for exact in (False, True):
        torch.manual_seed(1)
        layer = NormalizedLinear(inputs.shape[-1], 30).to(inputs.device)
        torch.nn.init.uniform_(layer.norm.scale, 0.5, 1.5)
        given = inputs.detach()
        if exact:
            layer, given = layer.cpu().double(), given.cpu().double()
            given = given.masked_fill(padding[..., None], 0.0)
        given.requires_grad_()
        assert batch_norm_on_gpu.fits(given, layer.weight) != exact
        folded = layer.folded(given, lengths.to(given.device))
        weights = [torch.randn(value.shape, generator=generator.manual_seed(3)).to(value) for value in folded]
        gradients = torch.autograd.grad(folded, [given, *layer.parameters()], weights)
        d_inputs = gradients[0].cpu().masked_fill(padding[..., None], 0.0)
        values = (*folded, d_inputs, *gradients[1:], layer.norm.running_mean, layer.norm.running_variance)
        names = ("weight", "bias", "d x", *(f"d {name}" for name, _ in layer.named_parameters()), "mean", "variance")
        results.append({name: value.detach().cpu().double() for name, value in zip(names, values, strict=True)})
    got, expected = results
    return {name: float((got[name] - value).abs().max() / value.abs().max()) for name, value in expected.items()}


def norm_of(hidden: Tensor, clip: float | None) -> MaskedBatchNorm:
    torch.manual_seed(1)
    norm = MaskedBatchNorm(hidden.shape[-1], clip=clip, narrow=True)
    torch.nn.init.uniform_(norm.scale, 5.0, 15.0)  # so that some are clipped
    torch.nn.init.normal_(norm.shift)
    return norm


def outputs_and_gradients(norm: MaskedBatchNorm, inputs: Tensor, out: Tensor, weights: Tensor) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(out, [inputs, norm.scale, norm.shift], weights.to(out))
    results = (out.detach(), *gradients, norm.running_mean, norm.running_variance)
    return dict(zip(("y", "d x", "d scale", "d shift", "running mean", "running variance"), results, strict=True))


if __name__ == "__main__":
    main()
