"""Write a language model as ARPA text: compiled, because a model has millions of lines."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from asr.atomic import atomic_write
from asr.compiled import compiled
from data_prep._kneser_ney import KneserNey

MAX_NUMBER_BYTES = 24  # of a logarithm with its tab
DECIMALS = 6  # of a logarithm: 1.2e-6 of the probability


def write_arpa(path: Path, model: KneserNey, words: Sequence[bytes], progress: Callable[[int], None]) -> None:
    """Write a model in one step, gzipped if the name ends in .gz; `progress` is told the n-grams written.

    Raises:
        DataError: it cannot be written.
    """
    spellings = np.frombuffer(b"".join(words), np.uint8)
    starts = np.concatenate(([0], np.cumsum([len(word) for word in words])))
    with atomic_write(path) as handle:
        if path.suffix == ".gz":
            # No name and no time in it: the same model gives the same bytes.
            with gzip.GzipFile("", "wb", 6, handle, 0) as zipped:
                _write(zipped, model, spellings, starts, progress)
        else:
            _write(handle, model, spellings, starts, progress)


def _write(
    handle: BinaryIO | gzip.GzipFile,
    model: KneserNey,
    spellings: NDArray[np.uint8],
    starts: NDArray[np.int64],
    progress: Callable[[int], None],
) -> None:
    counts = [order.num_kept for order in model.orders]
    handle.write(b"\\data\\\n")
    handle.writelines(b"ngram %d=%d\n" % pair for pair in enumerate(counts, 1))
    for order in range(1, len(counts) + 1):
        handle.write(b"\n\\%d-grams:\n" % order)
        for found, logs, weights in model.ngrams(order):
            lines = np.empty(_num_bytes(found, starts), np.uint8)
            size = _format(found, logs, weights, order < len(counts), spellings, starts, lines)
            handle.write(lines[:size].data)
            progress(len(found))
    handle.write(b"\n\\end\\\n")


@compiled
def _num_bytes(words, starts):
    """Room that is enough for the lines of (n, order) `words`."""
    count, order = words.shape
    total = count * (2 * MAX_NUMBER_BYTES + order + 1)
    for i in range(count):
        for j in range(order):
            total += starts[words[i, j] + 1] - starts[words[i, j]]
    return total


@compiled
def _format(words, logs, weights, with_weights, spellings, starts, lines):
    """Write `log10 TAB words [TAB log10 of the back-off weight]` for each n-gram; gives the number of bytes."""
    at = 0
    for i in range(len(words)):
        at = _number(logs[i], lines, at)
        for j in range(words.shape[1]):
            lines[at] = 32 if j else 9
            at += 1
            for k in range(starts[words[i, j]], starts[words[i, j] + 1]):
                lines[at] = spellings[k]
                at += 1
        if with_weights:
            lines[at] = 9
            at = _number(weights[i], lines, at + 1)
        lines[at] = 10
        at += 1
    return at


@compiled
def _number(value, lines, at):
    """Write a number with DECIMALS digits behind the point, or without a point if they are all 0."""
    scaled = np.int64(np.rint(abs(value) * 10.0**DECIMALS))
    if value < 0 and scaled:
        lines[at] = 45  # minus
        at += 1
    whole, fraction = scaled // 10**DECIMALS, scaled % 10**DECIMALS
    digits = 1
    while whole >= 10**digits:
        digits += 1
    for k in range(digits):
        lines[at + digits - 1 - k] = 48 + whole % 10
        whole //= 10
    at += digits
    if fraction:
        lines[at] = 46  # point
        for k in range(DECIMALS):
            lines[at + DECIMALS - k] = 48 + fraction % 10
            fraction //= 10
        at += DECIMALS + 1
    return at
