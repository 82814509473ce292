"""N-best lists: of a recogniser, and as the commands ask for and print them."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
import torch

from asr.decode import search
from asr.decode.beam import BeamDecoder
from asr.decode.greedy import GreedyDecoder
from asr.decode.output import as_json, as_text
from asr.decode.recognizer import Recognizer
from asr.errors import ConfigError
from asr.types import Reading, Transcript
from tests.unit.decode.test_stream import TOKENIZER, audio, checkpoint

TWO = Transcript("a b", (), -2.0, (Reading("a b", -1.5, -2.0, 0.0), Reading("ab", -3.25, -3.0, -1.0)))


def test_readings_are_the_best_texts_with_their_best_scores() -> None:
    decoder = BeamDecoder(TOKENIZER, beam_size=64, beta=0.5)
    recognizer = Recognizer(checkpoint({"name": "gru", "bidirectional": False}), "cpu", decoder=decoder, nbest=4)
    samples = audio(0.8)
    transcript = recognizer.transcribe(samples)
    log_probs = recognizer.log_probs(samples)
    (state,) = decoder.extend([decoder.initial_state()], log_probs[None], torch.tensor([len(log_probs)]))
    expected: dict[str, float] = {}
    for hypothesis in decoder.best(state, 64, final=True):
        expected.setdefault(TOKENIZER.decode(hypothesis.path.ids), hypothesis.total)
    texts = [one.text for one in transcript.nbest]
    assert texts == list(expected)[:4]
    assert [one.score for one in transcript.nbest] == pytest.approx(list(expected.values())[:4])
    assert texts[0] == transcript.text
    assert all(one.lm == 0.0 and one.acoustic < 0 for one in transcript.nbest)


def test_streams_give_the_same_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asr.decode.stream.KEPT_TOKENS", 16)  # tokens have left the decoder's state by the end
    decoder = BeamDecoder(TOKENIZER, beam_size=16)
    recognizer = Recognizer(checkpoint({"name": "gru", "bidirectional": False}), "cpu", decoder=decoder, nbest=3)
    samples = audio(8.0)
    stream = recognizer.stream()
    for chunk in np.array_split(samples, 7):
        stream.accept_waveform(chunk)
        stream.result()
    final, offline = stream.finish(), recognizer.transcribe(samples)
    assert stream.state.settled
    assert [one.text for one in final.nbest] == [one.text for one in offline.nbest]
    assert [one.score for one in final.nbest] == pytest.approx([one.score for one in offline.nbest], abs=1e-2)
    assert len(final.nbest) == 3


def test_greedy_search_has_one_reading() -> None:
    with pytest.raises(ValueError, match="nbest: got 2 with the greedy decoder"):
        Recognizer(checkpoint({"name": "gru"}), "cpu", decoder=GreedyDecoder(), nbest=2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nbest", "3"], "got 3 with greedy search, which has one reading; add --beam SIZE"),
        (["--nbest", "3", "--beam", "2"], "got 3, expected 1 to 2, the beam's size"),
        (["--nbest", "0", "--beam", "2"], "got 0, expected 1 to 2"),
        (["--nbest", "101", "--word-list", "x"], "got 101, expected 1 to 100"),
        (["--nbest", "2", "--beam", "2"], ""),
        ([], ""),
    ],
)
def test_a_list_that_cannot_be_is_refused(arguments: list[str], said: str) -> None:
    parser = argparse.ArgumentParser()
    search.add_arguments(parser)
    search.add_nbest(parser)
    options = parser.parse_args(arguments)
    if said:
        with pytest.raises(ConfigError, match=said):
            search.check_nbest(options)
    else:
        search.check_nbest(options)


def test_readings_are_printed_with_rank_and_score() -> None:
    assert as_text("", TWO) == "1\t-1.500\ta b\n2\t-3.250\tab"
    assert as_text("x.wav", TWO).splitlines()[1] == "x.wav\t2\t-3.250\tab"
    assert as_text("x.wav", Transcript("a b")) == "x.wav\ta b"
    row = json.loads(as_json("x.wav", TWO))
    assert row["nbest"][1] == {"text": "ab", "score": -3.25, "acoustic": -3.0, "lm": -1.0}
    assert list(json.loads(as_json("x.wav", Transcript("a b")))) == ["audio", "text", "words", "log_prob"]
