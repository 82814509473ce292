"""The one collective that layers need: a sum over ranks that gradients flow through."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Ranks of the running process group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@dataclass
class Sums:
    """What this process has asked of `sum_over_ranks`; tells where it stands when ranks wait for each other."""

    begun: int = 0
    ended: int = 0  # on a GPU: handed to it
    size: int = 0  # numbers in the last one

    def all_reduce(self, value: Tensor) -> Tensor:
        """The sum of every rank's value."""
        total = value.clone()
        self.begun, self.size = self.begun + 1, total.numel()
        dist.all_reduce(total)
        self.ended += 1
        return total


SUMS = Sums()


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        return SUMS.all_reduce(value)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> Tensor:
        return SUMS.all_reduce(gradients[0])


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum `value` over all ranks; every rank's loss sends its gradient back to every rank's `value`."""
    if world_size() == 1:
        return value
    result = _SumOverRanks.apply(value)
    assert isinstance(result, Tensor)
    return result
