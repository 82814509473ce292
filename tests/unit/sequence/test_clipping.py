"""Clipping keeps a gradient's direction; one that overflowed shrinks the recurrent matrices and moves nothing else."""

import math

import pytest
import torch
from torch import Tensor, nn

from asr.nn.cells import RnnCell
from asr.sequence.trainer import clip_gradients


def gradients(model: nn.Module) -> list[Tensor]:
    found = []
    for parameter in model.parameters():
        assert parameter.grad is not None
        found.append(parameter.grad.clone())
    return found


def model_with_gradients() -> nn.ModuleList:
    torch.manual_seed(1)
    model = nn.ModuleList([RnnCell(hidden_size=3, num_chains=2), nn.Linear(3, 2)]).double()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def test_clipping_keeps_the_direction() -> None:
    model = model_with_gradients()
    before = torch.cat([g.flatten() for g in gradients(model)])
    clip_gradients(model, 0.5)
    after = torch.cat([g.flatten() for g in gradients(model)])
    assert float(after.norm()) == pytest.approx(0.5, rel=1e-5)
    assert float(torch.cosine_similarity(before, after, dim=0)) == pytest.approx(1.0, rel=1e-12)
    clip_gradients(model, 2.0)  # shorter than that
    assert torch.equal(torch.cat([g.flatten() for g in gradients(model)]), after)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e11])
def test_an_overflow_shrinks_recurrent_matrices_alone(value: float) -> None:
    model = model_with_gradients()
    cell, linear = model
    assert isinstance(cell, RnnCell)
    gradients(model)  # there are some
    assert linear.weight.grad is not None
    linear.weight.grad[0, 0] = value
    clip_gradients(model, 1.0)
    assert cell.recurrent.grad is not None
    assert torch.equal(cell.recurrent.grad, 0.02 * cell.recurrent.detach())
    assert not linear.weight.grad.any()
    assert linear.bias.grad is not None
    assert not linear.bias.grad.any()
