"""What a GPU gives to cuDNN, run here by torch's own kernels, which take the same arguments and compute the same."""

import pytest
import torch
from torch import Tensor

from asr.nn.cells import Cell
from asr.nn.cells.gru import GruCell
from asr.nn.cells.lstm import LstmCell
from asr.nn.cells.rnn import RnnCell
from asr.nn.recurrent_layer import Merge, RecurrentLayer

LENGTHS = [9, 6, 1, 0]


def run(layer: RecurrentLayer, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Outputs at the real frames, and the gradients of the inputs and all parameters."""
    lengths = torch.tensor(LENGTHS)
    real = torch.arange(inputs.shape[1]) < lengths[:, None]
    inputs = inputs.masked_fill(~real[..., None], 0.0).requires_grad_()
    outputs = layer(inputs, lengths)[real]
    weights = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
    gradients = torch.autograd.grad((outputs * weights).sum(), [inputs, *layer.parameters()])
    return outputs.detach(), [gradients[0][real], *gradients[1:]]


@pytest.mark.parametrize("kind", [GruCell, LstmCell, RnnCell])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(("bidirectional", "merge"), [(True, "sum"), (True, "concat"), (False, "sum")])
@pytest.mark.parametrize("training", [True, False])
def test_equals_the_loops_of_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Cell],
    normalized: bool,
    bidirectional: bool,
    merge: Merge,
    training: bool,
) -> None:
    layer = RecurrentLayer(
        5,
        lambda chains: kind(hidden_size=4, num_chains=chains),
        bidirectional=bidirectional,
        merge=merge,
        normalized=normalized,
    )
    layer.double().train(training)
    inputs = 2 * torch.randn(len(LENGTHS), max(LENGTHS), 5, dtype=torch.float64)
    expected = run(layer, inputs)
    monkeypatch.setattr(kind, "on_cudnn", lambda self, device: True)
    got = run(layer, inputs)
    assert float((got[0] - expected[0]).abs().max()) < 1e-10
    for one, other in zip(got[1], expected[1], strict=True):
        assert float((one - other).abs().max()) < 1e-10


def test_padding_does_not_matter_to_the_backward_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit: more padding leaves the state at 0, not near it."""
    monkeypatch.setattr(GruCell, "on_cudnn", lambda self, device: True)
    layer = RecurrentLayer(
        5, lambda chains: GruCell(hidden_size=4, num_chains=chains), bidirectional=True, merge="sum", normalized=False
    )
    inputs, lengths = torch.randn(2, 7, 5), torch.tensor([7, 3])
    inputs[1, 3:] = 0.0
    short = layer(inputs, lengths)
    long = layer(torch.nn.functional.pad(inputs, (0, 0, 0, 40)), lengths)
    assert torch.equal(long[0, :7], short[0])
    assert torch.equal(long[1, :3], short[1, :3])


def test_old_versions_get_float32_in_place_of_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    from asr.nn.cells import base

    weight = torch.zeros(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for version, expected in ((None, torch.float32), (91200, torch.float32), (91300, torch.bfloat16)):
            monkeypatch.setattr(torch.backends.cudnn, "version", lambda version=version: version)
            assert base.cudnn_type(weight) == expected
    assert base.cudnn_type(weight) == torch.float32
