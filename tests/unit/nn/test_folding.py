"""Norms that are folded are gone: no step computes them anew."""

import pytest
import torch

from asr import stacks
from asr.config.options import validate_stack
from asr.nn.batch_norm import NormalizedLinear
from asr.nn.folding import fold_norms


@pytest.mark.parametrize(
    "options",
    [
        {"name": "gru", "bidirectional": False},
        {"name": "dilated", "cell": "lstm", "bidirectional": False},
        {"name": "tcn"},
        {"name": "tcn", "batch_norm": True},
    ],
)
def test_after_folding_a_step_uses_plain_weights(options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    stack = stacks.build(validate_stack({"num_layers": 2, "hidden_size": 8, **options}), 4).eval()
    inputs = torch.randn(1, 1, 4)
    expected, _ = stack.step(inputs, stack.initial_state(1, inputs))
    fold_norms(stack)
    assert not any(isinstance(module, NormalizedLinear) for module in stack.modules())
    assert not any(parameter.requires_grad for parameter in stack.parameters())

    def refuse(*arguments: object) -> torch.Tensor:
        raise AssertionError("a norm was computed")

    monkeypatch.setattr(torch, "rsqrt", refuse)
    monkeypatch.setattr(torch._VF, "_weight_norm", refuse)
    assert torch.equal(stack.step(inputs, stack.initial_state(1, inputs))[0], expected)
