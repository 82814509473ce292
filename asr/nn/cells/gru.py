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
from jaxtyping import Float
from torch import Tensor, nn

from asr.nn.cells import elementwise
from asr.nn.cells.base import Cell, FullLink, gpu_loops, product_type, recurrent_weight, shifted, stacked

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
    hold = (0, 1, 0)

    def __init__(self, *, hidden_size: int, num_chains: int, reset: Reset = "after", diagonal: bool = False) -> None:
        super().__init__(hidden_size=hidden_size, num_chains=num_chains)
        self.diagonal = diagonal
        self.reset: Reset = "before" if diagonal else reset
        self.recurrent = recurrent_weight(
            num_chains=num_chains, num_gates=3, hidden_size=hidden_size, diagonal=diagonal
        )
        if self.reset == "after":
            self.recurrent_bias = nn.Parameter(torch.zeros(num_chains * hidden_size))  # c above

    def recur(self, projected: Sequence[Tensor], initial: Tensor) -> tuple[Tensor, Tensor]:
        if self.diagonal:
            outputs, (hidden,) = elementwise.recur("gru", self.recurrent, (initial,), projected)
            return outputs, hidden
        if self.reset == "after":
            bias = self.recurrent_bias.view(self.num_chains, -1)
            outputs = _ResetAfterLoop.apply(self.recurrent, bias, initial, *projected)
        else:
            outputs = _ResetBeforeLoop.apply(self.recurrent, initial, *projected)
        assert isinstance(outputs, Tensor)
        return outputs, outputs[:, -1]

    def on_cudnn(self, device: torch.device) -> bool:
        return device.type == "cuda" and self.reset == "after"

    def cudnn_weights(self, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, ...]:
        inner = self.recurrent_bias.view(self.num_chains, -1)[k]
        return weight, self.recurrent[k], bias, torch.cat((inner.new_zeros(2 * self.hidden_size), inner))

    def cudnn(
        self, inputs: Tensor, initial: Tensor, weights: list[Tensor], bidirectional: bool
    ) -> tuple[Tensor, Tensor]:
        # nn.GRU's functional form
        return torch._VF.gru(inputs, initial, weights, True, 1, 0.0, torch.is_grad_enabled(), bidirectional, False)


class _ResetAfterLoop(torch.autograd.Function):
    """Reset after U h: (recurrent, recurrent_bias, initial, projected_1 .. projected_K) -> outputs.

    torch's own CPU GRU records some twenty autograd nodes for each frame and accumulates the recurrent weight's
    gradient frame by frame. Here a frame costs six operations forward and four backward, on preallocated memory, and
    the weight's gradient is one product over all frames at the end.

    Shapes: recurrent (K, 3H, H); recurrent_bias (K, H) is c above; initial (K, B, H); each projected (S, B, 3H) with
    gates r, z, n, in any floating type; outputs (K, S, B, H) in the type of `recurrent`.
    """

    @staticmethod
    def forward(
        ctx,
        recurrent: Float[Tensor, "K G H"],
        recurrent_bias: Float[Tensor, "K H"],
        initial: Float[Tensor, "K B H"],
        *projected: Float[Tensor, "S B G"],
    ) -> Float[Tensor, "K S B H"]:
        num_chains, _, size = recurrent.shape
        num_frames, batch, _ = projected[0].shape
        gates = stacked(projected, recurrent)
        inner = recurrent.new_empty(num_chains, num_frames, batch, size)  # U_n h + c
        outputs = recurrent.new_empty(num_chains, num_frames, batch, size)
        transposed = recurrent.mT  # (K, H, 3H)
        bias = torch.cat((recurrent_bias.new_zeros(num_chains, 2 * size), recurrent_bias), 1)[:, None].contiguous()
        product = recurrent.new_empty(num_chains, batch, 3 * size)
        from_reset_update, from_candidate = product.split((2 * size, size), dim=-1)
        frames = (t.unbind(1) for t in (*gates.split((size, size, size), dim=-1), gates[..., : 2 * size]))
        hidden = initial
        for reset, update, candidate, reset_update, inner_frame, output in zip(
            *frames, inner.unbind(1), outputs.unbind(1), strict=True
        ):
            torch.baddbmm(bias, hidden, transposed, out=product)
            reset_update.add_(from_reset_update).sigmoid_()
            inner_frame.copy_(from_candidate)
            candidate.addcmul_(reset, from_candidate).tanh_()
            torch.lerp(candidate, hidden, update, out=output)
            hidden = output
        ctx.save_for_backward(gates, inner, outputs, recurrent, initial)
        ctx.projected_type, ctx.product_type = projected[0].dtype, product_type(recurrent)
        return outputs

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        gates, inner, outputs, recurrent, initial = ctx.saved_tensors
        d_outputs = gradients[0]
        num_chains, num_frames, batch, size = outputs.shape
        reset, update, candidate = gates.split(size, dim=-1)  # each (K, S, B, H)
        previous = shifted(initial, outputs)

        # d(pre-activation) = d(hidden) * factor, for all frames at once; only d(hidden) needs the loop.
        factors = torch.empty_like(gates)  # of U_r h, U_z h, U_n h + c
        of_reset, of_update, of_inner = factors.split(size, dim=-1)
        d_candidate = torch.addcmul(torch.ones_like(outputs), candidate, candidate, value=-1).mul_(1 - update)
        torch.mul(d_candidate, reset, out=of_inner)
        torch.mul(of_inner, inner * (1 - reset), out=of_reset)
        torch.mul((previous - candidate).mul_(update), 1 - update, out=of_update)

        d_hidden = torch.empty_like(outputs)
        d_gates = torch.empty_like(gates)
        carry = torch.zeros_like(initial)
        by_gate = (num_chains, num_frames, batch, 3, size)
        frames = zip(
            *(
                t.unbind(1)
                for t in (d_outputs, d_hidden, factors.view(by_gate), d_gates.view(by_gate), d_gates, update)
            ),
            strict=True,
        )
        for d_output, d_now, factor, d_by_gate, d_gate, keep in reversed(list(frames)):
            torch.add(d_output, carry, out=d_now)
            torch.mul(d_now[..., None, :], factor, out=d_by_gate)
            torch.mul(d_now, keep, out=carry)
            carry.baddbmm_(d_gate, recurrent)

        d_recurrent = FullLink.gradient(d_gates, previous, ctx.product_type)
        d_bias = d_gates[..., 2 * size :].sum((1, 2))
        torch.mul(d_hidden, d_candidate, out=d_gates[..., 2 * size :])  # p_n is outside the reset gate
        return d_recurrent, d_bias, carry, *d_gates.to(ctx.projected_type).unbind(0)


