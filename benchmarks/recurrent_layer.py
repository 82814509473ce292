"""Time one bidirectional GRU layer, forward and backward: types, both directions in one call or two, and torch's own.

    python benchmarks/recurrent_layer.py [--items 64] [--frames 750] [--size 800] [--repeats 5]

One JSON line a type: seconds of each, which take turns. torch's is nn.GRU on a packed sequence, without batch norm; in
bf16 autocast runs it in float16. Where there is no cuDNN all of ours are the same loop.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from common import emit, side_by_side, spread
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from asr.nn.cells.gru import GruCell
from asr.nn.recurrent_layer import RecurrentLayer

TYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "float16": torch.float16}


class ByDirection(GruCell):
    """Has no gate to hold a state by, so that each direction is a call of its own."""

    hold = ()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--frames", type=int, default=750)
    parser.add_argument("--size", type=int, default=800)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    size, device = options.size, "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")  # as in training
    torch.manual_seed(0)
    lengths = (options.frames * torch.linspace(1.0, 0.8, options.items)).long()
    inputs = torch.randn(options.items, options.frames, size)
    inputs = inputs.masked_fill((torch.arange(options.frames) >= lengths[:, None])[..., None], 0.0).to(device)
    on_device = lengths.to(device)
    layers = {
        name: RecurrentLayer(
            size, partial(make_cell, cell, size), bidirectional=True, merge="sum", normalized=normalized
        ).to(device)
        for name, cell, normalized in (
            ("one call", GruCell, True),
            ("two calls", ByDirection, True),
            ("one call, no batch norm", GruCell, False),
        )
    }
    torchs = nn.GRU(size, size, bidirectional=True, batch_first=True).to(device)

    def packed(inputs: Tensor) -> Tensor:
        rows = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(torchs(rows)[0], batch_first=True)[0].unflatten(-1, (2, size)).sum(2)

    functions = {name: partial(run, layer, on_device) for name, layer in layers.items()} | {"torch": packed}
    for name, kind in TYPES.items():
        if device == "cpu" and kind == torch.float16:
            continue
        steps = {label: partial(take_step, function, inputs, kind) for label, function in functions.items()}
        times = side_by_side(steps, repeats=options.repeats)
        emit(
            benchmark="recurrent_layer",
            batch=f"{options.items} x {options.frames} frames",
            size=size,
            precision=name,
            cudnn=torch.backends.cudnn.version(),
            seconds={label: spread(values)["median"] for label, values in times.items()},
        )


def make_cell(kind: type[GruCell], size: int, num_chains: int) -> GruCell:
    return kind(hidden_size=size, num_chains=num_chains)


def run(layer: RecurrentLayer, lengths: Tensor, inputs: Tensor) -> Tensor:
    return layer(inputs, lengths)


def take_step(function: Callable[[Tensor], Tensor], inputs: Tensor, kind: torch.dtype) -> None:
    """Forward and backward."""
    leaf = inputs.detach().requires_grad_()
    with torch.autocast(inputs.device.type, dtype=kind, enabled=kind != torch.float32):
        out = function(leaf)
    out.float().sum().backward()


if __name__ == "__main__":
    main()
