"""Tokenizers: round trips, unknown characters, checkpoints."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.config.schema import Text
from asr.errors import CheckpointError, ConfigError, DataError
from asr.text.tokenizer import Tokenizer, build_tokenizer, tokenizer_from_json, unknown_characters

TEXTS = ["The cat sat on the mat", "a quick brown fox jumps over the lazy dog", "don't panic", "pack my box"] * 3
KINDS = {"characters": 1, "bigrams": 1, "bpe": 60, "unigram": 38}


@pytest.fixture(scope="module", params=KINDS.items(), ids=list(KINDS))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    kind, size = request.param
    return build_tokenizer(Text(tokenizer=kind, vocabulary_size=size), TEXTS)


@given(words=st.lists(st.text("abcdefghij'klmnopqrstuvwxyz", min_size=1, max_size=9), max_size=6))
def test_round_trip(tokenizer: Tokenizer, words: list[str]) -> None:
    text = tokenizer.normalize(" ".join(words))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 < i < tokenizer.num_tokens for i in ids)


def test_survives_a_checkpoint(tokenizer: Tokenizer) -> None:
    again = tokenizer_from_json(tokenizer.to_json())
    assert again.pieces == tokenizer.pieces
    assert [again.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
    assert again.to_json() == tokenizer.to_json()


def test_same_texts_give_the_same_tokenizer(tokenizer: Tokenizer) -> None:
    assert build_tokenizer(tokenizer.policy, TEXTS).to_json() == tokenizer.to_json()


def test_word_boundaries(tokenizer: Tokenizer) -> None:
    """Splitting at spaces and word-initial tokens gives back the words."""
    words: list[list[int]] = [[]]
    for token in tokenizer.encode("the lazy cat don't"):
        if tokenizer.is_space(token) or tokenizer.starts_word(token):
            words.append([])
        if not tokenizer.is_space(token):
            words[-1].append(token)
    assert [tokenizer.decode(word) for word in words if word] == ["the", "lazy", "cat", "don't"]


def test_blank_is_0_and_in_no_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.pieces[0] == "<blank>"
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_unknown_characters_are_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"U\+00E9, LATIN SMALL LETTER E WITH ACUTE"):
        tokenizer.encode("caf\u00e9")
    found = unknown_characters(tokenizer, [("a.txt:3", "\u00e9\u00e9"), ("b.txt:1", "\u00e9 \u00fc cat")])
    assert [(u.character, u.count, u.where) for u in found] == [("\u00e9", 3, "a.txt:3"), ("\u00fc", 1, "b.txt:1")]
    assert "3 times, first in a.txt:3" in str(found[0])


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_letters_of_sentencepieces_unknown_piece_are_not_known(kind: str) -> None:
    """Its name, <unk>, is in the list of pieces, but spells nothing."""
    tokenizer = build_tokenizer(Text(tokenizer=kind, vocabulary_size=12), ["the cat sat on the mat"] * 3)
    assert tokenizer.characters == frozenset("the cat sat on the mat")
    assert [u.character for u in unknown_characters(tokenizer, [("a:1", "sunk")])] == ["k", "u"]
    with pytest.raises(DataError, match=r"U\+006B, LATIN SMALL LETTER K"):
        tokenizer.encode("k")


def test_bigrams_are_the_papers() -> None:
    """Deep Speech 2, section 3.6: "the cat sat" is th, e, space, ca, t, space, sa, t."""
    tokenizer = build_tokenizer(Text(tokenizer="bigrams"), TEXTS)
    assert [tokenizer.pieces[i] for i in tokenizer.encode("the cat sat")] == [
        "th", "e", " ", "ca", "t", " ", "sa", "t",
    ]  # fmt: skip
    assert [tokenizer.pieces[i] for i in tokenizer.encode("zq")] == ["z", "q"]  # a pair never seen


def test_impossible_vocabulary_sizes_name_the_bound() -> None:
    with pytest.raises(ConfigError, match=r"text.vocabulary_size: got 5000.*value <= \d+"):
        build_tokenizer(Text(tokenizer="bpe", vocabulary_size=5000), TEXTS)
    with pytest.raises(ConfigError, match=r"got 5,.*required_chars"):
        build_tokenizer(Text(tokenizer="unigram", vocabulary_size=5), TEXTS)


def test_no_texts() -> None:
    with pytest.raises(DataError, match="all empty"):
        build_tokenizer(Text(), ["", " ?! "])


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"policy": {"tokenizer": "bpe"}, "model": "AAAA"}'])
def test_damaged_tokenizer(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer.json: got"):
        tokenizer_from_json(text)
