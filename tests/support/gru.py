"""Deep Speech 2's GRU stack, frame by frame from the equations (arXiv 1512.02595, section 3, equations 4 to 6)."""

import torch
from torch import Tensor

from asr.stacks.gru import Gru


def sequence_wise_norm(rows: list[Tensor], scale: Tensor, shift: Tensor, epsilon: float = 1e-5) -> list[Tensor]:
    """Batch norm over a list of (O,) projections: all real frames of all items."""
    stacked = torch.stack(rows)
    mean = stacked.sum(0) / len(rows)
    variance = ((stacked - mean) ** 2).sum(0) / len(rows)
    return [scale * (row - mean) / torch.sqrt(variance + epsilon) + shift for row in rows]


def reference(stack: Gru, inputs: list[Tensor]) -> list[Tensor]:
    """Run `stack` in training mode, without dropout, on a list of unpadded (S_i, D) utterances."""
    hidden = inputs
    for layer in stack.layers:
        size = stack.hidden_size
        outputs = []
        weight = layer.projection.weight
        projected = [[weight @ frame for frame in item] for item in hidden]
        flat = [frame for item in projected for frame in item]
        if stack_is_normalized(layer):
            norm = layer.projection.norm
            flat = sequence_wise_norm(flat, norm.scale, norm.shift)
        else:
            flat = [frame + layer.projection.bias for frame in flat]
        frames = iter(flat)
        projected = [[next(frames) for _ in item] for item in projected]
        for item in projected:
            directions = []
            for k in range(layer.num_directions):
                u_r, u_z, u_h = layer.recurrent[k].split(size)
                state = torch.zeros(size, dtype=weight.dtype)
                states: list[Tensor] = [state] * len(item)
                order = range(len(item)) if k == 0 else range(len(item) - 1, -1, -1)
                for t in order:
                    x_r, x_z, x_h = item[t][3 * size * k : 3 * size * (k + 1)].split(size)
                    r = torch.sigmoid(x_r + u_r @ state)
                    z = torch.sigmoid(x_z + u_z @ state)
                    candidate = torch.tanh(x_h + r * (u_h @ state + layer.recurrent_bias[k]))
                    state = (1 - z) * candidate + z * state
                    states[t] = state
                directions.append(torch.stack(states))
            if len(directions) == 1:
                outputs.append(directions[0])
            elif layer.merge == "sum":
                outputs.append(directions[0] + directions[1])
            else:
                outputs.append(torch.cat(directions, 1))
        hidden = outputs
    if stack.lookahead is not None:
        hidden = [row_convolution(item, stack.lookahead.weight) for item in hidden]
    return hidden


def stack_is_normalized(layer: torch.nn.Module) -> bool:
    """Whether the layer has the paper's batch norm on its projection."""
    return hasattr(layer.projection, "norm")


def row_convolution(hidden: Tensor, weight: Tensor) -> Tensor:
    """r[t, i] = sum over j of W[i, j] h[t + j, i], frames beyond the end counted as 0."""
    frames = len(hidden)
    out = torch.zeros_like(hidden)
    for t in range(frames):
        for j in range(weight.shape[1]):
            if t + j < frames:
                out[t] += weight[:, j] * hidden[t + j]
    return out
