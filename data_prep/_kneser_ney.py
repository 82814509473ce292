"""N-gram counts to a language model with interpolated modified Kneser-Ney smoothing, as KenLM's lmplz computes it.

Chen and Goodman (1999) give the equations, Heafield et al. (2013) the way by sorted tables on disk that this follows.
With a(w_1^n) the adjusted count of an n-gram, which is how often it occurs if n is the model's order or w_1 is <s>,
and else how many different words precede it:

    D_k     = k - (k + 1) Y t_{k+1} / t_k,   Y = t_1 / (t_1 + 2 t_2),   k = 1, 2, 3       (equation 26 of 1999)
    u(w_n | w_1^{n-1}) = (a(w_1^n) - D_{min(a, 3)}) / sum_x a(w_1^{n-1} x)
    b(w_1^{n-1})       = (sum_k D_k N_k(w_1^{n-1}) + pruned adjusted counts) / sum_x a(w_1^{n-1} x)
    p(w_n | w_1^{n-1}) = u(w_n | w_1^{n-1}) + b(w_1^{n-1}) p(w_n | w_2^{n-1})

where t_k n-grams of order n have adjusted count k, N_k those that begin with the context and are not pruned. Unigrams
are interpolated with the uniform distribution over all words and <unk> but <s>. Pruned is what occurs (really, not
adjusted) at most as often as its order's threshold, or holds a word that is left out.

An n-gram is a row of whole numbers with its words from the last to the first, so that sorted rows stand in the order
of their suffixes: n-grams with a common suffix are neighbours, and so are a table's contexts and the table below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr.compiled import compiled
from asr.errors import DataError
from data_prep._external_sort import ExternalSort, Rows
from data_prep._ngram_text import BEGIN, END, SPECIAL, NumberedText

PRUNED = np.uint64(1 << 63)  # set in an adjusted count
CHUNK_ROWS = 1 << 18  # of a table read or written at a time


@dataclass(frozen=True, slots=True)
class Packing:
    """How words go into 64-bit numbers: `bits` each, `per` in a number, the last word of the n-gram highest."""

    bits: int
    per: int

    @classmethod
    def of(cls, num_words: int) -> Packing:
        """For a vocabulary of that size."""
        bits = max(2, (num_words - 1).bit_length())
        return cls(bits, 64 // bits)

    def size(self, order: int) -> int:
        """Numbers that hold `order` words."""
        return -(-order // self.per)

    def key_bits(self, order: int) -> list[tuple[int, int]]:
        """Which bits of each number are taken: (first, end)."""
        used = [min(self.per, order - at * self.per) for at in range(self.size(order))]
        return [((self.per - count) * self.bits, self.per * self.bits) for count in used]

    def prefix(self, length: int) -> tuple[int, np.uint64]:
        """How to compare rows by their first `length` words: numbers to look at, and the mask of the last of these."""
        size = self.size(length)
        first = self.key_bits(length)[-1][0] if size else 0
        return size, np.uint64((1 << 64) - (1 << first))


@dataclass(frozen=True, slots=True)
class Order:
    """The n-grams of one order: how many there are, how many are kept, and the discounts D1, D2, D3+."""

    num_counted: int
    num_kept: int
    discounts: tuple[float, float, float]
    fallback: bool


class KneserNey:
    """Estimates a model; then `ngrams` gives its n-grams, order by order.

    Args:
        text: what to count.
        folder: for tables, some 100 bytes for each different n-gram.
        order: of the model.
        thresholds: for each order, n-grams that occur at most so often are pruned.
        left_out: (number of words,) bool: n-grams with such a word are pruned. SPECIAL are never.
        fallback: discounts for an order whose own cannot be computed.
        max_bytes: memory for sorting.

    Attributes:
        orders: what `estimate` found, by order.
    """

    def __init__(
        self,
        text: NumberedText,
        folder: Path,
        *,
        order: int,
        thresholds: Sequence[int],
        left_out: NDArray[np.bool_],
        fallback: tuple[float, float, float] | None,
        max_bytes: int,
    ) -> None:
        self.orders: list[Order] = []
        self._packing = Packing.of(len(text.words))
        self._text, self._folder, self._order = text, folder, order
        self._thresholds, self._left_out, self._fallback = thresholds, left_out, fallback
        # Two sorters live at once, each with its rows and as much again to sort them.
        self._max_rows = max(2, max_bytes // (4 * 8 * (self._packing.size(order) + 2)))

    def count(self, progress: Callable[[int], None]) -> ExternalSort:
        """Count the n-grams of the model's order; calls `progress` with the words, sentence ends included."""
        pack, order = self._packing, self._order
        counts = self._sorter("occurrences", order, pack.key_bits(order), num_payload=1, combine=_sum_equal)
        num_ids = self._text.num_words + self._text.num_sentences
        for first in range(0, num_ids, CHUNK_ROWS):
            ids = np.memmap(self._text.ids, np.int32, "c").view(np.ndarray)  # anew: pages that were read are given back
            rows = np.zeros((min(CHUNK_ROWS, num_ids - first), pack.size(order) + 1), np.uint64)
            _pack(ids, first, rows, order, pack.bits, pack.per)
            counts.add(rows)
            progress(len(rows))
        return counts

    def estimate(self, counts: ExternalSort, progress: Callable[[int], None]) -> None:
        """Adjust what `count` gave, discount, normalise; calls `progress` with 1 for each order.

        Raises:
            DataError: discounts cannot be computed, and there is no fallback.
        """
        # In the highest order the adjusted count, which stands behind the occurrences, is the same.
        chunks = (np.column_stack((rows, rows[:, -1])) for rows in counts.sorted_chunks())
        for order in range(self._order, 1, -1):
            self.orders.insert(0, self._estimate(order, chunks))
            chunks = self._read("counts", order - 1)
            progress(1)
        self.orders.insert(0, self._estimate_unigrams(chunks))
        progress(1)

    def ngrams(self, order: int) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]]:
        """The n-grams of an order that are kept; call for 1, 2, ... up, since each needs the one below.

        Yields:
            (n, order) words, log10 of their (n,) probabilities and log10 of their (n,) back-off weights.
        """
        pack = self._packing
        size, words, mask = pack.size(order), *pack.prefix(order - 1)
        places = np.zeros(2, np.int64)
        with self._path("probabilities", order).open("wb") as handle:
            for rows in self._read("table", order):
                lower = self._map("probabilities", order - 1, words + 1)
                backoffs = self._map("backoffs", order, size + 1)
                probabilities, weights = np.empty(len(rows)), np.empty(len(rows))
                _interpolate(rows, size, lower, words, mask, backoffs, places, probabilities, weights)
                np.column_stack((rows[:, :size], probabilities.view(np.uint64))).tofile(handle)
                found = np.empty((len(rows), order), np.int32)
                _unpack(rows, found, pack.bits, pack.per)
                yield found, np.minimum(0.0, np.log10(probabilities)), np.log10(weights)

    def _estimate(self, order: int, chunks: Iterable[Rows]) -> Order:
        """From counts, make the tables of an order above 1, the back-off weights of its contexts, and lower counts."""
        pack, size = self._packing, self._packing.size(order)
        words, mask = pack.prefix(order - 1)
        layout = order, pack.bits, pack.per
        by_context = self._sorter("contexts", order, pack.key_bits(order), num_payload=1)
        tally = np.zeros(7, np.int64)
        last = None
        with self._path("counts", order - 1).open("wb") as lower:
            for rows in _whole_groups(chunks, words, mask):
                folded = np.empty((len(rows), words + 2), np.uint64)
                folded[: _fold(rows, size, words, mask, folded, *layout)].tofile(lower)
                contexts = np.empty((len(rows), size + 1), np.uint64)
                count = _by_context(rows, size, self._thresholds[order - 1], self._left_out, contexts, tally, *layout)
                by_context.add(contexts[:count])
                last = rows[-1:]
        if order < self._order and last is not None:
            _retally_last(last, size, tally, *layout)
        found = self._discounts(order, tally)
        table = self._sorter("suffixes", order, pack.key_bits(order), num_payload=2)
        discounts = np.array([0.0, *found.discounts])
        with self._path("backoffs", order - 1).open("wb") as handle:
            for rows in _whole_groups(by_context.sorted_chunks(), words, mask):
                weights = np.empty((len(rows), words + 1), np.uint64)
                kept = np.empty((len(rows), size + 2), np.uint64)
                num_weights, num_kept = _normalize(rows, size, words, mask, discounts, weights, kept, *layout)
                weights[:num_weights].tofile(handle)
                table.add(kept[:num_kept])
        with self._path("table", order).open("wb") as handle:
            for rows in table.sorted_chunks():
                rows.tofile(handle)
        return found

    def _estimate_unigrams(self, chunks: Iterable[Rows]) -> Order:
        """Make the table of unigrams, all in memory as the vocabulary is, and the uniform distribution below it."""
        num_words = len(self._text.words)
        counts = np.zeros((2, num_words), np.int64)  # occurrences, adjusted
        last = END
        for rows in chunks:
            ids = (rows[:, 0] >> np.uint64((self._packing.per - 1) * self._packing.bits)).astype(np.int64)
            counts[:, ids] = rows[:, 1:].T
            last = int(ids[-1]) if len(ids) else last
        occurrences, adjusted = counts
        pruned = (occurrences <= self._thresholds[0]) | self._left_out
        pruned[: len(SPECIAL)] = False
        tally = np.zeros(7, np.int64)
        tally[:5] = np.bincount(np.minimum(adjusted, 5), minlength=6)[:5]
        if self._order > 1:
            for count, change in ((adjusted[last], -1), (occurrences[last], 1)):
                tally[min(count, 5)] += change
        tally[5:] = num_words, np.count_nonzero(~pruned)
        found = self._discounts(1, tally)
        discounts = np.array([0.0, *found.discounts])[np.minimum(adjusted, 3)]
        total = adjusted.sum()
        weight = (discounts[~pruned].sum() + adjusted[pruned].sum()) / total
        own = (adjusted - discounts) / total
        weights = np.full(num_words, weight)
        own[BEGIN], weights[BEGIN] = 1.0, 0.0
        keys = np.arange(num_words, dtype=np.uint64) << np.uint64((self._packing.per - 1) * self._packing.bits)
        rows = np.column_stack((keys, own.view(np.uint64), weights.view(np.uint64)))
        with self._path("table", 1).open("wb") as handle:
            rows[~pruned].tofile(handle)
        uniform = 1.0 / (np.count_nonzero(~pruned) - 1)  # <unk> is a word here, <s> is none
        with self._path("probabilities", 0).open("wb") as handle:
            np.array([uniform]).tofile(handle)
        return found

    def _discounts(self, order: int, tally: NDArray[np.int64]) -> Order:
        """Discounts from how many n-grams have the adjusted counts 1, 2, 3 and 4."""
        num_counted, num_kept = map(int, tally[5:])
        t = [int(count) for count in tally[:5]]
        reason = next((f"no {order}-gram has the adjusted count {k}" for k in (1, 2, 3) if not t[k]), None)
        if reason is None:
            y = t[1] / (t[1] + 2 * t[2])
            found = tuple(k - (k + 1) * y * t[k + 1] / t[k] for k in (1, 2, 3))
            k = next((k for k in (1, 2, 3) if not 0 <= found[k - 1] <= k), None)
            if k is None:
                return Order(num_counted, num_kept, found, False)  # type: ignore[arg-type]
            reason = f"that of adjusted count {k} would be {found[k - 1]:.3g}, expected 0 to {k}"
        if self._fallback is None:
            raise DataError(
                f"the discounts of {order}-grams cannot be computed: {reason}. The text is small, artificial, or "
                "says the same again and again: take more text, leave repeated sentences out, lower --order, or give "
                "--discount-fallback, which takes fixed discounts for such orders"
            )
        return Order(num_counted, num_kept, self._fallback, True)

    def _sorter(
        self,
        name: str,
        order: int,
        key_bits: list[tuple[int, int]],
        *,
        num_payload: int,
        combine: Callable[[Rows], Rows] | None = None,
    ) -> ExternalSort:
        return ExternalSort(
            self._path(name, order),
            key_bits=key_bits,
            num_words=len(key_bits) + num_payload,
            max_rows=self._max_rows,
            combine=combine,
        )

    def _path(self, name: str, order: int) -> Path:
        return self._folder / f"{name}-{order}"

    def _read(self, name: str, order: int) -> Iterator[Rows]:
        """A table in pieces; counts and tables have two numbers beside the key."""
        width = self._packing.size(order) + 2
        with self._path(name, order).open("rb") as handle:
            while len(rows := np.fromfile(handle, np.uint64, CHUNK_ROWS * width)):
                yield rows.reshape(-1, width)

    def _map(self, name: str, order: int, width: int) -> Rows:
        """A table as an array that lies on disk; empty if there is none."""
        path = self._path(name, order)
        if not path.exists() or not path.stat().st_size:
            return np.empty((0, width), np.uint64)
        return np.memmap(path, np.uint64, "c").view(np.ndarray).reshape(-1, width)


