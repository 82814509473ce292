"""The regulariser of Pascanu, Mikolov and Bengio (ICML 2013, arXiv 1211.5063, section 3.3) against vanishing gradients.

    Omega = sum over k of ( |d_{k+1} dh_{k+1}/dh_k|^2 / |d_{k+1}|^2 - 1 )^2,    d_k = dE/dh_k

It asks that a gradient neither grows nor shrinks on its way back through the recurrence, wherever there is one. Its
own gradient takes the immediate dependence on the recurrent matrix alone: d and h count as constants. As in the
authors' code, and unlike in the paper's equation 9, the norms are squared, links whose |d|^2 is below 1e-20 count for
nothing, and Omega is the mean over the others, of all frames and items, in place of the sum over k. So it depends on
neither length nor padding. Each recurrent matrix (layer, direction) has its own mean; these are added.

As the ratio is one of gradients, it does not depend on how the loss is scaled either.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from asr.nn.distributed import sum_over_ranks, world_size

SMALLEST = 1e-20  # |d|^2 below which a link carries no gradient worth keeping, as in the authors' code


def omega_gradient(
    carried: Float[Tensor, "K S B H"],
    d_hidden: Float[Tensor, "K S B H"],
    d_gates: Float[Tensor, "K S B H"],
    recurrent: Float[Tensor, "K H H"],
) -> tuple[Float[Tensor, ""], Float[Tensor, "K H H"]]:
    """Omega and its gradient with respect to `recurrent`, this rank's share of it; DDP takes the mean over ranks.

    Args:
        carried: d_gates U, what flows back through each frame's link.
        d_hidden: dE/dh of each frame, in whole.
        d_gates: dE/d(pre-activation) of each frame.
        recurrent: U; h' = f(p + U h).
    """
    carried, d_hidden, d_gates = carried[:, 1:], d_hidden[:, 1:], d_gates[:, 1:]  # nothing is learned before frame 0
    squared = d_hidden.square().sum(-1)  # (K, S - 1, B)
    valid = squared > SMALLEST
    inverse = torch.where(valid, 1 / squared.clamp(min=SMALLEST), 0.0)
    excess = torch.where(valid, carried.square().sum(-1) * inverse - 1, 0.0)
    counts = sum_over_ranks(valid.sum((1, 2), keepdim=True).to(carried.dtype))  # (K, 1, 1)
    scale = world_size() / counts.clamp(min=1)
    d_carried = (4 * scale * excess * inverse)[..., None] * carried
    gradient = d_gates.flatten(1, 2).mT @ d_carried.flatten(1, 2)
    return (scale * excess.square()).sum(), gradient.to(recurrent.dtype)


def with_omega(
    gradient: Float[Tensor, "K H H"],
    weight: float,
    d_outputs: Float[Tensor, "K S B H"],
    d_gates: Float[Tensor, "K S B H"],
    recurrent: Float[Tensor, "K H H"],
) -> Float[Tensor, "K H H"]:
    """`gradient` of the recurrent matrix with `weight` times Omega's; d_outputs is what each frame gets from above."""
    carried = torch.matmul(d_gates, recurrent[:, None])
    d_hidden = d_outputs + nn.functional.pad(carried[:, 1:], (0, 0, 0, 0, 0, 1))
    return gradient + weight * omega_gradient(carried, d_hidden, d_gates, recurrent)[1]
