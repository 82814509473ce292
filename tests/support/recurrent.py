"""The recurrent stacks frame by frame, from the equations of the papers; slow and obvious."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from asr.nn.recurrent_layer import RecurrentLayer
from asr.stacks._recurrent import RecurrentStack

Step = Callable[[RecurrentLayer, int, Tensor, Tensor], Tensor]


def gru_after(layer: RecurrentLayer, k: int, x: Tensor, state: Tensor) -> Tensor:
    """Deep Speech 2 (arXiv 1512.02595), equation 6, with cuDNN's z."""
    x_r, x_z, x_h = x.chunk(3)
    u_r, u_z, u_h = layer.cell.recurrent[k].chunk(3)
    c = layer.cell.recurrent_bias.view(layer.num_directions, -1)[k]
    r = torch.sigmoid(x_r + u_r @ state)
    z = torch.sigmoid(x_z + u_z @ state)
    return (1 - z) * torch.tanh(x_h + r * (u_h @ state + c)) + z * state


def gru_before(layer: RecurrentLayer, k: int, x: Tensor, state: Tensor) -> Tensor:
    """Cho et al. 2014 (arXiv 1406.1078), section 2.3."""
    x_r, x_z, x_h = x.chunk(3)
    u_r, u_z, u_h = layer.cell.recurrent[k].chunk(3)
    r = torch.sigmoid(x_r + u_r @ state)
    z = torch.sigmoid(x_z + u_z @ state)
    return (1 - z) * torch.tanh(x_h + u_h @ (r * state)) + z * state


def lstm(layer: RecurrentLayer, k: int, x: Tensor, state: Tensor) -> Tensor:
    """Gers et al. 2000: input, forget, candidate, output."""
    hidden, cell = state.chunk(2)
    x_i, x_f, x_g, x_o = x.chunk(4)
    u_i, u_f, u_g, u_o = layer.cell.recurrent[k].chunk(4)
    i, f, o = (torch.sigmoid(a + u @ hidden) for a, u in ((x_i, u_i), (x_f, u_f), (x_o, u_o)))
    cell = f * cell + i * torch.tanh(x_g + u_g @ hidden)
    return torch.cat((o * torch.tanh(cell), cell))


def rnn_tanh(layer: RecurrentLayer, k: int, x: Tensor, state: Tensor) -> Tensor:
    """Elman 1990."""
    return torch.tanh(x + layer.cell.recurrent[k] @ state)


def rnn_relu(layer: RecurrentLayer, k: int, x: Tensor, state: Tensor) -> Tensor:
    """Without a clip."""
    return (x + layer.cell.recurrent[k] @ state).clamp(min=0)


def rnn_clipped_relu(layer: RecurrentLayer, k: int, x: Tensor, state: Tensor) -> Tensor:
    """Deep Speech 2, section 3.1."""
    return (x + layer.cell.recurrent[k] @ state).clamp(0, 20)


def diagonal_rnn(layer: RecurrentLayer, k: int, x: Tensor, state: Tensor) -> Tensor:
    """Subakan and Smaragdis 2017 (arXiv 1704.05420): vectors for matrices."""
    return torch.tanh(x + layer.cell.recurrent[k] * state)


def diagonal_gru(layer: RecurrentLayer, k: int, x: Tensor, state: Tensor) -> Tensor:
    """The same paper; its f is z here."""
    x_r, x_z, x_h = x.chunk(3)
    w_r, w_z, w_h = layer.cell.recurrent[k].chunk(3)
    r = torch.sigmoid(x_r + w_r * state)
    z = torch.sigmoid(x_z + w_z * state)
    return z * state + (1 - z) * torch.tanh(x_h + w_h * (r * state))


def diagonal_lstm(layer: RecurrentLayer, k: int, x: Tensor, state: Tensor) -> Tensor:
    """The same paper."""
    hidden, cell = state.chunk(2)
    x_i, x_f, x_g, x_o = x.chunk(4)
    w_i, w_f, w_g, w_o = layer.cell.recurrent[k].chunk(4)
    cell = cell * torch.sigmoid(x_f + w_f * hidden) + torch.sigmoid(x_i + w_i * hidden) * torch.tanh(x_g + w_g * hidden)
    return torch.cat((torch.tanh(cell) * torch.sigmoid(x_o + w_o * hidden), cell))


def run_chains(
    step: Step, layer: Any, initial: Tensor, projected: Sequence[Tensor], *, num_states: int
) -> tuple[Tensor, ...]:
    """Hidden states (K, S, B, H) and last states of chains (S, B, O), item by item and frame by frame."""
    outputs, last = [], []
    for k, chain in enumerate(projected):
        items = []
        for b in range(chain.shape[1]):
            states = [initial[k, b]]
            for frame in chain[:, b]:
                states.append(step(layer, k, frame, states[-1]))
            items.append(torch.stack(states[1:]))
        outputs.append(torch.stack(items, 1))
        last.append(outputs[-1][-1])
    size = initial.shape[-1] // num_states
    return torch.stack(outputs)[..., :size], *torch.stack(last).split(size, -1)


