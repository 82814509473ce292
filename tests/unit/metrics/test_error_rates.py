"""Edits against a plain dynamic programme, and the rule that sums come before division."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.metrics.error_rates import Edits, character_edits, matching_words, word_edits


def levenshtein(a: list[str], b: list[str]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


words = st.lists(st.sampled_from(["a", "bb", "a\u0301", "x\U0001f600", "don't"]), max_size=7).map(" ".join)


@given(words, words)
def test_word_edits_equal_levenshtein(reference: str, hypothesis: str) -> None:
    edits = word_edits(reference, hypothesis)
    assert edits.total == levenshtein(reference.split(), hypothesis.split())
    assert edits.reference_length == len(reference.split())
    assert edits.insertions - edits.deletions == len(hypothesis.split()) - len(reference.split())


@given(words, words)
def test_character_edits_equal_levenshtein(reference: str, hypothesis: str) -> None:
    assert character_edits(reference, hypothesis).total == levenshtein(list(reference), list(hypothesis))


def test_kinds() -> None:
    assert word_edits("the cat sat", "the bat sat down") == Edits(1, 0, 1, 3)
    assert word_edits("the cat sat", "sat") == Edits(0, 2, 0, 3)


def test_sums_come_before_division() -> None:
    """One error in 1 word and none in 9 is 10 %, not the mean of 100 % and 0 %."""
    total = word_edits("a", "b") + word_edits("a b c d e f g h i", "a b c d e f g h i")
    assert total.rate == pytest.approx(0.1)


def test_empty() -> None:
    assert word_edits("", "").rate == 0
    assert math.isinf(word_edits("", "noise").rate)
    assert word_edits("", "two words") == Edits(insertions=2)
    assert word_edits("two words", "") == Edits(deletions=2, reference_length=2)
    assert character_edits(" a  b ", "a b").total == 0


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_matching_words_are_those_that_no_edit_touches(reference: list[str], hypothesis: list[str]) -> None:
    pairs = matching_words(reference, hypothesis)
    edits = word_edits(" ".join(reference), " ".join(hypothesis))
    assert all(reference[i] == hypothesis[j] for i, j in pairs)
    assert all(i < k and j < m for (i, j), (k, m) in pairwise(pairs))
    assert len(pairs) == len(reference) - edits.substitutions - edits.deletions
