"""Which utterances make up each global batch: a pure function of lengths, seed and epoch.

It depends on no rank, worker or run-time event, so a resumed run, or one on another number of ranks, sees the same
global batches. Every epoch has the same number of batches.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from asr.data.mixture import Mixture
from asr.errors import ConfigError


class BatchPlan:
    """Cuts utterances into batches of similar length that cost at most `batch_samples`, padding included.

    The sizes of the batches are found once, from the sorted lengths. Each epoch orders the utterances by length times
    a random factor in [1 - jitter, 1 + jitter] and cuts that order by the same sizes, so batches change from epoch to
    epoch while padding stays small and the cost bound holds.

    Args:
        num_samples: (n,) samples of each utterance.
        seed: of the run.
        batch_samples: items times longest item of a batch, at the most.
        max_items: items of a batch, at the most.
        jitter: see above; 0 gives the same batches in every epoch, in another order.
        sorta_grad: epoch 0 goes by increasing length (Deep Speech 2, section 3.3).
        shuffle: False keeps the order by length in every epoch (evaluation).
        mixture: which utterances an epoch has, and how often; None: each one once.

    Attributes:
        longest: samples of the longest item that each of `sorted_batches` has in any epoch.

    Raises:
        ConfigError: an utterance alone is longer than `batch_samples`, or there is none.
    """

    def __init__(
        self,
        num_samples: NDArray[np.int64],
        *,
        seed: int,
        batch_samples: int,
        max_items: int,
        jitter: float = 0.0,
        sorta_grad: bool = False,
        shuffle: bool = True,
        mixture: Mixture | None = None,
    ) -> None:
        if not len(num_samples):
            raise ConfigError("data: no utterance is left to make batches of; the ledger says why each was dropped")
        self.num_samples = np.asarray(num_samples, dtype=np.int64)
        self.seed = seed
        self.jitter = jitter if shuffle else 0.0
        self.sorta_grad = sorta_grad
        self.shuffle = shuffle
        self.mixture = mixture
        # A mixture draws other utterances in each epoch; sorted, they are nowhere longer than the longest it may draw.
        longest = self.num_samples if mixture is None else mixture.longest
        worst = (1 + self.jitter) / (1 - self.jitter)  # how much longer than its place in the order an item can be
        ascending = np.sort(longest)
        self.bounds = _bounds(ascending, int(batch_samples / worst), max_items)
        self.longest: NDArray[np.int64] = ascending[np.array(self.bounds[1:]) - 1]

    @property
    def repeats(self) -> bool:
        """Whether an epoch may have an utterance more than once."""
        return self.mixture is not None and self.mixture.repeats

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.bounds) - 1

    def batches(self, epoch: int) -> list[NDArray[np.int64]]:
        """The global batches of an epoch, each an array of utterance indices, shortest first."""
        if not self.shuffle or (self.sorta_grad and epoch == 0):
            return self.sorted_batches(epoch)
        drawn = self._drawn(epoch)
        num_samples = self.num_samples[drawn]
        random = np.random.default_rng((self.seed, epoch))
        factors = random.uniform(1 - self.jitter, 1 + self.jitter, len(drawn))
        ties = random.random(len(drawn))  # equal lengths are common; they must not keep their order
        batches = self._cut(drawn[np.lexsort((ties, num_samples * factors))])
        return [batches[i] for i in random.permutation(len(batches))]

    def sorted_batches(self, epoch: int) -> list[NDArray[np.int64]]:
        """The same number of batches, cut at the same places from the epoch's utterances by their lengths."""
        drawn = self._drawn(epoch)
        return self._cut(drawn[np.argsort(self.num_samples[drawn], kind="stable")])

    def padding_share(self, epoch: int = 1) -> float:
        """Share of an epoch's samples that is padding, in [0, 1)."""
        batches = self.batches(epoch)
        padded = sum(len(batch) * int(self.num_samples[batch].max()) for batch in batches)
        return 1.0 - sum(int(self.num_samples[batch].sum()) for batch in batches) / padded

    def _drawn(self, epoch: int) -> NDArray[np.int64]:
        return np.arange(len(self.num_samples)) if self.mixture is None else self.mixture.draw(epoch)

    def _cut(self, order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return [order[a:b] for a, b in zip(self.bounds[:-1], self.bounds[1:], strict=True)]


def _bounds(ascending: NDArray[np.int64], batch_samples: int, max_items: int) -> list[int]:
    """Cut positions so that (items * longest) of each piece stays within `batch_samples`."""
    if ascending[-1] > batch_samples:
        raise ConfigError(
            f"data.batch_seconds: the longest utterance has {ascending[-1]} samples, a batch holds {batch_samples} "
            "(data.batch_seconds times the rate, less data.length_jitter); raise data.batch_seconds or lower "
            "data.max_seconds"
        )
    bounds = [0]
    while (start := bounds[-1]) < len(ascending):
        low, high = 1, min(max_items, len(ascending) - start)  # one item always fits
        while low < high:
            middle = (low + high + 1) // 2
            if middle * ascending[start + middle - 1] <= batch_samples:
                low = middle
            else:
                high = middle - 1
        bounds.append(start + low)
    return bounds
