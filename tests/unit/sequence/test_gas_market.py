"""The gas market clears in each period, and its adjoint equals autograd through all the rounds of the iteration."""

import math

import torch
from torch import Tensor

from asr.sequence import tasks
from asr.sequence.report import Report
from asr.sequence.settings import Case
from asr.sequence.tasks.gas_market import DEMAND, INVENTORY, SUPPLY, equations, simulate

PARAMETERS = torch.tensor([*SUPPLY, *DEMAND, *INVENTORY], dtype=torch.float64)
INCOMES = torch.tensor([5.0, 6.5, 4.0, 5.5, 7.0, 3.5], dtype=torch.float64)


def test_every_equation_holds_in_every_period() -> None:
    (a0, a1, a2), (b0, b1, b2, b3), (c0, c1, c2) = SUPPLY, DEMAND, INVENTORY
    supply, demand, inventory, past = 6.0, 6.0, 1.0, [5.0] * 4
    for income, row in zip(INCOMES.tolist(), simulate(INCOMES, PARAMETERS).tolist(), strict=True):
        price = row[0]
        expected = (
            b0 - b1 * price + b2 * demand + b3 * income,
            c0 + c1 * inventory + c2 * math.tanh(sum(past[-4:]) / 4 - price),
            a0 + a1 * past[-1] + a2 * supply,
        )
        assert max(abs(is_ - should) for is_, should in zip(row[1:], expected, strict=True)) < 1e-11
        assert abs(expected[2] + inventory - expected[1] - expected[0]) < 1e-11  # the market clears
        (demand, inventory, supply), past = expected, [*past, price]


def by_rounds(incomes: Tensor, parameters: Tensor) -> Tensor:
    """The last price, with every round of the iteration on autograd's tape."""
    supply, state = parameters.new_tensor(6.0), parameters.new_tensor([5.0, 6.0, 1.0])
    past = [state[0]] * 4
    for income in incomes:
        supply = parameters[0] + parameters[1] * past[-1] + parameters[2] * supply
        given = torch.cat((torch.stack((supply, torch.stack(past[-4:]).mean(), income)), state[1:], parameters[3:]))
        for _ in range(400):
            state = equations(state, given)
        past.append(state[0])
    return past[-1]


def test_the_adjoint_equals_autograd_through_the_rounds() -> None:
    incomes, parameters = INCOMES.clone().requires_grad_(), PARAMETERS.clone().requires_grad_()
    ours = torch.autograd.grad(simulate(incomes, parameters)[-1, 0], (incomes, parameters))
    theirs = torch.autograd.grad(by_rounds(incomes, parameters), (incomes, parameters))
    for mine, other in zip(ours, theirs, strict=True):
        assert float((mine - other).abs().max() / other.abs().max()) < 1e-9
    assert ours[0].abs().min() > 1e-6  # every income counts


def test_markets_side_by_side_do_not_mix() -> None:
    other = PARAMETERS * 1.05
    together = simulate(torch.stack((INCOMES, INCOMES.flip(0))), torch.stack((PARAMETERS, other)))
    assert (together[0] - simulate(INCOMES, PARAMETERS)).abs().max() < 1e-10
    assert (together[1] - simulate(INCOMES.flip(0), other)).abs().max() < 1e-10


def test_a_run_judges_the_adjoint() -> None:
    task = tasks.build("gas_market", Case(options={"num_periods": 6}), "test")
    case = Case(steps=1)
    with Report("test", task.figure, case.steps) as report:
        outcome = task.run(case, report)
    assert 0 < outcome.value < 1e-6
    assert outcome.parameters == 10
    assert [(step, value) for step, _, value in outcome.curve] == [(1, outcome.value)]
