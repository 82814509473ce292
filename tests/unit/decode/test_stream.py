"""Streaming equals offline, for every streamable stack and chunking, from samples to log-probabilities and text."""

import dataclasses
import gc
import pickle
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from asr import model, stacks
from asr.audio.resample import resample
from asr.checkpoint import Checkpoint
from asr.config.options import names, validate_stack
from asr.config.schema import Config, Text
from asr.decode.beam import BeamDecoder
from asr.decode.greedy import GreedyDecoder, greedy
from asr.decode.recognizer import Recognizer, Source
from asr.errors import ConfigError, DataError, NotStreamable
from asr.nn import products
from asr.text.tokenizer import build_tokenizer
from asr.types import Transcript

TOKENIZER = build_tokenizer(Text(), ["abcdefg hi"])
RATE_HZ = 16000
FORWARD = {name: {"bidirectional": False} for name in ("rnn", "lstm", "gru", "dilated", "diagonal", "linear_rnn")} | {
    "gru": {"bidirectional": False, "lookahead_frames": 2}
}
SIZES = st.lists(st.one_of(st.integers(0, 3), st.integers(4, 6000)), max_size=8)


def checkpoint(stack: dict[str, Any], seed: int = 0) -> Checkpoint:
    """A small model with random weights whose output is neither all blank nor one token for ever."""
    values = {
        "features": {"num_mels": 12, "normalization": "none"},
        "front_end": {
            "layers": [
                {"channels": 3, "time_kernel": 3, "time_stride": 2, "frequency_kernel": 3, "frequency_stride": 2}
            ]
        },
        "stack": {"num_layers": 2, "hidden_size": 8, **stack},
    }
    config = Config.model_validate(values)
    torch.manual_seed(seed)
    speech_model = model.build(config, TOKENIZER.num_tokens)
    hidden: list[torch.Tensor] = []
    hook = speech_model.stack.register_forward_hook(lambda module, inputs, outputs: hidden.append(outputs[0]))
    with torch.no_grad():  # logits of mean 0 and deviation 3 over some audio
        speech_model.eval()(torch.from_numpy(audio(2.0))[None], torch.tensor([2 * RATE_HZ]))
        hook.remove()
        mean, deviation = hidden[0][0].mean(0), hidden[0][0].std(0).clamp(min=1e-3)
        weight = speech_model.head.linear.weight.normal_() * 3 / deviation / len(deviation) ** 0.5
        speech_model.head.linear.weight.copy_(weight)
        speech_model.head.linear.bias.copy_(-weight @ mean)
    return Checkpoint(speech_model.eval(), config, TOKENIZER, {}, Path())


def streamable() -> list[dict[str, Any]]:
    options = [{"name": name, **FORWARD.get(name, {})} for name in names()]
    return [o for o in options if stacks.build(validate_stack(o), 4).lookahead_frames is not None]


