"""The recall recipe's CI cases: they speak of every stack, and one that forgets would miss their targets."""

from pathlib import Path

import pytest
import torch

from asr.config.options import names, stack_config_class
from asr.sequence import tasks
from asr.sequence.settings import load_recipe
from asr.sequence.task import SupervisedTask
from asr.sequence.trainer import build_model

CASES = load_recipe(Path(__file__).parents[3] / "recipes/sequence/recall").ci


def test_every_stack_is_trained_and_each_that_can_look_both_ways_in_both() -> None:
    trained = {(case.stack.name, getattr(case.stack, "bidirectional", False)) for case in CASES.values() if case.stack}
    both = {name for name in names() if "bidirectional" in stack_config_class(name).model_fields}
    assert {"gru", "lstm"} <= both
    assert trained == {(name, False) for name in names()} | {(name, True) for name in both}


@pytest.mark.parametrize("name", CASES)
def test_the_answer_can_depend_on_the_first_frame_and_chance_misses_the_target(name: str) -> None:
    """Gradients of the read-out reach the symbol; a net of this shape that could not see it would fail for certain."""
    case = CASES[name]
    task = tasks.build("recall", case, "test")
    assert isinstance(task, SupervisedTask)
    assert task.chance is not None
    assert case.target is not None
    assert not case.target.holds(task.chance + 0.5)
    torch.manual_seed(0)
    model = build_model(task, case).double().eval()
    examples = next(iter(task.batches(8, torch.Generator().manual_seed(1))))
    inputs = torch.nn.functional.one_hot(examples.inputs, task.input_size).double().requires_grad_()
    hidden, _ = model.stack(inputs, examples.lengths)
    (gradient,) = torch.autograd.grad(model.linear(hidden[:, -1]).square().sum(), inputs)
    assert gradient[:, 0].abs().sum() > 0