def mingru(layer: RecurrentLayer, k: int, x: Tensor, state: Tensor) -> Tensor:
    """Feng et al. 2024 (arXiv 2410.01201)."""
    x_z, x_h = x.chunk(2)
    z = torch.sigmoid(x_z)
    return (1 - z) * state + z * torch.where(x_h >= 0, x_h + 0.5, torch.sigmoid(x_h))


def minlstm(layer: RecurrentLayer, k: int, x: Tensor, state: Tensor) -> Tensor:
    """The same paper, gates normalised to 1."""
    x_f, x_i, x_h = x.chunk(3)
    f, i = torch.sigmoid(x_f), torch.sigmoid(x_i)
    return f / (f + i) * state + i / (f + i) * torch.where(x_h >= 0, x_h + 0.5, torch.sigmoid(x_h))


def sru(layer: RecurrentLayer, k: int, x: Tensor, state: Tensor) -> Tensor:
    """Lei et al. 2018 (arXiv 1709.02755): the carried state stands second, so that the first part is the output."""
    value, x_f, x_r, skip = x.chunk(4)
    cell = state[len(value) :]
    f, r = torch.sigmoid(x_f), torch.sigmoid(x_r)
    cell = f * cell + (1 - f) * value
    return torch.cat((r * cell + (1 - r) * skip, cell))


def sequence_wise_norm(rows: list[Tensor], scale: Tensor, shift: Tensor, epsilon: float = 1e-5) -> list[Tensor]:
    """Batch norm over a list of (O,) projections: all real frames of all items."""
    stacked = torch.stack(rows)
    mean = stacked.sum(0) / len(rows)
    variance = ((stacked - mean) ** 2).sum(0) / len(rows)
    return [scale * (row - mean) / torch.sqrt(variance + epsilon) + shift for row in rows]


def reference(stack: RecurrentStack, inputs: list[Tensor], step: Step, state_size: int) -> list[Tensor]:
    """Run `stack` in training mode, without dropout, on a list of unpadded (S_i, D) utterances."""
    hidden = inputs
    for layer, projection, shortcut in zip(stack.layers, stack.projections, stack.shortcuts, strict=True):
        outputs = [run_layer(layer, item, step, state_size) for item in projected(layer, hidden)]
        if isinstance(projection, nn.Linear):
            outputs = [torch.stack([projection.weight @ frame + projection.bias for frame in item]) for item in outputs]
        if isinstance(shortcut, nn.Linear):
            outputs = [out + below @ shortcut.weight.T for out, below in zip(outputs, hidden, strict=True)]
        elif isinstance(shortcut, nn.Identity):
            outputs = [out + below for out, below in zip(outputs, hidden, strict=True)]
        hidden = outputs
    for top in stack.tops:
        mix = row_convolution if hasattr(top, "frames") else fusion
        hidden = [mix(item, top) for item in hidden]
    return hidden


def projected(layer: RecurrentLayer, hidden: list[Tensor]) -> list[list[Tensor]]:
    """W x + b, or B(W x), of each frame of each item."""
    flat = [layer.projection.weight @ frame for item in hidden for frame in item]
    if hasattr(layer.projection, "norm"):
        norm = layer.projection.norm
        flat = sequence_wise_norm(flat, norm.scale, norm.shift)
    else:
        flat = [frame + layer.projection.bias for frame in flat]
    frames = iter(flat)
    return [[next(frames) for _ in item] for item in hidden]


def run_layer(layer: RecurrentLayer, item: list[Tensor], step: Step, state_size: int) -> Tensor:
    """Link each frame to the one `dilation` before it (after it, backwards), and merge the directions."""
    size = layer.cell.hidden_size
    gates = len(item[0]) // layer.num_directions
    directions = []
    for k in range(layer.num_directions):
        states: dict[int, Tensor] = {}
        frames = range(len(item)) if k == 0 else range(len(item) - 1, -1, -1)
        back = layer.dilation if k == 0 else -layer.dilation
        for t in frames:
            before = states.get(t - back, torch.zeros(state_size * size, dtype=item[0].dtype))
            states[t] = step(layer, k, item[t][gates * k : gates * (k + 1)], before)
        directions.append(torch.stack([states[t][:size] for t in range(len(item))]))
    if len(directions) == 1:
        return directions[0]
    return directions[0] + directions[1] if layer.merge == "sum" else torch.cat(directions, 1)


def row_convolution(hidden: Tensor, lookahead: nn.Module) -> Tensor:
    """r[t, i] = sum over j of W[i, j] h[t + j, i], frames beyond the end counted as 0."""
    weight, frames = lookahead.weight, len(hidden)
    out = torch.zeros_like(hidden)
    for t in range(frames):
        for j in range(weight.shape[1]):
            if t + j < frames:
                out[t] += weight[:, j] * hidden[t + j]
    return out


def fusion(hidden: Tensor, layer: nn.Module) -> Tensor:
    """y_t = b + sum over j of V_j c_(t-j), or the mean of the last n frames, frames before the first counted as 0."""
    n = layer.num_frames
    rows = []
    for t in range(len(hidden)):
        past = [hidden[t - j] if t >= j else torch.zeros_like(hidden[0]) for j in range(n)]
        if hasattr(layer, "conv"):
            rows.append(layer.conv.bias + sum(layer.conv.weight[:, :, n - 1 - j] @ past[j] for j in range(n)))
        else:
            rows.append(sum(past) / n)
    return torch.stack(rows)
