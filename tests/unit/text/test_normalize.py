"""Text normalisation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.text.normalize import normalize


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello,   World!", "hello world"),
        ("DON\u2019T 'quote' rock 'n' roll", "don't quote rock n roll"),
        ("e\u0301t\u00e9", "\u00e9t\u00e9"),
        ("a\u200bb\u202ec\x00d", "abcd"),
        ("tab\there\nline\u00a0nbsp", "tab here line nbsp"),
        ("well-known 3.5% 1984", "well known 3 5 1984"),
        ("\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u4f60\u597d \u4e16\u754c"),
        ("a\u0085b\x1cc", "a b c"),
        ("e\u200b\u0301t\x00\u0301e", "\u00e9t\u0301e"),
        ("i\u0000\u0307\u0307", "i"),
        ("  ", ""),
    ],
)
def test_default_policy(text: str, expected: str) -> None:
    assert normalize(text) == expected


def test_turkish_has_its_own_i() -> None:
    assert normalize("DI\u015e \u0130L", language="tr") == "d\u0131\u015f il"
    assert normalize("i", case="upper", language="tr-TR") == "\u0130"
    assert normalize("\u0130L", language="en") == "il"


def test_joiners_are_spelling_in_persian_and_noise_elsewhere() -> None:
    word = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"  # "I want", as Persian spells it
    assert normalize(f"\u200c{word}\u200c \u200d!", language="fa-IR") == word
    assert "\u200c" not in normalize(word, language="en")


def test_case_and_punctuation_can_be_kept() -> None:
    assert normalize("Hello, World!", case="keep", punctuation="keep") == "Hello, World!"
    assert normalize("stra\u00dfe", case="upper") == "STRASSE"


@given(
    st.text(max_size=30) | st.text("a\u0301\u200c\u200d '.", max_size=12),
    st.sampled_from(["lower", "upper", "keep"]),
    st.sampled_from(["remove", "keep"]),
    st.sampled_from(["en", "tr", "fa"]),
)
def test_idempotent(text: str, case: str, punctuation: str, language: str) -> None:
    settings = {"case": case, "punctuation": punctuation, "language": language}
    once = normalize(text, **settings)
    assert normalize(once, **settings) == once
    assert once == " ".join(once.split())
