"""Simple recurrence: h' = f(p + U h), f = tanh, ReLU or Deep Speech 2's clipped ReLU (arXiv 1512.02595, section 3.1).

p = W x + b is given. With a diagonal recurrent matrix it is w * h for U h.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from asr.errors import ConfigError
from asr.nn.cells import elementwise, full, full_on_cpu, full_on_gpu
from asr.nn.cells.base import Cell, cudnn_layer, recurrent_weight

Activation = Literal["tanh", "relu", "clipped_relu"]


class RnnCell(Cell):
    """Simple recurrent units.

    Args:
        hidden_size: units H.
        num_chains: K.
        activation: f.
        diagonal: each unit sees its own past only; f is tanh.

    Attributes:
        vanishing_weight: of the regulariser Omega (`asr.nn.vanishing`), whose gradient joins the recurrent matrix's.
    """

    num_gates = 1
    vanishing_weight: float = 0.0

    def __init__(
        self, *, hidden_size: int, num_chains: int, activation: Activation = "tanh", diagonal: bool = False
    ) -> None:
        super().__init__(hidden_size=hidden_size, num_chains=num_chains)
        assert activation == "tanh" or not diagonal, f"a diagonal cell's activation is tanh, got {activation}"
        self.activation: Activation = activation
        self.diagonal = diagonal
        self.recurrent = recurrent_weight(
            num_chains=num_chains, num_gates=1, hidden_size=hidden_size, diagonal=diagonal
        )

    def recur(self, projected: Sequence[Tensor], initial: Tensor) -> tuple[Tensor, Tensor]:
        if self.diagonal:
            outputs, (hidden,) = elementwise.recur("rnn", self.recurrent, (initial,), projected)
            return outputs, hidden
        outputs, (hidden,) = full.recur(
            self.activation, self.recurrent, (initial,), projected, omega=self.vanishing_weight, packed=self.packed
        )
        return outputs, hidden

    def fold(self) -> None:
        self.packed = None if self.diagonal else full_on_cpu.pack(self.activation, self.recurrent)

    def on_cudnn(self) -> bool:
        fits = not self.diagonal and self.activation != "clipped_relu" and not self.vanishing_weight
        return fits and self.recurrent.is_cuda and not full_on_gpu.fits(self.recurrent)

    def cudnn(self, chain: Tensor, weight: Tensor, bias: Tensor, initial: Tensor, k: int) -> tuple[Tensor, Tensor]:
        function = torch._VF.rnn_tanh if self.activation == "tanh" else torch._VF.rnn_relu
        output, hidden = cudnn_layer(function, chain, initial, weight, self.recurrent[k], bias, torch.zeros_like(bias))
        return output, hidden


def set_vanishing_regularizer(model: nn.Module, weight: float) -> None:
    """Add `weight` times Omega to what is minimised, for every simple recurrent cell with a full matrix in `model`.

    Raises:
        ConfigError: there is none.
    """
    cells = [module for module in model.modules() if isinstance(module, RnnCell) and not module.diagonal]
    if weight and not cells:
        raise ConfigError(
            f"optim.vanishing_regularizer={weight:g}: expected a stack of simple recurrent cells with full matrices "
            "(stack=rnn, or stack=dilated stack.cell=rnn); the regulariser is not defined for gates"
        )
    for cell in cells:
        cell.vanishing_weight = weight
