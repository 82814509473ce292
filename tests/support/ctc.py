"""CTC from its definition: a sum over every alignment, one by one."""

import itertools
import math

from torch import Tensor


def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
    """Merge repeats, then remove blanks (0)."""
    return tuple(token for token, _ in itertools.groupby(path) if token != 0)


def brute_force_loss(log_probs: Tensor, targets: list[int]) -> float:
    """-log of the summed probability of all paths (V ** S of them) that collapse to `targets`.

    log_probs: (S, V).
    """
    frames, tokens = log_probs.shape
    total = 0.0
    for path in itertools.product(range(tokens), repeat=frames):
        if collapse(path) == tuple(targets):
            total += math.exp(sum(float(log_probs[t, token]) for t, token in enumerate(path)))
    return -math.log(total) if total else math.inf
