"""Products of matrices and convolutions on a CPU: each output by itself, at the speed that the processor has.

What a library for matrices gives for a row depends on how many rows it was called with: it forms sums in another order
for other shapes. So a frame's output would depend, in its last digits, on what else is in the batch, and on how audio
was cut. In inference the products of float32 and float64 are our own therefore (`asr.nn._numba_products`): every
output is summed up from its window's first element to its last, whatever stands beside it.

torch gives its float32 products to MKL, which keeps to half of an AMD processor's width. There they are our own in
training as well, with gradients, where they are large. Else they are torch's: on other devices, under autocast, while
a model is exported or its operations are counted, and on processors without AVX2.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

Packed = TypeVar("Packed", Tensor, tuple[Tensor, Tensor])
LARGE = 2**20  # multiply-adds from which on a product in training is ours, if torch's is slow


class Linear(nn.Linear):
    """torch's `Linear` by this module's `linear`."""

    packed: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 -- the base class's name
        return linear(input, self.weight, self.bias, self.packed)

    def fold_norm(self) -> None:
        """Lay out the weight for good (`asr.nn.folding`)."""
        self.packed = pack(self.weight)


def linear(
    inputs: Float[Tensor, "*R D"],
    weight: Float[Tensor, "O D"],
    bias: Float[Tensor, "O"] | None = None,
    packed: Tensor | None = None,
) -> Float[Tensor, "*R O"]:
    """What torch's `linear` gives.

    Args:
        inputs: rows.
        weight: a row for each output.
        bias: of each output.
        packed: what `pack` made of `weight`.
    """
    if not ours(inputs, inputs.numel() * len(weight)) or inputs.dtype != weight.dtype:
        return F.linear(inputs, weight, bias)
    if inputs.dim() == 3 and not inputs.is_contiguous() and inputs.transpose(0, 1).is_contiguous():
        return linear(inputs.transpose(0, 1), weight, bias, packed).transpose(0, 1)  # without a copy
    if torch.is_grad_enabled():
        out = _Linear.apply(inputs, weight, bias)
        assert isinstance(out, Tensor)
        return out
    return _loops().linear(inputs, _laid_out(packed, weight), bias, len(weight))


def transposed_product(left: Float[Tensor, "R M"], right: Float[Tensor, "R N"]) -> Float[Tensor, "M N"]:
    """left^T right, itself without a gradient: as a weight's gradient is, summed over rows."""
    if ours(left, left.numel() * right.shape[-1], training=True):
        return _loops().transposed_product(left, right)
    return left.mT @ right


def convolve(
    frames: Float[Tensor, "B T F C"],
    weight: Float[Tensor, "E C t f"],
    bias: Float[Tensor, "E"] | None,
    stride: tuple[int, int],
    packed: Tensor | None = None,
) -> Float[Tensor, "B S G E"]:
    """What torch's `conv2d` gives where whole windows fit, channels last; in inference, for frames that are `ours`."""
    kernel = (weight.shape[2], weight.shape[3])
    return _loops().convolve(frames, _laid_out(packed, weight, rows_of_filters), bias, len(weight), kernel, stride)


def rows_of_filters(weight: Float[Tensor, "E C t f"]) -> Float[Tensor, "E W"]:
    """A conv2d's filters in the order of a window of channels-last frames, to be packed."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def dilated_convolve(
    frames: Float[Tensor, "B P C"],
    weight: Float[Tensor, "D k C"],
    bias: Float[Tensor, "D"] | None,
    dilation: int,
    packed: Tensor | None = None,
) -> Float[Tensor, "B S D"]:
    """out[t] = bias + sum over j of weight[:, j] frames[t + j dilation]; in inference, for frames that are `ours`."""
    packed = _laid_out(packed, weight, lambda filters: filters.flatten(1))
    return _loops().dilated_convolve(frames, packed, bias, len(weight), weight.shape[1], dilation)


def convolve_each_unit(frames: Float[Tensor, "B P D"], weight: Float[Tensor, "D k"]) -> Float[Tensor, "B S D"]:
    """out[t, i] = sum over j of weight[i, j] frames[t + j, i]; in inference, for frames that are `ours`."""
    return _loops().convolve_each_unit(frames, weight.mT)


def loops_take(like: Tensor) -> bool:
    """Whether compiled loops for the CPU take this tensor, and nobody watches torch's operations.

    To compile or export a model, to try it without memory, or to count what it computes, they have to be seen.
    """
    known = like.device.type == "cpu" and like.dtype in (torch.float32, torch.float64)
    return known and not torch.compiler.is_compiling() and not is_in_torch_dispatch_mode()


def ours(inputs: Tensor, multiply_adds: int = 0, *, training: bool | None = None) -> bool:
    """Whether a product of `inputs` is computed here.

    Args:
        inputs: a factor.
        multiply_adds: of the product, in training.
        training: for gradients or with them; None: if torch records them.
    """
    if not loops_take(inputs) or not inputs.numel() or torch.is_autocast_enabled("cpu"):
        return False
    if torch.is_grad_enabled() if training is None else training:
        return multiply_adds >= LARGE and inputs.dtype == torch.float32 and torch_is_slow()
    return runs_here()


def runs_here() -> bool:
    """Whether this processor is one for which this module's loops are made."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@functools.cache
def torch_is_slow() -> bool:
    """Whether torch's products use half of what the processor has: MKL on AMD's with AVX-512."""
    cpuinfo = Path("/proc/cpuinfo")
    processor = cpuinfo.read_text().partition("\n\n")[0] if cpuinfo.exists() else platform.processor()
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and torch.backends.mkl.is_available() and "AuthenticAMD" in processor


def pack(weight: Float[Tensor, "*K O D"]) -> Tensor | None:
    """A weight with a row for each output, or several weights, as the loops read them; None where they do not run."""
    with torch.no_grad():
        return _loops().pack(weight.mT) if ours(weight) else None


def unless_moved(packed: Packed | None, weight: Tensor) -> Packed | None:
    """What was packed of `weight`; None if the model has been moved to another type since."""
    first = packed[0] if isinstance(packed, tuple) else packed
    return packed if first is not None and first.dtype == weight.dtype else None


def _laid_out(
    packed: Tensor | None, weight: Tensor, rows: Callable[[Tensor], Tensor] = lambda weight: weight
) -> Tensor:
    packed = unless_moved(packed, weight)
    return _loops().pack(rows(weight).mT) if packed is None else packed


def _loops() -> ModuleType:
    """Imported here: numba takes 0.4 s."""
    from asr.nn import _numba_products

    return _numba_products


class _Linear(torch.autograd.Function):
    """(inputs (*R, D), weight (O, D), bias (O,) or None) -> (*R, O)."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _loops().linear(inputs, _loops().pack(weight.mT), bias, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs, weight = ctx.saved_tensors
        for_inputs, for_weight, for_bias = ctx.needs_input_grad
        gradient = gradients[0].contiguous()
        rows = gradient.reshape(-1, len(weight))
        return (
            _loops().linear(gradient, _loops().pack(weight), None, weight.shape[1]) if for_inputs else None,
            _loops().transposed_product(rows, inputs.reshape(-1, inputs.shape[-1])) if for_weight else None,
            rows.sum(0) if for_bias else None,
        )
