"""Normalisation of features: by the training data's statistics, which streams, or by the utterance's own."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from asr.nn.masking import zero_padding

# Of a feature over the training data, in natural log units; speech has 2 to 4. A band that no recording fills has none,
# and is not to be blown up 100 000 times when a later recording fills it.
MIN_STD = 0.1
EPSILON = 1e-5  # added to an utterance's own standard deviation, as NeMo and sherpa-onnx do


class GlobalNormalization(nn.Module):
    """(x - mean) / std with one mean and standard deviation for each feature, fixed before training."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))

    def forward(self, features: Float[Tensor, "B T F"], lengths: Int[Tensor, "B"]) -> Float[Tensor, "B T F"]:
        """Normalise; padding comes out as 0."""
        return zero_padding((features - self.mean.to(features.dtype)) / self.std.to(features.dtype), lengths)

    @torch.no_grad()
    def fit(self, statistics: FeatureStatistics) -> None:
        """Take the mean and standard deviation of what `statistics` has seen."""
        mean, std = statistics.moments()
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=MIN_STD))


class UtteranceNormalization(nn.Module):
    """(x - mean) / std with the utterance's own statistics for each feature; needs the whole utterance."""

    def forward(self, features: Float[Tensor, "B T F"], lengths: Int[Tensor, "B"]) -> Float[Tensor, "B T F"]:
        """Normalise; padding comes out as 0."""
        counts = lengths.clamp(min=1)[:, None, None].to(features.dtype)
        # Counted from the first frame a constant feature is exactly 0; rounding would be blown up by 1 / EPSILON.
        shifted = zero_padding(features - features[:, :1], lengths)
        centred = zero_padding(shifted - shifted.sum(1, keepdim=True) / counts, lengths)
        std = (centred.square().sum(1, keepdim=True) / counts).sqrt()
        return centred / (std + EPSILON)


class NoNormalization(nn.Module):
    """Leaves features as they are, with padding set to 0."""

    def forward(self, features: Float[Tensor, "B T F"], lengths: Int[Tensor, "B"]) -> Float[Tensor, "B T F"]:
        """Set padding to 0."""
        return zero_padding(features, lengths)


class FeatureStatistics:
    """Mean and standard deviation of each feature over any number of frames, summed in float64."""

    def __init__(self, num_features: int) -> None:
        self.count = 0
        self.sums = torch.zeros(2, num_features, dtype=torch.float64)  # of x and of x^2

    def add(self, features: Float[Tensor, "T F"]) -> None:
        """Count the frames of one utterance."""
        exact = features.cpu().double()
        self.count += len(exact)
        self.sums += torch.stack((exact.sum(0), exact.square().sum(0)))

    def moments(self) -> tuple[Float[Tensor, "F"], Float[Tensor, "F"]]:
        """Mean and standard deviation, float64; 0 and 1 if no frame was seen."""
        if not self.count:
            return torch.zeros_like(self.sums[0]), torch.ones_like(self.sums[0])
        mean, square = self.sums / self.count
        return mean, (square - mean.square()).clamp(min=0.0).sqrt()
