"""Recurrences that are linear in the state, h' = a * h + b with a and b functions of the input alone.

    minGRU   z = sigmoid(p_z)    h' = (1 - z) h + z g(p_h)                        (Feng et al. 2024, arXiv 2410.01201)
    minLSTM  f, i = sigmoid(p_f, p_i)    h' = (f h + i g(p_h)) / (f + i)          (the same)
    SRU      f, r = sigmoid(p_f, p_r)    c' = f c + (1 - f) p_x    h' = r c' + (1 - r) p_s    (arXiv 1709.02755)

p = W x + b is given; g(x) = x + 0.5 for x >= 0, else sigmoid(x). SRU's highway takes p_s, a projection of the input,
as its paper does where the sizes differ; its activation g(c) is the identity, as in the paper's second version.

The minGRU paper computes its states by a scan in log space, for which g keeps h positive. On a CPU the plain loop is
faster and more exact, and it streams.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from asr.nn.cells import elementwise
from asr.nn.cells.base import Cell


class LinearCell(Cell):
    """A cell whose states are one linear recurrence; `coefficients` and `output` are the cell.

    Attributes:
        kind: its name among the element-wise recurrences.
    """

    kind: str

    def recur(self, projected: Sequence[Tensor], initial: Tensor) -> tuple[Tensor, Tensor]:
        if elementwise.on_cpu(initial):
            # What the layer gives counts as a state as well, which no frame reads, where it is not the state itself.
            states = (initial, initial) if self.kind == "sru" else (initial,)
            outputs, states = elementwise.recur(self.kind, initial.new_empty(len(initial), 0), states, projected)
            return outputs, states[-1]
        chains = [chain.to(initial.dtype) for chain in projected]
        gates = torch.stack(chains) if len(chains) > 1 else chains[0][None]  # (K, S, B, G * H)
        parts = gates.split(self.hidden_size, -1)
        keep, add = self.coefficients(*parts)
        states = elementwise.linear_recurrence(keep, add, initial)
        return self.output(states, *parts), states[:, -1]

    def coefficients(self, *parts: Tensor) -> tuple[Tensor, Tensor]:
        """The gates' projections -> a and b, each (K, S, B, H)."""
        raise NotImplementedError

    def output(self, states: Tensor, *parts: Tensor) -> Tensor:
        """What the layer gives for its states."""
        return states


class MinGruCell(LinearCell):
    """minGRU: projections p_z, p_h."""

    kind = "min_gru"
    num_gates = 2

    def coefficients(self, *parts: Tensor) -> tuple[Tensor, Tensor]:
        update, candidate = parts
        return torch.sigmoid(-update), torch.sigmoid(update) * _positive(candidate)


class MinLstmCell(LinearCell):
    """minLSTM: projections p_f, p_i, p_h."""

    kind = "min_lstm"
    num_gates = 3

    def coefficients(self, *parts: Tensor) -> tuple[Tensor, Tensor]:
        keep, take, candidate = parts
        share = torch.sigmoid(F.logsigmoid(keep) - F.logsigmoid(take))  # f / (f + i)
        return share, (1 - share) * _positive(candidate)


class SruCell(LinearCell):
    """SRU: projections p_x, p_f, p_r, p_s."""

    kind = "sru"
    num_gates = 4

    def coefficients(self, *parts: Tensor) -> tuple[Tensor, Tensor]:
        value, forget, _, _ = parts
        return torch.sigmoid(forget), torch.sigmoid(-forget) * value

    def output(self, states: Tensor, *parts: Tensor) -> Tensor:
        _, _, reset, skip = parts
        return torch.lerp(skip, states, torch.sigmoid(reset))


def _positive(x: Tensor) -> Tensor:
    """The minGRU paper's g, continuous and positive."""
    return torch.where(x >= 0, x + 0.5, torch.sigmoid(x))
