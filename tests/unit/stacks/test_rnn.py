"""The simple recurrent stack against its equations and against torch's own."""

import pytest
import torch

from tests.support import recurrent as slow
from tests.support.stacks import assert_equals_reference, make_stack

VARIANTS = [
    {"activation": "clipped_relu"},
    {"activation": "tanh", "merge": "concat", "batch_norm": "input"},
    {"activation": "relu", "bidirectional": False, "lookahead_frames": 2, "residual": "identity"},
    {"activation": "clipped_relu", "bidirectional": False, "batch_norm": "none"},
]
STEPS = {"tanh": slow.rnn_tanh, "relu": slow.rnn_relu, "clipped_relu": slow.rnn_clipped_relu}


@pytest.mark.parametrize("activation", STEPS)
@pytest.mark.parametrize("options", [{"merge": "sum"}, {"bidirectional": False, "batch_norm": "none"}])
def test_equals_the_equations(activation: str, options: dict[str, object]) -> None:
    assert_equals_reference({"name": "rnn", "activation": activation, **options}, STEPS[activation])


def test_equals_the_equations_where_the_clip_is_reached() -> None:
    options = {"name": "rnn", "activation": "clipped_relu", "bidirectional": False, "batch_norm": "none"}
    assert_equals_reference(options, slow.rnn_clipped_relu, std=3.0)
    stack = make_stack(options, input_size=5, std=3.0)
    inputs = torch.randn(3, 17, 5, dtype=torch.float64)
    out, _ = stack(inputs, torch.tensor([6, 3, 17]))
    assert float(out.detach().max()) == 20.0


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_torch_rnn_agrees(activation: str) -> None:
    options = {"name": "rnn", "num_layers": 1, "bidirectional": False, "batch_norm": "none", "activation": activation}
    stack = make_stack(options, input_size=5, std=0.4)
    layer = stack.layers[0]
    theirs = torch.nn.RNN(5, 4, batch_first=True, nonlinearity=activation).double()
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(layer.projection.weight)
        theirs.bias_ih_l0.copy_(layer.projection.bias)
        theirs.weight_hh_l0.copy_(layer.cell.recurrent[0])
        theirs.bias_hh_l0.zero_()
    inputs = torch.randn(2, 9, 5, dtype=torch.float64)
    ours, _ = stack(inputs, torch.tensor([9, 9]))
    assert torch.allclose(ours, theirs(inputs)[0], rtol=0, atol=1e-12)
