"""The GRU stack against the paper's equations, written out frame by frame."""

import pytest
import torch

from asr.stacks.gru import Gru
from tests.support import gru as slow

VARIANTS = [
    {"bidirectional": True, "merge": "sum"},
    {"bidirectional": True, "merge": "concat", "batch_norm": "input"},
    {"bidirectional": True, "batch_norm": "none"},
    {"bidirectional": False, "lookahead_frames": 4},
    {"bidirectional": False, "lookahead_frames": 0, "batch_norm": "input"},
    {"bidirectional": False, "lookahead_frames": 3, "batch_norm": "none", "num_layers": 1},
]


@pytest.mark.parametrize(
    ("bidirectional", "merge", "batch_norm", "lookahead"),
    [(True, "sum", "paper", 0), (True, "concat", "none", 0), (False, "sum", "paper", 3), (False, "sum", "none", 0)],
)
def test_equals_the_equations(bidirectional: bool, merge: str, batch_norm: str, lookahead: int) -> None:
    torch.manual_seed(1)
    stack = Gru(
        input_size=5,
        hidden_size=4,
        num_layers=3,
        bidirectional=bidirectional,
        merge=merge,
        batch_norm=batch_norm,
        lookahead_frames=lookahead,
    ).double()
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    lengths = torch.tensor([6, 3, 8])
    inputs = torch.randn(3, 8, 5, dtype=torch.float64)
    out, _ = stack(inputs, lengths)
    expected = slow.reference(stack, [inputs[i, :n] for i, n in enumerate(lengths)])
    for row, item in enumerate(expected):
        assert float((out[row, : len(item)] - item).detach().abs().max()) < 1e-10


def test_torch_gru_agrees() -> None:
    """Without batch norm a forward-only layer is torch's GRU, weight for weight."""
    torch.manual_seed(1)
    stack = Gru(input_size=5, hidden_size=4, num_layers=1, bidirectional=False, batch_norm="none").double()
    layer = stack.layers[0]
    torch.nn.init.normal_(layer.recurrent_bias)
    theirs = torch.nn.GRU(5, 4, batch_first=True).double()
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(layer.projection.weight)
        theirs.bias_ih_l0.copy_(layer.projection.bias)
        theirs.weight_hh_l0.copy_(layer.recurrent[0])
        theirs.bias_hh_l0.zero_()
        theirs.bias_hh_l0[8:] = layer.recurrent_bias[0]
    inputs = torch.randn(2, 9, 5, dtype=torch.float64)
    ours, _ = stack(inputs, torch.tensor([9, 9]))
    assert torch.allclose(ours, theirs(inputs)[0], rtol=0, atol=1e-12)


def test_lookahead_of_a_bidirectional_stack_is_refused() -> None:
    with pytest.raises(ValueError, match=r"stack.lookahead_frames: got 5"):
        Gru(input_size=5, hidden_size=4, num_layers=1, bidirectional=True, lookahead_frames=5)
