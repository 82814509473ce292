"""Diagonal recurrent layers against the equations of Subakan and Smaragdis 2017, and against full ones."""

import pytest
import torch

from tests.support import recurrent as slow
from tests.support.stacks import assert_equals_reference, make_stack

VARIANTS = [
    {"cell": "gru"},
    {"cell": "lstm", "merge": "concat", "batch_norm": "none"},
    {"cell": "rnn", "batch_norm": "input"},
    {"cell": "gru", "bidirectional": False, "lookahead_frames": 4},
    {"cell": "lstm", "bidirectional": False, "residual": "identity"},
    {"cell": "rnn", "bidirectional": False, "batch_norm": "none"},
]
STEPS = {"rnn": (slow.diagonal_rnn, 1), "lstm": (slow.diagonal_lstm, 2), "gru": (slow.diagonal_gru, 1)}


@pytest.mark.parametrize("cell", STEPS)
@pytest.mark.parametrize("options", [{"merge": "sum"}, {"bidirectional": False, "batch_norm": "none"}])
def test_equals_the_equations(cell: str, options: dict[str, object]) -> None:
    step, states = STEPS[cell]
    assert_equals_reference({"name": "diagonal", "cell": cell, **options}, step, states)


@pytest.mark.parametrize(
    ("cell", "others"), [("lstm", {}), ("gru", {"reset": "before"}), ("rnn", {"activation": "tanh"})]
)
def test_is_the_full_stack_with_diagonal_matrices(cell: str, others: dict[str, object]) -> None:
    shared = {"batch_norm": "none", "num_layers": 2}
    diagonal = make_stack({"name": "diagonal", "cell": cell, **shared}, input_size=5)
    full = make_stack({"name": cell, **shared, **others}, input_size=5)
    weights = {
        name: torch.stack([torch.cat([torch.diag(w) for w in chain.split(4)]) for chain in tensor])
        if name.endswith("recurrent")
        else tensor
        for name, tensor in diagonal.state_dict().items()
    }
    full.load_state_dict(weights)
    inputs, lengths = torch.randn(2, 9, 5, dtype=torch.float64), torch.tensor([9, 4])
    assert torch.allclose(diagonal(inputs, lengths)[0], full(inputs, lengths)[0], rtol=0, atol=1e-12)
