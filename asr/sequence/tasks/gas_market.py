"""Back-propagation through a simultaneous system over time (Werbos 1988), on a gas market made up for it.

His natural-gas model and data are not public. Here, at time t,

    supply      S = a0 + a1 P_{t-1} + a2 S_{t-1}
    demand      D = b0 - b1 P + b2 D_{t-1} + b3 Y
    inventory   I = c0 + c1 I_{t-1} + c2 tanh(C - P),  C the mean price of the last four periods' contracts
    price       P so that S + I_{t-1} - I = D

with incomes Y given. P, D and I depend on each other: y = f(y, x). The forward pass iterates f until y is constant; the
backward pass solves v = dE/dy + v df/dy the same way, and then dE/dx = v df/dx: no derivative goes through the
iterations, and one adjoint pass gives what finite differences need two runs for each input for.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from asr.config.fields import PositiveInt, Section
from asr.sequence.report import Report
from asr.sequence.settings import READOUT, Case, Data
from asr.sequence.task import Outcome, Task

SUPPLY, DEMAND, INVENTORY = (2.0, 0.30, 0.60), (6.0, 0.50, 0.40, 0.20), (0.5, 0.70, 0.80)  # a, b, c
CONTRACT_LAG = 4
SPEED = 0.18  # of the price's adjustment in the iteration; it does not change where the iteration ends
TOLERANCE, MAX_ITERATIONS = 1e-13, 5000

UNUSED_SETTINGS = (  # an economy, fitted by L-BFGS
    "stack",
    *READOUT,
    "optim",
    "batch_size",
    "evaluate_every",
    "stop_at_target",
    "device",
    "graph",
    "seconds",
)


class Options(Section):
    """Options of the gas market."""

    num_periods: PositiveInt = Field(40, description="T")


def build(options: Options, data: Data) -> GasMarket:
    """Make the task."""
    return GasMarket(options)


class GasMarket(Task):
    """Sensitivities of the last price to every income and parameter; then the parameters from a history."""

    figure = "relative error of the adjoint"  # the largest, against finite differences
    higher_is_better = False

    def __init__(self, options: Options) -> None:
        self.num_periods = options.num_periods

    def run(self, case: Case, report: Report) -> Outcome:
        generator = torch.Generator().manual_seed(case.seed)
        incomes = 5 + torch.randn(self.num_periods, generator=generator, dtype=torch.float64)
        truth = torch.tensor([*SUPPLY, *DEMAND, *INVENTORY], dtype=torch.float64)
        error, ratio = self._sensitivities(incomes, truth)
        report.point(0, 0.0, error)
        losses, fitted = self._fit(case, report, incomes, truth, generator)
        curve = [(step, loss, error) for step, loss in enumerate(losses, 1)]  # the adjoint is not what is trained
        figures = {
            "adjoint pass, in forward runs": ratio,
            "forward runs that finite differences need": 2.0 * (len(incomes) + len(truth)),
            "largest error of a fitted parameter": float(((fitted - truth) / truth).abs().max()),
        }
        return Outcome(error, len(truth), case.steps, curve, figures)

    def _sensitivities(self, incomes: Tensor, parameters: Tensor) -> tuple[float, float]:
        """Largest error of the adjoint's derivatives, and what the adjoint costs in forward runs."""
        inputs = torch.cat((incomes, parameters)).requires_grad_()

        def last_price(values: Tensor) -> Tensor:
            return simulate(values[..., : self.num_periods], values[..., self.num_periods :])[..., -1, 0]

        (adjoint,) = torch.autograd.grad(last_price(inputs), inputs)
        with torch.no_grad():  # differences of the fourth order, all runs side by side
            steps = torch.diag(1e-3 * inputs.abs())
            runs = last_price(torch.stack([inputs + k * steps for k in (-2, -1, 1, 2)]))
            differences = (runs[0] - 8 * runs[1] + 8 * runs[2] - runs[3]) / (12 * steps.diagonal())
        scale = differences.abs().clamp(min=1e-6 * float(differences.abs().max()))
        error = float(((adjoint - differences).abs() / scale).max())
        forward = _seconds(lambda: last_price(inputs.detach()))
        both = _seconds(lambda: torch.autograd.grad(last_price(inputs), inputs))
        return error, (both - forward) / forward

    def _fit(
        self, case: Case, report: Report, incomes: Tensor, truth: Tensor, generator: torch.Generator
    ) -> tuple[list[float], Tensor]:
        """Recover the parameters from the prices, supplies and demands of the true market; gives the losses too."""
        with torch.no_grad():
            history = simulate(incomes, truth)
        noise = 1 + 0.2 * (2 * torch.rand(len(truth), generator=generator, dtype=torch.float64) - 1)
        parameters = (truth * noise).requires_grad_()
        optimizer = torch.optim.LBFGS([parameters], max_iter=20, line_search_fn="strong_wolfe")
        losses: list[float] = []
        for step in range(1, case.steps + 1):

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = (simulate(incomes, parameters) - history).square().mean()
                loss.backward()
                return loss

            loss = optimizer.step(closure)  # type: ignore[arg-type]
            losses.append(float(loss.detach()))
            report.step(step)
        return losses, parameters.detach()


