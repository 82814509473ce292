"""How far a word's confidence is the probability that the word is right, and how it is made so.

Scaling is Platt's (1999), in the form that Guo et al. 2017 (arXiv 1706.04599) call temperature scaling, with a bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from asr.types import Word

NUM_BINS = 15  # as in Guo et al.
SMALLEST = 1e-4  # confidences are kept to four digits
MIN_SLOPE = 1e-3  # a higher confidence never becomes a lower one
NEWTON_STEPS = 50


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was learnt on a development set about the words of one model.

    slope, bias: the probability that a word is right is sigmoid(slope * logit(confidence) + bias); 1 / slope is the
        temperature.
    start_delay_seconds, end_delay_seconds: how late its words begin and end, median; taken off.
    """

    slope: float = 1.0
    bias: float = 0.0
    start_delay_seconds: float = 0.0
    end_delay_seconds: float = 0.0

    def probability(self, confidence: ArrayLike) -> NDArray[np.float64]:
        """The probability that words of such confidences are right."""
        return 1 / (1 + np.exp(-self.slope * _logit(confidence) - self.bias))

    def __call__(self, words: Sequence[Word]) -> tuple[Word, ...]:
        """Words with confidences and times made right; no word begins before 0 or ends before it begins."""
        result = []
        for word in words:
            confidence = float(self.probability(word.confidence))
            start = max(0.0, word.start_seconds - self.start_delay_seconds)
            end = max(start, word.end_seconds - self.end_delay_seconds)
            result.append(Word(word.text, round(start, 3), round(end, 3), round(confidence, 4)))
        return tuple(result)


@dataclass(frozen=True, slots=True)
class Reliability:
    """Words of a set by their confidence, in bins of equal width; empty bins are left out.

    confidence: mean of each bin. accuracy: share of its words that are right. count: of its words.
    """

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    count: tuple[int, ...]

    @property
    def error(self) -> float:
        """Expected calibration error (Guo et al. 2017, equation 3); NaN without words."""
        if not self.count:
            return math.nan
        gaps = np.abs(np.subtract(self.confidence, self.accuracy))
        return float(np.average(gaps, weights=self.count))


def reliability(confidences: Sequence[float], correct: Sequence[bool]) -> Reliability:
    """Sort words into bins.

    Args:
        confidences: of each word, 0 to 1.
        correct: whether it is right.
    """
    values, right = np.asarray(confidences, np.float64), np.asarray(correct, np.float64)
    bins = np.minimum((values * NUM_BINS).astype(int), NUM_BINS - 1)
    count = np.bincount(bins, minlength=NUM_BINS)
    there = count > 0
    sums = [np.bincount(bins, weights=weights, minlength=NUM_BINS)[there] for weights in (values, right)]
    means = [tuple((total / count[there]).tolist()) for total in sums]
    return Reliability(means[0], means[1], tuple(count[there].tolist()))


def fit_confidence(confidences: Sequence[float], correct: Sequence[bool]) -> tuple[float, float]:
    """The slope and bias under which the words' being right or wrong is most probable; (1, 0) without words.

    Targets are Platt's: with n right and m wrong words (n + 1) / (n + 2) and 1 / (m + 2), so that a set without a wrong
    word does not make certainty of every confidence.
    """
    right = np.asarray(correct, bool)
    if not len(right):
        return 1.0, 0.0
    num_right, num_wrong = int(right.sum()), int((~right).sum())
    target = np.where(right, (num_right + 1) / (num_right + 2), 1 / (num_wrong + 2))
    inputs = np.stack((_logit(confidences), np.ones(len(right))), 1)
    weights = np.array([1.0, 0.0])
    loss = _cross_entropy(inputs @ weights, target)
    for _ in range(NEWTON_STEPS):
        predicted = 1 / (1 + np.exp(-inputs @ weights))
        gradient = inputs.T @ (predicted - target)
        hessian = (inputs * (predicted * (1 - predicted))[:, None]).T @ inputs + 1e-9 * np.eye(2)
        step, scale = np.linalg.solve(hessian, gradient), 1.0
        while scale > 1e-6 and _cross_entropy(inputs @ (weights - scale * step), target) > loss:
            scale /= 2
        weights = weights - scale * step
        before, loss = loss, _cross_entropy(inputs @ weights, target)
        if before - loss < 1e-12 * max(1.0, before):
            break
    if weights[0] < MIN_SLOPE:  # confidences say nothing, or the opposite: the share of right words, for all
        return MIN_SLOPE, float(np.log(target.mean() / (1 - target.mean())))
    return float(weights[0]), float(weights[1])


def _cross_entropy(logits: NDArray[np.float64], target: NDArray[np.float64]) -> float:
    return float((np.logaddexp(0, logits) - target * logits).sum())


def _logit(confidence: ArrayLike) -> NDArray[np.float64]:
    clipped = np.clip(np.asarray(confidence, np.float64), SMALLEST, 1 - SMALLEST)
    return np.log(clipped / (1 - clipped))
