"""LSTM-Jump item by item and frame by frame, from the description in arXiv 1704.06877; slow and obvious."""

from typing import NamedTuple

import torch
from torch import Tensor

from asr.stacks.skip import Skip


class Reading(NamedTuple):
    """How one item was read.

    positions: of the frames read.
    outputs: (S, D), the hidden state after the last read until each frame.
    log_probs: of each decision's jump, scalars.
    jumps: of each decision.
    hidden: (D), the last state.
    """

    positions: list[int]
    outputs: Tensor
    log_probs: list[Tensor]
    jumps: list[int]
    hidden: Tensor


def reference(stack: Skip, item: Tensor, *, stops: bool, jumps: list[int] | None = None) -> Reading:
    """Read one item (S, D_in) by the most probable jumps, or by the given ones."""
    h = [item.new_zeros(stack.hidden_size) for _ in stack.layers]
    c = [item.new_zeros(stack.hidden_size) for _ in stack.layers]
    position, made = 0, 0
    positions: list[int] = []
    states, log_probs, taken = [], [], []
    while position < len(item):
        for _ in range(stack.tokens_between_jumps):
            if position == len(item):
                break
            x = item[position]
            for k, layer in enumerate(stack.layers):
                gates = layer.projection.weight @ x + layer.projection.bias + layer.cell.recurrent[0] @ h[k]
                i, f, g, o = gates.chunk(4)
                c[k] = torch.sigmoid(f) * c[k] + torch.sigmoid(i) * torch.tanh(g)
                x = h[k] = torch.sigmoid(o) * torch.tanh(c[k])
            positions.append(position)
            states.append(x)
            position += 1
        if position == len(item):
            break
        if stack.max_jumps and made == stack.max_jumps:
            if stops:
                break
            continue  # the next frame
        distribution = torch.log_softmax(stack.policy.weight @ h[-1] + stack.policy.bias, 0)
        jump = int(distribution.argmax()) if jumps is None else jumps[made]
        log_probs.append(distribution[jump])
        taken.append(jump)
        made += 1
        if jump == 0 and stops:
            break
        position = min(len(item), position + max(jump, 1) - 1)
    outputs = [states[sum(p <= t for p in positions) - 1] for t in range(len(item))]
    return Reading(positions, torch.stack(outputs), log_probs, taken, h[-1])
