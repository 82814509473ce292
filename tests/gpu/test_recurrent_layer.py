"""Recurrent layers, in float32 and under autocast, against the loops of a CPU in float64."""

import copy

import pytest
import torch
from torch import Tensor

from asr.nn.cells import Cell
from asr.nn.cells.gru import GruCell
from asr.nn.cells.lstm import LstmCell
from asr.nn.cells.rnn import RnnCell
from asr.nn.precision import whole_float32
from asr.nn.recurrent_layer import RecurrentLayer

pytestmark = pytest.mark.gpu
LENGTHS = [30, 21, 7, 1, 0]
ERRORS = {torch.float32: 1e-4, torch.bfloat16: 1e-1}  # relative to the largest


def run(layer: RecurrentLayer, inputs: Tensor, kind: torch.dtype) -> list[Tensor]:
    """Outputs and gradients of the inputs at the real frames, and gradients of all parameters, on the CPU.

    What an input's gradient holds in padding is of no use to anybody, and not the same everywhere.
    """
    lengths = torch.tensor(LENGTHS, device=inputs.device)
    real = torch.arange(inputs.shape[1], device=inputs.device) < lengths[:, None]
    inputs = inputs.masked_fill(~real[..., None], 0.0).requires_grad_()
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=kind == torch.bfloat16):
        outputs = layer(inputs, lengths)[real]
    weights = torch.linspace(-1, 1, outputs.numel(), dtype=torch.float64).view_as(outputs)
    loss = (outputs.double() * weights.to(outputs.device)).sum()
    d_inputs, *others = torch.autograd.grad(loss, [inputs, *layer.parameters()])
    return [value.detach().double().cpu() for value in (outputs, d_inputs[real], *others)]


@pytest.mark.parametrize("cell", [GruCell, LstmCell, RnnCell])
@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("bidirectional", [True, False])
def test_equals_a_cpu_in_float64(cell: type[Cell], kind: torch.dtype, bidirectional: bool) -> None:
    layer = RecurrentLayer(
        24,
        lambda chains: cell(hidden_size=32, num_chains=chains),
        bidirectional=bidirectional,
        merge="sum",
        normalized=True,
    )
    inputs = torch.randn(len(LENGTHS), max(LENGTHS), 24)
    expected = run(copy.deepcopy(layer).double(), inputs.double(), torch.float64)
    with whole_float32():
        got = run(layer.cuda(), inputs.cuda(), kind)
    for one, other in zip(got, expected, strict=True):
        assert float((one - other).abs().max()) <= ERRORS[kind] * float(other.abs().max())
