"""The GRU stack against the papers' equations and against torch's own."""

import pytest
import torch

from tests.support import recurrent as slow
from tests.support.stacks import assert_equals_reference, make_stack

VARIANTS = [
    {"bidirectional": True, "merge": "sum"},
    {"bidirectional": True, "merge": "concat", "batch_norm": "input"},
    {"bidirectional": True, "batch_norm": "none", "reset": "before", "residual": "projection"},
    {"bidirectional": False, "lookahead_frames": 4, "residual": "identity"},
    {"bidirectional": False, "lookahead_frames": 0, "batch_norm": "input", "projection_size": 5},
    {"bidirectional": False, "lookahead_frames": 3, "batch_norm": "none", "num_layers": 1},
    {"bidirectional": False, "reset": "before"},
]


@pytest.mark.parametrize(
    "options",
    [
        {"merge": "sum"},
        {"merge": "concat", "batch_norm": "none"},
        {"bidirectional": False, "lookahead_frames": 3},
        {"bidirectional": False, "batch_norm": "none", "residual": "projection", "projection_size": 3},
        {"bidirectional": False, "residual": "identity"},
    ],
)
@pytest.mark.parametrize("reset", ["after", "before"])
def test_equals_the_equations(options: dict[str, object], reset: str) -> None:
    step = slow.gru_after if reset == "after" else slow.gru_before
    assert_equals_reference({"name": "gru", "reset": reset, **options}, step)


def test_torch_gru_agrees() -> None:
    """Without batch norm a forward-only layer is torch's GRU, weight for weight."""
    stack = make_stack({"name": "gru", "num_layers": 1, "bidirectional": False, "batch_norm": "none"}, input_size=5)
    layer = stack.layers[0]
    theirs = torch.nn.GRU(5, 4, batch_first=True).double()
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(layer.projection.weight)
        theirs.bias_ih_l0.copy_(layer.projection.bias)
        theirs.weight_hh_l0.copy_(layer.cell.recurrent[0])
        theirs.bias_hh_l0.zero_()
        theirs.bias_hh_l0[8:] = layer.cell.recurrent_bias
    inputs = torch.randn(2, 9, 5, dtype=torch.float64)
    ours, _ = stack(inputs, torch.tensor([9, 9]))
    assert torch.allclose(ours, theirs(inputs)[0], rtol=0, atol=1e-12)


def test_lookahead_of_a_bidirectional_stack_is_refused() -> None:
    with pytest.raises(ValueError, match=r"stack.lookahead_frames: got 5"):
        make_stack({"name": "gru", "bidirectional": True, "lookahead_frames": 5}, input_size=5)
