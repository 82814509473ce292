"""The training loop that the sequence tasks share. The recogniser's own is `asr.train`."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from asr import stacks
from asr.decode.device import choose_device
from asr.errors import ConfigError
from asr.nn.cells import RnnCell
from asr.nn.cells.rnn import set_vanishing_regularizer
from asr.sequence.model import SequenceModel
from asr.sequence.recording import Recorder
from asr.sequence.report import Report
from asr.sequence.settings import Case, Optim
from asr.sequence.task import Examples, Outcome, Split, SupervisedTask

TRUSTED_NORM = 1e10  # a longer gradient has overflowed, as in the code of Pascanu et al.
SHRINKAGE = 0.02  # and the gradient is then this part of a recurrent weight


def fit(task: SupervisedTask, case: Case, report: Report) -> Outcome:
    """Train a model on `task`; the weights that did best on the validation set are tested.

    Everything random comes from `case.seed`. A loss that is no longer finite ends the training.
    """
    device = device_of(case)
    torch.manual_seed(case.seed)
    model = build_model(task, case).to(device)
    task.initialize(model)
    set_vanishing_regularizer(model, case.optim.vanishing_regularizer)
    optimizer = make_optimizer(model.parameters(), case.optim)
    generator = torch.Generator().manual_seed(case.seed)

    def compute(examples: Examples) -> Tensor:
        return set_gradients(model, task.loss(model(examples), examples), case.optim)

    if case.graph and device.type == "cuda":
        compute = Recorder(compute, model)
    curve = Curve(report, case.steps, case.evaluate_every, case.seconds)
    best, best_weights = math.nan, copy.deepcopy(model.state_dict())
    step = 0
    for step, examples in zip(range(1, case.steps + 1), task.batches(case.batch_size, generator), strict=False):
        model.train()
        model.stack.set_epoch((step - 1) // case.evaluate_every)
        loss = compute(examples.to(device))
        optimizer.step()
        if not curve.due(step, loss):
            continue
        finite = math.isfinite(curve.mean_loss)
        value = evaluate(model, task, "validation", device) if finite else math.nan
        curve.add(value)
        if not finite:
            break
        if not (value <= best if task.higher_is_better else value >= best):  # also the first one
            best, best_weights = value, copy.deepcopy(model.state_dict())
        reduce_learning_rate(optimizer, case.optim, [v for *_, v in curve.points], task.higher_is_better)
        if curve.cut_short or (case.stop_at_target and case.target is not None and case.target.holds(value)):
            break
    model.load_state_dict(best_weights)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    value, figures = test(model, task, device)
    return Outcome(value, parameters, step, curve.points, figures, curve.cut_short)


class Curve:
    """What a training shows: the mean loss between two looks at the validation set, and what was seen there.

    The losses stay on the device until a look is due.

    Args:
        report: is told of every update and every look.
        num_steps: updates of the whole training.
        every: updates between two looks.
        seconds: from now on, after which a last look is due; 0: no limit.

    Attributes:
        cut_short: whether the time was up before all updates were done; the training is to end then.
    """

    def __init__(self, report: Report, num_steps: int, every: int, seconds: float = 0.0) -> None:
        self.report, self.num_steps, self.every = report, num_steps, every
        self.points: list[tuple[int, float, float]] = []
        self.mean_loss = math.nan
        self.cut_short = False
        self._deadline = time.perf_counter() + (seconds or math.inf)
        self._step = 0
        self._losses: list[Tensor] = []

    def due(self, step: int, loss: Tensor) -> bool:
        """Take note of an update; gives whether a look is due, and then sets `mean_loss`."""
        self._step = step
        self._losses.append(loss.detach())
        self.report.step(step)
        self.cut_short = step < self.num_steps and time.perf_counter() >= self._deadline
        if step % self.every and step != self.num_steps and not self.cut_short:
            return False
        self.mean_loss = torch.stack(self._losses).mean().item()
        self._losses.clear()
        return True

    def add(self, value: float) -> None:
        """Add the point that was due."""
        self.points.append((self._step, self.mean_loss, value))
        self.report.point(*self.points[-1])


def update(model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, optim: Optim) -> None:
    """Take one step down the gradient of `loss`."""
    set_gradients(model, loss, optim)
    optimizer.step()


def set_gradients(model: torch.nn.Module, loss: Tensor, optim: Optim) -> Tensor:
    """Make the gradients of `loss` the parameters', clipped as `optim` says; gives the loss, detached."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    if optim.gradient_clip:
        clip_gradients(model, optim.gradient_clip)
    return loss.detach()


