"""Weighing a language model: the grid, the warning that it does not help, and a model of another case."""

from pathlib import Path

import pytest
import soundfile

from asr.config.schema import Text
from asr.decode import tune_lm
from asr.decode.ngram import NgramModel
from asr.decode.recognizer import Recognizer
from asr.errors import DataError
from asr.text.tokenizer import build_tokenizer
from asr.types import Utterance
from tests.unit.decode.test_stream import audio, checkpoint

ARPA = """\\data\\
ngram 1=5

\\1-grams:
-1.0 <unk>
-99 <s>
-1.0 </s>
-0.5 {one}
-0.5 {two}

\\end\\
"""


def arpa(folder: Path, one: str = "ab", two: str = "cd") -> Path:
    path = folder / "lm.arpa"
    path.write_text(ARPA.format(one=one, two=two))
    return path


def test_every_pair_is_measured_and_alpha_0_is_decoding_without_the_model(tmp_path: Path) -> None:
    recognizer = Recognizer(checkpoint({"name": "gru"}), "cpu")
    soundfile.write(tmp_path / "a.wav", audio(1.0), 16000, subtype="FLOAT")
    text = recognizer.transcribe(tmp_path / "a.wav").text
    utterances = [Utterance("a", str(tmp_path / "a.wav"), text, 1.0), Utterance("b", str(tmp_path / "b.wav"), "x", 1.0)]
    lm = NgramModel.read(arpa(tmp_path))
    rates, greedy = tune_lm.tune(recognizer, utterances, lm, [0.0, 5.0], [0.0, 1.0], beam=8)
    assert set(rates) == {(0.0, 0.0), (0.0, 1.0), (5.0, 0.0), (5.0, 1.0)}
    assert greedy == 0.0  # the reference is what greedy decoding gives; the file that is missing is left out
    assert rates[5.0, 0.0] != rates[0.0, 0.0]
    assert len(list(tune_lm.table(rates))) == 3
    tune_lm.draw(tmp_path / "surface.png", rates)
    assert (tmp_path / "surface.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--beam", "0"], "--beam: got 0, expected 1 or more"),
        (["--alphas", "0,-1"], "--alphas: got '0,-1', expected numbers of 0 or more"),
        (["--alphas", "0,inf"], "--alphas: got '0,inf', expected numbers parted by commas"),
        (["--betas", "one"], "--betas: got 'one', expected numbers parted by commas"),
    ],
)
def test_weights_that_no_search_has_are_refused(
    option: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        tune_lm.main(["model", "dev.jsonl", "--lm", "lm.arpa", *option])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_nothing_to_tune_on_is_said(tmp_path: Path) -> None:
    recognizer = Recognizer(checkpoint({"name": "gru"}), "cpu")
    missing = [Utterance("b", str(tmp_path / "b.wav"), "x", 1.0)]
    with pytest.raises(DataError, match="none of 1 utterances"):
        tune_lm.tune(recognizer, missing, NgramModel.read(arpa(tmp_path)), [0.0], [0.0], beam=4)


def test_a_model_of_another_case_is_refused_by_name(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(Text(), ["abcd"])
    tune_lm.check_spelling(NgramModel.read(arpa(tmp_path)), tokenizer, "lm.arpa")
    with pytest.raises(DataError, match=r"lm\.arpa: the model never writes 2 of 2 words, such as 'AB', 'CD'.*'ab'"):
        tune_lm.check_spelling(NgramModel.read(arpa(tmp_path, "AB", "CD")), tokenizer, "lm.arpa")
