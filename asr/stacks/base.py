"""The contract that every stack keeps (docs/adding-a-stack.md).

A stack maps frames to frames. State goes in and comes out of `step`; nothing on the module changes, so streams can
be batched (stacked along B), saved and forked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from asr.errors import NotStreamable

# A NamedTuple whose fields are tensors with the batch dimension first, or tuples of such; each stack defines its own.
State = Any


class Stack(nn.Module, ABC):
    """A sequence model between the front end and the head.

    Attributes:
        output_size: features of an output frame, D.
        lookahead_frames: input frames after t that output t depends on; None if it needs the whole utterance.
        past_frames: input frames before t that output t depends on; None if all of them.
        not_streamable: why it cannot stream and what does instead; empty if it can.
    """

    output_size: int
    lookahead_frames: int | None
    past_frames: int | None = None
    not_streamable: str = ""

    @abstractmethod
    def forward(
        self, inputs: Float[Tensor, "B S D"], lengths: Int[Tensor, "B"]
    ) -> tuple[Float[Tensor, "B S E"], Int[Tensor, "B"]]:
        """Run whole utterances. Padding frames of `inputs` may hold anything finite; those of the output hold 0."""

    def initial_state(self, batch_size: int, like: Tensor) -> State:
        """State before the first frame, on the device and of the type of `like`; `step` and `flush` need one.

        Raises:
            NotStreamable: with the reason.
        """
        raise NotStreamable(self.not_streamable)

    def step(self, chunk: Float[Tensor, "B n D"], state: State) -> tuple[Float[Tensor, "B m E"], State]:
        """Take n >= 0 frames, give the m frames that no later frame can change any more."""
        raise NotStreamable(self.not_streamable)

    def flush(self, state: State) -> Float[Tensor, "B m E"]:
        """Give what the look-ahead still owes at the end of the utterance."""
        raise NotStreamable(self.not_streamable)

    def set_epoch(self, epoch: int) -> None:
        """Told before each training step; for what changes in the course of a training, such as a slope."""

    def figures(self) -> dict[str, float]:
        """Figures of this stack's own that `asr stack` prints beside those of every stack, such as a path length."""
        return {}
