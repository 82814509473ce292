"""The rules that end a segment, against looking at every frame in turn, and under every chunking."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.config.schema import Endpoint
from asr.decode.endpoint import EndpointRules, EndpointState

RULES = EndpointRules(silence=6, trailing=3, longest=15)


def slow(speech: list[bool]) -> list[int]:
    """Frame by frame: when does a segment end?"""
    cuts, start, last = [], 0, -1
    for frame, spoken in enumerate(speech):
        if spoken:
            last = frame
        frames = frame + 1 - start
        silence = frames if last < start else frame - last
        if (last < start and silence >= 6) or (last >= start and silence >= 3) or frames >= 15:
            cuts.append(frame + 1)
            start, last = frame + 1, -1
    return cuts


def run(speech: list[bool], sizes: list[int]) -> list[int]:
    cuts, state, first = [], EndpointState(), 0
    bounds = sorted({min(b, len(speech)) for b in np.cumsum([0, *sizes]).tolist()} | {len(speech)})
    for begin, end in pairwise(bounds):
        for cut, after in RULES.cuts(state, first, np.array(speech[begin:end], dtype=bool)):
            if cut < 0:
                state = after
            else:
                cuts.append(cut)
        first = end
    return cuts


@given(st.lists(st.booleans(), max_size=80), st.lists(st.integers(1, 20), max_size=10))
def test_equals_looking_at_every_frame_however_they_come(speech: list[bool], sizes: list[int]) -> None:
    assert run(speech, sizes) == slow(speech)


@pytest.mark.parametrize(
    ("speech", "expected"),
    [
        ([False] * 12, [6, 12]),  # nothing said
        ([False, True, True, False, False, False, True], [6]),  # a pause after speech
        ([True] * 20, [15]),  # somebody does not stop
        ([True, False, False, True, False, False, True], []),  # pauses that are too short
    ],
)
def test_each_rule(speech: list[bool], expected: list[int]) -> None:
    assert run(speech, [1] * len(speech)) == expected


def test_seconds_become_frames() -> None:
    assert EndpointRules.build(Endpoint(), frame_seconds=0.04) == EndpointRules(60, 30, 500)
