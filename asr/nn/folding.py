"""Fold what is constant once training is over into the weights, so that no step of a stream computes it anew."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Foldable(Protocol):
    """A module whose norm can be folded into its weights; see `fold_norms`."""

    def fold_norm(self) -> None:
        """Replace the norm and the weights that it acts on by weights that give the same outputs."""


def fold_norms(model: nn.Module) -> None:
    """Fold the weight norms and the batch norms' running statistics of every module that can.

    The outputs in evaluation are the same. Afterwards the model can neither be trained nor saved: its
    parameters are no longer those of its configuration.
    """
    for module in model.modules():
        if isinstance(module, Foldable):
            module.fold_norm()
    model.eval().requires_grad_(False)
