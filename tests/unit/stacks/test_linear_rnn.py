"""Linear recurrences against their papers' equations, and against the scan in log space."""

import pytest
import torch

from asr.nn.cells import LINEAR_CELLS, elementwise
from asr.nn.cells.elementwise import linear_recurrence
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


@pytest.mark.parametrize("cell", STEPS)
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_compiled_loops_equal_torchs_operations(cell: str, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs, last states and gradients, also of gates that float32 could not tell from 0 or 1."""
    made = LINEAR_CELLS[cell](hidden_size=37, num_chains=2)
    shape = (5, 3, made.num_gates * 37)
    inputs = [(scale * torch.randn(*shape, dtype=torch.float64)).requires_grad_() for _ in range(2)]
    inputs.append(torch.randn(2, 3, 37, dtype=torch.float64).requires_grad_())
    results = []
    for compiled in (True, False):
        monkeypatch.setattr(elementwise, "on_cpu", lambda like, compiled=compiled: compiled)
        outputs, last = made.recur(inputs[:2], inputs[2])
        gradients = torch.autograd.grad(outputs.sin().sum() + last.cos().sum(), inputs)
        results.append((outputs, last, *gradients))
    for one, other in zip(*results, strict=True):
        assert float((one - other).detach().abs().max()) < 1e-12 * scale


def test_equals_the_scan_in_log_space() -> None:
    """Heinsen's scan, as the minGRU paper computes it: h = exp(a* + logcumsumexp(log b - a*))."""
    keep, add = torch.rand(2, 1, 200, 3, 4, dtype=torch.float64).clamp(0.05, 0.95)
    initial = torch.rand(1, 3, 4, dtype=torch.float64)
    log_keep = torch.cat((torch.zeros_like(initial)[:, None], keep.log().cumsum(1)), 1)
    log_add = torch.cat((initial[:, None], add), 1).log()
    scanned = (log_keep + torch.logcumsumexp(log_add - log_keep, 1)).exp()[:, 1:]
    assert torch.allclose(linear_recurrence(keep, add, initial), scanned, rtol=0, atol=1e-9)
