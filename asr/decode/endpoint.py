"""Where an endless stream is cut into segments: after silence, or when a segment has become long.

The three rules are those of Kaldi's online decoder. They look at each frame's most probable token alone, frame after
frame, so how the audio was cut into chunks cannot change a segment.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from asr.config.schema import Endpoint


class EndpointState(NamedTuple):
    """start: first frame of the segment. speech_end: frame after the segment's last speech; -1 if it has none."""

    start: int = 0
    speech_end: int = -1


@dataclass(frozen=True, slots=True)
class EndpointRules:
    """Frames after which a segment ends.

    silence: without speech. trailing: after speech. longest: in all.
    """

    silence: int
    trailing: int
    longest: int

    @classmethod
    def build(cls, config: Endpoint, frame_seconds: float) -> EndpointRules:
        """Turn the seconds of `config` into frames, one at least."""
        seconds = (config.silence_seconds, config.trailing_seconds, config.longest_seconds)
        return cls(*(max(1, round(value / frame_seconds)) for value in seconds))

    def cuts(self, state: EndpointState, first: int, speech: NDArray[np.bool_]) -> Iterator[tuple[int, EndpointState]]:
        """Read frames `first` ..; gives for each segment that ends the frame after it, and last the new state.

        Args:
            state: before frame `first`.
            first: number of the first frame.
            speech: (n,) whether each frame's most probable token is not the blank.

        Yields:
            (frame after the segment, state at its end), and then (-1, state after all frames).
        """
        places = np.flatnonzero(speech) + first
        end = first + len(speech)
        while True:
            cut = self._next_cut(state, places, end)
            spoken = places[(places >= state.start) & (places < (end if cut < 0 else cut))]
            if len(spoken):
                state = state._replace(speech_end=int(spoken[-1]) + 1)
            if cut < 0:
                yield -1, state
                return
            yield cut, state
            state = EndpointState(cut)

    def _next_cut(self, state: EndpointState, places: NDArray[np.int64], end: int) -> int:
        """The frame after the segment, or -1 if it goes on beyond `end`."""
        latest = state.start + self.longest
        speech_end = state.speech_end
        limit = state.start + self.silence if speech_end < 0 else speech_end + self.trailing
        for place in places[places >= max(state.start, speech_end)].tolist():
            if place >= min(limit, latest):  # the silence before this frame was long enough
                break
            limit = place + 1 + self.trailing
        cut = min(limit, latest)
        return cut if cut <= end else -1
