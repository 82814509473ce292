"""Speech in, text out: a checkpoint ready for use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from asr.audio.header import MAX_RATE_HZ, MIN_RATE_HZ
from asr.audio.io import audio_blocks, audio_info, check_samples, read_audio
from asr.checkpoint import Checkpoint
from asr.decode.decoder import Decoder, Hypothesis, TokenPath
from asr.decode.device import choose_device
from asr.decode.endpoint import EndpointRules
from asr.decode.greedy import GreedyDecoder, greedy
from asr.decode.stream import Stream, StreamState
from asr.decode.vad import SileroVad
from asr.decode.words import words_of
from asr.errors import AsrError, ConfigError, DataError
from asr.nn.folding import fold_norms
from asr.nn.precision import whole_float32
from asr.types import Reading, Transcript, Word

WHOLE_SECONDS = 7200.0  # no longer audio in one piece: 3 GB with model=small, 10 GB with model=ds2_5x800
BLOCK_SAMPLES = 65_536  # of audio at hand that goes through the network piece by piece
MAX_STEP_FRAMES = 512  # output frames of a stream in one call of the network: its memory is bounded
BATCH_SECONDS = 600.0  # audio recognised at a time, padding included: some hundred MB of activations


@dataclass(frozen=True, slots=True)
class Source:
    """Audio to be recognised: its length, for batching, and how to get it as (N,) float32 at the model's rate.

    blocks: how to get it piece by piece, for audio that is too long to be taken whole. name: in messages.
    """

    seconds: float
    read: Callable[[], NDArray[np.float32]]
    blocks: Callable[[], Iterator[NDArray[np.float32]]] | None = None
    name: str = "audio"


class Recognizer:
    """Recognises speech, whole or as it comes. A transcript depends neither on its batch nor on how audio was cut.

    Args:
        checkpoint: from `asr.checkpoint.load`; its model is this recogniser's from now on (`asr.nn.folding`).
        device: torch's name of it; None: a GPU if there is one.
        decoder: from log-probabilities to tokens; None: greedy.
        endpoints: whether streams are cut into segments, by the rules of `decode.endpoint`.
        nbest: how many readings transcripts give; 0: only the best, as text and words.
        vad: says for endpoints when somebody speaks; None: the model does, by what is not blank.

    Raises:
        ValueError: several readings are asked of the greedy decoder.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str | None = None,
        *,
        decoder: Decoder | None = None,
        endpoints: bool = False,
        nbest: int = 0,
        vad: SileroVad | None = None,
    ) -> None:
        self.device = choose_device(device)
        self.model = checkpoint.model.to(self.device)
        fold_norms(self.model)
        self.tokenizer = checkpoint.tokenizer
        self.calibration = checkpoint.calibration
        self.sample_rate_hz = checkpoint.config.data.sample_rate_hz
        self.decoder: Decoder = decoder or GreedyDecoder()
        if nbest and isinstance(self.decoder, GreedyDecoder):
            raise ValueError(f"nbest: got {nbest} with the greedy decoder, which has one reading; expected a beam")
        self.nbest = nbest
        self.vad = vad
        rules = checkpoint.config.decode.endpoint
        self.endpoint = EndpointRules.build(rules, self.model.frame_seconds) if endpoints else None

    def transcribe(self, audio: str | Path | NDArray[np.float32], sample_rate_hz: int | None = None) -> Transcript:
        """Recognise one file, or samples in [-1, 1] at `sample_rate_hz` (the model's rate if None).

        Long audio is treated as `transcribe_many` does.

        Raises:
            ConfigError: no audio has that rate.
            DataError: the file cannot be read, samples are NaN, infinite or not scaled, or the audio is too long for a
                model that needs it whole.
        """
        if isinstance(audio, np.ndarray):
            samples = _as_samples(audio, self._rate(sample_rate_hz), self.sample_rate_hz)
            source = Source(len(samples) / self.sample_rate_hz, lambda: samples)
        else:
            source = self.file_source(audio)
        ((_, result),) = self.transcribe_many([source])
        if isinstance(result, AsrError):
            raise result
        return result

    def file_source(self, path: str | Path) -> Source:
        """A file as a `Source`.

        Raises:
            DataError: the file's header cannot be read.
        """
        rate = self.sample_rate_hz
        return Source(
            audio_info(path).seconds,
            lambda: read_audio(path, sample_rate_hz=rate, max_seconds=WHOLE_SECONDS),
            lambda: audio_blocks(path, sample_rate_hz=rate),
            str(path),
        )

    def transcribe_many(
        self,
        sources: Sequence[Source],
        *,
        batch_seconds: float = BATCH_SECONDS,
        heard: Callable[[float], object] = lambda seconds: None,
    ) -> Iterator[tuple[int, Transcript | AsrError]]:
        """Recognise many, batched by length: yields (index, transcript or what went wrong), longest first.

        The next batch is read while this one is recognised. Audio longer than `batch_seconds` goes through a model that
        streams piece by piece, as a stream, so its memory is bounded and the transcript is that of the whole. A model
        that needs the whole takes it whole, up to `WHOLE_SECONDS`: longer audio is a DataError, never cut.

        Args:
            sources: what to recognise.
            batch_seconds: audio recognised at a time, padding included.
            heard: called with the seconds of audio that have been recognised since the last call.
        """
        order = sorted(range(len(sources)), key=lambda i: -sources[i].seconds)
        most = batch_seconds if not self.model.not_streamable else WHOLE_SECONDS
        long = [i for i in order if sources[i].seconds > most]
        for i in long:
            yield i, self._transcribe_long(sources[i], heard)
        order = order[len(long) :]
        batches = _cut(order, [sources[i].seconds for i in order], batch_seconds)
        if not batches:
            return
        with ThreadPoolExecutor(1) as pool:
            pending = [pool.submit(_read, sources, batch) for batch in batches[:1]]
            for following in [*batches[1:], None]:
                read = pending.pop().result()
                if following is not None:
                    pending.append(pool.submit(_read, sources, following))
                yield from ((i, result) for i, result in read if isinstance(result, AsrError))
                good = [(i, result) for i, result in read if not isinstance(result, AsrError)]
                yield from zip((i for i, _ in good), self.transcribe_batch([s for _, s in good]), strict=True)
                heard(sum(sources[i].seconds for i, _ in read))

    def _transcribe_long(self, source: Source, heard: Callable[[float], object]) -> Transcript | AsrError:
        """What a stream without endpoints hears of it."""
        if self.model.not_streamable:
            return DataError(
                f"{source.name}: {source.seconds / 3600:.2f} h long, expected at most {WHOLE_SECONDS / 3600:g} h for a "
                f"model that needs the whole audio: {self.model.not_streamable}"
            )
        state = StreamState(None, self.decoder.initial_state())
        stream = Stream(self, state, self.sample_rate_hz, endpoint=None)
        try:
            for block in source.blocks() if source.blocks else _pieces(source.read()):
                stream.accept_waveform(block)
                self.step([stream])
                heard(len(block) / self.sample_rate_hz)
            return stream.finish()
        except AsrError as error:
            return error

    @torch.inference_mode()
    @whole_float32()
    def log_probs(self, samples: NDArray[np.float32]) -> torch.Tensor:
        """(N,) samples at the model's rate -> (S, V) log-probabilities, in one piece."""
        lengths = torch.tensor([len(samples)], device=self.device)
        log_probs, frames = self.model(torch.from_numpy(samples)[None].to(self.device), lengths)
        return log_probs[0, : int(frames)]

    @torch.inference_mode()
    @whole_float32()
    def transcribe_batch(self, audio: Sequence[NDArray[np.float32]]) -> list[Transcript]:
        """Recognise (N_i,) samples each, all in one padded batch."""
        if not audio:
            return []
        padded = np.zeros((len(audio), max(1, *(len(samples) for samples in audio))), dtype=np.float32)
        for row, samples in enumerate(audio):
            padded[row, : len(samples)] = samples
        lengths = torch.tensor([len(samples) for samples in audio], device=self.device)
        log_probs, frames = self.model(torch.from_numpy(padded).to(self.device), lengths)
        if isinstance(self.decoder, GreedyDecoder):
            return [self.transcript(path) for path in greedy(log_probs, frames)]
        states = self.decoder.extend([self.decoder.initial_state()] * len(audio), log_probs, frames)
        return [self.transcript_of(self.decoder.best(state, self.num_hypotheses, final=True)) for state in states]

    def stream(self, sample_rate_hz: int | None = None, state: StreamState | None = None) -> Stream:
        """Begin a stream of audio at `sample_rate_hz` (the model's rate if None), or go on from a saved state.

        Raises:
            ConfigError: no audio has that rate.
            NotStreamable: the model needs whole utterances; the message names what streams.
            ValueError: the state is of a stream that resamples.
        """
        self.model.require_streamable()
        state = state or StreamState(None, self.decoder.initial_state())
        if state.resampled:
            raise ValueError(
                f"state: got one of a stream that resamples, expected one at the model's {self.sample_rate_hz} Hz; the "
                "resampling filter's memory cannot be copied"
            )
        return Stream(self, state, self._rate(sample_rate_hz), endpoint=self.endpoint)

    def _rate(self, sample_rate_hz: int | None) -> int:
        """The rate of audio that comes; the model's if None."""
        if sample_rate_hz is None or sample_rate_hz == self.sample_rate_hz:
            return self.sample_rate_hz
        if not MIN_RATE_HZ <= sample_rate_hz <= MAX_RATE_HZ:
            raise ConfigError(f"sample_rate_hz: got {sample_rate_hz}, expected {MIN_RATE_HZ}..{MAX_RATE_HZ}")
        return sample_rate_hz

    @property
    def lookahead_seconds(self) -> float:
        """Audio after the start of an output frame that has to come before the frame does, its window included.

        A stream's latency is this, the length of the chunks in which its audio comes, up to one frame as audio waits
        until it fills one, and the work.

        Raises:
            NotStreamable: the model needs whole utterances.
        """
        return self.model.lookahead_seconds

    @torch.inference_mode()
    @whole_float32()
    def step(self, streams: Sequence[Stream]) -> None:
        """Let the network hear what streams have waiting; those of the same shape go through it together.

        Audio goes in by whole output frames, so that after some frames all streams' states have the same shapes. What
        is left of a stream that is finished follows in `flush`.
        """
        frame = self.samples_per_frame
        while True:
            groups: dict[Any, list[Stream]] = {}
            for stream in streams:
                count = min(stream.state.num_pending // frame, MAX_STEP_FRAMES)
                if count:
                    groups.setdefault((count, _shapes(stream.state.model)), []).append(stream)
            if not groups:
                return
            for (count, _), group in groups.items():
                self._hear(group, count * frame)

    @torch.inference_mode()
    @whole_float32()
    def flush(self, stream: Stream) -> None:
        """Let a finished stream's last samples through, and what the look-aheads still owe."""
        self._hear([stream], stream.state.num_pending)
        state = stream.state
        assert state.model is not None
        stream.hear(self.model.flush(state.model)[0], state)

    @property
    def samples_per_frame(self) -> int:
        """Samples between two output frames."""
        return self.model.features.hop_samples * self.model.front_end.time_stride

    def _hear(self, streams: Sequence[Stream], num_samples: int) -> None:
        """One call of the network on `num_samples` of each stream."""
        parts = [stream.state.split(num_samples) for stream in streams]
        chunk = torch.from_numpy(np.stack([heard for heard, _ in parts])).to(self.device)
        states = [stream.state.model or self.model.initial_state(1, chunk) for stream in streams]
        log_probs, after = self.model.step(chunk, states[0] if len(states) == 1 else _joined(states))
        for row, (stream, (heard, rest)) in enumerate(zip(streams, parts, strict=True)):
            own = after if len(streams) == 1 else _row(after, row)
            state = stream.state._replace(model=own, pending=(rest,))
            if self.vad is not None and stream.endpoint is not None:
                state = state._replace(vad=self.vad.step(state.vad or self.vad.initial_state(), heard))
            stream.hear(log_probs[row], state)

    def transcript(self, path: TokenPath) -> Transcript:
        """What a path says, with times in seconds."""
        return Transcript(self.tokenizer.decode(path.ids), self.words(path), path.total)

    @property
    def num_hypotheses(self) -> int:
        """How many hypotheses `transcript_of` needs at most: some spell the same text with other tokens."""
        return 8 * self.nbest if self.nbest else 1

    def transcript_of(self, hypotheses: Iterable[Hypothesis]) -> Transcript:
        """What hypotheses say, best first; those that spell the same text are one reading, the best of them."""
        readings: dict[str, Reading] = {}
        best: TokenPath | None = None
        for hypothesis in hypotheses:
            best = best or hypothesis.path
            if len(readings) >= self.nbest:
                break
            text = self.tokenizer.decode(hypothesis.path.ids)
            readings.setdefault(text, Reading(text, hypothesis.total, hypothesis.acoustic, hypothesis.lm))
        assert best is not None
        return replace(self.transcript(best), nbest=tuple(readings.values()))

    def words(self, path: TokenPath) -> tuple[Word, ...]:
        """A path's words, their confidences and times calibrated if the checkpoint is."""
        words = words_of(path, self.tokenizer, self.model.frame_seconds)
        return words if self.calibration is None else self.calibration(words)


def _shapes(state: Any) -> Any:
    """The shapes of a state's tensors, as something to compare."""
    if isinstance(state, torch.Tensor):
        return state.shape
    return None if state is None else tuple(_shapes(part) for part in state)


def _joined(states: Sequence[Any]) -> Any:
    """States of several streams as one: every tensor joined along its first axis."""
    first = states[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(states))
    parts = [_joined(column) for column in zip(*states, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)


def _row(state: Any, row: int) -> Any:
    """One stream's part of a joined state, in memory of its own."""
    if isinstance(state, torch.Tensor):
        return state[row : row + 1].clone()
    parts = [_row(part, row) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def _pieces(samples: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    return (samples[start : start + BLOCK_SAMPLES] for start in range(0, len(samples), BLOCK_SAMPLES))


def _as_samples(audio: NDArray[np.float32], from_hz: int, to_hz: int) -> NDArray[np.float32]:
    from asr.audio.resample import resample

    if audio.ndim != 1 or audio.dtype != np.float32:
        raise ValueError(f"audio: got {audio.dtype} of shape {audio.shape}, expected float32 of shape (N,)")
    check_samples(audio, "audio")
    return audio if from_hz == to_hz else resample(audio, from_hz, to_hz)


def _read(sources: Sequence[Source], batch: Sequence[int]) -> list[tuple[int, NDArray[np.float32] | AsrError]]:
    results: list[tuple[int, NDArray[np.float32] | AsrError]] = []
    for i in batch:
        try:
            results.append((i, sources[i].read()))
        except AsrError as error:
            results.append((i, error))
    return results


def _cut(order: Sequence[int], seconds: Sequence[float], batch_seconds: float) -> list[list[int]]:
    """Cut a descending order so that items times longest stays within `batch_seconds`; one item always fits."""
    batches: list[list[int]] = []
    longest = 0.0
    for i, length in zip(order, seconds, strict=True):
        if not batches or (len(batches[-1]) + 1) * longest > batch_seconds:
            batches.append([])
            longest = length
        batches[-1].append(i)
    return batches
