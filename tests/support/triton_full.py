"""Runs the GPU kernels of `asr.nn.cells._triton_full` under Triton's interpreter, on the CPU, and prints the errors.

    TRITON_INTERPRET=1 python -m tests.support.triton_full

One JSON object: name -> largest difference from the float64 loops that a CPU runs.
"""

import json

import torch
from torch import Tensor

from asr.nn.cells import _triton_full
from asr.nn.cells.gru import GruCell
from asr.nn.cells.rnn import CLIP, RnnCell

CHAINS, FRAMES, BATCH, SIZE = 2, 5, 19, 70  # more rows than a program has, more units than a tile, neither a multiple


def main() -> None:
    torch.manual_seed(0)
    errors: dict[str, float] = {}
    initial = torch.rand(CHAINS, BATCH, SIZE)
    gradient = torch.randn(CHAINS, FRAMES, BATCH, SIZE)

    cell = RnnCell(hidden_size=SIZE, num_chains=CHAINS, activation="clipped_relu")
    with torch.no_grad():
        cell.recurrent.mul_(1.5)  # so that some units reach the clip
    projected = 10 * torch.randn(CHAINS, FRAMES, BATCH, SIZE)
    outputs = projected.clone()
    _triton_full.rnn_forward(outputs, initial, cell.recurrent.detach(), CLIP)
    assert bool((outputs == CLIP).any())
    assert bool((outputs == 0).any())
    d_gates = gradient.clone()
    _triton_full.rnn_backward(d_gates, outputs, cell.recurrent.detach(), CLIP)
    expected, d_projected, _ = on_the_cpu(cell, projected, initial, gradient)
    errors["rnn outputs"], errors["rnn gradient"] = worst(outputs, expected), worst(d_gates, d_projected)

    cell = GruCell(hidden_size=SIZE, num_chains=CHAINS, reset="before")
    projected = torch.randn(CHAINS, FRAMES, BATCH, 3 * SIZE)
    gates, kept, outputs = projected.clone(), torch.empty_like(gradient), torch.empty_like(gradient)
    _triton_full.gru_forward(gates, kept, outputs, initial, cell.recurrent.detach())
    d_gates, d_initial = _triton_full.gru_backward(gradient, gates, outputs, initial, cell.recurrent.detach())
    expected, d_projected, d_expected = on_the_cpu(cell, projected, initial, gradient)
    errors["gru outputs"], errors["gru gradient"] = worst(outputs, expected), worst(d_gates, d_projected)
    errors["gru gradient of the initial state"] = worst(d_initial, d_expected)
    print(json.dumps(errors))


def on_the_cpu(
    cell: RnnCell | GruCell, projected: Tensor, initial: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, gradient of the projections, gradient of the initial state, in float64."""
    chains = [chain.double().requires_grad_() for chain in projected]
    start = initial.double().requires_grad_()
    outputs, _ = cell.double().recur(chains, start)
    *d_chains, d_start = torch.autograd.grad(outputs, [*chains, start], gradient.double())
    return outputs.detach(), torch.stack(d_chains), d_start


def worst(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).abs().max())


if __name__ == "__main__":
    main()
