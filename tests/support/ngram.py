"""ARPA files as dictionaries, and back-off as its definition says it; slow and obvious."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path


class DictModel:
    """Probabilities, log10, and back-off weights by n-gram."""

    def __init__(self, path: Path) -> None:
        self.log10: dict[tuple[str, ...], float] = {}
        self.backoff: dict[tuple[str, ...], float] = {}
        n = 0
        for line in path.read_text().splitlines():
            if line.endswith("-grams:"):
                n = int(line[1 : line.index("-")])
            elif n and line.strip() and not line.startswith("\\"):
                fields = line.split()
                words = tuple(fields[1 : n + 1])
                self.log10[words] = float(fields[0])
                self.backoff[words] = float(fields[n + 1]) if len(fields) > n + 1 else 0.0
                self.order = n
        if ("<unk>",) not in self.log10:
            self.log10["<unk>",] = -100.0

    def conditional(self, context: tuple[str, ...], word: str) -> float:
        """Give log10 P(word | context)."""
        if (*context, word) in self.log10:
            return self.log10[*context, word]
        assert context
        return self.backoff.get(context, 0.0) + self.conditional(context[1:], word)

    def score(self, words: Sequence[str], *, bos: bool = True, eos: bool = True) -> float:
        """Give log10 of a sentence's probability."""
        known = [word if (word,) in self.log10 else "<unk>" for word in words]
        sentence = [*(["<s>"] if bos else []), *known, *(["</s>"] if eos else [])]
        first = 1 if bos else 0
        return sum(
            self.conditional(tuple(sentence[max(0, i - self.order + 1) : i]), sentence[i])
            for i in range(first, len(sentence))
        )


def random_orders(
    words: Sequence[str], *, order: int, keep: float, seed: int
) -> list[dict[tuple[str, ...], tuple[float, float]]]:
    """N-grams drawn at random with random weights: contexts and suffixes may be missing, as pruning leaves them."""
    generator = random.Random(seed)
    inventory = ["<s>", "</s>", "<unk>", *words]
    orders = []
    for n in range(1, order + 1):
        ngrams = {}
        for ngram in itertools.product(inventory, repeat=n):
            possible = "<s>" not in ngram[1:] and "</s>" not in ngram[:-1]
            if n == 1 or (possible and generator.random() < keep):
                ngrams[ngram] = (-3 * generator.random(), generator.uniform(-1, 0.2))
        orders.append(ngrams)
    return orders


def write_arpa(path: Path, orders: Sequence[dict[tuple[str, ...], tuple[float, float]]]) -> Path:
    """Write n-grams, by order: words to log10 probability and back-off weight."""
    lines = ["\\data\\", *(f"ngram {n}={len(ngrams)}" for n, ngrams in enumerate(orders, 1)), ""]
    for n, ngrams in enumerate(orders, 1):
        lines.append(f"\\{n}-grams:")
        for words, (log10, backoff) in ngrams.items():
            tail = f"\t{backoff:.6f}" if n < len(orders) else ""
            lines.append(f"{log10:.6f}\t{' '.join(words)}{tail}")
        lines.append("")
    path.write_text("\n".join([*lines, "\\end\\", ""]))
    return path
