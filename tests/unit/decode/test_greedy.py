"""Greedy decoding against a loop over frames."""

import itertools
import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from asr.decode.greedy import TokenPath, greedy


def slow(log_probs: torch.Tensor, length: int) -> TokenPath:
    """Frame by frame: runs of the best token, blanks (0) left out."""
    best = [(int(frame.argmax()), float(frame.max())) for frame in log_probs[:length]]
    ids, frames, ends, peaks, position = [], [], [], [], 0
    for token, run in itertools.groupby(best, key=lambda pair: pair[0]):
        values = [value for _, value in run]
        if token:
            ids.append(token)
            frames.append(position)
            ends.append(position + len(values))
            peaks.append(max(values))
        position += len(values)
    return TokenPath(ids, frames, ends, peaks, sum(value for _, value in best))


@given(st.lists(st.integers(0, 12), min_size=1, max_size=5), st.integers(0, 2**32))
def test_equals_the_loop(lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_probs = (2 * torch.randn(len(lengths), max(1, *lengths, 1), 4, generator=generator)).log_softmax(-1)
    for row, path in enumerate(greedy(log_probs, torch.tensor(lengths))):
        expected = slow(log_probs[row], lengths[row])
        assert path[:3] == expected[:3]
        assert all(math.isclose(a, b, abs_tol=1e-5) for a, b in zip(path.log_probs, expected.log_probs, strict=True))
        assert math.isclose(path.total, expected.total, abs_tol=1e-4)


def test_repeats_need_a_blank_between() -> None:
    ids = torch.tensor([[1, 1, 0, 1, 2, 2, 0, 0]])
    log_probs = torch.nn.functional.one_hot(ids, 3).float().mul(10).log_softmax(-1)
    path = greedy(log_probs, torch.tensor([8]))[0]
    assert path.ids == [1, 1, 2]
    assert path.frames == [0, 3, 4]
    assert path.ends == [2, 4, 6]
    assert greedy(log_probs, torch.tensor([3]))[0].ids == [1]
