"""What the model's output looks like while it is trained: blanks, entropy, gradient norm, loss by utterance length.

Everything is summed on the device, where no step waits for it, and read out now and then.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from asr.heads.ctc import BLANK
from asr.nn.distributed import sum_over_ranks
from asr.nn.masking import valid_mask
from asr.train.diagnosis import Window


class Measures:
    """Sums over the steps since they were last read, on this rank.

    Args:
        bounds: samples of audio between which the loss is kept apart, ascending: an utterance of as many samples as
            the first bound, or fewer, is in the first bucket.
        device: the training's.
    """

    def __init__(self, bounds: tuple[int, ...], device: torch.device) -> None:
        self._low = torch.tensor((-1, *bounds), device=device)[:, None]
        self._high = torch.tensor((*bounds, 2**62), device=device)[:, None]
        self._num_buckets = len(bounds) + 1
        # frames, blank frames, entropy, gradient norm, steps that had a finite one; losses and tokens by bucket
        self._sums = torch.zeros(5 + 2 * self._num_buckets, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(
        self,
        log_probs: Float[Tensor, "B S V"],
        lengths: Int[Tensor, "B"],
        losses: Float[Tensor, "B"],
        audio_lengths: Int[Tensor, "B"],
        target_lengths: Int[Tensor, "B"],
    ) -> None:
        """Enter a batch; what is not finite, padding, and items without target tokens are passed over."""
        log_probs = log_probs.detach()
        entropies = -log_probs.exp().mul_(log_probs).sum(-1)  # (B, S)
        frames = valid_mask(lengths, log_probs.shape[1]) & entropies.isfinite()
        blanks = frames & (log_probs[..., BLANK] >= log_probs.amax(-1))  # argmax takes longer on a CPU
        self._sums[:3] += torch.stack((frames.sum(), blanks.sum(), torch.where(frames, entropies, 0.0).sum()))

        counts = losses.isfinite() & (target_lengths > 0)
        rows = torch.stack((losses.detach(), target_lengths)).masked_fill(~counts, 0.0)  # (2, B)
        in_bucket = (audio_lengths > self._low) & (audio_lengths <= self._high)  # (buckets, B)
        self._sums[5:] += (rows[:, None] * in_bucket).sum(-1).flatten()  # no product of matrices: autocast would round

    @torch.no_grad()
    def add_gradient_norm(self, norm: Tensor) -> None:
        """Enter a step's, before clipping; the same on every rank."""
        finite = norm.isfinite()
        self._sums[3:5] += torch.stack((torch.where(finite, norm, 0.0), finite))

    def read(self, step: int) -> Window:
        """Sum over ranks, begin anew. Every rank has to call it at the same step; it waits for the device.

        Args:
            step: the last one that was added.
        """
        sums = sum_over_ranks(self._sums).tolist()
        self._sums.zero_()
        frames, blanks, entropy, norm, steps = sums[:5]
        losses, tokens = sums[5 : 5 + self._num_buckets], sums[5 + self._num_buckets :]
        return Window(
            step=step,
            blank_rate=_ratio(blanks, frames),
            spoken=_ratio(frames - blanks, sum(tokens)),
            entropy=_ratio(entropy, frames),
            loss=_ratio(sum(losses), sum(tokens)),
            gradient_norm=_ratio(norm, steps),
            loss_by_length=tuple(map(_ratio, losses, tokens)),
        )


def _ratio(value: float, count: float) -> float:
    return value / count if count else float("nan")
