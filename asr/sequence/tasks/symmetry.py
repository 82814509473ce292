"""Symmetry (Rumelhart, Hinton and Williams 1986): is a string of six bits its own mirror image?

Six inputs, two logistic hidden units, one logistic output; E = 1/2 sum (y - d)^2 over all 64 strings, and
dw(t) = -epsilon dE/dw + alpha dw(t - 1). All seeds are trained at once, as nets side by side.
"""

from __future__ import annotations

from itertools import product

import torch
from pydantic import Field
from torch import Tensor

from asr.config.fields import PositiveInt, Section
from asr.sequence.report import Report
from asr.sequence.settings import SHARED_TRAINING, Case, Data
from asr.sequence.task import Outcome, Task

NUM_BITS, NUM_HIDDEN, SPREAD = 6, 2, 0.3

# Nets of its own, over all strings at once.
UNUSED_SETTINGS = (*SHARED_TRAINING, "optim.gradient_clip", "batch_size")
FIXED_SETTINGS = {"optim.name": "sgd"}


class Options(Section):
    """Options of symmetry."""

    num_nets: PositiveInt = Field(20, description="nets, each from its own random weights")


def build(options: Options, data: Data) -> Symmetry:
    """Make the task."""
    return Symmetry(options)


class Symmetry(Task):
    """All 64 strings -> 1 if symmetric. A net has solved it when each output is on the right side of 1/2."""

    figure = "nets that solve it"
    higher_is_better = True

    def __init__(self, options: Options) -> None:
        self.num_nets = options.num_nets

    def run(self, case: Case, report: Report) -> Outcome:
        generator = torch.Generator().manual_seed(case.seed)
        sizes = ((NUM_BITS, NUM_HIDDEN), (1, NUM_HIDDEN), (NUM_HIDDEN, 1), (1, 1))
        weights = [
            (SPREAD * (2 * torch.rand(self.num_nets, *size, generator=generator) - 1)).requires_grad_()
            for size in sizes
        ]
        optimizer = torch.optim.SGD(weights, lr=case.optim.learning_rate, momentum=case.optim.momentum)
        inputs, targets = strings()
        solved_after = torch.full((self.num_nets,), case.steps + 1)
        curve = []
        step = 0
        for step in range(1, case.steps + 1):
            outputs = forward(inputs, weights)
            error = 0.5 * (outputs - targets).square().sum()
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            solved = ((outputs > 0.5) == (targets > 0.5)).all(1)
            solved_after = torch.where(solved & (solved_after > step), step, solved_after)
            report.step(step)
            if step % case.evaluate_every == 0 or step == case.steps:
                curve.append((step, float(error.detach()) / self.num_nets, float(solved.sum())))
                report.point(*curve[-1])
                if bool(solved.all()):
                    break
        count = (solved_after <= case.steps).sum()
        figures = {"median sweeps": float(solved_after[solved_after <= case.steps].float().median()) if count else 0.0}
        return Outcome(float(count), sum(a * b for a, b in sizes), step, curve, figures)


def strings() -> tuple[Tensor, Tensor]:
    """(64, 6) bits and (64,) whether each is symmetric."""
    bits = torch.tensor(list(product((0.0, 1.0), repeat=NUM_BITS)))
    return bits, (bits == bits.flip(1)).all(1).float()


def forward(inputs: Tensor, weights: list[Tensor]) -> Tensor:
    """(C, 6) bits through N nets side by side: (N, C)."""
    first, first_bias, second, second_bias = weights
    hidden = torch.sigmoid(inputs @ first + first_bias)
    return torch.sigmoid(hidden @ second + second_bias)[..., 0]
