"""Audio that comes in pieces, text that grows: one stream of a `Recognizer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from asr.audio.io import check_samples
from asr.audio.resample import StreamResampler
from asr.decode.decoder import TokenPath
from asr.decode.endpoint import EndpointRules, EndpointState
from asr.types import Transcript, Word

if TYPE_CHECKING:
    from asr.decode.recognizer import Recognizer
    from asr.decode.vad import VadState
    from asr.model import ModelState

NO_SAMPLES = np.zeros(0, dtype=np.float32)
INT16_SCALE = np.float32(1 / 32768)
KEPT_TOKENS = 256  # as many stable tokens stay in the decoder's state; more than that move out of it


@dataclass(frozen=True, slots=True)
class StreamResult:
    """What a stream has recognised.

    segments: those that ended since the last result. stable: text of the running segment that no later audio can
    change. unstable: what follows it so far. words: of the running segment, in seconds from the start of the stream.
    """

    segments: tuple[Transcript, ...]
    stable: str
    unstable: str
    words: tuple[Word, ...]

    @property
    def text(self) -> str:
        """The running segment's text."""
        return self.stable + self.unstable


class StreamState(NamedTuple):
    """Everything that a stream knows, as a value: nothing in it is changed in place.

    model: of the network; None before the first audio. decoder: of the running segment. settled: tokens of the running
    segment that have left the decoder. first_frame: where the decoder's segment began. frame: output frames so far.
    endpoint: of the running segment. pending: (n,) samples at the model's rate that wait for the network, in pieces of
    which each is longer than the next. ended: segments that ended and have not been asked for. finished: whether the
    audio has ended. vad: of what says when somebody speaks, if not the model does. resampled: whether audio comes
    through a resampling filter, whose memory is not in here.
    """

    model: ModelState | None
    decoder: Any
    settled: tuple[TokenPath, ...] = ()
    first_frame: int = 0
    frame: int = 0
    endpoint: EndpointState = EndpointState()
    pending: tuple[NDArray[np.float32], ...] = ()
    ended: tuple[Transcript, ...] = ()
    finished: bool = False
    vad: VadState | None = None
    resampled: bool = False

    @property
    def num_pending(self) -> int:
        """Samples that wait for the network."""
        return sum(map(len, self.pending))

    def split(self, num_samples: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The first of the samples that wait, and those after them."""
        waiting = self.pending[0] if len(self.pending) == 1 else np.concatenate((NO_SAMPLES, *self.pending))
        rest = waiting[num_samples:]
        # A copy lets go of what was heard; of a long rest, piece after piece, it would take the square of its length.
        return waiting[:num_samples], rest.copy() if len(rest) < num_samples else rest


class Stream:
    """One stream; made by `Recognizer.stream`.

    `accept_waveform` only takes audio in; `result` and `finish`, or `Recognizer.step` for many streams at once, let the
    network hear it. How audio is cut into calls changes nothing of the text.
    """

    def __init__(
        self, recognizer: Recognizer, state: StreamState, sample_rate_hz: int, *, endpoint: EndpointRules | None
    ) -> None:
        self.recognizer = recognizer
        self.state = state._replace(resampled=sample_rate_hz != recognizer.sample_rate_hz)
        self.endpoint = endpoint
        self.sample_rate_hz = sample_rate_hz
        self._resampler = StreamResampler(sample_rate_hz, recognizer.sample_rate_hz)

    def accept_waveform(
        self, samples: NDArray[np.float32] | NDArray[np.int16], sample_rate_hz: int | None = None
    ) -> None:
        """Take (n,) samples, n >= 0: float32 in [-1, 1], or int16.

        Raises:
            DataError: NaN, infinity, or samples that were not scaled; the stream is as before.
            ValueError: another type or shape, another rate than the stream's, or the stream has been finished.
        """
        if self.state.finished:
            raise ValueError("accept_waveform: this stream was finished; make another one")
        if sample_rate_hz not in (None, self.sample_rate_hz):
            raise ValueError(f"sample_rate_hz: got {sample_rate_hz}, expected {self.sample_rate_hz}, the stream's own")
        if samples.ndim != 1 or samples.dtype not in (np.float32, np.int16):
            raise ValueError(f"samples: got {samples.dtype} of shape {samples.shape}, expected (n,) float32 or int16")
        if samples.dtype == np.int16:
            heard = samples.astype(np.float32) * INT16_SCALE
        else:
            heard = samples.astype(np.float32, copy=True)
            check_samples(heard, "samples")
        self._append(self._resampler.push(heard))

    def result(self) -> StreamResult:
        """Hear what has come, and say what it is."""
        self.recognizer.step([self])
        ended, self.state = self.state.ended, self.state._replace(ended=())
        path, stable = self._path(), self._num_stable()
        tokenizer = self.recognizer.tokenizer
        whole, settled = tokenizer.decode(path.ids), tokenizer.decode(path.ids[:stable])
        if not whole.startswith(settled):  # a token that changes the text before it, such as a piece of a character
            settled = ""
        return StreamResult(ended, settled, whole[len(settled) :], self.recognizer.words(path))

    def finish(self) -> Transcript:
        """End the audio: flush everything, and give the running segment's final transcript.

        Segments that ended before and were not asked for are in `result().segments`.
        """
        if not self.state.finished:
            self._append(self._resampler.finish())
            self.state = self.state._replace(finished=True)
            self.recognizer.step([self])
            self.recognizer.flush(self)
        return self._final()

    def fork(self) -> Stream:
        """Another stream that has heard the same; the two go on by themselves.

        Raises:
            ValueError: the stream resamples, and the filter's memory cannot be copied.
        """
        return self.recognizer.stream(self.sample_rate_hz, self.state)

    def hear(self, log_probs: Any, state: StreamState) -> None:
        """Take over the network's new state and its frames (n, V), n >= 0, and decode them."""
        recognizer = self.recognizer
        state = state._replace(frame=self.state.frame + len(log_probs))
        first = self.state.frame
        if self.endpoint is None:
            self.state = self._decode(state, log_probs)
            return
        if recognizer.vad is not None and state.vad is not None:
            speech, vad = recognizer.vad.take(state.vad, first, len(log_probs), recognizer.samples_per_frame)
            state = state._replace(vad=vad)
        else:
            speech = (log_probs.argmax(-1) != 0).cpu().numpy()
        for cut, endpoint in self.endpoint.cuts(state.endpoint, first, speech):
            end = state.frame if cut < 0 else cut
            state = self._decode(state, log_probs[: end - first])
            log_probs, first = log_probs[end - first :], end
            if cut < 0:
                self.state = state._replace(endpoint=endpoint)
                return
            self.state = state
            final = self._final()
            if final.text:
                state = state._replace(ended=(*state.ended, final))
            state = state._replace(decoder=recognizer.decoder.initial_state(), settled=(), first_frame=cut)

    def _decode(self, state: StreamState, log_probs: Any) -> StreamState:
        import torch

        decoder = self.recognizer.decoder
        lengths = torch.tensor([len(log_probs)], device=log_probs.device)
        (after,) = decoder.extend([state.decoder], log_probs[None], lengths)
        stable = decoder.num_stable(after)
        if stable < KEPT_TOKENS:
            return state._replace(decoder=after)
        path = _cut(decoder.best(after)[0].path, stable)
        return state._replace(decoder=decoder.drop_stable(after, stable), settled=(*state.settled, path))

    def _path(self) -> TokenPath:
        """The running segment's best tokens so far."""
        return self._whole(self.recognizer.decoder.best(self.state.decoder)[0].path)

    def _whole(self, last: TokenPath) -> TokenPath:
        """The running segment's tokens, of which `last` are still the decoder's; frames from the stream's start on."""
        parts = [*self.state.settled, last]
        first = self.state.first_frame
        return TokenPath(
            [token for part in parts for token in part.ids],
            [frame + first for part in parts for frame in part.frames],
            [end + first for part in parts for end in part.ends],
            [value for part in parts for value in part.log_probs],
            last.total,
        )

    def _final(self) -> Transcript:
        """The running segment's transcript, if it ends here."""
        recognizer = self.recognizer
        found = recognizer.decoder.best(self.state.decoder, recognizer.num_hypotheses, final=True)
        return recognizer.transcript_of(one._replace(path=self._whole(one.path)) for one in found)

    def _num_stable(self) -> int:
        settled = sum(len(part.ids) for part in self.state.settled)
        return settled + self.recognizer.decoder.num_stable(self.state.decoder)

    def _append(self, samples: NDArray[np.float32]) -> None:
        if not len(samples):
            return
        pieces = self.state.pending
        while pieces and len(pieces[-1]) <= len(samples):  # so a sample is copied log(n) times, not n
            pieces, samples = pieces[:-1], np.concatenate((pieces[-1], samples))
        self.state = self.state._replace(pending=(*pieces, samples))


def _cut(path: TokenPath, count: int) -> TokenPath:
    """The first `count` tokens."""
    return TokenPath(path.ids[:count], path.frames[:count], path.ends[:count], path.log_probs[:count], path.total)
