"""The hierarchical multiscale LSTM frame by frame, from the equations of arXiv 1609.01704; slow and obvious."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from asr.stacks.hm_lstm import HmLstm

Detect = Callable[[int, int, Tensor], Tensor]  # frame, layer, p -> z


class Trace(NamedTuple):
    """hidden (S, L, D); pre, the detectors' pre-activations, and boundary (S, L - 1); cell (S, L, D); output (S, D)."""

    hidden: Tensor
    cell: Tensor
    pre: Tensor
    boundary: Tensor
    output: Tensor


def straight_through(frame: int, layer: int, p: Tensor) -> Tensor:
    """1 if p > 1/2 else 0, with the gradient of p."""
    return p + ((p > 0.5).to(p) - p).detach()


def soft(frame: int, layer: int, p: Tensor) -> Tensor:
    """The mixture."""
    return p


def reference(stack: HmLstm, item: Tensor, detect: Detect = straight_through) -> Trace:
    """Run one item (S, D_in)."""
    layers, size = stack.num_layers, stack.hidden_size
    h = [item.new_zeros(size)] * layers
    c = [item.new_zeros(size)] * layers
    z = [item.new_zeros(())] * layers  # of the frame before; the top layer's stays 0
    rows: list[list[Tensor]] = [[], [], [], [], []]
    for t, x in enumerate(item):
        below, z_below = x, item.new_ones(())
        new_h, new_c, new_z, pre_z = list(h), list(c), list(z), []
        for k in range(layers):
            top = k == layers - 1
            blocks = list(stack.weights[k].split(size))
            pre = blocks.pop(0).T @ h[k]
            if not top:
                pre = pre + z[k] * (blocks.pop(0).T @ h[k + 1])
            pre = pre + (stack.projection.weight @ x if k == 0 else z_below * (blocks.pop(0).T @ below))
            if stack.scales:
                deviation = torch.sqrt(((pre - pre.mean()) ** 2).mean() + 1e-5)
                pre = (pre - pre.mean()) / deviation * stack.scales[k]
            pre = pre + stack.biases[k]
            i, f, g, o = pre[: 4 * size].chunk(4)
            i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
            flush, update, copy = z[k], (1 - z[k]) * z_below, (1 - z[k]) * (1 - z_below)
            new_c[k] = flush * (i * g) + update * (f * c[k] + i * g) + copy * c[k]
            new_h[k] = (flush + update) * o * torch.tanh(new_c[k]) + copy * h[k]
            if not top:
                p = torch.clamp((stack.slope * pre[4 * size] + 1) / 2, 0, 1)
                pre_z.append(pre[4 * size])
                new_z[k] = detect(t, k, p)
            below, z_below = new_h[k], new_z[k]
        h, c, z = new_h, new_c, new_z
        joint = torch.cat(h)
        gates = torch.sigmoid(stack.layer_gates.weight @ joint)
        terms = [g * (v @ x) for g, v, x in zip(gates, stack.output.weight.split(size, 1), h, strict=True)]
        values = (torch.stack(h), torch.stack(c), item.new_zeros(0), item.new_zeros(0), torch.relu(sum(terms)))
        for row, value in zip(rows, values, strict=True):
            row.append(value)
        if layers > 1:
            rows[2][-1], rows[3][-1] = torch.stack(pre_z), torch.stack(z[:-1])
    return Trace(*(torch.stack(row) for row in rows))
