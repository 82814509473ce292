"""Row convolution: how a forward-only net sees a little of the future (Deep Speech 2, section 3.7)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from asr.nn import products
from asr.nn.masking import zero_padding


class Lookahead(nn.Module):
    """r[t, i] = sum over j = 0..frames of W[i, j] h[t + j, i]: one filter for each unit, no bias.

    It starts as the identity. Random filters, torch's default for a convolution, mix each frame with its neighbours
    under random signs, which the net first has to undo: on AN4 that took most of a training.

    Args:
        size: units D.
        frames: future frames, tau; 0 is a plain scale.
    """

    def __init__(self, size: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.weight = nn.Parameter(torch.zeros(size, frames + 1))
        with torch.no_grad():
            self.weight[:, 0] = 1.0

    def forward(self, hidden: Float[Tensor, "B S D"], lengths: Int[Tensor, "B"]) -> Float[Tensor, "B S D"]:
        """Mix each frame with its future; frames beyond an item's length count as 0."""
        hidden = zero_padding(hidden, lengths)
        return zero_padding(self._convolve(F.pad(hidden, (0, 0, 0, self.frames))), lengths)

    def initial_state(self, batch_size: int, like: Tensor) -> Float[Tensor, "B 0 D"]:
        """No frame has been seen: (B, 0, D). The state is the frames whose future is not here yet."""
        return like.new_zeros(batch_size, 0, self.weight.shape[0])

    def step(self, chunk: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take frames, give those whose whole future has come. (B, n, D), (B, w, D) -> (B, m, D), (B, w', D)."""
        waiting = torch.cat((state, chunk), dim=1)
        ready = max(0, waiting.shape[1] - self.frames)
        out = self._convolve(waiting) if ready else waiting[:, :0]
        return out, waiting[:, ready:]

    def flush(self, state: Tensor) -> Tensor:
        """Give the frames still waiting, their missing future counted as 0, as `forward` does."""
        return self._convolve(F.pad(state, (0, 0, 0, self.frames))) if state.shape[1] else state

    def _convolve(self, hidden: Tensor) -> Tensor:
        if not torch.is_grad_enabled() and products.ours(hidden):
            return products.convolve_each_unit(hidden, self.weight)
        return F.conv1d(hidden.mT, self.weight[:, None], groups=self.weight.shape[0]).mT
