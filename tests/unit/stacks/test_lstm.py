"""The LSTM stack against its equations and against torch's own."""

import pytest
import torch

from asr.nn.cells import LstmCell
from tests.support import recurrent as slow
from tests.support.stacks import assert_equals_reference, make_stack

VARIANTS = [
    {"bidirectional": True},
    {"bidirectional": True, "merge": "concat", "batch_norm": "input", "residual": "projection"},
    {"bidirectional": False, "lookahead_frames": 4},
    {"bidirectional": False, "batch_norm": "none", "projection_size": 5},
]


@pytest.mark.parametrize(
    "options", [{"merge": "sum"}, {"merge": "concat", "batch_norm": "none"}, {"bidirectional": False}]
)
def test_equals_the_equations(options: dict[str, object]) -> None:
    assert_equals_reference({"name": "lstm", **options}, slow.lstm, state_size=2)


def test_torch_lstm_agrees() -> None:
    """Without batch norm a forward-only layer is torch's LSTM, weight for weight, its state included."""
    stack = make_stack({"name": "lstm", "num_layers": 1, "bidirectional": False, "batch_norm": "none"}, input_size=5)
    layer = stack.layers[0]
    theirs = torch.nn.LSTM(5, 4, batch_first=True).double()
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(layer.projection.weight)
        theirs.bias_ih_l0.copy_(layer.projection.bias)
        theirs.weight_hh_l0.copy_(layer.cell.recurrent[0])
        theirs.bias_hh_l0.zero_()
    inputs = torch.randn(2, 9, 5, dtype=torch.float64)
    expected, (hidden, cell) = theirs(inputs)
    ours, state = stack.step(inputs, stack.initial_state(2, inputs))
    assert torch.allclose(ours, expected, rtol=0, atol=1e-12)
    assert torch.allclose(state.layers[0][:, 0], torch.cat((hidden[0], cell[0]), -1), rtol=0, atol=1e-12)


def test_carousel_keeps_the_error() -> None:
    """Hochreiter and Schmidhuber 1997: input gate shut, forget gate open, the cell passes its error on unchanged."""
    cell = LstmCell(hidden_size=1, num_chains=1).double()
    torch.nn.init.zeros_(cell.recurrent)
    projected = torch.zeros(50, 1, 4, dtype=torch.float64)
    projected[..., 0], projected[..., 1] = -1e3, 1e3  # input gate 0, forget gate 1
    initial = torch.tensor([[[0.3, 0.7]]], dtype=torch.float64, requires_grad=True)
    _, final = cell.recur([projected], initial)
    (gradient,) = torch.autograd.grad(final[..., 1].sum(), initial)
    assert float(final.detach()[0, 0, 1]) == 0.7
    assert gradient.tolist() == [[[0.0, 1.0]]]


@pytest.mark.parametrize("batch_norm", ["paper", "none"])
def test_forget_gate_starts_open(batch_norm: str) -> None:
    from asr import stacks
    from asr.config.options import validate_stack

    options = {"name": "lstm", "hidden_size": 4, "num_layers": 1, "forget_bias": 3.0, "batch_norm": batch_norm}
    layer = stacks.build(validate_stack(options), 5).layers[0]
    bias = layer.projection.bias if batch_norm == "none" else layer.projection.norm.shift
    by_gate = bias.detach().view(2, 4, 4).mean(-1)  # directions, gates
    assert bool((by_gate[:, 1] > 2.0).all())
    assert bool((by_gate[:, [0, 2, 3]].abs() < 1.0).all())
