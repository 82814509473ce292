"""Long short-term memory in its usual form (Hochreiter and Schmidhuber 1997, forget gate of Gers et al. 2000).

    i, f, o = sigmoid(p_i + U_i h), ...    g = tanh(p_g + U_g h)    c' = f * c + i * g    h' = o * tanh(c')

p = W x + b is given, gates in cuDNN's order i, f, g, o. With diagonal recurrent matrices it is w * h for U h
(Subakan and Smaragdis 2017, arXiv 1704.05420, whose code adds no forget bias; ours begins with one there too).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asr.nn.cells import elementwise, full, full_on_cpu, full_on_gpu
from asr.nn.cells.base import Cell, cudnn_layer, recurrent_weight


class LstmCell(Cell):
    """LSTM units; a chain carries hidden and cell state.

    Args:
        hidden_size: units H.
        num_chains: K.
        forget_bias: what the forget gate's bias starts as; 1 lets gradients through from the first step
            (Gers et al. 2000; Jozefowicz et al. 2015).
        diagonal: each unit sees its own past only.
    """

    num_gates = 4
    num_states = 2

    def __init__(self, *, hidden_size: int, num_chains: int, forget_bias: float = 1.0, diagonal: bool = False) -> None:
        super().__init__(hidden_size=hidden_size, num_chains=num_chains)
        self.forget_bias, self.diagonal = forget_bias, diagonal
        self.recurrent = recurrent_weight(
            num_chains=num_chains, num_gates=4, hidden_size=hidden_size, diagonal=diagonal
        )

    def initial_bias(self) -> Tensor:
        bias = super().initial_bias()
        bias[self.hidden_size : 2 * self.hidden_size] = self.forget_bias
        return bias

    def recur(self, projected: Sequence[Tensor], initial: Tensor) -> tuple[Tensor, Tensor]:
        hidden, cell = initial.chunk(2, -1)
        if self.diagonal:
            outputs, states = elementwise.recur("lstm", self.recurrent, (hidden, cell), projected)
        else:
            outputs, states = full.recur("lstm", self.recurrent, (hidden, cell), projected, packed=self.packed)
        return outputs, torch.cat(states, -1)

    def fold(self) -> None:
        self.packed = None if self.diagonal else full_on_cpu.pack("lstm", self.recurrent)

    def on_cudnn(self) -> bool:
        return self.recurrent.is_cuda and not self.diagonal and not full_on_gpu.fits(self.recurrent)

    def cudnn(self, chain: Tensor, weight: Tensor, bias: Tensor, initial: Tensor, k: int) -> tuple[Tensor, Tensor]:
        hidden, cell = (state.contiguous() for state in initial.chunk(2, -1))
        weights = (weight, self.recurrent[k], bias, torch.zeros_like(bias))
        output, hidden, cell = cudnn_layer(torch._VF.lstm, chain, (hidden, cell), *weights)
        return output, torch.cat((hidden, cell), -1)
