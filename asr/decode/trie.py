"""Sets of character strings as tries in arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def build_trie(strings: Sequence[tuple[int, ...]]) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """A trie of distinct strings of numbers, level by level, so that the children of a node stand together, sorted.

    Args:
        strings: none empty, none twice; numbers >= 0.

    Returns:
        children, (N + 1,): first child of each node, N where the nodes end; labels, (N,): the number that leads to each
        node, -1 for the root; ends, one for each string: its node.
    """
    order = sorted(range(len(strings)), key=lambda i: strings[i])
    lengths = np.array([len(strings[i]) for i in order], np.int64)
    flat = np.array([number for i in order for number in strings[i]], np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]]) if order else np.zeros(0, np.int64)
    at = np.zeros(len(order), np.int32)  # node of each string's first characters
    ends = np.zeros(len(order), np.int32)
    labels, parents = [np.array([-1], np.int32)], [np.array([-1], np.int64)]
    num_nodes = 1
    for depth in range(int(lengths.max(initial=0))):
        active = np.flatnonzero(lengths > depth)
        character, parent = flat[offsets[active] + depth], at[active]
        fresh = np.ones(len(active), bool)
        fresh[1:] = (character[1:] != character[:-1]) | (parent[1:] != parent[:-1])
        at[active] = num_nodes - 1 + np.cumsum(fresh)
        labels.append(character[fresh])
        parents.append(parent[fresh].astype(np.int64))
        num_nodes += int(fresh.sum())
        done = active[lengths[active] == depth + 1]
        ends[done] = at[done]
    children = np.searchsorted(np.concatenate(parents)[1:], np.arange(num_nodes + 1)) + 1
    back = np.empty(len(order), np.int32)
    back[order] = ends
    return children.astype(np.int32), np.concatenate(labels), back