def audio(seconds: float, seed: int = 1) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    loudness = np.repeat(random.uniform(0, 0.3, 1 + int(10 * seconds)), RATE_HZ // 10)[: int(seconds * RATE_HZ)]
    return (loudness * random.standard_normal(len(loudness))).astype(np.float32)


def streamed(recognizer: Recognizer, samples: NDArray[Any], sizes: list[int], rate: int = RATE_HZ) -> Transcript:
    stream = recognizer.stream(rate)
    for chunk in np.split(samples, np.minimum(np.cumsum(sizes, dtype=int), len(samples))):
        stream.accept_waveform(chunk)
        stream.result()
    return stream.finish()


def same(one: Transcript, other: Transcript) -> None:
    assert one.text == other.text
    assert [(w.text, w.start_seconds, w.end_seconds) for w in one.words] == [
        (w.text, w.start_seconds, w.end_seconds) for w in other.words
    ]
    assert [w.confidence for w in one.words] == pytest.approx([w.confidence for w in other.words], abs=2e-3)
    assert one.log_prob == pytest.approx(other.log_prob, abs=1e-2)


@pytest.mark.parametrize("stack", streamable(), ids=lambda options: options["name"])
def test_any_chunking_gives_the_offline_transcript(stack: dict[str, Any]) -> None:
    recognizer = Recognizer(checkpoint(stack), "cpu")
    samples = audio(1.3)
    offline = recognizer.transcribe(samples)
    assert len(offline.text) > 3
    for sizes in ([], [1] * 50, [0, 7, 0, 12345], [160] * 200):
        same(streamed(recognizer, samples, sizes), offline)

    @settings(max_examples=10, deadline=None)
    @given(SIZES)
    def check(sizes: list[int]) -> None:
        same(streamed(recognizer, samples, sizes), offline)

    check()


@pytest.mark.parametrize("stack", streamable(), ids=lambda options: options["name"])
def test_log_probabilities_are_the_offline_ones(stack: dict[str, Any]) -> None:
    loaded = checkpoint(stack)
    recognizer = Recognizer(loaded, "cpu")
    heard: list[torch.Tensor] = []

    class Spy(GreedyDecoder):
        def extend(self, states, log_probs, lengths):  # type: ignore[no-untyped-def]
            heard.append(log_probs[0])
            return super().extend(states, log_probs, lengths)

    recognizer.decoder = Spy()
    samples = audio(1.1)
    streamed(recognizer, samples, [1000, 3, 4321])
    with torch.inference_mode():
        offline, lengths = recognizer.model(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
    assert torch.cat(heard).shape == offline[0, : int(lengths)].shape
    bound = 0.0 if products.runs_here() else 1e-4
    assert float((torch.cat(heard) - offline[0, : int(lengths)]).abs().max()) <= bound


@pytest.mark.parametrize("length", [0, 1, 399, 400, 401, 719, 720, 721])
def test_short_audio(length: int) -> None:
    recognizer = Recognizer(checkpoint({"name": "gru", "bidirectional": False}), "cpu")
    samples = audio(1.0)[:length]
    same(streamed(recognizer, samples, [length // 2]), recognizer.transcribe(samples))


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_other_rates_and_int16(rate: int) -> None:
    recognizer = Recognizer(checkpoint({"name": "gru", "bidirectional": False}), "cpu")
    whole = resample(audio(1.0), RATE_HZ, rate)
    as_int16 = (whole * 32767).astype(np.int16)
    offline = recognizer.transcribe(as_int16.astype(np.float32) / 32768, rate)
    same(streamed(recognizer, as_int16, [77, 0, 5000], rate), offline)


def test_beam_search_streams_too() -> None:
    recognizer = Recognizer(checkpoint({"name": "gru", "bidirectional": False}), "cpu")
    recognizer.decoder = BeamDecoder(TOKENIZER, beam_size=8, hotwords={"ab": 2.0}, beta=0.5)
    samples = audio(1.2)
    offline = recognizer.transcribe(samples)
    assert offline.text
    for sizes in ([], [1, 0, 999], [640] * 20):
        same(streamed(recognizer, samples, sizes), offline)


def test_the_running_text_grows_and_what_is_stable_stays() -> None:
    recognizer = Recognizer(checkpoint({"name": "gru", "bidirectional": False}), "cpu")
    samples, stream, before = audio(2.0), recognizer.stream(), ""
    for chunk in np.split(samples, range(1600, len(samples), 1600)):
        stream.accept_waveform(chunk)
        result = stream.result()
        assert result.stable.startswith(before)
        before = result.stable
    final = stream.finish()
    assert final.text.startswith(before)
    assert before


@pytest.mark.parametrize("stack", streamable(), ids=lambda options: options["name"])
def test_streams_of_different_age_go_together(stack: dict[str, Any]) -> None:
    recognizer = Recognizer(checkpoint(stack), "cpu")
    sources = [audio(1.0 + 0.3 * i, seed=i) for i in range(4)]
    chunks = [iter(np.split(s, range(1500 + 700 * i, len(s), 1500))) for i, s in enumerate(sources)]
    streams = [recognizer.stream() for _ in sources]
    calls: list[int] = []
    step = recognizer.model.step
    recognizer.model.step = lambda chunk, state: calls.append(len(chunk)) or step(chunk, state)  # type: ignore[method-assign]
    for _ in range(20):
        for stream, chunk in zip(streams, chunks, strict=True):
            stream.accept_waveform(next(chunk, np.zeros(0, np.float32)))
        recognizer.step(streams)
    assert max(calls) > 1
    for stream, source in zip(streams, sources, strict=True):
        same(stream.finish(), recognizer.transcribe(source))


def test_a_stream_forks_and_its_state_pickles() -> None:
    recognizer = Recognizer(checkpoint({"name": "gru", "bidirectional": False}), "cpu")
    first, rest, other = audio(0.7, 1), audio(0.6, 2), audio(0.8, 3)
    stream = recognizer.stream()
    stream.accept_waveform(first)
    stream.result()
    fork = stream.fork()
    saved = recognizer.stream(state=pickle.loads(pickle.dumps(stream.state)))  # noqa: S301 -- our own bytes
    for branch, more in ((stream, rest), (fork, other), (saved, other)):
        branch.accept_waveform(more)
    for branch, more in ((fork, other), (stream, rest), (saved, other)):
        same(branch.finish(), recognizer.transcribe(np.concatenate((first, more))))


def test_what_waits_is_copied_seldom_and_is_part_of_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    recognizer = Recognizer(checkpoint({"name": "gru", "bidirectional": False}), "cpu")
    samples, stream, copied = audio(20.0), recognizer.stream(), []
    concatenate = np.concatenate

    def counted(parts: Any) -> NDArray[Any]:
        copied.append(sum(map(len, parts)))
        return concatenate(parts)

    with monkeypatch.context() as patch:
        patch.setattr(np, "concatenate", counted)
        for chunk in np.split(samples, range(79, len(samples), 79)):
            stream.accept_waveform(chunk)
    assert copied
    assert sum(copied) < 12 * len(samples)  # 4050 chunks: log2 is 12
    assert 1 < len(stream.state.pending) < 12
    saved = recognizer.stream(state=pickle.loads(pickle.dumps(stream.state)))  # noqa: S301 -- our own bytes
    offline = recognizer.transcribe(samples)
    for branch in (stream.fork(), saved, stream):
        same(branch.finish(), offline)


def test_segments_do_not_depend_on_chunks_and_add_up() -> None:
    loaded = checkpoint({"name": "gru", "bidirectional": False})
    endpoint = {"silence_seconds": 0.3, "trailing_seconds": 0.1, "longest_seconds": 1.0}
    config = loaded.config.model_copy(update={"decode": loaded.config.decode.model_validate({"endpoint": endpoint})})
    recognizer = Recognizer(dataclasses.replace(loaded, config=config), "cpu", endpoints=True)
    samples = audio(6.0)

    def segments(size: int) -> list[Transcript]:
        stream, found = recognizer.stream(), []
        for chunk in np.split(samples, range(size, len(samples), size)):
            stream.accept_waveform(chunk)
            found += stream.result().segments
        last = stream.finish()
        return [*found, *stream.result().segments, last]

    expected = segments(len(samples))
    assert len(expected) > 3
    for size in (160, 1000, 7777):
        for one, other in zip(segments(size), expected, strict=True):
            same(one, other)
    starts = [segment.words[0].start_seconds for segment in expected if segment.words]
    assert starts == sorted(starts)
    assert starts[-1] > 3
    log_probs, lengths = recognizer.model(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
    tokens = greedy(log_probs, lengths)[0].ids
    assert (
        "".join(s.text.replace(" ", "") for s in expected).replace(" ", "")[:5]
        == TOKENIZER.decode(tokens).replace(" ", "")[:5]
    )


def resident_mb() -> float:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to see its memory")
@pytest.mark.parametrize(("beam", "rate"), [(False, RATE_HZ), (True, 44100)], ids=["greedy", "beam-44100"])
def test_half_an_hour_takes_no_more_memory_than_a_minute_and_times_do_not_drift(beam: bool, rate: int) -> None:
    loaded = checkpoint({"name": "gru", "num_layers": 1, "bidirectional": False})
    seconds = 10.0  # of audio that is played again and again; each time makes one segment
    endpoint = {"silence_seconds": 1e3, "trailing_seconds": 1e3, "longest_seconds": seconds}
    config = loaded.config.model_copy(update={"decode": loaded.config.decode.model_validate({"endpoint": endpoint})})
    decoder = BeamDecoder(TOKENIZER, beam_size=8) if beam else None
    recognizer = Recognizer(dataclasses.replace(loaded, config=config), "cpu", decoder=decoder, endpoints=True)
    samples = resample(audio(seconds), RATE_HZ, rate)
    stream, segments = recognizer.stream(rate), []
    first = most = 0.0
    for number in range(180):
        for chunk in np.array_split(samples, 2):
            stream.accept_waveform(chunk)
            segments += [
                [(word.text, word.start_seconds, word.end_seconds) for word in segment.words]
                for segment in stream.result().segments
            ]
        if number == 5:
            first = resident_mb()
        if number > 5 and number % 20 == 0:
            most = max(most, resident_mb())
    assert most - first < 5
    assert len(segments) in (179, 180)
    expected = segments[3]  # the network has settled
    assert len(expected) > 3
    for number, words in enumerate(segments[4:], 4):
        offset = (number - 3) * seconds
        assert [text for text, _, _ in words] == [text for text, _, _ in expected]
        times = [time for _, *ends in words for time in ends]
        assert times == pytest.approx([offset + time for _, *ends in expected for time in ends], abs=2e-3)


@pytest.mark.parametrize("beam", [False, True])
def test_long_audio_goes_through_in_pieces_and_gives_the_transcript_of_the_whole(beam: bool, tmp_path: Path) -> None:
    decoder = BeamDecoder(TOKENIZER, beam_size=8, beta=0.5) if beam else None
    recognizer = Recognizer(
        checkpoint({"name": "gru", "bidirectional": False}), "cpu", decoder=decoder, endpoints=True, nbest=3 * beam
    )
    path = tmp_path / "long.wav"
    soundfile.write(path, resample(audio(20.0), RATE_HZ, 22050), 22050, subtype="FLOAT")
    source = recognizer.file_source(path)
    ((_, whole),) = recognizer.transcribe_many([source])
    heard: list[float] = []
    read: list[str] = []
    only_blocks = dataclasses.replace(source, read=lambda: read.append("whole"))  # type: ignore[arg-type, return-value]
    ((_, pieces),) = recognizer.transcribe_many([only_blocks], batch_seconds=5.0, heard=heard.append)
    assert isinstance(whole, Transcript)
    assert isinstance(pieces, Transcript)
    assert len(whole.text) > 20
    same(pieces, whole)
    assert [one.text for one in pieces.nbest] == [one.text for one in whole.nbest]
    assert len(whole.nbest) == 3 * beam
    assert not read
    assert len(heard) > 3
    assert sum(heard) == pytest.approx(20.0, abs=0.01)


def test_what_models_need_whole_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asr.decode.recognizer.WHOLE_SECONDS", 2.0)
    bidirectional = Recognizer(checkpoint({"name": "gru"}), "cpu")
    assert bidirectional.transcribe(audio(2.0)).text
    with pytest.raises(DataError, match=r"audio: 0\.00 h long, expected at most .* Streamable: .*gru_streaming"):
        bidirectional.transcribe(audio(2.1))
    forward = Recognizer(checkpoint({"name": "gru", "bidirectional": False}), "cpu")
    samples = audio(2.1)
    ((_, pieces),) = forward.transcribe_many([Source(2.1, lambda: samples)], batch_seconds=2.0)
    same(pieces, forward.transcribe_batch([samples])[0])  # type: ignore[arg-type]


def test_whole_utterance_models_refuse_and_name_those_that_stream() -> None:
    recognizer = Recognizer(checkpoint({"name": "gru"}), "cpu")
    with pytest.raises(NotStreamable, match="gru_streaming"):
        recognizer.stream()


@pytest.mark.parametrize(
    ("samples", "rate", "said"),
    [
        (np.zeros((2, 3), np.float32), None, r"shape \(2, 3\)"),
        (np.zeros(3, np.float64), None, "float64"),
        (np.zeros(3, np.float32), 8000, "got 8000, expected 16000"),
    ],
)
def test_wrong_samples_are_refused(samples: NDArray[Any], rate: int | None, said: str) -> None:
    stream = Recognizer(checkpoint({"name": "gru", "bidirectional": False}), "cpu").stream()
    with pytest.raises(ValueError, match=said):
        stream.accept_waveform(samples, rate)


@pytest.mark.parametrize(
    ("sample", "said"), [(np.nan, "NaN or infinite"), (-np.inf, "NaN or infinite"), (3000.0, "divide by full scale")]
)
def test_samples_that_no_file_may_have_are_refused(sample: float, said: str) -> None:
    recognizer = Recognizer(checkpoint({"name": "gru", "bidirectional": False}), "cpu")
    good = audio(1.0)
    bad = np.concatenate((good, np.array([sample], np.float32)))
    with pytest.raises(DataError, match=f"audio: has .*{said}"):
        recognizer.transcribe(bad)
    stream = recognizer.stream()
    stream.accept_waveform(good)
    with pytest.raises(DataError, match=f"samples: has .*{said}"):
        stream.accept_waveform(bad)
    same(stream.finish(), recognizer.transcribe(good))  # the stream goes on as if nothing had come


@pytest.mark.parametrize("rate", [0, 100, 3999, 1_000_000_000])
def test_rates_that_no_audio_has_are_refused(rate: int) -> None:
    recognizer = Recognizer(checkpoint({"name": "gru", "bidirectional": False}), "cpu")
    for ask in (recognizer.stream, lambda rate: recognizer.transcribe(audio(0.1), rate)):
        with pytest.raises(ConfigError, match=rf"sample_rate_hz: got {rate}, expected 4000\.\.384000"):
            ask(rate)


def test_a_finished_stream_takes_nothing_more() -> None:
    stream = Recognizer(checkpoint({"name": "gru", "bidirectional": False}), "cpu").stream()
    stream.accept_waveform(audio(0.5))
    assert stream.finish() == stream.finish()
    with pytest.raises(ValueError, match="finished"):
        stream.accept_waveform(audio(0.1))
    other = Recognizer(checkpoint({"name": "gru", "bidirectional": False}), "cpu").stream(8000)
    with pytest.raises(ValueError, match="cannot be copied"):
        other.fork()
    for rate in (None, RATE_HZ, 8000):
        with pytest.raises(ValueError, match="cannot be copied"):
            other.recognizer.stream(rate, pickle.loads(pickle.dumps(other.state)))  # noqa: S301 -- our own bytes
