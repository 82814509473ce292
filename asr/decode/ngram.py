"""N-gram language models: ARPA files in, arrays inside, log-probabilities out."""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from asr.decode._numba import CONTEXT, NGRAM, Ngrams, fill_table, lookup, parse_ngrams, suffix
from asr.errors import DataError

BEGIN, END = "<s>", "</s>"
UNKNOWN_WORDS = ("<unk>", "<UNK>")
IMPOSSIBLE_LOG10 = -100.0  # of what cannot be: of -inf, and of unknown words if the model has none, as in KenLM
BLOCK_BYTES = 1 << 24  # read at a time
ZIPPED_AT_MOST = 1032  # bytes that a byte of deflate can stand for
_COUNT = re.compile(rb"ngram\s+(\d+)\s*=\s*(\d+)$")


class NgramModel:
    """A back-off n-gram model (Katz 1987) as sorted arrays.

    A context, of at most order - 1 words, is one number. An n-gram takes 8 bytes in the highest order and at most 20
    below it: where most n-grams are of the highest orders, as counted from text, at most 16 on average.

    Attributes:
        order: words in the longest n-grams.
        words: those of the unigrams; a word's id is its place.
        arrays: the n-grams, for compiled loops.
        unknown: id of the unknown word.
        end: id of the end of the sentence; -1 if the model has none.
        begin_state: the context at the beginning of a sentence.
    """

    def __init__(self, words: Sequence[str], arrays: Ngrams, order: int) -> None:
        self.order = order
        self.words = tuple(words)
        self.arrays = arrays
        self._ids = {word: i for i, word in enumerate(self.words)}
        self.unknown = next(self._ids[word] for word in UNKNOWN_WORDS if word in self._ids)
        self.end = self._ids.get(END, -1)
        begin = self._ids.get(BEGIN)
        self.begin_state = 0 if begin is None or order == 1 else 1 + begin

    @classmethod
    def read(cls, path: str | Path) -> NgramModel:
        """Read an ARPA file, plain or gzipped, of any order.

        Raises:
            DataError: it cannot be read, or a line is not what it should be.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                zipped = file.read(2) == b"\x1f\x8b"
                most_bytes = file.seek(0, os.SEEK_END) * (ZIPPED_AT_MOST if zipped else 1)
                file.seek(0)
                handle: Any = gzip.GzipFile(fileobj=file) if zipped else file
                words, orders = _Reader(path, handle, most_bytes).read()
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: got {error}, expected an ARPA file") from error
        return cls(words, _arrays(path, words, orders), len(orders))

    @property
    def num_bytes(self) -> int:
        """Of the n-grams' arrays, without the words' spellings."""
        return sum(array.nbytes for array in self.arrays if isinstance(array, np.ndarray))

    @property
    def num_ngrams(self) -> int:
        """Of all orders."""
        return len(self.arrays.ngrams) - 1

    def id(self, word: str) -> int:
        """A word's id; that of the unknown word if the model lacks it."""
        return self._ids.get(word, self.unknown)

    def __contains__(self, word: str) -> bool:
        return word in self._ids

    def next(self, state: int, word: int) -> tuple[float, int]:
        """log10 P(word | state), and the state after it."""
        return lookup(state, word, *self.arrays)

    def score(self, words: Sequence[str], *, bos: bool = True, eos: bool = True) -> float:
        """log10 of a sentence's probability.

        Args:
            words: the sentence, cut into the model's units.
            bos: it begins after <s>, which itself has no probability.
            eos: it ends with </s>, which counts; nothing is added if the model has no </s>.
        """
        state, total = self.begin_state if bos else 0, 0.0
        ids = [self.id(word) for word in words]
        if eos and self.end >= 0:
            ids.append(self.end)
        for word in ids:
            log10, state = self.next(state, word)
            total += log10
        return total


@dataclass(slots=True)
class _Order:
    """N-grams of one order: (N, n) word ids, (N,) log10 probabilities, (N,) log10 back-off weights."""

    ids: NDArray[np.int32]
    log10: NDArray[np.float32]
    backoffs: NDArray[np.float32]

    def add(self, ids: NDArray[np.int32], log10: float) -> None:
        """Add n-grams that share one probability, without back-off weights."""
        self.ids = np.concatenate([self.ids, ids])
        self.log10 = np.concatenate([self.log10, np.full(len(ids), log10, np.float32)])
        self.backoffs = np.concatenate([self.backoffs, np.zeros(len(ids), np.float32)])


