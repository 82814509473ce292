"""What every decoder does: log-probabilities come in pieces, tokens with their places come out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from jaxtyping import Float, Int
from torch import Tensor


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


class Hypothesis(NamedTuple):
    """One reading of the frames so far.

    path: its tokens and where they stand; frames count from the first frame of the stream. `path.total` is the
        log-probability of its best alignment alone.
    acoustic: log-probability of the tokens given the frames, all alignments summed where the decoder sums them.
    lm: natural log-probability that the language model gives, unweighted; 0 without one.
    num_units: words (or characters) counted for the word bonus.
    total: what hypotheses are ranked by: acoustic + alpha * lm + beta * num_units + hotwords.
    """

    path: TokenPath
    acoustic: float
    lm: float
    num_units: int
    total: float


class Decoder(Protocol):
    """Turns log-probabilities that come in pieces into tokens.

    A state is a value: no method changes one that it was given, so that streams can be batched, forked and pickled.
    """

    def initial_state(self) -> Any:
        """The state before the first frame."""
        ...

    def extend(self, states: Sequence[Any], log_probs: Float[Tensor, "B n V"], lengths: Int[Tensor, "B"]) -> list[Any]:
        """Read `lengths[i]` frames of row i into state i; any n >= 0, and how frames are split changes nothing."""
        ...

    def best(self, state: Any, count: int = 1, final: bool = False) -> list[Hypothesis]:
        """The `count` best hypotheses, best first; tokens that were dropped are not in them.

        Args:
            state: after the frames so far.
            count: how many at most.
            final: the utterance ends here, so the last word and the end of the sentence are scored.
        """
        ...

    def num_stable(self, state: Any) -> int:
        """Leading tokens, with frames and ends, that no later frame can change."""
        ...

    def drop_stable(self, state: Any, count: int) -> Any:
        """Forget that many leading tokens, at most `num_stable`, so that endless streams take bounded memory."""
        ...