def _whole_groups(chunks: Iterable[Rows], words: int, mask: np.uint64) -> Iterator[Rows]:
    """Cut sorted rows so that those with a common prefix stay together."""
    rest = None
    for chunk in chunks:
        rows = chunk if rest is None else np.concatenate((rest, chunk))
        cut = _last_group(rows, words, mask)
        rest = rows[cut:]
        if cut:
            yield rows[:cut]
    if rest is not None and len(rest):
        yield rest


def _sum_equal(rows: Rows) -> Rows:
    """Put equal n-grams together and add their counts, in place."""
    return rows[: _combine(rows)]


@compiled
def _same(a, b, words, mask):
    for k in range(words - 1):
        if a[k] != b[k]:
            return False
    return words == 0 or (a[words - 1] ^ b[words - 1]) & mask == 0


@compiled
def _column(row, at, bits, per):
    """The word at place `at`, 0 for the last one of the n-gram."""
    shift = np.uint64((per - 1 - at % per) * bits)
    return np.int64((row[at // per] >> shift) & np.uint64((1 << bits) - 1))


@compiled
def _put(row, at, word, bits, per):
    """Put a word where none stands."""
    row[at // per] |= np.uint64(word) << np.uint64((per - 1 - at % per) * bits)


@compiled
def _pack(ids, first, rows, order, bits, per):
    """Make the n-grams that end at each of ids[first:], with a count of 1; what lacks before a sentence is BEGIN."""
    size = rows.shape[1] - 1
    for i in range(len(rows)):
        at = first + i
        _put(rows[i], 0, ids[at], bits, per)
        begun = False
        for j in range(1, order):
            at -= 1
            begun = begun or at < 0 or ids[at] == END
            _put(rows[i], j, BEGIN if begun else ids[at], bits, per)
        rows[i, size] = 1


@compiled
def _unpack(rows, words, bits, per):
    """The words of n-grams, first to last."""
    order = words.shape[1]
    for i in range(len(rows)):
        for j in range(order):
            words[i, order - 1 - j] = _column(rows[i], j, bits, per)


@compiled
def _combine(rows):
    size = rows.shape[1] - 1
    count = 0
    for i in range(len(rows)):
        if count and _same(rows[count - 1, :size], rows[i, :size], size, ~np.uint64(0)):
            rows[count - 1, size] += rows[i, size]
        else:
            rows[count] = rows[i]
            count += 1
    return count


@compiled
def _last_group(rows, words, mask):
    """Where the rows begin that have the last one's prefix."""
    at = len(rows)
    while at > 0 and _same(rows[at - 1], rows[len(rows) - 1], words, mask):
        at -= 1
    return at


@compiled
def _fold(rows, size, words, mask, lower, order, bits, per):
    """From n-grams to those without their first words: occurrences are added up, different first words counted."""
    count = 0
    for i in range(len(rows)):
        if i == 0 or not _same(rows[i - 1], rows[i], words, mask):
            lower[count, :words] = rows[i, :words]
            lower[count, words - 1] &= mask
            lower[count, words:] = 0
            count += 1
        lower[count - 1, words] += rows[i, size]
        lower[count - 1, words + 1] += 1
    for i in range(count):
        if _column(lower[i], order - 2, bits, per) == BEGIN:
            lower[i, words + 1] = lower[i, words]
    return count


@compiled
def _is_ngram(row, order, bits, per):
    """Whether at most one BEGIN stands before its words."""
    return _column(row, order - 2, bits, per) != BEGIN


@compiled
def _by_context(rows, size, threshold, left_out, contexts, tally, order, bits, per):
    """Rows with the last word moved to the end, and the adjusted count, marked if pruned; tallies them."""
    count = 0
    for i in range(len(rows)):
        row = rows[i]
        if not _is_ngram(row, order, bits, per):
            continue
        adjusted = row[size + 1]
        pruned = row[size] <= np.uint64(threshold)
        context = contexts[count]
        context[:size] = 0
        for j in range(order):
            word = _column(row, j, bits, per)
            pruned = pruned or left_out[word]
            _put(context, j - 1 if j else order - 1, word, bits, per)
        context[size] = adjusted | PRUNED if pruned else adjusted
        if adjusted < 5:
            tally[adjusted] += 1
        tally[5] += 1
        tally[6] += not pruned
        count += 1
    return count


@compiled
def _retally_last(rows, size, tally, order, bits, per):
    """Of the last n-gram below the model's order lmplz tallies the occurrences; the result is to be the same."""
    if _is_ngram(rows[0], order, bits, per):
        adjusted, occurrences = rows[0, size + 1], rows[0, size]
        if adjusted < 5:
            tally[adjusted] -= 1
        if occurrences < 5:
            tally[occurrences] += 1


@compiled
def _normalize(rows, size, words, mask, discounts, weights, kept, order, bits, per):
    """For each context its back-off weight; for each n-gram that is kept its own share and that weight."""
    num_weights = num_kept = 0
    first = 0
    while first < len(rows):
        end, total, lost = first, 0.0, 0.0
        while end < len(rows) and _same(rows[first], rows[end], words, mask):
            count = rows[end, size] & ~PRUNED
            total += count
            if rows[end, size] & PRUNED:
                lost += count
            else:
                lost += discounts[min(np.int64(count), 3)]
            end += 1
        weight = lost / total
        weights[num_weights, :words] = rows[first, :words]
        weights[num_weights, words - 1] &= mask
        weights[num_weights, words] = _bits(weight)
        num_weights += 1
        for i in range(first, end):
            if not rows[i, size] & PRUNED:
                count = np.int64(rows[i, size])
                kept[num_kept, :size] = 0
                for j in range(order):
                    _put(kept[num_kept], (j + 1) % order, _column(rows[i], j, bits, per), bits, per)
                kept[num_kept, size] = _bits((count - discounts[min(count, 3)]) / total)
                kept[num_kept, size + 1] = _bits(weight)
                num_kept += 1
        first = end
    return num_weights, num_kept


@compiled
def _bits(value):
    return np.float64(value).view(np.uint64)


@compiled
def _number(bits):
    return np.uint64(bits).view(np.float64)


@compiled
def _interpolate(rows, size, lower, words, mask, backoffs, places, probabilities, weights):
    """Add the lower order's share; all three tables stand in the order of suffixes, so `places` only move on."""
    every = ~np.uint64(0)
    at, backoff = places
    for i in range(len(rows)):
        row = rows[i]
        while not _same(lower[at], row, words, mask):
            at += 1
        probabilities[i] = _number(row[size]) + _number(row[size + 1]) * _number(lower[at, words])
        while backoff < len(backoffs) and _less(backoffs[backoff], row, size):
            backoff += 1
        found = backoff < len(backoffs) and _same(backoffs[backoff], row, size, every)
        weights[i] = _number(backoffs[backoff, size]) if found else 1.0
    places[0], places[1] = at, backoff


@compiled
def _less(a, b, size):
    for k in range(size):
        if a[k] != b[k]:
            return a[k] < b[k]
    return False
