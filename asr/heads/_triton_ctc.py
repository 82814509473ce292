"""CTC's recursion over frames on a GPU, as one launch: a program holds an item's places and runs all its frames.

Neighbouring places meet in memory that stays in the multiprocessor's cache, with a barrier between frames; that memory
is the result. Nothing is added up in an order that could change.

Imported only where there is a GPU, or Triton's interpreter.
"""

# pyright: reportCallIssue=false
# Triton's types know no launch options, and of its decorator's arguments not all.

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from asr.nn.triton_kernel import kernel

WIDE = 512  # places from which on a program gets more than the usual 4 warps


_kernel = partial(kernel, do_not_specialize=["num_frames", "num_places"])  # one compilation for all lengths


@_kernel
def _alphas(alphas, emitted, skips, num_frames, num_places, block: tl.constexpr):
    """alphas, emitted (B, S, P), skips (B, P), for the item of this program."""
    item = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, block)
    inside = place < num_places
    skip = tl.load(skips + item * num_places + place, mask=inside, other=0) != 0
    emitted += item * num_frames * num_places
    alphas += item * num_frames * num_places
    first = tl.load(emitted + place, mask=inside & (place < 2), other=float("-inf"))
    tl.store(alphas + place, first, mask=inside)
    for _ in range(1, num_frames):
        tl.debug_barrier()
        stay = tl.load(alphas + place, mask=inside, other=float("-inf"))
        one = tl.load(alphas + place - 1, mask=inside & (place > 0), other=float("-inf"))
        two = tl.load(alphas + place - 2, mask=inside & skip, other=float("-inf"))
        emitted += num_places
        alphas += num_places
        now = tl.load(emitted + place, mask=inside, other=float("-inf"))
        most = tl.maximum(tl.maximum(stay, one), two)
        most = tl.where(most == float("-inf"), 0.0, most)  # or their difference were NaN
        ways = tl.exp(stay - most) + tl.exp(one - most) + tl.exp(two - most)
        tl.store(alphas + place, most + tl.log(ways) + now, mask=inside)


def alphas(emitted: Tensor, skips: Tensor) -> Tensor:
    """Log of Graves et al.'s alpha for each frame and place.

    Args:
        emitted: (B, S, P) log-probabilities of the places' tokens.
        skips: (B, P) bool, places that also follow the one before last; never the first two.
    """
    num_items, num_frames, places = emitted.shape
    result = torch.empty_like(emitted, memory_format=torch.contiguous_format)
    _alphas[(num_items,)](
        result, emitted.contiguous(), skips.to(torch.int8), num_frames, places,
        block=triton.next_power_of_2(places), num_warps=4 if places <= WIDE else 8,
    )  # fmt: skip
    return result
