"""CTC's loss and gradient for GPUs: bit for bit the same in each run, and without waiting for the device.

torch's adds up in an order that changes, and takes lengths from the CPU and back, for which it waits twice.

Graves et al. 2006, equations 5 to 16: alpha of the items and of their mirror images, which are the betas, go through
one recursion over frames in float64; the posteriors of a token's places are added up by a matrix product.
"""

from __future__ import annotations

from types import ModuleType

import torch
from jaxtyping import Float, Int
from torch import Tensor

from asr.nn import gpu_kernels
from asr.nn.masking import reverse_within_lengths, valid_mask

BLANK = 0


def deterministic_ctc_loss(
    log_probs: Float[Tensor, "B S V"],
    lengths: Int[Tensor, "B"],
    targets: Int[Tensor, "B U"],
    target_lengths: Int[Tensor, "B"],
) -> Float[Tensor, "B"]:
    """-log p(targets | audio) of each utterance; inf, with a gradient of NaN as torch's, where there is no alignment.

    Without Triton the recursion asks for some ten small kernels a frame and takes many times as long.
    """
    loss = _Loss.apply(log_probs, lengths, targets, target_lengths)
    assert isinstance(loss, Tensor)
    return loss


def one_launch(like: Tensor) -> ModuleType | None:
    """The recursion as one launch on a GPU; None where torch's operations have to do, frame by frame."""
    if not gpu_kernels.are_run(like):
        return None
    from asr.heads import _triton_ctc

    return _triton_ctc


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, log_probs: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
        places = 2 * targets.shape[1] + 1  # a blank before, between and after the tokens
        num_places = 2 * target_lengths + 1
        labels = targets.new_full((len(targets), places), BLANK)
        labels[:, 1::2] = targets
        emitted = log_probs.gather(2, labels[:, None].expand(-1, log_probs.shape[1], -1)).double()  # (B, S, P)

        def mirror(values: Tensor) -> Tensor:
            backwards = reverse_within_lengths(values, lengths)
            return reverse_within_lengths(backwards.mT, num_places).mT

        both = torch.cat((emitted, mirror(emitted)))
        mirrored_labels = reverse_within_lengths(labels, num_places)
        forwards, backwards = _alphas(both, torch.cat((labels, mirrored_labels)), torch.cat((num_places,) * 2)).chunk(2)
        last = (lengths - 1).clamp(min=0)
        final = forwards.gather(1, last[:, None, None].expand(-1, 1, places))[:, 0]  # (B, P)
        ends = final.gather(1, torch.stack((num_places - 1, (num_places - 2).clamp(min=0)), dim=1))
        ends[:, 1].masked_fill_(target_lengths == 0, -torch.inf)
        total = torch.where(lengths > 0, ends.logsumexp(1), torch.where(target_lengths == 0, 0.0, -torch.inf))
        posterior = (forwards + mirror(backwards) - emitted - total[:, None, None]).exp()
        real = valid_mask(lengths, posterior.shape[1])[:, :, None] & valid_mask(num_places, places)[:, None]
        posterior = posterior.masked_fill(~real, 0.0).to(log_probs.dtype)
        tokens = torch.arange(log_probs.shape[2], device=labels.device)
        one_hot = (labels[..., None] == tokens).to(log_probs.dtype)  # (B, P, V)
        # In two parts, so that products in TF32, which keep 11 bits of each factor, lose nothing that counts.
        coarse = posterior.bfloat16().to(posterior.dtype)
        ctx.save_for_backward((coarse @ one_hot).add_((posterior - coarse) @ one_hot))  # (B, S, V)
        return -total.to(log_probs.dtype)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        (posterior,) = ctx.saved_tensors
        return -posterior * gradients[0][:, None, None], None, None, None


def _alphas(emitted: Tensor, labels: Tensor, num_places: Tensor) -> Tensor:
    """Log of equation 5's alpha for each frame and place: (B, S, P), (B, P), (B,) -> (B, S, P)."""
    num_items, num_frames, places = emitted.shape
    skips = torch.zeros_like(labels, dtype=torch.bool)  # places that follow the one before last: another token's
    skips[:, 2:] = (labels[:, 2:] != BLANK) & (labels[:, 2:] != labels[:, :-2])
    emitted = emitted.masked_fill(~valid_mask(num_places, places)[:, None], -torch.inf)
    triton_ctc = one_launch(emitted)
    if triton_ctc is not None:
        return triton_ctc.alphas(emitted, skips)
    skips_cost = torch.where(skips, 0.0, -torch.inf).to(emitted.dtype)
    # Two places more at the left, which nothing ever reaches, stand for what lies before the first.
    alpha = emitted.new_full((num_items, places + 2), -torch.inf)
    alpha[:, 2 : 2 + min(2, places)] = emitted[:, 0, :2]
    alphas = [alpha[:, 2:]]
    for frame in range(1, num_frames):
        ways = torch.stack((alpha[:, 2:], alpha[:, 1:-1], alpha[:, :-2] + skips_cost))
        alpha = torch.nn.functional.pad(ways.logsumexp(0) + emitted[:, frame], (2, 0), value=-torch.inf)
        alphas.append(alpha[:, 2:])
    return torch.stack(alphas, dim=1)
