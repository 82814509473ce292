"""Small stacks in float64, and their comparison with the slow references."""

import torch

from asr import stacks
from asr.config.options import validate_stack
from asr.stacks._recurrent import RecurrentStack
from tests.support.recurrent import Step, reference


def make_stack(options: dict[str, object], input_size: int, std: float = 0.7) -> RecurrentStack:
    """A float64 recurrent stack with large random weights; 3 layers of 4 units, if `options` do not say otherwise."""
    torch.manual_seed(1)
    stack = stacks.build(validate_stack({"hidden_size": 4, "num_layers": 3, **options}), input_size).double()
    assert isinstance(stack, RecurrentStack)
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return stack


def assert_equals_reference(options: dict[str, object], step: Step, state_size: int = 1, std: float = 0.7) -> None:
    """Training-mode output equals the slow reference's for a batch of three lengths."""
    stack = make_stack(options, input_size=5, std=std)
    lengths = torch.tensor([6, 3, 17])
    inputs = torch.randn(3, 17, 5, dtype=torch.float64)
    out, _ = stack(inputs, lengths)
    expected = reference(stack, [inputs[i, :n] for i, n in enumerate(lengths)], step, state_size)
    for row, item in enumerate(expected):
        assert float((out[row, : len(item)] - item).detach().abs().max()) < 1e-10
