"""The one mask function of the toolkit: True marks a real frame, False padding."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def valid_mask(lengths: Int[Tensor, "B"], max_length: int) -> Bool[Tensor, "B S"]:
    """Mark the real frames of a padded batch.

    Args:
        lengths: real frames of each item, int64.
        max_length: frames of the padded batch, S.
    """
    return torch.arange(max_length, device=lengths.device) < lengths[:, None]


class Padding:
    """The padding frames of a batch, ready to be set to 0.

    On a CPU only those frames are touched, which are few; on a GPU, where listing them would wait for the device, all
    frames pass through a mask.

    Args:
        lengths: (B,) real frames of each item.
        max_length: frames of the padded batch, S.
    """

    def __init__(self, lengths: Int[Tensor, "B"], max_length: int) -> None:
        self.mask = ~valid_mask(lengths, max_length)  # (B, S), True = padding
        self.rows = None if lengths.is_cuda else self.mask.view(-1).nonzero()[:, 0]

    def zero_(self, hidden: Tensor) -> Tensor:
        """Set the padding frames of (B, S, ...), or of the same flattened, to exactly 0, in place."""
        if self.rows is None:
            frames = hidden.view(*self.mask.shape, -1)
            frames.masked_fill_(self.mask[..., None], 0.0)
        elif len(self.rows):
            hidden.view(self.mask.numel(), -1).index_fill_(0, self.rows, 0.0)
        return hidden

    def zero(self, hidden: Tensor) -> Tensor:
        """`hidden` (B, S, ...) with its padding frames exactly 0, whatever they held."""
        if self.rows is None:
            # In one pass, which masked_fill is not; the result is in memory as the mask is.
            mask = self.mask.T.contiguous().T if hidden.transpose(0, 1).is_contiguous() else self.mask
            return torch.where(mask.view(*mask.shape, *[1] * (hidden.dim() - 2)), 0.0, hidden)
        return hidden.flatten(0, 1).index_fill(0, self.rows, 0.0).view(hidden.shape) if len(self.rows) else hidden


def zero_padding(hidden: Tensor, lengths: Int[Tensor, "B"]) -> Tensor:
    """`hidden` (B, S, ...) with every padding frame exactly 0, whatever it held."""
    return Padding(lengths, hidden.shape[1]).zero(hidden)


def reverse_within_lengths(hidden: Tensor, lengths: Int[Tensor, "B"]) -> Tensor:
    """Reverse time inside each item's own length; padding stays where it is. Its own inverse.

    Args:
        hidden: (B, S, ...).
        lengths: real frames of each item.
    """
    time = torch.arange(hidden.shape[1], device=hidden.device)
    mirrored = lengths[:, None] - 1 - time
    reverse = _Reverse.apply(hidden, torch.where(mirrored >= 0, mirrored, time))
    assert isinstance(reverse, Tensor)
    return reverse


class _Reverse(torch.autograd.Function):
    """hidden[b, index[b, s]] for an index that is its own inverse, and so the gradient's as well.

    torch would add up gradients wherever the index leads, for which a GPU has to sort it.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        num_items, num_frames = index.shape
        item = torch.arange(num_items, device=index.device)[:, None]
        # By one index over what is contiguous, which a GPU reads many bytes at a time; and time stays first in memory
        # if it was, for the products and sums that follow.
        if hidden.transpose(0, 1).is_contiguous():
            return hidden.transpose(0, 1).flatten(0, 1)[(index * num_items + item).T.contiguous()].transpose(0, 1)
        return hidden.flatten(0, 1)[item * num_frames + index]

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        (index,) = ctx.saved_tensors
        return _Reverse.apply(gradients[0], index), None