class _ResetBeforeLoop(torch.autograd.Function):
    """Reset before U h: (recurrent, initial, projected_1 .. projected_K) -> outputs, shapes as above."""

    @staticmethod
    def forward(ctx, recurrent: Tensor, initial: Tensor, *projected: Tensor) -> Tensor:
        gates = stacked(projected, recurrent)
        outputs, kept = (gates.new_empty(*gates.shape[:3], initial.shape[-1]) for _ in range(2))  # kept: r * h
        loops = gpu_loops(gates)
        run = _run_reset_before if loops is None else loops.gru_forward
        run(gates, kept, outputs, initial, recurrent)
        ctx.save_for_backward(gates, kept, outputs, recurrent, initial)
        ctx.projected_type, ctx.product_type = projected[0].dtype, product_type(recurrent)
        return outputs

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        gates, kept, outputs, recurrent, initial = ctx.saved_tensors
        loops = gpu_loops(gates)
        run_back = _run_reset_before_back if loops is None else loops.gru_backward
        d_gates, d_initial = run_back(gradients[0], gates, outputs, initial, recurrent)
        into_gates, into_candidate = d_gates.split((2 * initial.shape[-1], initial.shape[-1]), -1)
        d_recurrent = torch.cat(
            (
                FullLink.gradient(into_gates, shifted(initial, outputs), ctx.product_type),
                FullLink.gradient(into_candidate, kept, ctx.product_type),
            ),
            1,
        )
        return d_recurrent, d_initial, *d_gates.to(ctx.projected_type).unbind(0)


def _run_reset_before(gates: Tensor, kept: Tensor, outputs: Tensor, initial: Tensor, recurrent: Tensor) -> None:
    """In place: gates (K, S, B, 3H), in: projections, out: r, z, n; kept, outputs (K, S, B, H) are written."""
    size = initial.shape[-1]
    gates_link, candidate_link = map(FullLink, recurrent.split((2 * size, size), 1))
    views = (gates[..., : 2 * size], *gates.split(size, -1), kept, outputs)
    hidden = initial
    for reset_update, reset, update, candidate, kept_now, output in zip(
        *(view.unbind(1) for view in views), strict=True
    ):
        gates_link.add_product(reset_update, hidden)
        reset_update.sigmoid_()
        torch.mul(reset, hidden, out=kept_now)
        candidate_link.add_product(candidate, kept_now)
        candidate.tanh_()
        hidden = torch.lerp(candidate, hidden, update, out=output)


def _run_reset_before_back(
    d_outputs: Tensor, gates: Tensor, outputs: Tensor, initial: Tensor, recurrent: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the pre-activations (K, S, B, 3H) and of the initial state (K, B, H)."""
    size = initial.shape[-1]
    previous = shifted(initial, outputs)
    reset, update, candidate = gates.split(size, dim=-1)
    gates_link, candidate_link = map(FullLink, recurrent.split((2 * size, size), 1))

    # d(pre-activation) = factor * d(hidden), for r factor * d(r * h), for all frames at once.
    of_reset = previous * reset * (1 - reset)
    of_update_candidate = torch.empty_like(gates[..., size:])
    of_update, of_candidate = of_update_candidate.split(size, -1)
    torch.mul((previous - candidate).mul_(update), 1 - update, out=of_update)
    torch.mul(1 - candidate.square(), 1 - update, out=of_candidate)

    d_hidden = d_outputs.clone()
    d_gates = torch.empty_like(gates)
    d_kept = torch.empty_like(initial)
    carry = torch.zeros_like(initial)
    by_gate = (*gates.shape[:3], 2, size)
    views = (
        d_hidden,
        of_reset,
        of_update_candidate.view(by_gate),
        d_gates[..., :size],
        d_gates[..., size:].view(by_gate),
        d_gates[..., : 2 * size],
        d_gates[..., 2 * size :],
        reset,
        update,
    )
    for frame in zip(*(reversed(view.unbind(1)) for view in views), strict=True):
        d_now, factor_reset, factors, d_reset, d_by_gate, d_reset_update, d_candidate, reset_now, update_now = frame
        d_now.add_(carry)
        torch.mul(d_now[..., None, :], factors, out=d_by_gate)
        candidate_link.add_carry(d_kept.zero_(), d_candidate)
        torch.mul(d_kept, factor_reset, out=d_reset)
        torch.mul(d_now, update_now, out=carry).addcmul_(d_kept, reset_now)
        gates_link.add_carry(carry, d_reset_update)
    return d_gates, carry
