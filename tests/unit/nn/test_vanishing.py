"""The regulariser Omega against its definition, link by link, and against finite differences with d and h frozen."""

import pytest
import torch

from asr import stacks
from asr.config.options import validate_stack
from asr.errors import ConfigError
from asr.nn.cells import RnnCell
from asr.nn.cells.rnn import set_vanishing_regularizer
from asr.nn.vanishing import SMALLEST, omega_gradient


def links(chains: int, frames: int, items: int, units: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    d_hidden = torch.randn(chains, frames, items, units, dtype=torch.float64)
    slope = torch.rand(chains, frames, items, units, dtype=torch.float64)
    return d_hidden, d_hidden * slope, torch.randn(chains, units, units, dtype=torch.float64) / units**0.5


def slow(d_hidden: torch.Tensor, d_gates: torch.Tensor, recurrent: torch.Tensor) -> torch.Tensor:
    """Omega, link by link: each matrix's mean over those that carry a gradient."""
    omega = torch.zeros((), dtype=torch.float64)
    chains, frames, items, _ = d_hidden.shape
    for k in range(chains):
        terms = []
        for t in range(1, frames):
            for b in range(items):
                squared = d_hidden[k, t, b] @ d_hidden[k, t, b]
                if squared > SMALLEST:
                    back = d_gates[k, t, b] @ recurrent[k]
                    terms.append((back @ back / squared - 1) ** 2)
        omega = omega + torch.stack(terms).mean()
    return omega


def test_omega_and_its_gradient() -> None:
    d_hidden, d_gates, recurrent = links(2, 5, 3, 4)
    d_hidden[1, 2, 1] = d_gates[1, 2, 1] = 0.0  # a link that carries nothing
    recurrent.requires_grad_()
    expected = slow(d_hidden, d_gates, recurrent)
    (gradient,) = torch.autograd.grad(expected, recurrent)
    carried = (d_gates @ recurrent[:, None]).detach()
    value, ours = omega_gradient(carried, d_hidden, d_gates, recurrent.detach())
    assert float(value) == pytest.approx(expected.item(), rel=1e-12)
    assert float((ours - gradient).abs().max()) < 1e-12


def test_its_gradient_equals_finite_differences() -> None:
    d_hidden, d_gates, recurrent = links(1, 4, 2, 3)

    def value(matrix: torch.Tensor) -> float:
        return float(omega_gradient(d_gates @ matrix[:, None], d_hidden, d_gates, matrix)[0])

    _, gradient = omega_gradient(d_gates @ recurrent[:, None], d_hidden, d_gates, recurrent)
    for i in range(3):
        for j in range(3):
            step = torch.zeros_like(recurrent)
            step[0, i, j] = 1e-6
            difference = (value(recurrent + step) - value(recurrent - step)) / 2e-6
            assert float(gradient[0, i, j]) == pytest.approx(difference, rel=1e-6, abs=1e-8)


def test_a_cell_adds_it_to_the_gradient_of_its_matrix_alone() -> None:
    """dE/dh of every frame is taken from autograd through a plain loop, with respect to each hidden state."""
    torch.manual_seed(1)
    cell = RnnCell(hidden_size=4, num_chains=2).double()
    projected = [torch.randn(6, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    initial = torch.zeros(2, 3, 4, dtype=torch.float64)
    weights = torch.randn(2, 6, 3, 4, dtype=torch.float64)

    def gradients() -> tuple[torch.Tensor, ...]:
        outputs, _ = cell.recur(projected, initial)
        return torch.autograd.grad((outputs * weights).sum(), [cell.recurrent, *projected])

    plain = gradients()
    cell.vanishing_weight = 0.7
    with_omega = gradients()
    for was, now in zip(plain[1:], with_omega[1:], strict=True):
        assert torch.equal(was, now)

    states: list[list[torch.Tensor]] = [[], []]
    loss = torch.zeros((), dtype=torch.float64)
    for k in range(2):
        hidden = initial[k]
        for t in range(6):
            hidden = torch.tanh(projected[k][t] + hidden @ cell.recurrent[k].T)
            hidden.retain_grad()
            states[k].append(hidden)
            loss = loss + (hidden * weights[k, t]).sum()
    loss.backward()
    d_hidden = torch.stack([torch.stack([h.grad for h in chain]) for chain in states])
    outputs = torch.stack([torch.stack(chain) for chain in states]).detach()
    recurrent = cell.recurrent.detach().clone().requires_grad_()
    (omega,) = torch.autograd.grad(slow(d_hidden, d_hidden * (1 - outputs**2), recurrent), recurrent)
    assert float((with_omega[0] - plain[0] - 0.7 * omega).abs().max()) < 1e-10


def test_padding_changes_nothing() -> None:
    torch.manual_seed(2)
    options = {"name": "rnn", "num_layers": 1, "hidden_size": 5, "activation": "tanh", "batch_norm": "none"}
    stack = stacks.build(validate_stack(options), 3).double()
    set_vanishing_regularizer(stack, 2.0)
    inputs = torch.randn(1, 6, 3, dtype=torch.float64)

    def gradient(padding: int) -> torch.Tensor:
        stack.zero_grad()
        padded = torch.nn.functional.pad(inputs, (0, 0, 0, padding))
        outputs, _ = stack(padded, torch.tensor([6]))
        outputs[:, :6].square().sum().backward()
        (cell,) = (module for module in stack.modules() if isinstance(module, RnnCell))
        assert cell.recurrent.grad is not None
        return cell.recurrent.grad.clone()

    plain = gradient(0)
    set_vanishing_regularizer(stack, 0.0)
    without, padded_without = gradient(0), gradient(4)
    assert torch.allclose(without, padded_without, atol=1e-12)
    assert not torch.allclose(without, plain, atol=1e-3)
    set_vanishing_regularizer(stack, 2.0)
    assert torch.allclose(gradient(4), plain, atol=1e-12)


def test_stacks_without_simple_cells_are_refused() -> None:
    for name in ("gru", "diagonal", "tcn"):
        stack = stacks.build(validate_stack({"name": name, "num_layers": 1, "hidden_size": 4}), 3)
        set_vanishing_regularizer(stack, 0.0)
        with pytest.raises(ConfigError, match="vanishing_regularizer=2: expected a stack of simple recurrent cells"):
            set_vanishing_regularizer(stack, 2.0)
