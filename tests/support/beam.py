"""Decoding by its definition: every path, every string, every score, one by one."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tests.support.ctc import collapse


def string_log_probs(log_probs: np.ndarray) -> dict[tuple[int, ...], float]:
    """Sum log P(y | x) of every token string y that (T, V) log-probabilities allow, over all V ** T paths."""
    sums: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        sums[collapse(path)] += math.exp(sum(float(log_probs[t, token]) for t, token in enumerate(path)))
    return {tokens: math.log(total) for tokens, total in sums.items() if total > 0}


def best_alignment(log_probs: np.ndarray, tokens: tuple[int, ...]) -> float:
    """Log-probability of the best path that collapses to `tokens`."""
    paths = itertools.product(range(log_probs.shape[1]), repeat=len(log_probs))
    return max(
        sum(float(log_probs[t, token]) for t, token in enumerate(path)) for path in paths if collapse(path) == tokens
    )


def hotword_score(units: Sequence[str], hotwords: Mapping[str, float]) -> float:
    """The boost of each hotword each time that its words stand in `units` in a row."""
    total = 0.0
    for phrase, boost in hotwords.items():
        words = phrase.split()
        total += boost * sum(list(units[i : i + len(words)]) == words for i in range(len(units)))
    return total


def exhaustive(
    log_probs: np.ndarray, score: Callable[[tuple[int, ...]], float | None]
) -> list[tuple[tuple[int, ...], float, float]]:
    """All strings with log P(y | x) and total, best first; `score`: what is added to a string, None if forbidden."""
    strings = []
    for tokens, acoustic in string_log_probs(log_probs).items():
        added = score(tokens)
        if added is not None:
            strings.append((tokens, acoustic, acoustic + added))
    return sorted(strings, key=lambda row: -row[2])
