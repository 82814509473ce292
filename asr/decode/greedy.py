"""Greedy CTC decoding: the best token of each frame, repeats merged, blanks removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from asr.decode.decoder import Hypothesis, TokenPath
from asr.nn.masking import valid_mask


class GreedyState(NamedTuple):
    """path: tokens so far, frames counted from the first. last: token of the last frame. frame: frames read."""

    path: TokenPath
    last: int
    frame: int


class GreedyDecoder:
    """Greedy decoding of log-probabilities that come in pieces; an `asr.decode.decoder.Decoder`.

    Args:
        blank: id of CTC's blank.
    """

    def __init__(self, blank: int = 0) -> None:
        self.blank = blank

    def initial_state(self) -> GreedyState:
        return GreedyState(TokenPath([], [], [], [], 0.0), self.blank, 0)

    def extend(
        self, states: Sequence[GreedyState], log_probs: Float[Tensor, "B n V"], lengths: Int[Tensor, "B"]
    ) -> list[GreedyState]:
        if not log_probs.shape[1]:
            return list(states)
        pieces = greedy(log_probs, lengths, self.blank)
        ends = (lengths - 1).clamp(min=0)
        lasts = log_probs[torch.arange(len(states), device=log_probs.device), ends].argmax(-1).tolist()
        return [
            self._joined(state, piece, last, length) if length else state
            for state, piece, last, length in zip(states, pieces, lasts, lengths.tolist(), strict=True)
        ]

    def _joined(self, state: GreedyState, piece: TokenPath, last: int, length: int) -> GreedyState:
        before, offset = state.path, state.frame
        frames = [frame + offset for frame in piece.frames]
        ends = [end + offset for end in piece.ends]
        total = before.total + piece.total
        ids, log_probs = piece.ids, piece.log_probs
        # The piece begins in the middle of the run that the last one ended with.
        if ids and frames[0] == offset and state.last == ids[0] and before.ids:
            best = max(before.log_probs[-1], log_probs[0])
            path = TokenPath(
                before.ids + ids[1:],
                before.frames + frames[1:],
                [*before.ends[:-1], *ends],
                [*before.log_probs[:-1], best, *log_probs[1:]],
                total,
            )
        else:
            path = TokenPath(
                before.ids + ids, before.frames + frames, before.ends + ends, before.log_probs + log_probs, total
            )
        return GreedyState(path, last, offset + length)

    def best(self, state: GreedyState, count: int = 1, final: bool = False) -> list[Hypothesis]:
        return [Hypothesis(state.path, state.path.total, 0.0, 0, state.path.total)]

    def num_stable(self, state: GreedyState) -> int:
        return len(state.path.ids) - (state.last != self.blank)

    def drop_stable(self, state: GreedyState, count: int) -> GreedyState:
        path = state.path
        kept = TokenPath(path.ids[count:], path.frames[count:], path.ends[count:], path.log_probs[count:], path.total)
        return state._replace(path=kept)


def greedy(log_probs: Float[Tensor, "B S V"], lengths: Int[Tensor, "B"], blank: int = 0) -> list[TokenPath]:
    """Decode a batch. One transfer to the host; work on the host is proportional to the tokens, not the frames."""
    best, ids = log_probs.max(dim=-1)  # (B, S)
    mask = valid_mask(lengths, ids.shape[1])
    ids = ids.masked_fill(~mask, blank)
    changed = torch.ones_like(mask)
    changed[:, 1:] = ids[:, 1:] != ids[:, :-1]
    run = changed.cumsum(1) - 1  # which run of equal tokens a frame belongs to
    peak = torch.full_like(best, -torch.inf).scatter_reduce_(1, run, best, "amax")  # by run
    starts = changed & (ids != blank)
    follows = torch.ones_like(changed)
    follows[:, :-1] = changed[:, 1:]  # the last frame of a run
    stops = follows & (ids != blank)
    rows, begin = starts.nonzero(as_tuple=True)
    _, last = stops.nonzero(as_tuple=True)
    totals = best.masked_fill(~mask, 0.0).sum(1).tolist()
    columns = (ids[rows, begin], begin, last + 1, peak[rows, run[rows, begin]])
    counts = starts.sum(1).tolist()
    split = [column.cpu().split(counts) for column in columns]
    return [
        TokenPath(*(column[i].tolist() for column in split), total=totals[i])  # type: ignore[arg-type]
        for i in range(len(counts))
    ]
