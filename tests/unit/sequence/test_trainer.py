"""The shared trainer: what it minimises, which weights it tests, when it stops, and that a seed says it all."""

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from asr.config.options import validate_stack
from asr.errors import ConfigError
from asr.sequence.model import SequenceModel
from asr.sequence.report import Report
from asr.sequence.settings import Case, Optim, Target
from asr.sequence.task import Examples, Outcome, SupervisedTask
from asr.sequence.trainer import build_model, fit, reduce_learning_rate

GRU = validate_stack({"name": "gru", "num_layers": 1, "hidden_size": 8, "bidirectional": False, "batch_norm": "none"})


class FirstSymbol(SupervisedTask):
    """The answer is the first of a few symbols."""

    figure, higher_is_better, chance = "accuracy", True, 0.25
    input_size = output_size = 4
    readout = "last"

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Examples]:
        while True:
            yield self.examples(batch_size, generator)

    def evaluation(self, split: str) -> list[Examples]:
        return [self.examples(100, torch.Generator().manual_seed(-len(split)))]

    def examples(self, count: int, generator: torch.Generator) -> Examples:
        symbols = torch.randint(4, (count, 5), generator=generator)
        return Examples(symbols, torch.randint(1, 6, (count,), generator=generator), symbols[:, 0])

    def loss(self, outputs: Tensor, examples: Examples) -> Tensor:
        return F.cross_entropy(outputs, examples.targets)

    def score(self, outputs: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
        return (outputs.argmax(1) == examples.targets).sum(), torch.tensor(len(outputs))


def run(case: Case, task: SupervisedTask | None = None) -> Outcome:
    task = task or FirstSymbol()
    with Report("test", task.figure, case.steps) as report:
        return fit(task, case, report)


def test_a_stack_learns_and_the_seed_decides_everything() -> None:
    case = Case(stack=GRU, steps=150, evaluate_every=50, optim=Optim(learning_rate=0.02, gradient_clip=1.0))
    first, second, other = run(case), run(case), run(case.model_copy(update={"seed": 2}))
    assert first.value == 1.0
    assert [step for step, *_ in first.curve] == [50, 100, 150]
    assert first == second
    assert first.curve != other.curve
    assert first.parameters == sum(p.numel() for p in build_model(FirstSymbol(), case).parameters())


def test_training_stops_at_the_target() -> None:
    target = Target(at_least=0.9)
    optim = Optim(learning_rate=0.02)
    case = Case(stack=GRU, steps=1000, evaluate_every=25, stop_at_target=True, target=target, optim=optim)
    outcome = run(case)
    assert outcome.steps < 1000
    assert outcome.curve[-1][2] >= 0.9 > outcome.curve[-2][2]


def test_when_the_time_is_up_the_best_weights_so_far_are_tested() -> None:
    case = Case(stack=GRU, steps=10**6, evaluate_every=10**6, seconds=0.2, optim=Optim(learning_rate=0.02))
    outcome = run(case)
    assert outcome.cut_short
    assert 0 < outcome.steps < 10**6
    assert [step for step, *_ in outcome.curve] == [outcome.steps]
    assert outcome.value == pytest.approx(outcome.curve[0][2], abs=0.2)  # of two sets of 100
    assert not run(Case(stack=GRU, steps=3, evaluate_every=2, seconds=60.0)).cut_short


def test_the_weights_that_did_best_are_the_ones_tested() -> None:
    class Judged(FirstSymbol):
        """Validations give the values that are wanted; the test tells weights apart by the sum of the outputs."""

        def __init__(self, *validations: float) -> None:
            self.validations = iter(validations)

        def score(self, outputs: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
            return torch.tensor(next(self.validations, outputs.sum().item())), torch.tensor(1)

    two, three = (Case(stack=GRU, steps=steps, evaluate_every=1) for steps in (2, 3))
    after_two, after_three = run(two, Judged(0.2, 0.9)).value, run(three, Judged(0.2, 0.3, 0.4)).value
    assert after_two != after_three
    assert run(three, Judged(0.2, 0.9, 0.4)).value == after_two


def test_a_loss_that_is_not_finite_ends_the_training_and_misses_every_target() -> None:
    class Broken(FirstSymbol):
        def loss(self, outputs: Tensor, examples: Examples) -> Tensor:
            return super().loss(outputs, examples) * math.inf

    outcome = run(Case(stack=GRU, steps=50, evaluate_every=10), Broken())
    assert outcome.steps == 10
    assert math.isnan(outcome.curve[-1][2])


def test_the_learning_rate_falls_when_an_evaluation_is_worse_than_all_of_the_last() -> None:
    optim = Optim(reduce_factor=0.1, reduce_after=3)
    weight = torch.nn.Parameter(torch.zeros(1))

    def rate_after(values: list[float], higher_is_better: bool) -> float:
        optimizer = torch.optim.SGD([weight], lr=1.0)
        reduce_learning_rate(optimizer, optim, values, higher_is_better)
        return optimizer.param_groups[0]["lr"]

    assert rate_after([9, 5, 4, 3, 5.1], False) == pytest.approx(0.1)
    assert rate_after([9, 5, 4, 3, 4.9], False) == 1.0  # 5 was worse
    assert rate_after([4, 3, 5], False) == 1.0  # too few to compare with
    assert rate_after([5, 6, 7, 4], True) == pytest.approx(0.1)


def test_the_read_out_is_of_each_items_last_frame() -> None:
    torch.manual_seed(0)
    task = FirstSymbol()
    case = Case(stack=GRU, embedding_size=3)
    last = build_model(task, case)
    every = SequenceModel(stack=last.stack, input_size=4, output_size=4, readout="every", embedding_size=3)
    every.embedding, every.linear = last.embedding, last.linear
    examples = task.examples(6, torch.Generator().manual_seed(1))
    outputs = every(examples)
    for i, length in enumerate(examples.lengths.tolist()):
        torch.testing.assert_close(last(examples)[i], outputs[i, length - 1])


def test_a_missing_stack_is_said() -> None:
    with pytest.raises(ConfigError, match="stack: missing"):
        build_model(FirstSymbol(), Case())
