"""Depth with and without shortcuts (He et al. 2016, section 4.2): the training error of plain nets rises with depth.

Handwritten digits of 8 x 8 pixels (scikit-learn's) are classified by a stack whose layers can have residual
connections. What is judged is the error on the images that are trained on: a deeper net that does worse there is not
overfitted but harder to train. One frame holds the whole image, so that a recurrent stack is a feed-forward net of
f(W x + b) layers: its recurrent matrices see a state of 0 and get no gradient. Or each row of pixels is a frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from pydantic import Field
from torch import Tensor

from asr.config.fields import PositiveInt, Section
from asr.errors import ConfigError
from asr.sequence.settings import Data
from asr.sequence.task import Classification, Examples, Split

NUM_PIXELS, NUM_DIGITS, BRIGHTEST = 64, 10, 16.0


class Options(Section):
    """Options of the depth sweep."""

    num_frames: PositiveInt = Field(1, description="frames that the 64 pixels are cut into; 1 or 8, say")


def build(options: Options, data: Data) -> DepthSweep:
    """Make the task.

    Raises:
        ConfigError: the pixels do not make so many frames, or scikit-learn, which has the digits, is not installed.
    """
    if NUM_PIXELS % options.num_frames:
        raise ConfigError(f"options.num_frames: got {options.num_frames}, expected a divisor of {NUM_PIXELS}")
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ConfigError(
            "depth_sweep: its digits come with scikit-learn, which is not installed"
            " (pip install 'asr-toolkit[sequence]')"
        ) from None
    images, digits = load_digits(return_X_y=True)
    pixels = torch.from_numpy(images).float() / BRIGHTEST
    return DepthSweep(pixels.reshape(len(pixels), options.num_frames, -1), torch.from_numpy(digits))


class DepthSweep(Classification):
    """(B, n, 64 / n) pixels -> the digit, asked for at the last frame.

    Args:
        images: (N, n, 64 / n), from 0 to 1.
        digits: (N,) int64.
    """

    figure = "error rate, training images"
    higher_is_better = False
    output_size = NUM_DIGITS

    def __init__(self, images: Tensor, digits: Tensor) -> None:
        self.images, self.digits = images, digits
        self.input_size = images.shape[2]
        self.chance = 1 - float(digits.bincount().max()) / len(digits)

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Examples]:
        """Epochs of the shuffled images, the last batch of each left out if it is a smaller one."""
        while True:
            order = torch.randperm(len(self.digits), generator=generator)
            for rows in order.split(batch_size):
                if len(rows) == min(batch_size, len(order)):
                    yield self._examples(rows)

    def evaluation(self, split: Split) -> Iterable[Examples]:
        return [self._examples(torch.arange(len(self.digits)))]  # the training images in either case

    def score(self, outputs: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
        return (outputs.argmax(1) != examples.targets).sum(), torch.tensor(len(outputs))

    def _examples(self, rows: Tensor) -> Examples:
        return Examples(self.images[rows], torch.full((len(rows),), self.images.shape[1]), self.digits[rows])
