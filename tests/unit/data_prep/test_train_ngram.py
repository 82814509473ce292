"""Language models against KenLM's lmplz and against the equations; texts in every form; what goes wrong."""

import gzip
import io
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from asr.checkpoint import save
from asr.config.schema import Text
from asr.errors import ConfigError, DataError
from asr.text.tokenizer import CharacterTokenizer
from data_prep import _ngram_text, train_ngram
from data_prep._external_sort import ExternalSort
from data_prep._kneser_ney import KneserNey, Packing
from data_prep._ngram_text import number_text
from tests.support.align import small_checkpoint
from tests.support.kneser_ney import BEGIN, END, Model, estimate, log10, read_arpa

GOLDEN = Path(__file__).parents[2] / "golden"
FALLBACK = (0.5, 1.0, 1.5)


def difference(model: Model, expected: Model) -> float:
    assert model.keys() == expected.keys()
    assert expected
    return float(np.abs(np.array([model[ngram] for ngram in expected]) - list(expected.values())).max())


def trained(text: str, output: Path, **options) -> Model:
    path = output.with_name("text")
    path.write_bytes(text.encode())
    train_ngram.train_ngram([path], output, **options)
    return read_arpa(output)


@pytest.mark.parametrize(("name", "prune"), [("kneser_ney", []), ("kneser_ney_pruned", [0, 1, 1])])
def test_equals_lmplz(tmp_path: Path, name: str, prune: list[int]) -> None:
    output = tmp_path / "lm.arpa"
    summary = train_ngram.train_ngram([GOLDEN / "kneser_ney.txt"], output, order=3, prune=prune)
    assert difference(read_arpa(output), read_arpa(GOLDEN / f"{name}.arpa")) <= 2e-6
    assert [order.num_counted for order in summary.orders] == [270, 764, 1082]
    assert summary.orders[1].discounts == pytest.approx((0.707071, 1.43312, 0.901597), abs=1e-5)


def slow(text: str, order: int, thresholds: Sequence[int] = (0,), **options) -> Model:
    lines = text.removesuffix("\n").split("\n")
    thresholds = [*thresholds] + [thresholds[-1]] * (order - len(thresholds))
    return estimate([line.split() for line in lines], order, thresholds=thresholds, fallback=FALLBACK, **options)


sentences = st.lists(st.lists(st.sampled_from("aaaabbbccde"), max_size=7).map(" ".join), min_size=1, max_size=40)