def build_model(task: SupervisedTask, case: Case) -> SequenceModel:
    """Make the model that `case` describes."""
    if case.stack is None:
        raise ConfigError("stack: missing; this task needs one, such as stack=gru")
    return SequenceModel(
        stack=stacks.build(case.stack, case.embedding_size or task.input_size),
        input_size=task.input_size,
        output_size=task.output_size,
        readout=task.readout,
        embedding_size=case.embedding_size,
        readout_deviation=case.readout_deviation,
        readout_dropout=case.readout_dropout,
    )


def make_optimizer(parameters: ParamsT, optim: Optim) -> torch.optim.Optimizer:
    """Make the optimiser that `optim` describes; a group of parameters may have settings of its own, as in torch."""
    rate, decay = optim.learning_rate, optim.weight_decay
    if optim.name == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)
    if optim.name == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=rate, alpha=optim.squared_average, weight_decay=decay)
    momentum = optim.momentum
    return torch.optim.SGD(parameters, lr=rate, momentum=momentum, nesterov=momentum > 0, weight_decay=decay)


def clip_gradients(model: torch.nn.Module, largest_norm: float) -> None:
    """Scale the gradient down to `largest_norm` if it is longer; its direction stays.

    A gradient that overflowed has none. In its place simple recurrent matrices shrink a little, and all else stays as
    it is (Pascanu et al. 2013, code).
    """
    trusted = torch.nn.utils.clip_grad_norm_(model.parameters(), largest_norm) <= TRUSTED_NORM  # never of a NaN
    if not trusted.is_cuda and trusted:  # a GPU would have to be waited for to know
        return
    recurrent = {cell.recurrent for cell in model.modules() if isinstance(cell, RnnCell)}
    for parameter in model.parameters():
        if parameter.grad is not None:
            instead = SHRINKAGE * parameter.detach() if parameter in recurrent else torch.zeros_like(parameter)
            parameter.grad = torch.where(trusted, parameter.grad, instead)


def reduce_learning_rate(
    optimizer: torch.optim.Optimizer, optim: Optim, values: list[float], higher_is_better: bool
) -> None:
    """Multiply the learning rate by `reduce_factor` if the last value is worse than each of those before it.

    It is compared with `reduce_after` of them (Bai et al. 2018, code of the music and character tasks).
    """
    *before, last = values[-optim.reduce_after - 1 :]
    if optim.reduce_factor == 1.0 or len(before) < optim.reduce_after or len(values) <= optim.reduce_from:
        return
    if last < min(before) if higher_is_better else last > max(before):
        for group in optimizer.param_groups:
            group["lr"] *= optim.reduce_factor


def evaluate(model: torch.nn.Module, task: SupervisedTask, split: Split, device: torch.device) -> float:
    """The task's figure on a held-out set."""
    return _ratios(model, task, split, device, lambda outputs, examples: {"": task.score(outputs, examples)})[""]


def test(model: torch.nn.Module, task: SupervisedTask, device: torch.device) -> tuple[float, dict[str, float]]:
    """The task's figure on the test set, and its other figures."""
    figures = _ratios(
        model,
        task,
        "test",
        device,
        lambda outputs, examples: {"": task.score(outputs, examples), **task.figures(outputs, examples)},
    )
    return figures.pop(""), figures


@torch.no_grad()
def _ratios(
    model: torch.nn.Module,
    task: SupervisedTask,
    split: Split,
    device: torch.device,
    measure: Callable[[Tensor, Examples], dict[str, tuple[Tensor, Tensor]]],
) -> dict[str, float]:
    """Sums over a set divided by counts over it, by name. They stay on the device until the end."""
    model.eval()
    sums: dict[str, Tensor] = {}
    for examples in task.evaluation(split):
        examples = examples.to(device)
        for name, pair in measure(model(examples), examples).items():
            both = torch.stack([x.double().to(device) for x in pair])
            sums[name] = sums[name] + both if name in sums else both
    return {name: float(total / count) for name, (total, count) in sums.items()}


def device_of(case: Case) -> torch.device:
    """The device that `case` names."""
    return choose_device(None if case.device == "auto" else case.device)