def simulate(incomes: Tensor, parameters: Tensor) -> Tensor:
    """(..., T) incomes, (..., 10) parameters -> (..., T, 4): price, demand, inventory and supply of each period."""
    markets = parameters.shape[:-1]
    supply = parameters.new_full(markets, 6.0)
    state = parameters.new_tensor([5.0, 6.0, 1.0]).expand(*markets, 3)  # price, demand, inventory
    past = [state[..., 0]] * CONTRACT_LAG
    rows = []
    for income in incomes.unbind(-1):
        supply = parameters[..., 0] + parameters[..., 1] * past[-1] + parameters[..., 2] * supply
        contract = torch.stack(past[-CONTRACT_LAG:]).mean(0)
        given = torch.cat((torch.stack((supply, contract, income), -1), state[..., 1:], parameters[..., 3:]), -1)
        state = _Simultaneous.apply(given, state.detach())
        assert isinstance(state, Tensor)
        past.append(state[..., 0])
        rows.append(torch.cat((state, supply[..., None]), -1))
    return torch.stack(rows, -2)


def equations(state: Tensor, given: Tensor) -> Tensor:
    """f: one round of price, demand and inventory answering to each other."""
    price, demand, inventory = state.unbind(-1)
    supply, contract, income, last_demand, last_inventory, b0, b1, b2, b3, c0, c1, c2 = given.unbind(-1)
    return torch.stack(
        (
            price + SPEED * (demand - supply - last_inventory + inventory),
            b0 - b1 * price + b2 * last_demand + b3 * income,
            c0 + c1 * last_inventory + c2 * torch.tanh(contract - price),
        ),
        -1,
    )


class _Simultaneous(torch.autograd.Function):
    """(given, where to begin) -> y = f(y, given)."""

    @staticmethod
    def forward(ctx, given: Tensor, start: Tensor) -> Tensor:
        state = _fixed_point(lambda y: equations(y, given), start)
        ctx.save_for_backward(given, state)
        return state

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        given, state = ctx.saved_tensors
        with torch.enable_grad():
            state, given = state.detach().requires_grad_(), given.detach().requires_grad_()
            after = equations(state, given)
        (direct,) = gradients

        def pulled(v: Tensor) -> Tensor:
            return direct + torch.autograd.grad(after, state, v, retain_graph=True)[0]

        adjoint = _fixed_point(pulled, direct)
        return torch.autograd.grad(after, given, adjoint)[0], None


def _fixed_point(function: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    state = start
    for _ in range(MAX_ITERATIONS):
        after = function(state)
        if float((after - state).abs().max()) <= TOLERANCE * max(1.0, float(after.abs().max())):
            return after
        state = after
    raise ArithmeticError(f"the market did not settle in {MAX_ITERATIONS} rounds")


def _seconds(function: Callable[[], object], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2]
