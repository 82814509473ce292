"""Endpoints by silero-vad: the places of its windows, chunks, and what the net itself says."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from asr.audio.io import read_audio
from asr.decode import vad as vad_module
from asr.decode.recognizer import Recognizer
from asr.decode.vad import CONTEXT, RATE_HZ, WINDOW, SileroVad
from asr.errors import ConfigError
from asr.types import Transcript
from tests.support.shared_data import shared_data
from tests.unit.decode.test_stream import audio, checkpoint, same


class Loudness:
    """In place of the net: a window has speech if it is loud. Counts windows in `h`, to see that states come back."""

    def run(self, names: list[str], inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        assert names == ["speech_probs", "hn", "cn"]
        windows = inputs["input"]
        assert windows.shape[1] == CONTEXT + WINDOW
        return [np.abs(windows[:, CONTEXT:]).mean(1) * 10, inputs["h"] + len(windows), inputs["c"]]


def loudness_vad() -> SileroVad:
    vad = SileroVad.__new__(SileroVad)
    vad._session = Loudness()  # type: ignore[assignment]
    return vad


def frames_by_hand(samples: NDArray[np.float32], num_frames: int, samples_per_frame: int) -> list[bool]:
    found = []
    for frame in range(num_frames):
        end = frame * samples_per_frame // WINDOW * WINDOW  # of the last window before the frame
        found.append(end >= WINDOW and float(np.abs(samples[end - WINDOW : end]).mean()) * 10 >= 0.5)
    return found


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3000), max_size=12), st.sampled_from([160, 320, 640, 1280]))
def test_each_frame_has_the_last_window_before_it_however_audio_is_cut(
    sizes: list[int], samples_per_frame: int
) -> None:
    vad, samples = loudness_vad(), audio(1.0)
    state, speech, heard = vad.initial_state(), [], 0
    for chunk in np.split(samples, np.minimum(np.cumsum(sizes, dtype=int), len(samples))):
        state = vad.step(state, chunk)
        heard += len(chunk)
        frames = max(0, (heard - 400) // samples_per_frame) - len(speech)
        part, state = vad.take(state, len(speech), max(0, frames), samples_per_frame)
        speech += part.tolist()
        assert len(state.speech) <= 400 // WINDOW + samples_per_frame // WINDOW + 3
        assert len(state.samples) < CONTEXT + WINDOW
    assert state.windows == len(samples) // WINDOW == int(state.hidden[0, 0, 0])
    expected = frames_by_hand(samples, len(speech), samples_per_frame)
    assert speech == expected
    assert 0 < sum(expected) < len(expected)


def test_streams_are_cut_where_the_vad_says_and_lose_no_words() -> None:
    loaded = checkpoint({"name": "gru", "bidirectional": False})
    endpoint = {"silence_seconds": 1.0, "trailing_seconds": 0.5, "longest_seconds": 9.0}
    config = loaded.config.model_copy(update={"decode": loaded.config.decode.model_validate({"endpoint": endpoint})})
    loaded = dataclasses.replace(loaded, config=config)
    loud, quiet = 5 * audio(2.0), 0.01 * audio(1.5, seed=2)
    samples = np.concatenate((loud, quiet, loud, quiet))

    def segments(size: int) -> list[Transcript]:
        stream, found = Recognizer(loaded, "cpu", endpoints=True, vad=loudness_vad()).stream(), []
        for chunk in np.split(samples, range(size, len(samples), size)):
            stream.accept_waveform(chunk)
            found += stream.result().segments
            stream.state = pickle.loads(pickle.dumps(stream.state))  # noqa: S301 -- our own bytes
        last = stream.finish()
        return [*found, *stream.result().segments, last]

    expected = segments(len(samples))
    assert len(expected) >= 3  # the net of random weights hears words in the quiet parts too
    spoken = [segment for segment in expected if segment.words]
    assert any(2.0 < segment.words[-1].end_seconds <= 2.6 for segment in spoken)
    for size in (1000, 5000):
        for one, other in zip(segments(size), expected, strict=True):
            same(one, other)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="got a model of 8000 Hz, expected 16000"):
        SileroVad(8000)
    monkeypatch.setattr(vad_module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'asr-toolkit\[vad\]'"):
        SileroVad(RATE_HZ)


def test_the_net_itself() -> None:
    pytest.importorskip("silero_vad", reason="needs the extra vad")
    from silero_vad import load_silero_vad  # type: ignore[import-not-found]

    files = sorted((shared_data("an4") / "flac").rglob("*.flac"))[:3]
    samples = np.concatenate([part for file in files for part in (read_audio(file), np.zeros(20_000, np.float32))])
    vad = SileroVad(RATE_HZ)
    state = vad.initial_state()
    for chunk in np.array_split(samples, 17):
        state = vad.step(state, chunk)
    whole = samples[: len(samples) // WINDOW * WINDOW]
    net = load_silero_vad(sequence=True)
    expected = net.audio_forward(whole) >= vad_module.THRESHOLD
    assert np.array_equal(state.speech, expected)
    assert 0 < expected.sum() < len(expected)
