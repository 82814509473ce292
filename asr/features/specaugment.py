"""SpecAugment (Park et al. 2019, arXiv 1904.08779): masks over time and frequency, drawn from the utterance's seed.

Every random number is a hash of (seed, counter), so a mask does not depend on the device, the rank, or what else is in
the batch. Masked features are 0, which is the mean after normalisation. No loop over utterances, nothing waits for the
device.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from asr.config.schema import Augment
from asr.nn.masking import valid_mask


def build(config: Augment) -> SpecAugment:
    """Make the masks that `config` describes."""
    return SpecAugment(
        frequency_masks=config.frequency_masks,
        frequency_mask_bins=config.frequency_mask_bins,
        time_masks=config.time_masks,
        time_mask_frames=config.time_mask_frames,
        time_mask_fraction=config.time_mask_fraction,
    )


class SpecAugment(nn.Module):
    """Time and frequency masks.

    Args:
        frequency_masks: how many; each is 0..frequency_mask_bins bins wide.
        time_masks: how many; each is 0..time_mask_frames frames wide, and at most `time_mask_fraction` of the
            utterance's own length.
    """

    def __init__(
        self,
        *,
        frequency_masks: int,
        frequency_mask_bins: int,
        time_masks: int,
        time_mask_frames: int,
        time_mask_fraction: float,
    ) -> None:
        super().__init__()
        self.frequency_masks, self.frequency_mask_bins = frequency_masks, frequency_mask_bins
        self.time_masks, self.time_mask_frames = time_masks, time_mask_frames
        self.time_mask_fraction = time_mask_fraction

    def forward(
        self, features: Float[Tensor, "B T F"], lengths: Int[Tensor, "B"], seeds: Int[Tensor, "B"]
    ) -> Float[Tensor, "B T F"]:
        """Mask `features`; `seeds` are int64, one for each utterance."""
        num_frames, num_bins = features.shape[1:]
        masked = torch.zeros(features.shape, dtype=torch.bool, device=features.device)
        counter = 0
        for _ in range(self.frequency_masks):
            widest = torch.full_like(lengths, min(self.frequency_mask_bins, num_bins))
            masked |= _spans(seeds, counter, widest, torch.full_like(lengths, num_bins), num_bins)[:, None, :]
            counter += 2
        for _ in range(self.time_masks):
            widest = (lengths * self.time_mask_fraction).long().clamp(max=self.time_mask_frames)
            masked |= _spans(seeds, counter, widest, lengths, num_frames)[:, :, None]
            counter += 2
        return features.masked_fill(masked, 0.0) if counter else features


def _spans(seeds: Tensor, counter: int, widest: Tensor, sizes: Tensor, length: int) -> Tensor:
    """One span for each seed, its width uniform in 0..widest, its place uniform within 0..sizes: (B, length) bool."""
    width = (uniform(seeds, counter) * (widest + 1)).long()
    start = (uniform(seeds, counter + 1) * (sizes - width + 1)).long()
    return valid_mask(start + width, length) & ~valid_mask(start, length)


def uniform(seeds: Int[Tensor, "B"], counter: int) -> Float[Tensor, "B"]:
    """Number `counter` of each seed's sequence, float32 in [0, 1).

    splitmix64's output function (Steele, Lea and Flood 2014) of seed + (counter + 1) * the golden ratio; int64
    arithmetic wraps, as it should.
    """
    z = seeds + _wrapped(0x9E3779B97F4A7C15 * (counter + 1))
    z = (z ^ _shift_right(z, 30)) * _wrapped(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _wrapped(0x94D049BB133111EB)
    z = z ^ _shift_right(z, 31)
    return _shift_right(z, 40).float() * 2.0**-24  # the 24 highest bits: exact in float32


def _wrapped(value: int) -> int:
    """A 64-bit pattern as a signed number."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Shift in zeros; torch's own shift copies the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
