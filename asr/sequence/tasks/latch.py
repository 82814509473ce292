"""The latch (Bengio, Simard and Frasconi 1994, section III): one unit that has to remember one bit through noise.

x_t = tanh(w x_{t-1} + h_t). The inputs h_1 .. h_L of each class are trained with w; those after them are noise. At T x
has to be +0.8 or -0.8. For w > 1 the unit has two stable states; the longer the sequences, the more often the gradient,
which noise and decay have taken over, pulls w below 1 and the latch is lost. All nets are trained at once.
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from asr.config.fields import NonNegativeFloat, PositiveInt, Section
from asr.sequence.report import Report
from asr.sequence.settings import SHARED_TRAINING, Case, Data
from asr.sequence.task import Outcome, Task

TARGET, INPUT_SPREAD, SOLVED = 0.8, 0.5, 0.9

# Units of its own, trained for each length from the start.
UNUSED_SETTINGS = (*SHARED_TRAINING, "optim.momentum", "evaluate_every")
FIXED_SETTINGS = {"optim.name": "sgd"}


class Options(Section):
    """Options of the latch."""

    lengths: tuple[PositiveInt, ...] = Field((5, 10, 20, 40, 80), description="T, each longer than num_inputs")
    noises: tuple[NonNegativeFloat, ...] = Field((0.2,), description="deviations of the noise; the first is judged")
    num_inputs: PositiveInt = Field(3, description="L, trained inputs of each class")
    initial_weight: float = Field(1.25, description="w before training")
    num_seeds: PositiveInt = 5


def build(options: Options, data: Data) -> Latch:
    """Make the task."""
    return Latch(options)


class Latch(Task):
    """A share of nets that hold the bit, by length and noise."""

    figure = "share solved, shortest less longest T"
    higher_is_better = True

    def __init__(self, options: Options) -> None:
        self.options = options
        self.solved = torch.zeros(len(options.noises), len(options.lengths))

    def run(self, case: Case, report: Report) -> Outcome:
        options, curve = self.options, []
        for number, length in enumerate(options.lengths):
            nets = _Nets(options, torch.Generator().manual_seed(case.seed))
            optimizer = torch.optim.SGD(nets.parameters(), lr=case.optim.learning_rate)
            loss = torch.zeros(())
            for _ in range(case.steps):
                optimizer.zero_grad()
                states, targets = nets(length, case.batch_size)
                loss = 0.5 * (states - targets).square().sum(-1).mean() * nets.weight.numel()
                loss.backward()
                nets.clip_gradients(case.optim.gradient_clip)
                optimizer.step()
            with torch.no_grad():
                states, targets = nets(length, 400)
                accuracy = ((states > 0) == (targets > 0)).double().mean(-1)  # (noises, seeds)
            self.solved[:, number] = (accuracy >= SOLVED).double().mean(1)
            curve.append((length, float(loss.detach()) / nets.weight.numel(), float(self.solved[0, number])))
            report.point(*curve[-1])
            report.step(case.steps * (number + 1) // len(options.lengths))
        shares = self.solved[0].tolist()
        figures = {f"solved at T={length}": share for length, share in zip(options.lengths, shares, strict=True)}
        return Outcome(shares[0] - shares[-1], 1 + 2 * options.num_inputs, case.steps, curve, figures)

    def draw(self, folder: Path) -> list[Path]:
        if len(self.options.noises) < 2:
            return []
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5, 3), layout="constrained")
        axes = figure.subplots()
        order = sorted(range(len(self.options.noises)), key=lambda row: self.options.noises[row])
        image = axes.imshow(self.solved[order], vmin=0, vmax=1, aspect="auto", origin="lower", cmap="viridis")
        axes.set_xticks(range(len(self.options.lengths)), map(str, self.options.lengths))
        axes.set_yticks(range(len(order)), [str(self.options.noises[row]) for row in order])
        axes.set(xlabel="length T", ylabel="noise", title="share of nets that hold the bit")
        figure.colorbar(image)
        figure.savefig(folder / "success.png", dpi=90)
        return [folder / "success.png"]


class _Nets(nn.Module):
    """One unit for each noise and seed, side by side."""

    def __init__(self, options: Options, generator: torch.Generator) -> None:
        super().__init__()
        nets = (len(options.noises), options.num_seeds)
        self.noises = torch.tensor(options.noises)[:, None, None]
        self.generator = generator
        self.weight = nn.Parameter(torch.full(nets, options.initial_weight))
        spread = 2 * torch.rand(*nets, 2, options.num_inputs, generator=generator) - 1
        self.inputs = nn.Parameter(INPUT_SPREAD * spread)  # (noises, seeds, class, L)

    def forward(self, length: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """x_T of `batch_size` sequences, half of each class, and the targets: (noises, seeds, B) each."""
        classes = torch.arange(batch_size) % 2
        given = self.inputs[:, :, classes]  # (noises, seeds, B, L)
        shape = (*self.weight.shape, batch_size)
        state = torch.zeros(shape)
        for t in range(length):
            if t < given.shape[-1]:
                source = given[..., t]
            else:
                source = self.noises * torch.randn(shape, generator=self.generator)
            state = torch.tanh(self.weight[..., None] * state + source)
        return state, ((2 * classes - 1) * TARGET).expand(shape)

    def clip_gradients(self, largest: float) -> None:
        """Clip each net's gradient by itself."""
        assert self.weight.grad is not None
        assert self.inputs.grad is not None
        norm = (self.weight.grad.square() + self.inputs.grad.square().sum((2, 3))).sqrt()
        factor = (largest / norm.clamp(min=largest)) if largest else torch.ones_like(norm)
        self.weight.grad.mul_(factor)
        self.inputs.grad.mul_(factor[..., None, None])
