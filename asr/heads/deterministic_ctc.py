"""CTC's loss and gradient without atomic additions: bit for bit the same in each run on a GPU, where torch's are not.

Graves et al. 2006, equations 5 to 16: alpha of the items and of their mirror images, which are the betas, go through
one recursion over frames in float64; the posteriors of a token's places are added up by a matrix product.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from asr.nn.masking import reverse_within_lengths, valid_mask

BLANK = 0


def deterministic_ctc_loss(
    log_probs: Float[Tensor, "B S V"],
    lengths: Int[Tensor, "B"],
    targets: Int[Tensor, "B U"],
    target_lengths: Int[Tensor, "B"],
) -> Float[Tensor, "B"]:
    """-log p(targets | audio) of each utterance; inf, with a gradient of NaN as torch's, where there is no alignment.

    The recursion asks for some ten small kernels a frame, so it costs more than torch's own; see docs/numerics.md.
    """
    loss = _Loss.apply(log_probs, lengths, targets, target_lengths)
    assert isinstance(loss, Tensor)
    return loss


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, log_probs: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
        places = 2 * targets.shape[1] + 1  # a blank before, between and after the tokens
        num_places = 2 * target_lengths + 1
        labels = targets.new_full((len(targets), places), BLANK)
        labels[:, 1::2] = targets
        emitted = log_probs.double().gather(2, labels[:, None].expand(-1, log_probs.shape[1], -1))  # (B, S, P)

        def mirror(values: Tensor) -> Tensor:
            backwards = reverse_within_lengths(values, lengths)
            return reverse_within_lengths(backwards.mT, num_places).mT

        both = torch.cat((emitted, mirror(emitted)))
        mirrored_labels = reverse_within_lengths(labels, num_places)
        forwards, backwards = _alphas(both, torch.cat((labels, mirrored_labels)), torch.cat((num_places,) * 2)).chunk(2)
        last = (lengths - 1).clamp(min=0)
        final = forwards[torch.arange(len(last)), last]  # (B, P)
        ends = final.gather(1, torch.stack((num_places - 1, (num_places - 2).clamp(min=0)), dim=1))
        ends[:, 1].masked_fill_(target_lengths == 0, -torch.inf)
        total = torch.where(lengths > 0, ends.logsumexp(1), torch.where(target_lengths == 0, 0.0, -torch.inf))
        posterior = (forwards + mirror(backwards) - emitted - total[:, None, None]).exp()
        real = valid_mask(lengths, posterior.shape[1])[:, :, None] & valid_mask(num_places, places)[:, None]
        posterior = posterior.masked_fill(~real, 0.0).to(log_probs.dtype)
        one_hot = torch.nn.functional.one_hot(labels, log_probs.shape[2]).to(log_probs.dtype)
        ctx.save_for_backward(posterior @ one_hot)  # (B, S, V)
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
    skips_cost = torch.where(skips, 0.0, -torch.inf).to(emitted.dtype)
    emitted = emitted.masked_fill(~valid_mask(num_places, places)[:, None], -torch.inf)
    # Two places more at the left, which nothing ever reaches, stand for what lies before the first.
    alpha = emitted.new_full((num_items, places + 2), -torch.inf)
    alpha[:, 2 : 2 + min(2, places)] = emitted[:, 0, :2]
    alphas = [alpha[:, 2:]]
    for frame in range(1, num_frames):
        ways = torch.stack((alpha[:, 2:], alpha[:, 1:-1], alpha[:, :-2] + skips_cost))
        alpha = torch.nn.functional.pad(ways.logsumexp(0) + emitted[:, frame], (2, 0), value=-torch.inf)
        alphas.append(alpha[:, 2:])
    return torch.stack(alphas, dim=1)