class _Reader:
    """An ARPA file, in blocks of whole lines."""

    def __init__(self, path: Path, handle: IO[bytes], most_bytes: int) -> None:
        self.path = path
        self.handle = handle
        self.most_bytes = most_bytes  # that the file can have
        self.block = b""  # whole lines
        self.at = 0  # where in it the next line begins
        self.line = 0  # lines before that

    def wrong(self, got: bytes, expected: str) -> DataError:
        text = repr(got.decode(errors="replace").strip()[:80]) if got else "the end of the file"
        return DataError(f"{self.path}:{self.line}: got {text}, expected {expected}")

    def fill(self) -> bool:
        """Read more if the block is used up; False at the end of the file."""
        if self.at == len(self.block):
            self.block, self.at = self.handle.read(BLOCK_BYTES), 0
            if self.block and not self.block.endswith(b"\n"):
                self.block += self.handle.readline().rstrip(b"\n") + b"\n"
        return bool(self.block)

    def filled(self) -> bytes:
        """The next line that is not blank; empty at the end of the file."""
        while self.fill():
            end = self.block.index(b"\n", self.at) + 1
            line, self.at, self.line = self.block[self.at : end].strip(), end, self.line + 1
            if line:
                return line
        self.line += 1
        return b""

    def read(self) -> tuple[list[str], list[_Order]]:
        """Words, and n-grams by order."""
        while (line := self.filled()) != b"\\data\\":
            if not line:
                raise self.wrong(line, "a line \\data\\")
        counts: list[int] = []
        while match := _COUNT.match(line := self.filled()):
            if int(match[1]) != len(counts) + 1:
                raise self.wrong(line, f"ngram {len(counts) + 1}=COUNT")
            counts.append(int(match[2]))
            if counts[-1] > self.most_bytes:
                raise self.wrong(line, "no more n-grams than the file has bytes")
        if not counts:
            raise self.wrong(line, "ngram 1=COUNT")
        words: dict[bytes, int] = {}
        orders: list[_Order] = []
        table = None
        for n, count in enumerate(counts, 1):
            if line != b"\\%d-grams:" % n:
                raise self.wrong(line, f"\\{n}-grams:")
            orders.append(self._section(n, count, words, table))
            table = table or _word_table(list(words))
            line = self.filled()
        if line != b"\\end\\":
            raise self.wrong(line, f"\\end\\ after {counts[-1]} {len(counts)}-grams")
        if not any(word.encode() in words for word in UNKNOWN_WORDS):
            orders[0].add(np.array([[len(words)]], np.int32), IMPOSSIBLE_LOG10)
            words[UNKNOWN_WORDS[0].encode()] = len(words)
        return [word.decode() for word in words], orders

    def _section(
        self, n: int, count: int, words: dict[bytes, int], table: tuple[NDArray[np.generic], ...] | None
    ) -> _Order:
        order = _Order(np.empty((count, n), np.int32), np.empty(count, np.float32), np.zeros(count, np.float32))
        row = 0
        while row < count:
            if table is not None and self.fill():
                text = np.frombuffer(self.block, np.uint8)
                self.at, row, lines = parse_ngrams(text, self.at, row, order.ids, order.log10, order.backoffs, *table)
                self.line += lines
            if row < count and (table is None or self.at < len(self.block) or not self.fill()):
                self._row(n, row, order, words)  # what the compiled loop does not know, or what is wrong
                row += 1
        return order

    def _row(self, n: int, row: int, order: _Order, words: dict[bytes, int]) -> None:
        line = self.filled()
        fields = line.split()
        try:
            probability = float(fields[0])
            backoff = float(fields[n + 1]) if len(fields) > n + 1 else 0.0
            if n == 1:
                fields[1].decode()  # UnicodeDecodeError is a ValueError
                if words.setdefault(fields[1], row) != row:
                    raise self.wrong(line, "each word once")
            ids = [words[field] for field in fields[1 : n + 1]]
            good = len(fields) in (n + 1, n + 2) and probability <= 0 and -np.inf < backoff < np.inf
        except (ValueError, LookupError):
            good, probability, backoff, ids = False, 0.0, 0.0, [0] * n
        if not good:
            raise self.wrong(line, f"a log10 probability <= 0, {n} words of \\1-grams, a log10 back-off weight if any")
        order.ids[row], order.log10[row], order.backoffs[row] = ids, max(probability, IMPOSSIBLE_LOG10), backoff


def _word_table(words: list[bytes]) -> tuple[NDArray[np.generic], ...]:
    """Spellings, where each begins, and the hash table of `parse_ngrams`."""
    spellings = np.frombuffer(b"".join(words) or b" ", np.uint8)
    starts = np.cumsum([0, *map(len, words)])
    table = np.zeros(1 << (2 * len(words) + 1).bit_length(), np.int32)
    fill_table(spellings, starts, table)
    return spellings, starts, table


