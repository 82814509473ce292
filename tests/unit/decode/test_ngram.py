"""N-gram models against dictionaries and hand-worked values; and every way in which an ARPA file can be wrong."""

from __future__ import annotations

import contextlib
import gzip
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.decode.ngram import NgramModel
from asr.errors import DataError
from tests.support.ngram import DictModel, random_orders, write_arpa

WORDS = ["the", "cat", "sat", "\u00fcber"]
BY_HAND = """\
made by hand

\\data\\
ngram 1=5
ngram 2=4
ngram 3=1

\\1-grams:
-1.0\t<unk>\t0
-99\t<s>\t-0.5
-0.7\t</s>
-0.4\ta\t-0.3
-0.6\tb\t-0.2

\\2-grams:
-0.25\t<s> a\t-0.1
-0.35\ta b\t-0.15
-0.45\tb </s>
-0.55\ta a

\\3-grams:
-0.05\t<s> a b

\\end\\
"""


@pytest.fixture
def by_hand(tmp_path: Path) -> Path:
    path = tmp_path / "hand.arpa"
    path.write_text(BY_HAND)
    return path


@pytest.mark.parametrize(
    ("sentence", "log10"),
    [
        ("a b", -0.25 - 0.05 - 0.15 - 0.45),  # the last from the context "a b", which backs off to "b"
        ("", -0.5 - 0.7),
        ("a a", -0.25 + (-0.1 - 0.55) + (-0.3 - 0.7)),
        ("b", (-0.5 - 0.6) - 0.45),
        ("c a", (-0.5 - 1.0) - 0.4 + (-0.3 - 0.7)),
    ],
)
def test_values_worked_by_hand(by_hand: Path, sentence: str, log10: float) -> None:
    assert NgramModel.read(by_hand).score(sentence.split()) == pytest.approx(log10, abs=1e-6)


def test_ends_of_the_sentence_can_be_left_out(by_hand: Path) -> None:
    model = NgramModel.read(by_hand)
    assert model.score(["b"], bos=False, eos=False) == pytest.approx(-0.6)
    assert model.score(["b"], bos=True, eos=False) == pytest.approx(-0.5 - 0.6)
    assert model.score(["a", "b"], bos=False) == pytest.approx(-0.4 - 0.35 - 0.15 - 0.45)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("keep", [0.1, 0.5, 1.0])
def test_every_sentence_as_by_dictionaries(order: int, keep: float, tmp_path: Path) -> None:
    """With random n-grams, so that contexts and suffixes are missing, as after pruning."""
    words = WORDS[: 4 if order < 5 else 2]
    path = write_arpa(tmp_path / "lm.arpa", random_orders(words, order=order, keep=keep, seed=order))
    model, reference = NgramModel.read(path), DictModel(path)
    assert model.order == order
    assert set(model.words) == {*words, "<s>", "</s>", "<unk>"}
    for length in range(5):
        for sentence in itertools.product([*words, "other"], repeat=length):
            for bos, eos in itertools.product([False, True], repeat=2):
                expected = reference.score(sentence, bos=bos, eos=eos)
                assert model.score(sentence, bos=bos, eos=eos) == pytest.approx(expected, abs=1e-5)


def test_the_state_is_a_bounded_number(tmp_path: Path) -> None:
    path = write_arpa(tmp_path / "lm.arpa", random_orders(WORDS, order=3, keep=0.7, seed=0))
    model = NgramModel.read(path)
    num_contexts = len(model.arrays.contexts) - 1
    for state in range(num_contexts):
        for word in range(len(model.words)):
            assert 0 <= model.next(state, word)[1] < num_contexts


