"""Exponential moving average of weights and running statistics; what is validated, kept as best and shipped."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WeightAverage:
    """Average of a model's floating-point tensors.

    The decay grows as (1 + step) / (10 + step) up to `decay`, so that the first, random weights are soon forgotten.

    Attributes:
        tensors: name -> average, where the model was or `to` moved them; with the step they are the whole state.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in _floating(model).items()}

    def to(self, device: torch.device) -> None:
        """Move the average to the model's device."""
        self.tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the model, after optimiser step `step`."""
        current = _floating(model)
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [self.tensors[name] for name in current]
        torch._foreach_lerp_(averages, list(current.values()), 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the model's tensors with the average; a second call undoes it."""
        for name, tensor in _floating(model).items():
            kept = tensor.clone()
            tensor.copy_(self.tensors[name])
            self.tensors[name].copy_(kept)


def _floating(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach() for name, t in model.state_dict(keep_vars=True).items() if t.is_floating_point()}