@given(
    sentences,
    st.integers(1, 5),
    st.lists(st.integers(0, 3), min_size=1, max_size=3),
    st.sets(st.sampled_from("abc")),
    st.sampled_from([4, 21, 30, 40]),
)
@settings(max_examples=60)
def test_equals_the_equations(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[str],
    order: int,
    prune: list[int],
    left_out: set[str],
    bits: int,
) -> None:
    """With room for a few rows only, so that every table is sorted in runs on disk; and rows of 1 to 5 numbers."""
    text = "\n".join(lines) + "\n"
    assume(set(text.split()) - left_out)
    thresholds = sorted(prune)[:order]
    folder = tmp_path_factory.mktemp("tables")
    (folder / "text").write_text(text)
    numbered = number_text([folder / "text"], folder / "ids")
    with patch.object(Packing, "of", return_value=Packing(bits, 64 // bits)):
        model = KneserNey(
            numbered,
            folder,
            order=order,
            thresholds=thresholds + [thresholds[-1]] * (order - len(thresholds)),
            left_out=np.array([word.decode() in left_out for word in numbered.words]),
            fallback=FALLBACK,
            max_bytes=600,
        )
    counted: list[int] = []
    estimated: list[int] = []
    model.estimate(model.count(counted.append), estimated.append)
    assert (sum(counted), sum(estimated)) == (len(text.split()) + len(lines), order)
    words = [word.decode() for word in numbered.words]
    found: Model = {}
    for n in range(1, order + 1):
        for ids, logs, weights in model.ngrams(n):
            keys = [tuple(words[i] for i in ngram) for ngram in ids.tolist()]
            found |= zip(keys, zip(logs.tolist(), weights.tolist(), strict=True), strict=True)
    assert difference(found, slow(text, order, thresholds, left_out=frozenset(left_out))) < 1e-9


@pytest.mark.parametrize("prune", [[], [0, 0, 1], [1, 2]])
def test_every_context_sums_to_one(tmp_path: Path, prune: list[int]) -> None:
    output = tmp_path / "lm.arpa"
    train_ngram.train_ngram([GOLDEN / "kneser_ney.txt"], output, order=4, prune=prune, discount_fallback=FALLBACK)
    model = read_arpa(output)
    words = [ngram[0] for ngram in model if len(ngram) == 1 and ngram != (BEGIN,)]
    contexts = {ngram[:-1] for ngram in model} | {("it", "is"), ("never seen", BEGIN)}
    assert len(contexts) > 100
    for context in contexts:
        assert math.isclose(sum(10 ** log10(model, context, word) for word in words), 1.0, abs_tol=1e-5), context


def test_external_sort(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 2**22, (5000, 3), np.uint64) << np.array([30, 1, 0], np.uint64)
    sort = ExternalSort(tmp_path / "rows", key_bits=[(30, 52), (1, 23)], num_words=3, max_rows=300)
    for part in np.split(rows, [0, 1, 700, 4000]):
        sort.add(part)
    chunks = list(sort.sorted_chunks())
    assert max(map(len, chunks)) <= 300
    assert len(chunks) > 16
    np.testing.assert_array_equal(np.concatenate(chunks), rows[np.lexsort((rows[:, 1], rows[:, 0]))])
    assert not list(tmp_path.iterdir())


def test_text_in_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (GOLDEN / "kneser_ney.txt").read_text()
    expected = trained(text, tmp_path / "lm.arpa", order=3)
    half = text.index("\n", len(text) // 2) + 1
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf" + text[:half].removesuffix("\n").replace("\n", " \r\n").encode())
    (tmp_path / "b").write_bytes(gzip.compress(text[half:].replace(" ", "\t ").encode()))
    monkeypatch.setattr(_ngram_text, "BLOCK_BYTES", 7)
    train_ngram.train_ngram([tmp_path / "a", tmp_path / "b"], tmp_path / "c.arpa.gz", order=3)
    assert gzip.decompress((tmp_path / "c.arpa.gz").read_bytes()) == (tmp_path / "lm.arpa").read_bytes()
    packed = gzip.compress(text.encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(packed))))
    train_ngram.train_ngram(["-"], tmp_path / "c.arpa", order=3)
    assert read_arpa(tmp_path / "c.arpa") == expected
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b", "c.arpa", "c.arpa.gz", "lm.arpa", "text"]


def test_empty_lines_are_sentences(tmp_path: Path) -> None:
    text = "\na b\n\n\nb a\n"
    model = trained(text, tmp_path / "lm.arpa", order=2, discount_fallback=FALLBACK)
    assert difference(model, slow(text, 2)) <= 1e-6
    assert (BEGIN, END) in model
    summary = train_ngram.train_ngram([tmp_path / "text"], tmp_path / "lm.arpa", order=2, discount_fallback=FALLBACK)
    assert (summary.num_words, summary.num_sentences, summary.num_empty) == (4, 5, 3)


def test_characters(tmp_path: Path) -> None:
    options = {"order": 3, "discount_fallback": FALLBACK}
    model = trained(
        "\u4f60\u597d \u4e16\u754c\n\u4e16\u754c\u3000\u4f60 \u597d", tmp_path / "lm.arpa", characters=True, **options
    )
    assert model == trained(
        "\u4f60 \u597d \u4e16 \u754c\n\u4e16 \u754c \u4f60 \u597d\n", tmp_path / "lm.arpa", **options
    )


@pytest.fixture
def tokenizer() -> CharacterTokenizer:
    return CharacterTokenizer("abcdefghijklmnopqrstuvwxyz' ", Text())


def test_normalised_as_the_model_spells(tmp_path: Path, tokenizer: CharacterTokenizer) -> None:
    options = {"order": 2, "discount_fallback": FALLBACK}
    path = tmp_path / "text"
    path.write_text("Hello, well-known WORLD!\n'It's' caf\u00e9 -- it\u2019s\n")
    output = tmp_path / "lm.arpa"
    summary = train_ngram.train_ngram([path], output, tokenizer=tokenizer, **options)
    assert summary.num_left_out == 1
    model = read_arpa(output)
    plain = "hello well known world\nit's caf\u00e9 it's\n"
    assert difference(model, slow(plain, 2, left_out=frozenset(["caf\u00e9"]))) <= 1e-6
    (tmp_path / "words").write_text("HELLO It's other")
    train_ngram.train_ngram([path], output, tokenizer=tokenizer, vocabulary=tmp_path / "words", **options)
    assert {ngram[0] for ngram in read_arpa(output) if len(ngram) == 1} == {"<unk>", "<s>", "</s>", "hello", "it's"}


@given(st.lists(st.text(), max_size=4).map(" ".join))
def test_words_are_normalised_one_by_one(text: str) -> None:
    tokenizer = CharacterTokenizer("a", Text())
    assert " ".join(" ".join(map(tokenizer.normalize, text.split())).split()) == tokenizer.normalize(text)


def test_what_cannot_be_trained_on(tmp_path: Path) -> None:
    path, output = tmp_path / "text", tmp_path / "lm.arpa"

    def refused(content: bytes, message: str, error: type[Exception] = DataError, **options) -> None:
        path.write_bytes(content)
        with pytest.raises(error, match=message):
            train_ngram.train_ngram([path], output, **{"order": 2} | options)

    refused(b"", r"text: no words in it; expected text, one sentence a line")
    refused(b"\n\n", "no words in it")
    refused(b"a b\nc \xff d\n", r"text:2: got byte 0xff, expected UTF-8")
    refused(b"a b\n\nc <s> d\n", r"text:3: got the word <s>, which a language model has for itself")
    refused(b"a </s> b\n", r"text:1: got the word </s>")
    refused(
        b"a b\nc d\n", r"discounts of 2-grams cannot be computed: no 2-gram has the adjusted count 2\..*--discount-fal"
    )
    refused(b"a\nb\n" * 4, r"no 2-gram has the adjusted count 1")
    refused(b"\x1f\x8b\x08 cut", r"text: cannot be read: ")
    refused(b"a", r"--order: got 0, expected 1 or more", ConfigError, order=0)
    refused(b"a", r"--prune: got 3 thresholds, expected at most 2", ConfigError, prune=[0, 0, 1])
    refused(b"a", r"--prune: got 1 0, expected counts >= 0 that do not fall", ConfigError, prune=[1, 0])
    refused(b"a", r"--discount-fallback: got 2 for count 1, expected 0 to 1", ConfigError, discount_fallback=(2, 2, 2))
    refused(b"a", r"words: cannot be read", vocabulary=tmp_path / "words")
    (tmp_path / "words").write_text("A B")
    refused(b"a b\n", r"words: none of the text's words fits, such as 'a'", vocabulary=tmp_path / "words")
    with pytest.raises(DataError, match=r"gone: No such file or directory; expected a text"):
        train_ngram.train_ngram([tmp_path / "gone"], output, order=2)
    with pytest.raises(DataError, match="Is a directory; expected a text"):
        train_ngram.train_ngram([tmp_path], output, order=2)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["text", "words"]


def test_discounts_out_of_range(tmp_path: Path) -> None:
    # Bigrams: 3 once, 1 twice, 1 three times, 5 four times, so D3+ would be 3 - 4 * 0.6 * 5.
    counts = [1, 1, 1, 2, 3, 4, 4, 4, 4, 4]
    text = "".join(f"w{i}\n" * count for i, count in enumerate(counts))
    with pytest.raises(DataError, match=r"1-grams cannot .*: that of adjusted count 3 would be -9, expected 0 to 3"):
        trained(text, tmp_path / "lm.arpa", order=1)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "models" / "lm.arpa"
    arguments = [str(GOLDEN / "kneser_ney.txt"), "--order", "3", "--output", str(output)]
    assert train_ngram.main(arguments) == 0
    out = capsys.readouterr().out
    assert "1904 words in 320 sentences" in out
    assert "2-grams: 764; discounts 0.7071 1.4331 0.9016" in out
    assert train_ngram.main([*arguments, "--prune", "0", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [order["kept"] for order in found["orders"]] == [270, 323, 263]
    assert difference(read_arpa(output), read_arpa(GOLDEN / "kneser_ney_pruned.arpa")) <= 2e-6

    small = tmp_path / "small"
    small.write_text("a b\n")
    with pytest.raises(SystemExit) as left:
        train_ngram.main([str(small), *arguments[1:]])
    assert left.value.code == 1
    assert "train_ngram: the discounts of 3-grams cannot be computed" in capsys.readouterr().err
    assert train_ngram.main([str(small), *arguments[1:], "--discount-fallback"]) == 0
    assert "2-grams: 3; discounts 0.5000 1.0000 1.5000, fallback" in capsys.readouterr().out

    made = small_checkpoint()
    weights = made.model.state_dict()
    save(tmp_path / "run", weights=weights, config=made.config, tokenizer=made.tokenizer, provenance={})
    small.write_text("A B \u00e9\n\n")
    assert train_ngram.main([str(small), *arguments[1:], "--discount-fallback", "--model", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "train_ngram: 1 different words were left out of the model",
        "train_ngram: 1 empty lines count as sentences without words",
    ]
    assert ("a", "b") in read_arpa(output)