def test_at_most_16_bytes_an_ngram(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    text = [f"w{int(w)}" for w in generator.zipf(1.3, 20000) % 500]
    counted = [{tuple(text[i : i + n]): (-1.0, -0.1) for i in range(len(text) - n)} for n in (1, 2, 3, 4)]
    model = NgramModel.read(write_arpa(tmp_path / "lm.arpa", counted))
    assert model.num_ngrams > 20000
    assert model.num_bytes / model.num_ngrams <= 16


def test_gzip_spaces_and_missing_weights(by_hand: Path, tmp_path: Path) -> None:
    zipped = tmp_path / "lm.gz"
    zipped.write_bytes(gzip.compress(BY_HAND.replace("\t", "  ").replace("\n", " \r\n").encode()))
    expected = NgramModel.read(by_hand)
    for sentence in ([], ["a", "b"], ["b", "x"]):
        assert NgramModel.read(zipped).score(sentence) == expected.score(sentence)


def test_minus_infinity_is_as_good_as_never(by_hand: Path) -> None:
    by_hand.write_text(BY_HAND.replace("-0.05\t<s> a b", "-inf\t<s> a b"))
    assert NgramModel.read(by_hand).score(["a", "b"], eos=False) == pytest.approx(-0.25 - 100)


def test_no_unknown_word_and_no_end(tmp_path: Path) -> None:
    path = write_arpa(tmp_path / "lm.arpa", [{("a",): (-0.5, 0.0)}])
    model = NgramModel.read(path)
    assert "b" not in model
    assert model.score(["a"]) == pytest.approx(-0.5)
    assert model.score(["b"]) == pytest.approx(-100.0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\\data\\", "data", r":25: got the end of the file, expected a line \\data\\"),
        ("ngram 1=5\n", "", r":4: got 'ngram 2=4', expected ngram 1=COUNT"),
        ("ngram 1=5\nngram 2=4\nngram 3=1\n", "", r":5: got '.*1-grams:', expected ngram 1=COUNT"),
        ("ngram 2=4", "ngram 2=5", r":21: got '.*3-grams:', expected a log10 probability <= 0, 2 words"),
        ("ngram 2=4", "ngram 2=3", r":19: got '-0.55.*a a', expected .*3-grams:"),
        ("-0.25\t<s> a", "x\t<s> a", r":16: got 'x.*<s> a.*-0.1', expected a log10"),
        ("-0.25\t<s> a", "0.25\t<s> a", r":16: got '0.25"),
        ("-0.25\t<s> a", "nan\t<s> a", r":16: got 'nan"),
        ("a\t-0.1", "a\tinf", r":16: got '-0.25.*inf"),
        ("<s> a\t", "<s> c\t", r":16: got '-0.25.*c"),
        ("<s> a\t", "<s>\t", r":16: got '-0.25"),
        ("<s> a\t", "<s> a b b\t", r":16: got '-0.25"),
        ("-0.6\tb", "-0.6\ta", r":13: got '-0.6.*a.*', expected each word once"),
        ("a a\n", "a b\n", r"got the 2-gram 'a b' twice"),
        ("\\end\\\n", "", r":24: got the end of the file, expected .*end.* after 1 3-grams"),
        ("</s>", "\udcff", r":11: got '-0.7.*, expected a log10 probability <= 0, 1 words"),
    ],
)
def test_wrong_files_are_named_with_the_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in BY_HAND
    path = tmp_path / "bad.arpa"
    path.write_bytes(BY_HAND.replace(old, new).encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=f"bad.arpa.*{message}"):
        NgramModel.read(path)


def test_files_that_are_not_there_or_cut_off(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent"):
        NgramModel.read(tmp_path / "absent.arpa")
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(BY_HAND.encode())[:-40])
    with pytest.raises(DataError, match="cut"):
        NgramModel.read(cut)


@settings(max_examples=200)
@given(
    line=st.integers(0, BY_HAND.count("\n") - 1),
    text=st.text(alphabet="\\ab-1.0\t <>s/=:ngram", max_size=12),
)
def test_any_damage_is_an_error_or_harmless(line: int, text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    lines = BY_HAND.splitlines()
    lines[line] = text
    path = tmp_path_factory.mktemp("damaged") / "lm.arpa"
    path.write_text("\n".join(lines))
    with contextlib.suppress(DataError):
        assert np.isfinite(NgramModel.read(path).score(["a", "b", "c"]))


def test_as_kenlm_does(tmp_path: Path) -> None:
    kenlm = pytest.importorskip("kenlm", reason="KenLM is not installed")
    path = write_arpa(tmp_path / "lm.arpa", random_orders(WORDS, order=3, keep=1.0, seed=3))
    model, peer = NgramModel.read(path), kenlm.Model(str(path))
    for sentence in itertools.product([*WORDS, "other"], repeat=3):
        assert model.score(sentence) == pytest.approx(peer.score(" ".join(sentence)), abs=1e-4)
