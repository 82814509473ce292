"""Linear recurrences against their papers' equations, and against the scan in log space."""

import pytest
import torch

from asr.nn.cells.linear import linear_recurrence
from tests.support import recurrent as slow
from tests.support.stacks import assert_equals_reference

VARIANTS = [
    {"cell": "mingru"},
    {"cell": "minlstm", "merge": "concat", "batch_norm": "none"},
    {"cell": "sru", "bidirectional": False, "lookahead_frames": 3},
    {"cell": "mingru", "bidirectional": False, "residual": "projection"},
]
STEPS = {"mingru": (slow.mingru, 1), "minlstm": (slow.minlstm, 1), "sru": (slow.sru, 2)}


@pytest.mark.parametrize("cell", STEPS)
@pytest.mark.parametrize("options", [{"merge": "sum"}, {"bidirectional": False, "batch_norm": "none"}])
def test_equals_the_equations(cell: str, options: dict[str, object]) -> None:
    step, states = STEPS[cell]
    assert_equals_reference({"name": "linear_rnn", "cell": cell, **options}, step, states)


def test_equals_the_scan_in_log_space() -> None:
    """Heinsen's scan, as the minGRU paper computes it: h = exp(a* + logcumsumexp(log b - a*))."""
    keep, add = torch.rand(2, 1, 200, 3, 4, dtype=torch.float64).clamp(0.05, 0.95)
    initial = torch.rand(1, 3, 4, dtype=torch.float64)
    log_keep = torch.cat((torch.zeros_like(initial)[:, None], keep.log().cumsum(1)), 1)
    log_add = torch.cat((initial[:, None], add), 1).log()
    scanned = (log_keep + torch.logcumsumexp(log_add - log_keep, 1)).exp()[:, 1:]
    assert torch.allclose(linear_recurrence(keep, add, initial), scanned, rtol=0, atol=1e-9)
