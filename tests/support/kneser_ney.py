"""Interpolated modified Kneser-Ney smoothing from its equations (Chen and Goodman 1999; Heafield et al. 2013), slow."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
Ngram = tuple[str, ...]
Model = dict[Ngram, tuple[float, float]]  # log10 of the probability and of the back-off weight


def estimate(
    sentences: Sequence[Sequence[str]],
    order: int,
    *,
    thresholds: Sequence[int],
    left_out: frozenset[str] = frozenset(),
    fallback: tuple[float, float, float],
) -> Model:
    """A model by n-gram. `thresholds`: for each order, what occurs at most so often is pruned."""
    occurrences = [Counter[Ngram]() for _ in range(order + 1)]
    for sentence in sentences:
        words = [BEGIN, *sentence, END]
        for end in range(2, len(words) + 1):
            for n in range(1, min(order, end) + 1):
                occurrences[n][tuple(words[end - n : end])] += 1

    probability: dict[Ngram, float] = {}
    backoff: dict[Ngram, float] = {}
    for n in range(1, order + 1):
        adjusted = Counter[Ngram]()
        for ngram, count in occurrences[n].items():
            if n == order or ngram[0] == BEGIN:
                adjusted[ngram] = count
            else:
                befores = {longer[0] for longer in occurrences[n + 1] if longer[1:] == ngram}
                adjusted[ngram] = len(befores)
        kept = {
            ngram
            for ngram in adjusted
            if ngram == (END,) or (occurrences[n][ngram] > thresholds[n - 1] and not left_out & set(ngram))
        }
        discounts = _discounts(_tally(sentences, order, n, adjusted, occurrences[n]), fallback)
        contexts: dict[Ngram, list[Ngram]] = {}
        for ngram in adjusted:
            contexts.setdefault(ngram[:-1], []).append(ngram)
        if n == 1:
            adjusted[(UNKNOWN,)] = 0
            kept.add((UNKNOWN,))
            contexts[()].append((UNKNOWN,))
            probability[()] = 1 / len(kept)  # uniform
        for context, ngrams in contexts.items():
            total = sum(adjusted[ngram] for ngram in ngrams)
            weight = (
                sum(discounts[min(adjusted[ngram], 3)] if ngram in kept else adjusted[ngram] for ngram in ngrams)
                / total
            )
            backoff[context] = weight
            for ngram in ngrams:
                if ngram in kept:
                    own = (adjusted[ngram] - discounts[min(adjusted[ngram], 3)]) / total
                    probability[ngram] = own + weight * probability[ngram[1:]]
    probability[(BEGIN,)] = 1.0
    return {ngram: (math.log10(p), math.log10(backoff.get(ngram, 1.0))) for ngram, p in probability.items() if ngram}


def _tally(
    sentences: Sequence[Sequence[str]], order: int, n: int, adjusted: Counter[Ngram], occurrences: Counter[Ngram]
) -> Counter[int]:
    """How many n-grams have an adjusted count. lmplz takes the occurrences for the last n-gram below the highest order.

    The last one by its words from last to first, where words count by their first appearance.
    """
    tally = Counter(adjusted.values())
    if n < order:
        known = [END, *dict.fromkeys(word for sentence in sentences for word in sentence)]
        rank = {BEGIN: -1, **{word: i for i, word in enumerate(known)}}
        last = max(_padded(sentences, order), key=lambda ngram: [rank[word] for word in reversed(ngram)])[-n:]
        if last in adjusted:
            tally[adjusted[last]] -= 1
            tally[occurrences[last]] += 1
    return tally


def _padded(sentences: Sequence[Sequence[str]], order: int) -> set[Ngram]:
    found = set()
    for sentence in sentences:
        words = [*[BEGIN] * (order - 1), *sentence, END]
        found |= {tuple(words[i : i + order]) for i in range(len(words) - order + 1)}
    return found


def _discounts(tally: Counter[int], fallback: tuple[float, float, float]) -> tuple[float, ...]:
    """0, D1, D2, D3+."""
    if not all(tally[k] for k in (1, 2, 3)):
        return (0.0, *fallback)
    y = tally[1] / (tally[1] + 2 * tally[2])
    found = [k - (k + 1) * y * tally[k + 1] / tally[k] for k in (1, 2, 3)]
    in_range = all(0 <= discount <= k for k, discount in enumerate(found, 1))
    return (0.0, *(found if in_range else fallback))


def read_arpa(path: Path) -> Model:
    """The n-grams of an ARPA file, whose stated counts are checked."""
    model: Model = {}
    stated: dict[int, int] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("ngram "):
            n, count = line.removeprefix("ngram ").split("=")
            stated[int(n)] = int(count)
        elif "\t" in line:
            value, words, *weight = line.split("\t")
            model[tuple(words.split(" "))] = (float(value), float(weight[0]) if weight else 0.0)
    assert Counter(map(len, model)) == Counter(stated)
    return model


def log10(model: Model, context: Ngram, word: str) -> float:
    """log10 p(word | context), backing off (Katz 1987)."""
    ngram = (*context, word)
    if ngram in model:
        return model[ngram][0]
    return (model[context][1] if context in model else 0.0) + log10(model, context[1:], word)
