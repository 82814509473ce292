"""The latch: the unit's recurrence, what its weight decides, and clipping net by net."""

import math

import pytest
import torch

from asr.sequence import tasks
from asr.sequence.report import Report
from asr.sequence.settings import Case, Optim
from asr.sequence.tasks.latch import Options, _Nets


def test_the_unit_follows_its_equation() -> None:
    nets = _Nets(Options(noises=(0.0,), num_seeds=2), torch.Generator().manual_seed(1))
    states, targets = nets(7, 4)
    assert targets[0, 0].tolist() == pytest.approx([-0.8, 0.8, -0.8, 0.8])
    for seed in range(2):
        for item in range(4):
            x = 0.0
            for t in range(7):
                given = float(nets.inputs[0, seed, item % 2, t].detach()) if t < 3 else 0.0
                x = math.tanh(1.25 * x + given)
            assert float(states[0, seed, item].detach()) == pytest.approx(x, abs=1e-6)


@pytest.mark.parametrize(("weight", "holds"), [(2.0, True), (0.5, False)])
def test_a_weight_above_1_holds_a_bit_and_one_below_forgets_it(weight: float, holds: bool) -> None:
    nets = _Nets(Options(noises=(0.0,), initial_weight=weight, num_seeds=1), torch.Generator().manual_seed(1))
    with torch.no_grad():
        nets.inputs[0, 0, 0], nets.inputs[0, 0, 1] = -0.5, 0.5
        states, targets = nets(80, 2)
    if holds:
        assert torch.equal(states > 0, targets > 0)
        assert float(states.abs().min()) > 0.9
    else:
        assert float(states.abs().max()) < 1e-6


def test_each_nets_gradient_is_clipped_by_itself() -> None:
    nets = _Nets(Options(noises=(0.1, 0.2), num_seeds=3), torch.Generator().manual_seed(1))
    nets.weight.grad = torch.tensor([[3.0, 0.1, 0.0], [30.0, 0.2, 1.0]])
    nets.inputs.grad = torch.zeros_like(nets.inputs)
    nets.inputs.grad[0, 0, 1, 2] = 4.0
    nets.clip_gradients(1.0)
    expected = torch.tensor([[0.6, 0.1, 0.0], [1.0, 0.2, 1.0]])
    assert (nets.weight.grad - expected).abs().max() < 1e-6
    assert float(nets.inputs.grad[0, 0, 1, 2]) == pytest.approx(0.8)


def test_a_run_is_decided_by_its_seed() -> None:
    options = {"lengths": [4, 6], "num_seeds": 2}
    case = Case(options=options, steps=5, batch_size=8, optim=Optim(name="sgd", learning_rate=0.01, gradient_clip=1.0))
    task = tasks.build("latch", case, "test")
    with Report("test", task.figure, case.steps) as report:
        first, second = task.run(case, report), task.run(case, report)
    assert first == second
    assert first.parameters == 7
    assert set(first.figures) == {"solved at T=4", "solved at T=6"}
    assert first.value == first.figures["solved at T=4"] - first.figures["solved at T=6"]
