"""The acoustic model: samples -> features -> front end -> stack -> head -> log-probabilities.

Offline: `forward`. Streaming: `initial_state`, `step`, `flush`; both give the same log-probabilities.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from asr import features, stacks
from asr.config.schema import Config
from asr.errors import NotStreamable
from asr.features import FeatureExtractor, specaugment
from asr.features.specaugment import SpecAugment
from asr.heads.ctc import CtcHead
from asr.nn import front_end
from asr.nn.front_end import ConvFrontEnd, FrontEndState
from asr.stacks.base import Stack, State

BLOCK_SAMPLES = 1 << 20  # longer audio goes through the front end in such blocks; a minute at 16 kHz


def build(config: Config, num_tokens: int) -> SpeechModel:
    """Make the model that `config` describes, for `num_tokens` tokens with the blank."""
    extractor = features.build(config.features, config.data.sample_rate_hz)
    convolutions = front_end.build(config.front_end, extractor.num_features)
    stack = stacks.build(config.stack, convolutions.output_size)
    head = CtcHead(input_size=stack.output_size, num_tokens=num_tokens, dropout=config.head.dropout)
    augment = specaugment.build(config.augment)
    return SpeechModel(features=extractor, augment=augment, front_end=convolutions, stack=stack, head=head)


class ModelState(NamedTuple):
    """Everything that a stream carries from chunk to chunk; every tensor has the batch dimension first."""

    features: State
    front_end: FrontEndState
    stack: State


class SpeechModel(nn.Module):
    """Log-probabilities of tokens from audio; see the module's first lines."""

    def __init__(
        self,
        *,
        features: FeatureExtractor,
        augment: SpecAugment,
        front_end: ConvFrontEnd,
        stack: Stack,
        head: CtcHead,
    ) -> None:
        super().__init__()
        self.features = features
        self.augment = augment
        self.front_end = front_end
        self.stack = stack
        self.head = head

    @property
    def frame_seconds(self) -> float:
        """Time between two output frames."""
        return self.features.hop_seconds * self.front_end.time_stride

    def frame_count(self, num_samples: int) -> int:
        """Output frames for `num_samples` samples: what CTC has to place the tokens on."""
        return self.front_end.frame_count(self.features.frame_count(num_samples))

    def forward(
        self,
        audio: Float[Tensor, "B N"],
        audio_lengths: Int[Tensor, "B"],
        seeds: Int[Tensor, "B"] | None = None,
    ) -> tuple[Float[Tensor, "B S V"], Int[Tensor, "B"]]:
        """Recognise whole utterances.

        Args:
            audio: samples in [-1, 1] at the model's rate, padded with anything finite.
            audio_lengths: real samples.
            seeds: one for each utterance; given in training, SpecAugment draws its masks from them alone.

        Returns:
            Log-probabilities, and how many of their frames are real.
        """
        if (
            len(audio) == 1
            and audio.shape[1] > BLOCK_SAMPLES
            and not self.features.not_streamable
            and not self.training
        ):
            hidden, lengths = self._front_end_in_blocks(audio[:, : int(audio_lengths)])
        else:
            frames, lengths = self.features(audio, audio_lengths)
            if seeds is not None:
                frames = self.augment(frames, lengths, seeds)
            hidden, lengths = self.front_end(frames, lengths)
        hidden, lengths = self.stack(hidden, lengths)
        return self.head(hidden), lengths

    def _front_end_in_blocks(self, audio: Float[Tensor, "1 N"]) -> tuple[Float[Tensor, "1 S D"], Int[Tensor, "1"]]:
        """Features and front end of long audio, by what makes them stream: convolutions take most of the memory."""
        features_state, state = self.features.initial_state(1, audio), self.front_end.initial_state(1, audio)
        pieces = []
        for samples in audio.split(BLOCK_SAMPLES, dim=1):
            frames, features_state = self.features.step(samples, features_state)
            hidden, state = self.front_end.step(frames, state)
            pieces.append(hidden)
        hidden = torch.cat((*pieces, self.front_end.flush(state)), dim=1)
        return hidden, torch.full((1,), hidden.shape[1], device=audio.device)

    @property
    def lookahead_seconds(self) -> float:
        """How far beyond an output frame's own window the model looks; what streaming has to wait.

        Raises:
            NotStreamable: the model needs the whole utterance.
        """
        self.require_streamable()
        assert self.stack.lookahead_frames is not None
        frames = self.front_end.lookahead_frames + self.stack.lookahead_frames * self.front_end.time_stride
        return frames * self.features.hop_seconds + self.features.window_seconds

    @property
    def not_streamable(self) -> str:
        """Why the model cannot stream and what does instead; empty if it can."""
        return self.features.not_streamable or self.stack.not_streamable

    def require_streamable(self) -> None:
        """Raise NotStreamable, with the reason and what to use instead, unless the model can stream."""
        if self.not_streamable:
            raise NotStreamable(self.not_streamable)

    def initial_state(self, batch_size: int, like: Tensor) -> ModelState:
        """State of `batch_size` streams that have heard nothing, on the device and of the type of `like`."""
        self.require_streamable()
        return ModelState(
            self.features.initial_state(batch_size, like),
            self.front_end.initial_state(batch_size, like),
            self.stack.initial_state(batch_size, like),
        )

    def step(self, samples: Float[Tensor, "B n"], state: ModelState) -> tuple[Float[Tensor, "B m V"], ModelState]:
        """Take n >= 0 samples of each stream, give the log-probabilities that are final."""
        frames, features_state = self.features.step(samples, state.features)
        hidden, front_end_state = self.front_end.step(frames, state.front_end)
        hidden, stack_state = self.stack.step(hidden, state.stack)
        return self.head(hidden), ModelState(features_state, front_end_state, stack_state)

    def flush(self, state: ModelState) -> Float[Tensor, "B m V"]:
        """Give what the look-aheads still owe at the end of the audio."""
        hidden, stack_state = self.stack.step(self.front_end.flush(state.front_end), state.stack)
        return self.head(torch.cat((hidden, self.stack.flush(stack_state)), 1))
