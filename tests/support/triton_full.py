"""Runs the GPU kernels of `asr.nn.cells._triton_full` under Triton's interpreter, on the CPU, and prints the errors.

    TRITON_INTERPRET=1 python -m tests.support.triton_full

One JSON object: name -> largest difference from the float64 loops that a CPU runs, relative to the largest value.
"""

import json
import math
from typing import Any

import torch
from torch import Tensor

from asr.nn.cells import FULL_CELLS, Cell, full_on_gpu
from asr.nn.cells.base import CLIP
from asr.nn.precision import whole_float32

CHAINS, FRAMES = 2, 5
SHAPES = {"few": (5, 150), "many": (19, 70)}  # items, units: more of both than a program takes at a time, no multiples
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "tanh": ("rnn", {"activation": "tanh"}),
    "relu": ("rnn", {"activation": "relu"}),
    "clipped_relu": ("rnn", {"activation": "clipped_relu"}),
    "gru_after": ("gru", {"reset": "after"}),
    "gru_before": ("gru", {"reset": "before"}),
    "lstm": ("lstm", {}),
}


def main() -> None:
    errors: dict[str, float] = {}
    for kind, (name, options) in KINDS.items():
        for rows, (batch, size) in SHAPES.items():
            torch.manual_seed(0)
            cell: Cell = FULL_CELLS[name](hidden_size=size, num_chains=CHAINS, **options)
            for parameter in cell.parameters():
                torch.nn.init.normal_(parameter, std=1.5 / math.sqrt(size))
            initial = [torch.rand(CHAINS, batch, size) for _ in range(cell.num_states)]
            scale = 10.0 if kind == "clipped_relu" else 1.0  # so that some units reach the clip
            projected = [scale * torch.randn(FRAMES, batch, cell.num_gates * size) for _ in range(CHAINS)]
            with whole_float32():
                got = by_the_kernels(kind, cell, initial, projected)
            if kind == "clipped_relu":
                assert bool((got["outputs"] == CLIP).any())
                assert bool((got["outputs"] == 0).any())
            expected = by_the_cpu(cell.double(), [s.double() for s in initial], [p.double() for p in projected])
            assert got.keys() == expected.keys()
            for key, value in expected.items():
                error = float((got[key] - value).abs().max() / value.abs().max())
                errors[f"{kind}, {rows}: {key}"] = error
    print(json.dumps(errors))


def by_the_kernels(kind: Any, cell: Cell, initial: list[Tensor], projected: list[Tensor]) -> dict[str, Tensor]:
    recurrent, bias = cell.get_parameter("recurrent"), None
    if kind == "gru_after":
        bias = cell.get_parameter("recurrent_bias").view(CHAINS, -1)
    leaves = [value.clone().requires_grad_() for value in (*initial, *projected)]
    states, chains = tuple(leaves[: len(initial)]), leaves[len(initial) :]
    outputs, *cells = full_on_gpu.recur(kind, recurrent, states, chains, bias=bias)
    last = torch.cat((outputs[:, -1], *cells), -1)
    return gradients(outputs, last, leaves, cell)


def by_the_cpu(cell: Cell, initial: list[Tensor], projected: list[Tensor]) -> dict[str, Tensor]:
    leaves = [value.clone().requires_grad_() for value in (*initial, *projected)]
    outputs, last = cell.recur(leaves[len(initial) :], torch.cat(leaves[: len(initial)], -1))
    return gradients(outputs, last, leaves, cell)


def gradients(outputs: Tensor, last: Tensor, leaves: list[Tensor], cell: Cell) -> dict[str, Tensor]:
    """All that a cell gives, and its gradients, in float64."""
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(value.shape, generator=generator, dtype=torch.float64) for value in (outputs, last)]
    loss = (outputs.double() * weights[0]).sum() + (last.double() * weights[1]).sum()
    parameters = dict(cell.named_parameters())
    named = {f"d input {i}": leaf for i, leaf in enumerate(leaves)} | {f"d {name}": p for name, p in parameters.items()}
    values = torch.autograd.grad(loss, list(named.values()))
    results = {"outputs": outputs, "last": last, **dict(zip(named, values, strict=True))}
    return {name: value.detach().double() for name, value in results.items()}


if __name__ == "__main__":
    main()
