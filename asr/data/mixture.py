"""Several corpora in one training set: how often an epoch draws the utterances of each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

GOLDEN = (math.sqrt(5) - 1) / 2


class Mixture:
    """Draws an epoch's utterances. A corpus's share of the epoch's audio is proportional to weight * audio^(1 / T).

    T is the temperature: at 1 each corpus has the share that its size and weight give it, and the higher T, the more
    alike are the shares (as mBERT and XLM-R sample languages, Conneau et al. 2020, section 3.1, with alpha = 1 / T).
    An epoch has as much audio, but for rounding, as the corpora together, so some utterances are not in it and others
    are there several times.

    Of a corpus of n utterances an epoch has k. Sorted by length these are cut into k cells of equal width n / k, and
    each cell gives one utterance, so that an epoch's lengths are always those of the corpus, and its batches always as
    many. Which one is a walk by golden-ratio steps, from a start drawn for each cell: within n epochs each utterance
    comes exactly k times, and evenly.

    Args:
        num_samples: (n,) of each utterance of all corpora.
        parts: (n,) which corpus it is of, an index of `weights`.
        weights: one for each corpus, positive.
        temperature: positive.
        seed: of the run.

    Attributes:
        longest: (K,) samples that the utterance drawn for each of the epoch's K places has at the most.
        shares: of each corpus in an epoch's audio, before rounding.
        rates: how often an epoch has an utterance of each corpus, on average.
        repeats: whether an epoch may have an utterance more than once.
    """

    def __init__(
        self,
        num_samples: NDArray[np.int64],
        parts: NDArray[np.int64],
        *,
        weights: Sequence[float],
        temperature: float,
        seed: int,
    ) -> None:
        self.seed = seed
        audio = np.bincount(parts, weights=num_samples, minlength=len(weights))
        wanted = np.asarray(weights) * audio ** (1 / temperature)
        wanted[audio == 0] = 0.0  # all of it was left out
        self.shares: NDArray[np.float64] = wanted / wanted.sum()
        self.rates: NDArray[np.float64] = np.zeros(len(weights))
        self._members: list[tuple[NDArray[np.int64], int]] = []  # of each corpus: its utterances by length, and k
        longest = []
        for part in np.flatnonzero(audio):
            members = np.flatnonzero(parts == part)
            members = members[np.argsort(num_samples[members], kind="stable")]
            n = len(members)
            k = max(1, round(n * self.shares[part] * audio.sum() / audio[part]))
            self._members.append((members, k))
            self.rates[part] = k / n
            last = ((np.arange(k, dtype=np.int64) + 1) * n - 1) // k
            longest.append(num_samples[members[last]])
        self.longest: NDArray[np.int64] = np.concatenate(longest)
        self.repeats: bool = any(len(members) % k != 0 for members, k in self._members)

    def draw(self, epoch: int) -> NDArray[np.int64]:
        """(K,) utterances of an epoch; the same ones whenever it is asked for."""
        drawn = []
        for number, (members, k) in enumerate(self._members):
            n = len(members)
            start = np.random.default_rng((self.seed, number)).integers(0, n, k)
            walked = (start + epoch * _step(n)) % n
            # Place j's cell is [j n / k, (j + 1) n / k) in units of utterances; as j * n + walked counts 0 ... n k - 1
            # over all places and walks, an utterance is k of them.
            drawn.append(members[(np.arange(k, dtype=np.int64) * n + walked) // k])
        return np.concatenate(drawn)


def _step(n: int) -> int:
    """About n times the golden ratio and without a common factor with n, so that n steps visit every place once."""
    step = max(1, round(n * GOLDEN))
    while math.gcd(step, n) != 1:
        step += 1
    return step
