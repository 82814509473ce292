"""Long short-term memory in its usual form (Hochreiter and Schmidhuber 1997, forget gate of Gers et al. 2000).

    i, f, o = sigmoid(p_i + U_i h), ...    g = tanh(p_g + U_g h)    c' = f * c + i * g    h' = o * tanh(c')

p = W x + b is given, gates in cuDNN's order i, f, g, o. With diagonal recurrent matrices it is w * h for U h
(Subakan and Smaragdis 2017, arXiv 1704.05420, whose code adds no forget bias).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asr.nn.cells import elementwise
from asr.nn.cells.base import Cell, FullLink, product_type, recurrent_weight, shifted, stacked


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
    hold = (-1, 1, 0, 0)

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
            return outputs, torch.cat(states, -1)
        result = _LstmLoop.apply(self.recurrent, hidden, cell, *projected)
        assert isinstance(result, tuple)
        outputs, last_cell = result
        return outputs, torch.cat((outputs[:, -1], last_cell), -1)

    def on_cudnn(self, device: torch.device) -> bool:
        return device.type == "cuda" and not self.diagonal

    def cudnn_weights(self, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, ...]:
        return weight, self.recurrent[k], bias, torch.zeros_like(bias)

    def cudnn(
        self, inputs: Tensor, initial: Tensor, weights: list[Tensor], bidirectional: bool
    ) -> tuple[Tensor, Tensor]:
        hidden, cell = (state.contiguous() for state in initial.chunk(2, -1))
        out, hidden, cell = torch._VF.lstm(  # nn.LSTM's functional form
            inputs, (hidden, cell), weights, True, 1, 0.0, torch.is_grad_enabled(), bidirectional, False
        )
        return out, torch.cat((hidden, cell), -1)


class _LstmLoop(torch.autograd.Function):
    """(recurrent, hidden (K, B, H), cell (K, B, H), projected_1 .. projected_K (S, B, 4H)) -> outputs, last cell."""

    @staticmethod
    def forward(ctx, recurrent: Tensor, hidden: Tensor, cell: Tensor, *projected: Tensor) -> tuple[Tensor, Tensor]:
        gates = stacked(projected, recurrent)
        size = hidden.shape[-1]
        outputs, cells, squashed = (gates.new_empty(*gates.shape[:3], size) for _ in range(3))  # squashed: tanh(c)
        link = FullLink(recurrent)
        first_hidden, first_cell = hidden, cell
        views = (gates, gates[..., : 2 * size], *gates.split(size, -1), outputs, cells, squashed)
        for frame in zip(*(view.unbind(1) for view in views), strict=True):
            gate, input_forget, take, keep, candidate, give, output, cell_now, squashed_now = frame
            link.add_product(gate, hidden)
            input_forget.sigmoid_()
            candidate.tanh_()
            give.sigmoid_()
            torch.mul(take, candidate, out=cell_now)
            cell = cell_now.addcmul_(keep, cell)
            torch.tanh(cell, out=squashed_now)
            hidden = torch.mul(give, squashed_now, out=output)
        ctx.save_for_backward(gates, outputs, cells, squashed, recurrent, first_hidden, first_cell)
        ctx.projected_type, ctx.product_type = projected[0].dtype, product_type(recurrent)
        return outputs, cell.clone()

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        gates, outputs, cells, squashed, recurrent, first_hidden, first_cell = ctx.saved_tensors
        d_outputs, d_cell = gradients[0].clone(), gradients[1].clone()
        size = outputs.shape[-1]
        link = FullLink(recurrent)
        take, keep, candidate, give = gates.split(size, -1)

        # d(pre-activation) = d(cell) * factor, for o d(hidden) * factor, for all frames at once.
        factors = torch.empty_like(gates)
        of_take, of_keep, of_candidate, of_give = factors.split(size, -1)
        torch.mul(candidate, take * (1 - take), out=of_take)
        torch.mul(shifted(first_cell, cells), keep * (1 - keep), out=of_keep)
        torch.mul(take, 1 - candidate.square(), out=of_candidate)
        torch.mul(squashed, give * (1 - give), out=of_give)
        through_output = give * (1 - squashed.square())  # d(cell) / d(hidden)

        d_gates = torch.empty_like(gates)
        by_cell = (*gates.shape[:3], 3, size)
        views = (
            d_outputs,
            through_output,
            factors[..., : 3 * size].view(by_cell),
            of_give,
            d_gates,
            d_gates[..., : 3 * size].view(by_cell),
            d_gates[..., 3 * size :],
            keep,
        )
        later = None
        for frame in zip(*(reversed(view.unbind(1)) for view in views), strict=True):
            d_hidden, through, factor, factor_give, d_gate, d_by_cell, d_give, keep_now = frame
            if later is not None:
                link.add_carry(d_hidden, later)
            d_cell.addcmul_(d_hidden, through)
            torch.mul(d_cell[..., None, :], factor, out=d_by_cell)
            torch.mul(d_hidden, factor_give, out=d_give)
            d_cell.mul_(keep_now)
            later = d_gate
        d_initial = torch.zeros_like(first_hidden)
        link.add_carry(d_initial, d_gates[:, 0])
        d_recurrent = link.gradient(d_gates, shifted(first_hidden, outputs), ctx.product_type)
        return d_recurrent, d_initial, d_cell, *d_gates.to(ctx.projected_type).unbind(0)
