"""Images pixel by pixel (Le, Jaitly and Hinton 2015): MNIST's 784 pixels, or the 64 of scikit-learn's digits.

In reading order, or in one permutation that is drawn once, which puts the image's structure at all distances.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from asr.config.fields import NonNegativeInt, Section
from asr.errors import ConfigError, DataError
from asr.sequence.files import find
from asr.sequence.settings import Data
from asr.sequence.task import Classification, Examples, Split

URL = "https://s3.amazonaws.com/img-datasets/mnist.npz"
SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
NUM_CLASSES, EVALUATION_ITEMS = 10, 250
MNIST_MEAN, MNIST_DEVIATION = 0.1307, 0.3081  # of the training set's pixels in [0, 1]
NUM_VALIDATION = 10_000  # of MNIST's 60,000 training images, the last ones

Images = tuple[NDArray[np.float32], NDArray[np.int64]]


class Options(Section):
    """Options of pixel images."""

    images: Literal["mnist", "digits"] = "mnist"
    permuted: bool = False
    permutation_seed: NonNegativeInt = Field(92916, description="of numpy's RandomState, as in the dilated RNN's code")
    train_share: float = Field(1.0, gt=0.0, le=1.0, description="of the training images, the first ones")


def build(options: Options, data: Data) -> PixelImages:
    """Make the task; reads the images.

    Raises:
        ConfigError, DataError: they are not at hand, or damaged.
    """
    return PixelImages(read_digits() if options.images == "digits" else read_mnist(data), options)


class PixelImages(Classification):
    """(B, P, 1) pixels -> the class, after the last one."""

    chance = 1 / NUM_CLASSES
    input_size, output_size = 1, NUM_CLASSES

    def __init__(self, images: dict[str, Images], options: Options) -> None:
        num_pixels = images["train"][0].shape[1]
        order = np.arange(num_pixels)
        if options.permuted:
            order = np.random.RandomState(options.permutation_seed).permutation(num_pixels)
        self.sets = {
            name: (torch.from_numpy(pixels[:, order]), torch.from_numpy(labels))
            for name, (pixels, labels) in images.items()
        }
        kept = max(1, round(options.train_share * len(images["train"][0])))
        self.sets["train"] = (self.sets["train"][0][:kept], self.sets["train"][1][:kept])

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Examples]:
        pixels, labels = self.sets["train"]
        while True:
            for chosen in torch.randperm(len(labels), generator=generator).split(batch_size):
                yield _examples(pixels[chosen], labels[chosen])

    def evaluation(self, split: Split) -> Iterable[Examples]:
        pixels, labels = self.sets[split]
        for start in range(0, len(labels), EVALUATION_ITEMS):
            piece = slice(start, start + EVALUATION_ITEMS)
            yield _examples(pixels[piece], labels[piece])


def read_digits() -> dict[str, Images]:
    """scikit-learn's 1,797 images of 8 x 8: 1,200 to train on, 297 for validation, 300 to test on.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ConfigError("options.images=digits needs scikit-learn: pip install 'asr-toolkit[sequence]'") from None
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(labels))
    pixels = (pixels[order] / 16.0 - 0.305) / 0.376  # mean and deviation of the set
    return _cut(pixels, labels[order], {"train": (0, 1200), "validation": (1200, 1497), "test": (1497, 1797)})


def read_mnist(data: Data) -> dict[str, Images]:
    """MNIST from `mnist.npz`, in the layout of Keras or of 50,000 / 10,000 / 10,000 images.

    Raises:
        ConfigError, DataError: it is not at hand, or not MNIST.
    """
    path = find(data, "mnist.npz", url=URL, sha256=SHA256)
    try:
        with np.load(path) as file:
            sets = {name: (file[f"x_{name}"], file[f"y_{name}"]) for name in ("train", "test")}
            if "x_valid" in file:
                sets["validation"] = (file["x_valid"], file["y_valid"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: got {error!r}, expected x_train, y_train, x_test, y_test") from None
    if "validation" not in sets:
        pixels, labels = sets["train"]
        sets["validation"] = (pixels[-NUM_VALIDATION:], labels[-NUM_VALIDATION:])
        sets["train"] = (pixels[:-NUM_VALIDATION], labels[:-NUM_VALIDATION])
    result: dict[str, Images] = {}
    for name, (pixels, labels) in sets.items():
        flat = pixels.reshape(len(pixels), -1)
        if flat.shape[1] != 784 or flat.dtype != np.uint8 or len(flat) != len(labels):
            raise DataError(
                f"{path}: x_{name}: got {pixels.dtype} of {pixels.shape}, expected uint8 of 784 pixels each"
            )
        scaled = (flat.astype(np.float32) / 255 - MNIST_MEAN) / MNIST_DEVIATION
        result[name] = (scaled.astype(np.float32), labels.astype(np.int64))
    return result


def _cut(
    pixels: NDArray[np.floating], labels: NDArray[np.integer], places: dict[str, tuple[int, int]]
) -> dict[str, Images]:
    return {name: (pixels[a:b].astype(np.float32), labels[a:b].astype(np.int64)) for name, (a, b) in places.items()}


def _examples(pixels: Tensor, labels: Tensor) -> Examples:
    return Examples(pixels[..., None], torch.full((len(labels),), pixels.shape[1]), labels)
