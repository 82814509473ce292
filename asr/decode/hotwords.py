"""Words and phrases that a user expects, with boosts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from asr.decode._numba import DELIMITER, STRETCH, Hotwords
from asr.decode.trie import build_trie


def build_hotwords(phrases: Mapping[tuple[int, ...], float], *, whole_words: bool) -> Hotwords:
    """The automaton that finds every phrase in a text, overlapping ones too (Aho and Corasick 1975).

    A phrase that is said gains its boost, each time. While it is being said, it is lent the share of its boost that has
    been spelled; what is lent counts where hypotheses are compared, but belongs to none, so a phrase that breaks off
    has gained nothing.

    Args:
        phrases: boost of each phrase, spelled as character numbers, `DELIMITER` between words.
        whole_words: phrases are found as whole words only, not inside of longer ones.
    """
    ends_of_word = (DELIMITER,) if whole_words else ()
    spelled = {(*ends_of_word, *phrase, *ends_of_word): boost for phrase, boost in phrases.items()}
    children, labels, ends = build_trie(list(spelled))
    fails = _fails(children, labels)
    gains, lent = np.zeros(len(labels)), np.zeros(len(labels))
    for end, phrase, boost in zip(ends.tolist(), spelled, spelled.values(), strict=True):
        gains[end] = boost
        node = 0
        for depth, character in enumerate(phrase[:-1], 1):
            node = _child(children, labels, node, character)
            if depth > len(ends_of_word):
                lent[node] = max(lent[node], boost * (depth - len(ends_of_word)) / (len(phrase) - len(ends_of_word)))
    for node in range(1, len(labels)):  # level by level: suffixes, being shorter, come first
        gains[node] += gains[fails[node]]
        lent[node] = max(lent[node], lent[fails[node]])
    start = _child(children, labels, 0, DELIMITER) if whole_words and len(spelled) else 0
    most = float(lent.max() + max(0.0, gains.max()))
    nodes = np.zeros(len(children), STRETCH)
    nodes["child"] = children
    for name, values in {"label": labels, "fail": fails, "gain": gains, "credit": lent}.items():
        nodes[name][:-1] = values
    return Hotwords(nodes, start, most)


def _fails(children: np.ndarray, labels: np.ndarray) -> list[int]:
    """Node of each node's longest proper suffix."""
    fails = [0] * len(labels)
    for node in range(len(labels)):
        for child in range(children[node], children[node + 1]):
            fall, found = fails[node], -1
            while node and (found := _child(children, labels, fall, int(labels[child]))) < 0 and fall:
                fall = fails[fall]
            fails[child] = max(0, found)
    return fails


def _child(children: np.ndarray, labels: np.ndarray, node: int, label: int) -> int:
    first, last = int(children[node]), int(children[node + 1])
    at = first + int(np.searchsorted(labels[first:last], label))
    return at if at < last and labels[at] == label else -1