def _arrays(
    path: Path, words: Sequence[str], orders: list[_Order], absent: Sequence[tuple[int, NDArray[np.int32]]] = ()
) -> Ngrams:
    """Sort n-grams so that those of one context stand together, and link them; `absent` is of `_add_contexts`."""
    size = len(words)
    keys: list[NDArray[np.int64]] = []  # of each order, sorted: number of the n-gram without its last word, last word
    starts = [1]
    words_of: list[NDArray[Any]] = [np.full(1, -1), np.arange(size)]
    log10: list[NDArray[Any]] = [np.zeros(1), orders[0].log10]
    backoffs: list[NDArray[Any]] = [np.zeros(1)]
    children = [np.ones(1, np.int64)]
    suffixes: list[NDArray[np.int64]] = []
    for n, order in enumerate(orders[1:], 2):
        starts.append(starts[-1] + len(orders[n - 2].ids))
        parents = _number(keys, order.ids[:, :-1], size)
        if parents.min(initial=0) < 0:
            return _arrays(path, words, orders, _add_contexts(orders))
        key = parents * size + order.ids[:, -1]
        sort = np.argsort(key, kind="stable")
        key = key[sort]
        order.ids, order.log10, order.backoffs = order.ids[sort], order.log10[sort], order.backoffs[sort]
        twice = np.flatnonzero(key[1:] == key[:-1])
        if len(twice):
            named = " ".join(words[int(i)] for i in order.ids[twice[0]])
            raise DataError(f"{path}: got the {n}-gram {named!r} twice, expected each once")
        children.append(starts[-1] + np.searchsorted(parents[sort], np.arange(len(orders[n - 2].ids))))
        backoffs.append(orders[n - 2].backoffs)
        keys.append(key)
        words_of.append(order.ids[:, -1])
        log10.append(order.log10)
        if 2 < n < len(orders):
            suffixes.append(_suffixes(keys, order.ids, size, starts))
    total = starts[-1] + len(orders[-1].ids)
    starts += [total, total]
    children.append(np.array([total]))
    ngrams = np.zeros(total, NGRAM)
    ngrams["word"], ngrams["log10"] = np.concatenate(words_of), np.concatenate(log10)
    contexts = np.zeros(starts[len(orders) - 1] + 1, CONTEXT)
    contexts["child"], contexts["backoff"][:-1] = np.concatenate(children), np.concatenate(backoffs)
    arrays = Ngrams(
        ngrams, contexts, np.concatenate([np.zeros(0, np.int64), *suffixes]).astype(np.int32), starts[1], starts[2]
    )
    for n, ids in absent:  # orders ascend, so that what they back off to is there
        for row in ids:
            context = 0
            for word in row[:-1]:
                _, context = lookup(context, int(word), *arrays)
            without = suffix(context, arrays.ngrams, *arrays[2:])
            shorter, _ = lookup(without, int(row[-1]), *arrays)
            place = starts[n - 1] + int(_number(keys, row[None], size)[0])
            ngrams["log10"][place] = contexts["backoff"][context] + shorter
    return arrays


def _number(keys: Sequence[NDArray[np.int64]], ids: NDArray[np.int32], size: int) -> NDArray[np.int64]:
    """Places of (N, n) n-grams in their order's sorted list; -1 where absent."""
    place = ids[:, 0].astype(np.int64)
    for n in range(1, ids.shape[1]):
        key = place * size + ids[:, n]
        found = np.searchsorted(keys[n - 1], key)
        found = np.minimum(found, max(0, len(keys[n - 1]) - 1))
        there = (place >= 0) & (keys[n - 1][found] == key) if len(keys[n - 1]) else np.zeros(len(ids), bool)
        place = np.where(there, found, -1)
    return place


def _suffixes(
    keys: Sequence[NDArray[np.int64]], ids: NDArray[np.int32], size: int, starts: Sequence[int]
) -> NDArray[np.int64]:
    """Ids of the longest proper suffixes that the model has."""
    found = starts[0] + ids[:, -1].astype(np.int64)
    for first in range(ids.shape[1] - 2, 0, -1):  # longer and longer
        place = _number(keys, ids[:, first:], size)
        found = np.where(place >= 0, starts[ids.shape[1] - first - 1] + place, found)
    return found


def _add_contexts(orders: list[_Order]) -> list[tuple[int, NDArray[np.int32]]]:
    """Add the n-grams that longer ones continue but that the file lacks, as some tools prune; gives them by order."""
    added = []
    for n in range(len(orders), 2, -1):
        shorter = orders[n - 2]
        missing = _rows_absent(orders[n - 1].ids[:, :-1], shorter.ids)
        if len(missing):
            shorter.add(missing, 0.0)
            added.append((n - 1, missing))
    return added[::-1]


def _rows_absent(rows: NDArray[np.int32], others: NDArray[np.int32]) -> NDArray[np.int32]:
    void = np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))
    as_one = np.ascontiguousarray(rows).view(void).ravel()
    absent = rows[~np.isin(as_one, np.ascontiguousarray(others).view(void).ravel())]
    return np.unique(absent, axis=0)
