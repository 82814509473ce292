"""Simple recurrence: h' = f(p + U h), f = tanh, ReLU or Deep Speech 2's clipped ReLU (arXiv 1512.02595, section 3.1).

p = W x + b is given. With a diagonal recurrent matrix it is w * h for U h.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from asr.errors import ConfigError
from asr.nn.cells import elementwise
from asr.nn.cells.base import Cell, FullLink, gpu_loops, product_type, recurrent_weight, shifted, stacked
from asr.nn.vanishing import omega_gradient

Activation = Literal["tanh", "relu", "clipped_relu"]
CLIP = 20.0  # of the clipped ReLU, Deep Speech 2, section 3.1


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
        outputs = _RnnLoop.apply(self.activation, self.vanishing_weight, self.recurrent, initial, *projected)
        assert isinstance(outputs, Tensor)
        return outputs, outputs[:, -1]

    def on_cudnn(self, device: torch.device) -> bool:
        fits = not self.diagonal and self.activation != "clipped_relu" and not self.vanishing_weight
        return fits and device.type == "cuda"

    def cudnn_weights(self, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, ...]:
        return weight, self.recurrent[k], bias, torch.zeros_like(bias)

    def cudnn(
        self, inputs: Tensor, initial: Tensor, weights: list[Tensor], bidirectional: bool
    ) -> tuple[Tensor, Tensor]:
        function = torch._VF.rnn_tanh if self.activation == "tanh" else torch._VF.rnn_relu  # nn.RNN's functional form
        return function(inputs, initial, weights, True, 1, 0.0, torch.is_grad_enabled(), bidirectional, False)


class _RnnLoop(torch.autograd.Function):
    """The time loop.

    (activation, Omega's weight, recurrent (K, H, H), initial (K, B, H), projected_1 .. projected_K (S, B, H))
    -> outputs (K, S, B, H).
    """

    @staticmethod
    def forward(
        ctx, activation: Activation, vanishing_weight: float, recurrent: Tensor, initial: Tensor, *projected: Tensor
    ) -> Tensor:
        outputs = stacked(projected, recurrent)
        loops = gpu_loops(outputs) if activation == "clipped_relu" else None
        if loops is not None:
            loops.rnn_forward(outputs, initial, recurrent, CLIP)
        else:
            _run(activation, outputs, initial, FullLink(recurrent))
        ctx.save_for_backward(outputs, recurrent, initial)
        ctx.activation, ctx.projected_type, ctx.product_type = activation, projected[0].dtype, product_type(recurrent)
        ctx.vanishing_weight = vanishing_weight
        return outputs

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        outputs, recurrent, initial = ctx.saved_tensors
        link = FullLink(recurrent)
        d_gates = gradients[0].clone(memory_format=torch.contiguous_format)  # d(hidden), then d(pre-activation)
        loops = gpu_loops(outputs) if ctx.activation == "clipped_relu" else None
        if loops is not None:
            loops.rnn_backward(d_gates, outputs, recurrent, CLIP)
        else:
            _run_back(ctx.activation, d_gates, outputs, link)
        d_initial = torch.zeros_like(initial)
        link.add_carry(d_initial, d_gates[:, 0])
        d_recurrent = link.gradient(d_gates, shifted(initial, outputs), ctx.product_type)
        if ctx.vanishing_weight:
            carried = torch.matmul(d_gates, recurrent[:, None])
            d_hidden = gradients[0] + nn.functional.pad(carried[:, 1:], (0, 0, 0, 0, 0, 1))
            d_recurrent = d_recurrent + ctx.vanishing_weight * omega_gradient(carried, d_hidden, d_gates, recurrent)[1]
        return None, None, d_recurrent, d_initial, *d_gates.to(ctx.projected_type).unbind(0)


def _run(activation: Activation, outputs: Tensor, initial: Tensor, link: FullLink) -> None:
    """In place: outputs (K, S, B, H) holds the projections."""
    hidden = initial
    for output in outputs.unbind(1):
        link.add_product(output, hidden)
        if activation == "tanh":
            output.tanh_()
        else:
            output.clamp_(0.0, CLIP if activation == "clipped_relu" else None)
        hidden = output


def _run_back(activation: Activation, d_gates: Tensor, outputs: Tensor, link: FullLink) -> None:
    """In place: d_gates (K, S, B, H) holds d(hidden)."""
    if activation == "tanh":
        slope = 1 - outputs.square()
    else:
        slope = (outputs > 0).to(outputs.dtype)
        if activation == "clipped_relu":
            slope.mul_(outputs < CLIP)
    later = None
    for d_gate, factor in zip(reversed(d_gates.unbind(1)), reversed(slope.unbind(1)), strict=True):
        if later is not None:
            link.add_carry(d_gate, later)
        d_gate.mul_(factor)
        later = d_gate


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
