"""Dilated recurrent layers: folding equals the link from t to t - d, in every tail case."""

import itertools
import math

import pytest
import torch

from asr.stacks._recurrent import mean_recurrent_length
from tests.support import recurrent as slow
from tests.support.stacks import assert_equals_reference, make_stack

VARIANTS = [
    {"cell": "gru"},
    {"cell": "lstm", "bidirectional": False, "dilation_factor": 3},
    {"cell": "rnn", "bidirectional": False, "first_dilation": 3, "batch_norm": "none"},
    {"cell": "lstm", "bidirectional": False, "num_layers": 1, "first_dilation": 4, "fusion": "mean"},
    {"cell": "gru", "bidirectional": False, "first_dilation": 2, "lookahead_frames": 3, "residual": "projection"},
    {"cell": "gru", "first_dilation": 2, "merge": "concat"},
]
STEPS = {"rnn": (slow.rnn_tanh, 1), "lstm": (slow.lstm, 2), "gru": (slow.gru_after, 1)}


@pytest.mark.parametrize("cell", STEPS)
@pytest.mark.parametrize(
    "options",
    [
        {"merge": "sum"},
        {"bidirectional": False, "dilation_factor": 5, "batch_norm": "none"},
        {"first_dilation": 3, "num_layers": 2},
        {"first_dilation": 4, "num_layers": 1, "fusion": "mean", "bidirectional": False},
    ],
)
def test_equals_the_loop_over_time(cell: str, options: dict[str, object]) -> None:
    """Lengths of 6, 3 and 17 frames leave tails of every kind, chains without a single frame included."""
    step, states = STEPS[cell]
    assert_equals_reference({"name": "dilated", "cell": cell, **options}, step, states)


@pytest.mark.parametrize("dilation", [1, 2, 3, 5, 8, 19, 40])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_tail(dilation: int, bidirectional: bool) -> None:
    for length in (1, 7, 8, 16, 17):
        options = {
            "name": "dilated", "cell": "gru", "num_layers": 1, "first_dilation": dilation, "fusion": "none",
            "bidirectional": bidirectional, "batch_norm": "none",
        }  # fmt: skip
        stack = make_stack(options, input_size=5)
        inputs = torch.randn(1, length, 5, dtype=torch.float64)
        (expected,) = slow.reference(stack, [inputs[0]], slow.gru_after, 1)
        out, _ = stack(inputs, torch.tensor([length]))
        assert torch.allclose(out[0], expected, rtol=0, atol=1e-10)


def test_one_layer_of_cores_with_pooling_is_feudals_dilated_lstm() -> None:
    """Of r LSTM cores, core t mod r alone moves at time t; the output is the mean of all (section 3.2 there)."""
    r = 4
    options = {
        "name": "dilated", "cell": "lstm", "num_layers": 1, "first_dilation": r, "fusion": "mean",
        "bidirectional": False, "batch_norm": "none",
    }  # fmt: skip
    stack = make_stack(options, input_size=5)
    layer = stack.layers[0]
    core = torch.nn.LSTMCell(5, 4).double()
    with torch.no_grad():
        core.weight_ih.copy_(layer.projection.weight)
        core.bias_ih.copy_(layer.projection.bias)
        core.weight_hh.copy_(layer.cell.recurrent[0])
        core.bias_hh.zero_()
    inputs = torch.randn(2, 11, 5, dtype=torch.float64)
    cores = [(torch.zeros(2, 4, dtype=torch.float64),) * 2 for _ in range(r)]
    expected = []
    for t in range(11):
        cores[t % r] = core(inputs[:, t], cores[t % r])
        expected.append(torch.stack([hidden for hidden, _ in cores]).mean(0))
    out, _ = stack(inputs, torch.tensor([11, 11]))
    assert torch.allclose(out, torch.stack(expected, 1), rtol=0, atol=1e-12)


def shortest(dilations: list[int], fused: int, distance: int) -> float:
    """Fewest links whose dilations and a fused offset add up to `distance`, by trying all."""
    most = [range(distance // d + 1) for d in dilations]
    sums = (
        (sum(counts), sum(c * d for c, d in zip(counts, dilations, strict=True))) for counts in itertools.product(*most)
    )
    return min((links for links, frames in sums if 0 <= distance - frames < fused), default=math.inf)


@pytest.mark.parametrize(("dilations", "fused"), [([1], 1), ([1, 1], 1), ([1, 2, 4], 1), ([3, 6], 3), ([2, 4], 1)])
def test_mean_recurrent_length(dilations: list[int], fused: int) -> None:
    expected = sum(shortest(dilations, fused, n) for n in range(1, 13)) / 12 + len(dilations)
    assert mean_recurrent_length(dilations, fused, horizon=12) == expected


def test_exponential_dilations_shorten_the_path() -> None:
    plain, dilated = mean_recurrent_length([1] * 8), mean_recurrent_length([2**i for i in range(8)])
    assert plain == 8 + 128.5
    assert dilated < 8 + 5
