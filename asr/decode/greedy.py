"""Greedy CTC decoding: the best token of each frame, repeats merged, blanks removed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from asr.nn.masking import valid_mask


class TokenPath(NamedTuple):
    """The tokens of one utterance with where they stand.

    ids: token ids, no blanks. frames: output frame at which each begins. ends: frame after its last.
    log_probs: log-probability of the token at its best frame. total: log-probability of the whole best path.
    """

    ids: list[int]
    frames: list[int]
    ends: list[int]
    log_probs: list[float]
    total: float


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
