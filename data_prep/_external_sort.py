"""Sorting more rows than fit in memory: blocks are sorted and written as runs, then merged range by range of keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr.compiled import compiled

Rows = NDArray[np.uint64]  # (n, words): whole numbers that make up the key, most significant first, then the payload

DIGIT_BITS = 11  # 2048 counters stay in the first-level cache


class ExternalSort:
    """Takes rows in any order and gives them back sorted by their keys.

    Args:
        path: runs are written beside it, as PATH.0, PATH.1, ...
        key_bits: for each word of the key, which of its bits count: (first, end) from the lowest.
        num_words: of a row, payload included.
        max_rows: rows held in memory; twice their space is taken.
        combine: puts neighbours with equal keys together; takes and gives sorted rows.
    """

    def __init__(
        self,
        path: Path,
        *,
        key_bits: Sequence[tuple[int, int]],
        num_words: int,
        max_rows: int,
        combine: Callable[[Rows], Rows] | None = None,
    ) -> None:
        self._path = path
        self._key_bits = np.array(key_bits, np.int64).reshape(-1, 2)
        self._combine = combine or (lambda rows: rows)
        self._buffer = np.empty((max_rows, num_words), np.uint64)
        self._count = 0
        self._runs: list[Path] = []

    def add(self, rows: Rows) -> None:
        """Take (n, num_words) more rows."""
        taken = 0
        while taken < len(rows):
            part = rows[taken : taken + len(self._buffer) - self._count]
            self._buffer[self._count : self._count + len(part)] = part
            self._count += len(part)
            taken += len(part)
            if self._count == len(self._buffer):
                self._write_run()

    def sorted_chunks(self) -> Iterator[Rows]:
        """Give all rows, sorted, in pieces of about `max_rows`, and remove the runs; can be called once."""
        if self._runs:
            self._write_run()
        max_rows, rows = len(self._buffer), self._buffer[: self._count]
        self._buffer = self._buffer[:0].copy()
        if not self._runs:
            yield self._sort(rows)
            return
        del rows  # the buffer's memory is free now
        firsts = [0] * len(self._runs)
        for bound in [*self._bounds(max_rows), None]:
            parts = []
            for i, run in enumerate(map(self._map, self._runs)):  # mapped anew: pages that were read are given back
                end = len(run) if bound is None else int(_lower_bound(run, bound))
                parts.append(np.array(run[firsts[i] : end]))
                firsts[i] = end
            chunk = np.concatenate(parts)
            if len(chunk):
                yield self._sort(chunk)
        for run in self._runs:
            run.unlink()

    def _map(self, run: Path) -> Rows:
        return np.memmap(run, np.uint64, "c").view(np.ndarray).reshape(-1, self._buffer.shape[1])

    def _write_run(self) -> None:
        if self._count:
            run = self._path.with_name(f"{self._path.name}.{len(self._runs)}")
            with run.open("wb") as handle:
                self._sort(self._buffer[: self._count]).tofile(handle)
            self._runs.append(run)
            self._count = 0

    def _sort(self, rows: Rows) -> Rows:
        return self._combine(radix_sort(rows, self._key_bits))

    def _bounds(self, max_rows: int) -> list[NDArray[np.uint64]]:
        """Keys that part all runs into ranges of at most `max_rows` rows together.

        Every run is sampled each `step` rows, so a range with q samples has at most (q + number of runs) * step rows.
        """
        num_key_words, num_runs = len(self._key_bits), len(self._runs)
        step = max(1, max_rows // (2 * num_runs))
        samples = np.concatenate([self._map(run)[::step, :num_key_words] for run in self._runs])
        quota = max(1, max_rows // step - num_runs)
        return list(radix_sort(samples, self._key_bits)[quota::quota])


def radix_sort(rows: Rows, key_bits: NDArray[np.int64]) -> Rows:
    """Sort rows by their keys, least significant digit first; what was in `rows` is lost."""
    return _radix_sort(rows, np.empty_like(rows), key_bits)


@compiled
def _radix_sort(rows, spare, key_bits):
    count, num_words = rows.shape
    size = 1 << DIGIT_BITS
    mask = np.uint64(size - 1)
    places = np.empty(size, np.int64)
    for word in range(len(key_bits) - 1, -1, -1):
        first, end = key_bits[word]
        for shift in range(first, end, DIGIT_BITS):
            by = np.uint64(shift)
            places[:] = 0
            for i in range(count):
                places[(rows[i, word] >> by) & mask] += 1
            if count == 0 or places[(rows[0, word] >> by) & mask] == count:
                continue  # all alike
            total = 0
            for digit in range(size):
                places[digit], total = total, total + places[digit]
            for i in range(count):
                digit = (rows[i, word] >> by) & mask
                to = places[digit]
                places[digit] = to + 1
                for k in range(num_words):
                    spare[to, k] = rows[i, k]
            rows, spare = spare, rows
    return rows


@compiled
def _lower_bound(rows, key):
    """How many rows have a smaller key."""
    low, high = 0, len(rows)
    while low < high:
        middle = (low + high) // 2
        smaller = False
        for k in range(len(key)):
            if rows[middle, k] != key[k]:
                smaller = rows[middle, k] < key[k]
                break
        if smaller:
            low = middle + 1
        else:
            high = middle
    return low
