"""The multiply-adds of a stack, counted over one forward pass in which no matrix product is computed.

Only shapes matter to the count. Without the products, which give zeros here, a net of 2560 units takes hardly longer
than one of 64. (On torch's meta device most stacks do not run, and those that do take longer than with numbers.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from asr import stacks
from asr.config.options import StackOptions
from asr.stacks.base import Stack

_aten = torch.ops.aten
PRODUCTS = {_aten.mm, _aten.addmm, _aten.addmm_, _aten.bmm, _aten.baddbmm, _aten.baddbmm_}  # the last two arguments'
# torch's formulas, and those of operations in place, for which it has none: numbers of operations, two a multiply-add.
FORMULAS: dict[Any, Any] = {
    **flop_registry,
    _aten.addmm_: flop_registry[_aten.addmm],
    _aten.baddbmm_: flop_registry[_aten.baddbmm],
}


def build_and_count(config: StackOptions, input_size: int, num_frames: int) -> tuple[Stack, float]:
    """Make the stack of `config`, and count the multiply-adds of a frame.

    Args:
        config: the stack's options.
        input_size: features of a frame.
        num_frames: length of the utterance that the mean is over.

    Returns:
        The stack, in eval mode, with normally distributed weights for orthogonal ones; and the multiply-adds of matrix
        products and convolutions.
    """
    with _Uncomputed():
        stack = stacks.build(config, input_size).eval()
    return stack, multiply_adds(stack, torch.zeros(1, num_frames, input_size), torch.tensor([num_frames])) / num_frames


@torch.no_grad()
def multiply_adds(module: nn.Module, *inputs: Tensor) -> float:
    """Those of matrix products and convolutions in one call of `module`, which gives nothing of use."""
    with _Uncomputed() as products:
        module(*inputs)
    return products.operations / 2


class _Uncomputed(TorchDispatchMode):
    """Within it matrix products give zeros and a QR decomposition is a trivial one; `operations` are added up."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch's True imports its compiler, which takes longer than the count

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet is _aten.linalg_qr:  # behind orthogonal weights; 16 s for 3 layers of 2560 units
            return args[0], torch.eye(args[0].shape[1])
        out = _zeros(func, args, kwargs) if packet in PRODUCTS else func(*args, **kwargs)
        if packet in FORMULAS:
            self.operations += FORMULAS[packet](*args, **kwargs, out_val=out)
        return out


def _zeros(product: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    if product._schema.is_mutable:
        return kwargs["out"].zero_() if "out" in kwargs else args[0]
    left, right = args[-2:]
    return left.new_zeros(*left.shape[:-1], right.shape[-1])
