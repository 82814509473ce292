"""Gated recurrent units in the two conventions that are in use; they are different models.

    r = sigmoid(p_r + U_r h)    z = sigmoid(p_z + U_z h)    h' = (1 - z) n + z h
    reset "after":   n = tanh(p_n + r * (U_n h + c))    cuDNN, torch, Deep Speech 2 (arXiv 1512.02595, equation 6)
    reset "before":  n = tanh(p_n + U_n (r * h))        Cho et al. 2014 (arXiv 1406.1078), Chung et al. 2014

p = W x + b is given, gates in the order r, z, n. Deep Speech 2 and Chung et al. write 1 - z for z. With diagonal
recurrent matrices it is w * h for U h, and the two conventions are one, but for c.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from asr.nn.cells import elementwise, full, full_on_cpu, full_on_gpu
from asr.nn.cells.base import Cell, cudnn_layer, recurrent_weight

Reset = Literal["after", "before"]


class GruCell(Cell):
    """Gated recurrent units.

    Args:
        hidden_size: units H.
        num_chains: K.
        reset: the reset gate multiplies U h ("after") or h ("before").
        diagonal: each unit sees its own past only; reset is then "before".
    """

    num_gates = 3

    def __init__(self, *, hidden_size: int, num_chains: int, reset: Reset = "after", diagonal: bool = False) -> None:
        super().__init__(hidden_size=hidden_size, num_chains=num_chains)
        self.diagonal = diagonal
        self.reset: Reset = "before" if diagonal else reset
        self.kind: full.Kind = "gru_after" if self.reset == "after" else "gru_before"
        self.recurrent = recurrent_weight(
            num_chains=num_chains, num_gates=3, hidden_size=hidden_size, diagonal=diagonal
        )
        if self.reset == "after":
            self.recurrent_bias = nn.Parameter(torch.zeros(num_chains * hidden_size))  # c above

    def recur(self, projected: Sequence[Tensor], initial: Tensor) -> tuple[Tensor, Tensor]:
        if self.diagonal:
            outputs, (hidden,) = elementwise.recur("gru", self.recurrent, (initial,), projected)
            return outputs, hidden
        bias = self.recurrent_bias.view(self.num_chains, -1) if self.reset == "after" else None
        outputs, (hidden,) = full.recur(self.kind, self.recurrent, (initial,), projected, bias=bias, packed=self.packed)
        return outputs, hidden

    def fold(self) -> None:
        self.packed = None if self.diagonal else full_on_cpu.pack(self.kind, self.recurrent)

    def on_cudnn(self) -> bool:
        return self.recurrent.is_cuda and self.reset == "after" and not full_on_gpu.fits(self.recurrent)

    def cudnn(self, chain: Tensor, weight: Tensor, bias: Tensor, initial: Tensor, k: int) -> tuple[Tensor, Tensor]:
        inner = self.recurrent_bias.view(self.num_chains, -1)[k]
        inner = torch.cat((inner.new_zeros(2 * self.hidden_size), inner))
        output, hidden = cudnn_layer(torch._VF.gru, chain, initial, weight, self.recurrent[k], bias, inner)
        return output, hidden
