"""The GRU's time loop on the CPU: both directions in one loop, gradients by hand.

torch's own CPU GRU records some twenty autograd nodes for each frame and accumulates the recurrent weight's gradient
frame by frame. Here a frame costs six operations forward and four backward, on preallocated memory, and the weight's
gradient is one product over all frames at the end.

Convention: cuDNN's, r after U h (docs/numerics.md, systems of Cho et al. 2014 differ):

    r = sigmoid(p_r + U_r h)    z = sigmoid(p_z + U_z h)    n = tanh(p_n + r * (U_n h + c))    h' = (1 - z) n + z h

where p = W x + b is given. Deep Speech 2 (equation 6) writes 1 - z for z.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


class GruRecurrence(torch.autograd.Function):
    """(recurrent, recurrent_bias, initial, projected_1 .. projected_K) -> outputs, for K independent chains.

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
        gates = recurrent.new_empty(num_chains, num_frames, batch, 3 * size)  # first the projections, then the gates
        for chain, values in zip(gates, projected, strict=True):
            chain.copy_(values)
        inner = recurrent.new_empty(num_chains, num_frames, batch, size)  # U_n h + c
        outputs = recurrent.new_empty(num_chains, num_frames, batch, size)
        transposed = recurrent.mT.contiguous()  # (K, H, 3H)
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
        ctx.projected_type = projected[0].dtype
        return outputs

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        gates, inner, outputs, recurrent, initial = ctx.saved_tensors
        d_outputs = gradients[0]
        num_chains, num_frames, batch, size = outputs.shape
        reset, update, candidate = gates.split(size, dim=-1)  # each (K, S, B, H)
        previous = torch.cat((initial[:, None], outputs[:, :-1]), dim=1)

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

        flat = d_gates.view(num_chains, num_frames * batch, 3 * size).to(ctx.projected_type)
        d_recurrent = flat.mT @ previous.view(num_chains, num_frames * batch, size).to(ctx.projected_type)
        d_bias = d_gates[..., 2 * size :].sum((1, 2))
        torch.mul(d_hidden, d_candidate, out=d_gates[..., 2 * size :])  # p_n is outside the reset gate
        return d_recurrent.to(recurrent.dtype), d_bias, carry, *d_gates.to(ctx.projected_type).unbind(0)


def gru_recurrence(
    projected: Sequence[Tensor], recurrent: Tensor, recurrent_bias: Tensor, initial: Tensor
) -> Float[Tensor, "K S B H"]:
    """Run the loop; see `GruRecurrence` for shapes."""
    outputs = GruRecurrence.apply(recurrent, recurrent_bias, initial, *projected)
    assert isinstance(outputs, Tensor)
    return outputs
